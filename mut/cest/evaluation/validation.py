"""Evaluation on a held-out clip set: every frame once, without augmentation."""

from collections import defaultdict

import datasets
import numpy as np
import torch
from torch import nn

from cest.data.augmentation import Relighter, Similarity
from cest.data.clips import FrameBatch, read_frame
from cest.data.face_region import face_region
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


def prepared(image: np.ndarray, landmarks: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """A frame at the estimator's size: image, mask, landmarks, as FrameBatch.stack takes them."""
    scale = size / len(image)
    warp = Similarity(np.float64([[scale, 0, 0], [0, scale, 0]]), mirrored=False)
    landmarks = warp.landmarks(landmarks, image.shape[1])
    image = warp.image(image, size)
    return image, face_region(image, landmarks), landmarks


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
        max_frames: stop after so many, for a look during training.
        seed: of the light in the relighting test.

    Returns:
        Means over frames: "nme68", "nme51" (inner), both %; "photometric", 0-255 on mask ∧
        coverage; "reflectance_asymmetry" and "texture_asymmetry", 0-255; "directional_light",
        deviation / mean of the shading; "relit_reflectance" and "relit_texture", 0-255, how much
        a change of light alone changes each; "coefficients", mean α²; "frames".
    """
    size, device = model.config.image_size, next(model.parameters()).device
    relighter = Relighter(model.face_model.to("cpu"))
    rng = np.random.default_rng(seed)
    landmark_ids = model.face_model.landmarks
    figures: dict[str, list[torch.Tensor]] = defaultdict(list)

    def take(frames: list) -> None:
        relit = [
            (relighter(image, landmarks, rng, RELIGHT_STRENGTH), mask, landmarks)
            for image, mask, landmarks in frames
        ]
        batch = FrameBatch.stack([frames]).to(device)
        estimate = model(batch.image)
        again = model(FrameBatch.stack([relit]).to(device).image)
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

    training = model.training
    nn.Module.eval(model)
    pending, total = [], 0
    for row in clips:
        for index in range(len(row["frames"])):
            if max_frames is not None and total == max_frames:
                break
            pending.append(prepared(*read_frame(row, index), size))
            total += 1
            if len(pending) == batch_size:
                take(pending)
                pending = []
    if pending:
        take(pending)
    model.train(training)
    if not total:
        raise ValueError("The clip set has no frame: nothing to evaluate.")
    return {name: torch.cat(values).mean().item() for name, values in figures.items()} | {
        "frames": total
    }
