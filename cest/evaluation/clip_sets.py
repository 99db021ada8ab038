"""Methods on a held-out clip set: every frame once, without augmentation."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from cest.data import Frame, FrameBatch, read_frame
from cest.data.augmentation import Relighter, Similarity
from cest.data.clips import ClipSet, count_frames
from cest.evaluation.disentanglement import albedo_deviation
from cest.evaluation.groups import tone_group
from cest.evaluation.measurements import Measurements, spread
from cest.evaluation.methods import Estimate, Method
from cest.evaluation.metrics import (
    asymmetry,
    directional_share,
    normalised_mean_error,
    one_sidedness,
    photometric_error_255,
    photometric_error_elsewhere,
    relighting_invariance,
    shading_explained,
)
from cest.modeling import FaceEstimator, FaceParameters
from cest.rendering import shade_surface

RELIGHT_STRENGTH = 0.3
Chosen = tuple[int, list[int]]
"""A row and which of its frames."""


def evaluate(
    model: FaceEstimator,
    clips: ClipSet,
    batch_size: int = 32,
    max_frames: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Means on a clip set for one model: what training looks at on its way.

    Args:
        model: in evaluation mode while this runs; its mode is restored.
        clips, batch_size, max_frames, seed: as in `evaluate_clips`.

    Returns:
        Means of what `evaluate_clips` measures, and "frames", how many. A figure that no frame
        has an answer for is left out, so that the rest can be written as JSON.

    Raises:
        ValueError: there is no frame, or one that cannot be read.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        methods = {"model": Estimate(model)}
        measured = evaluate_clips(methods, clips, batch_size, max_frames, seed, device)
    finally:
        model.train(training)
    means = {name: measured.mean("model", name) for name in measured.values["model"]}
    answered = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return answered | {"frames": len(measured.frames)}


def evaluate_clips(
    methods: Mapping[str, Method],
    clips: ClipSet,
    batch_size: int = 32,
    max_frames: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Measurements:
    """Measures methods on a clip set; memory does not grow with the set.

    Args:
        methods: by name.
        clips: rows with frames and landmarks, and masks if known.
        batch_size: frames at a time, about: a clip's frames stay together, up to so many.
        max_frames: of so many, evenly spread, for a short look.
        seed: of the light in the relighting test, the same for all methods.
        device: of the batches; where the methods' models are.
        progress: whether to draw a bar.

    Returns:
        For each frame "nme68", "nme51" (inner), both %; "photometric", 0-255 on mask ∧ coverage;
        "shading_explained", R²; "reflectance_one_sided", "reflectance_asymmetry" and
        "texture_asymmetry", 0-255; "directional_light", deviation / mean of the shading;
        "relit_reflectance" and "relit_texture", 0-255, how much a change of
        light alone changes each; "relit_photometric", how well the albedo found under that other
        light explains the photo; "coefficients", mean α². For each clip of two frames or more
        "albedo_deviation", and "across_photometric" for each of its frames: how well the albedo of
        the frame before (the last, for the first) explains it. Groups: "skin tone", of the photo,
        not of the skin alone.

    Raises:
        ValueError: there is no frame, or one that cannot be read.
    """
    results = Measurements()
    relighters = {name: Relighter(method.face_model) for name, method in methods.items()}
    rng = np.random.default_rng(seed)
    chosen = _chosen(clips, max_frames)
    total = sum(len(frames) for _, frames in chosen)
    if not total:
        raise ValueError("The clip set has no frame: nothing to evaluate.")
    bar = tqdm(total=total, unit="frame", disable=not progress)
    for group in _batches(chosen, batch_size):
        read = []
        for row_number, numbers in group:
            row = clips[row_number]
            count_frames(row)
            for i in numbers:
                masks = [row["masks"][i]] if row.get("masks") else []
                known = row["frames"][i], row["landmarks"][i], *masks
                results.read(f"{row['clip_id']}/{i}", *known)
            read.append([read_frame(row, i) for i in numbers])
        sizes = {method.size for method in methods.values()}
        prepared = {size: [[_prepared(f, size) for f in clip] for clip in read] for size in sizes}
        results.groups["skin tone"] += [
            tone_group(f.image, f.mask) for clip in prepared[min(sizes)] for f in clip
        ]
        state = rng.bit_generator.state
        for name, method in methods.items():
            frames, relighter = prepared[method.size], relighters[name]
            rng.bit_generator.state = state  # the same light for every method
            lit = [[_under_other_light(f, relighter, rng) for f in clip] for clip in frames]
            batch = FrameBatch.stack(frames).to(device)
            relit = FrameBatch.stack(lit).to(device).lit(relighter)
            estimate = method(batch.image, batch.landmarks, batch.mask)
            again = method(relit.image, batch.landmarks, batch.mask)
            _measure(results, name, method, batch, estimate, again)
        bar.update(sum(len(frames) for _, frames in group))
    bar.close()
    return results


@torch.no_grad()
def _measure(
    results: Measurements,
    name: str,
    method: Method,
    batch: FrameBatch,
    estimate: FaceParameters,
    again: FaceParameters,
) -> None:
    rendered, shading = shade_surface(
        estimate.surface, estimate.reflectance_map, estimate.illumination
    )
    points = estimate.projected[:, method.face_model.landmarks, :2]
    region = batch.mask * estimate.surface.coverage
    visible = estimate.texture_visibility
    reflectance_change, texture_change = relighting_invariance(estimate, again)

    def explained_by(reflectance: torch.Tensor) -> torch.Tensor:
        return photometric_error_elsewhere(
            batch.image, estimate.surface, reflectance, estimate.illumination, batch.mask
        )

    alone = torch.arange(len(batch.clip), device=batch.clip.device)
    before = alone.clone()
    for figure, values in (
        ("nme68", normalised_mean_error(points, batch.landmarks)),
        ("nme51", normalised_mean_error(points, batch.landmarks, inner=True)),
        ("photometric", photometric_error_255(batch.image, rendered, region)),
        ("relit_photometric", explained_by(again.reflectance_map)),
        ("shading_explained", shading_explained(batch.image, shading, region)),
        ("reflectance_one_sided", one_sidedness(estimate.reflectance_map, visible)),
        ("reflectance_asymmetry", asymmetry(estimate.reflectance_map, visible)),
        ("texture_asymmetry", asymmetry(estimate.illuminated_texture, visible)),
        ("directional_light", directional_share(shading, estimate.surface.coverage)),
        ("relit_reflectance", reflectance_change),
        ("relit_texture", texture_change),
        ("coefficients", estimate.shape_coefficients.square().mean(1)),
    ):
        results.add(name, figure, values)
    for clip in range(int(batch.clip[-1]) + 1):
        frames = (batch.clip == clip).nonzero().flatten()
        if len(frames) > 1:
            deviation = albedo_deviation(estimate.reflectance_map[frames], visible[frames])
            results.add(name, "albedo_deviation", [deviation])
            before[frames] = frames.roll(1)
    across = explained_by(estimate.reflectance_map[before])
    results.add(name, "across_photometric", across[before != alone])


def _prepared(frame: tuple, size: int) -> Frame:
    return Frame.prepare(*frame, Similarity.resize(len(frame[0]), size), size)


def _under_other_light(frame: Frame, relighter: Relighter, rng: np.random.Generator) -> Frame:
    size = len(frame.image)
    return replace(frame, relighting=relighter.draw(frame.landmarks, size, rng, RELIGHT_STRENGTH))


def _chosen(clips: ClipSet, max_frames: int | None) -> list[Chosen]:
    """All frames, or `max_frames` of them; counted by the landmarks alone, a row at a time."""
    counts = [len(row["landmarks"] or ()) for row in clips.select_columns("landmarks")]
    if 0 in counts:
        count_frames(clips[counts.index(0)])  # says what is wrong
    frames = [(row, i) for row, count in enumerate(counts) for i in range(count)]
    rows: dict[int, list[int]] = {}
    for row, i in spread(frames, max_frames):
        rows.setdefault(row, []).append(i)
    return list(rows.items())


def _batches(chosen: list[Chosen], size: int) -> Iterator[list[Chosen]]:
    """Whole rows until there are `size` frames; rows with more frames are cut."""
    batch, count = [], 0
    for row, frames in chosen:
        pieces = iter(frames)
        while piece := list(islice(pieces, size)):
            if count and count + len(piece) > size:
                yield batch
                batch, count = [], 0
            batch.append((row, piece))
            count += len(piece)
    if batch:
        yield batch
