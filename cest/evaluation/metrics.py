"""Figures of merit, each defined once; NaN over an empty region, which is no answer."""

import torch
from torch import Tensor

from cest.objective import N_JAW, photometric_error


def answered(values: Tensor, region: Tensor) -> Tensor:
    """Values (B,) over regions (B, ...): NaN where the region is empty.

    A face posed outside the picture would have no error otherwise.
    """
    return values.masked_fill(region.flatten(1).sum(1) == 0, torch.nan)


def normalised_mean_error(predicted: Tensor, truth: Tensor, inner: bool = False) -> Tensor:
    """NME-68: mean 2D distance of the landmarks / sqrt(w h) of the true landmarks' box, in %.

    Args:
        predicted, truth: (B, 68, 2), one frame of coordinates.
        inner: over landmarks 17-67 only (brows, nose, eyes, mouth), normalised by the same box.

    Returns:
        (B,) per cent.
    """
    extent = truth.amax(1) - truth.amin(1)
    distance = (predicted - truth).norm(dim=-1)
    if inner:
        distance = distance[:, N_JAW:]
    return 100 * distance.mean(1) / extent.prod(-1).sqrt()


def photometric_error_255(image: Tensor, rendered: Tensor, region: Tensor) -> Tensor:
    """Mean |I - Î| over the region's pixels, RGB 0-255 (paper, Table 3); shown values are clipped.

    Args:
        image, rendered: (B, 3, H, W) in [0, 1].
        region: (B, 1, H, W), 1 or 0.

    Returns:
        (B,).
    """
    return answered(255 * photometric_error(image, rendered.clamp(0, 1), region), region)


def asymmetry(texture: Tensor, visible: Tensor) -> Tensor:
    """How much a UV map differs from its mirror image: mean |T - flip T|, 0-255.

    Args:
        texture: (B, 3, h, w) in [0, 1].
        visible: (B, 1, h, w); compared are texels visible on both sides.

    Returns:
        (B,).
    """
    both = visible * visible.flip(-1)
    return answered(255 * photometric_error(texture, texture.flip(-1), both), both)


def directional_share(shading: Tensor, coverage: Tensor) -> Tensor:
    """Standard deviation over mean of the shading on the face: 0 is flat light.

    Args:
        shading, coverage: (B, 1, H, W).

    Returns:
        (B,).
    """
    pixels = coverage.sum((1, 2, 3)).clamp(min=1)
    mean = (shading * coverage).sum((1, 2, 3)) / pixels
    deviation = (shading - mean[:, None, None, None]).square() * coverage
    share = (deviation.sum((1, 2, 3)) / pixels).sqrt() / mean.clamp(min=1e-6)
    return answered(share, coverage)


def scale_invariant_difference(a: Tensor, b: Tensor, region: Tensor) -> Tensor:
    """Mean |a - s b| in the region, 0-255, with one scale s an image matching their means.

    Args:
        a, b: (B, 3, H, W) in [0, 1].
        region: (B, 1, H, W).

    Returns:
        (B,).
    """
    scale = (a * region).sum((1, 2, 3)) / (b * region).sum((1, 2, 3)).clamp(min=1e-6)
    return answered(255 * photometric_error(a, scale[:, None, None, None] * b, region), region)


@torch.no_grad()
def relighting_invariance(before, after) -> tuple[Tensor, Tensor]:
    """How an estimate's reflectance follows a change that is known to be light only.

    Args:
        before, after: FaceParameters of a photo and of the same photo relit.

    Returns:
        Differences (B,), 0-255 up to scale, of the reflectance and of the illuminated texture:
        the first should be 0, and is to be seen against the second.
    """
    seen = before.texture_visibility * after.texture_visibility
    return (
        scale_invariant_difference(before.reflectance_map, after.reflectance_map, seen),
        scale_invariant_difference(before.illuminated_texture, after.illuminated_texture, seen),
    )
