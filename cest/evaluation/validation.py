"""Evaluation on a held-out clip set: every frame once, without augmentation."""

from collections import defaultdict
from dataclasses import replace

import datasets
import numpy as np
import torch

from cest.data import Frame, FrameBatch, read_frame
from cest.data.augmentation import Relighter, Similarity
from cest.evaluation.metrics import (
    asymmetry,
    directional_share,
    normalised_mean_error,
    photometric_error_255,
    relighting_invariance,
)
from cest.modeling import FaceEstimator
from cest.rendering import shade_surface

RELIGHT_STRENGTH = 0.3


@torch.no_grad()
def evaluate(
    model: FaceEstimator,
    clips: datasets.Dataset,
    batch_size: int = 32,
    max_frames: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Figures on a clip set.

    Args:
        model: in evaluation mode while this runs; its mode is restored.
        clips: rows with frames and landmarks.
        batch_size: frames at a time.
        max_frames: of so many, evenly spread, for a look during training.
        seed: of the light in the relighting test.

    Returns:
        Means over frames: "nme68", "nme51" (inner), both %; "photometric", 0-255 on mask ∧
        coverage; "reflectance_asymmetry" and "texture_asymmetry", 0-255; "directional_light",
        deviation / mean of the shading; "relit_reflectance" and "relit_texture", 0-255, how much
        a change of light alone changes each; "coefficients", mean α²; "frames".
    """
    size, device = model.config.image_size, next(model.parameters()).device
    relighter = Relighter(model.face_model)
    rng = np.random.default_rng(seed)
    landmark_ids = model.face_model.landmarks
    figures: dict[str, list[torch.Tensor]] = defaultdict(list)

    def take(frames: list[Frame]) -> None:
        relit = [
            replace(frame, relighting=relighter.draw(frame.landmarks, size, rng, RELIGHT_STRENGTH))
            for frame in frames
        ]
        batch = FrameBatch.stack([frames]).to(device)
        estimate = model(batch.image)
        again = model(FrameBatch.stack([relit]).to(device).lit(relighter).image)
        rendered, shading = shade_surface(
            estimate.surface, estimate.reflectance_map, estimate.illumination
        )
        points = estimate.projected[:, landmark_ids, :2]
        region = batch.mask * estimate.surface.coverage
        visible = estimate.texture_visibility
        reflectance_change, texture_change = relighting_invariance(estimate, again)
        for name, values in (
            ("nme68", normalised_mean_error(points, batch.landmarks)),
            ("nme51", normalised_mean_error(points, batch.landmarks, inner=True)),
            ("photometric", photometric_error_255(batch.image, rendered, region)),
            ("reflectance_asymmetry", asymmetry(estimate.reflectance_map, visible)),
            ("texture_asymmetry", asymmetry(estimate.illuminated_texture, visible)),
            ("directional_light", directional_share(shading, estimate.surface.coverage)),
            ("relit_reflectance", reflectance_change),
            ("relit_texture", texture_change),
            ("coefficients", estimate.shape_coefficients.square().mean(1)),
        ):
            figures[name].append(values.cpu())

    frames = [(row, i) for row, n in enumerate(_frames_of_rows(clips)) for i in range(n)]
    if max_frames is not None and max_frames < len(frames):
        # Evenly spread, so that a short look sees every source.
        frames = [frames[k * len(frames) // max_frames] for k in range(max_frames)]
    if not frames:
        raise ValueError("The clip set has no frame: nothing to evaluate.")
    training = model.training
    model.eval()
    try:
        for first in range(0, len(frames), batch_size):
            chosen = frames[first : first + batch_size]
            read = (read_frame(clips[row], i) for row, i in chosen)
            take([Frame.prepare(*f, Similarity.resize(len(f[0]), size), size) for f in read])
    finally:
        model.train(training)
    return {name: torch.cat(values).mean().item() for name, values in figures.items()} | {
        "frames": len(frames)
    }


def _frames_of_rows(clips: datasets.Dataset) -> list[int]:
    """Number of frames of each row, read from the landmarks alone, a row at a time."""
    return [len(row["landmarks"]) for row in clips.select_columns("landmarks")]
