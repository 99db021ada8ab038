"""How well reflectance and light are told apart; on synthetic clips, where both are known.

Albedo and light are known up to a common factor only, so each is compared up to scale. Every
figure follows one factor: it is zero when that factor is the true one, whatever the others are;
over no texel or pixel it is NaN.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from cest.evaluation.metrics import answered, photometric_error_255, scale_invariant_difference
from cest.rendering import Surface, shade_surface


def albedo_error(estimated: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Scale-invariant albedo error: mean |A - s Â| over texels, 0-255, s matching their means.

    Args:
        estimated: (B, 3, s, s) in [0, 1]; brought to the truth's size.
        truth: (B, 3, S, S) in [0, 1].
        region: (B, 1, S, S), 1 on the texels that count.

    Returns:
        (B,).
    """
    return scale_invariant_difference(truth, resized(estimated, truth.shape[-1]), region)


def albedo_level(texture: Tensor, region: Tensor) -> Tensor:
    """Mean of a map (B, C, s, s) over the region (B, 1, S, S), 0-255: (B,)."""
    texture = resized(texture, region.shape[-1])
    pixels = region.sum((1, 2, 3)).clamp(min=1)
    level = 255 * (texture.mean(1, keepdim=True) * region).sum((1, 2, 3)) / pixels
    return answered(level, region)


def light_angle(estimated: Tensor, truth: Tensor) -> Tensor:
    """SH angular error: between two lights (B, 9) as functions on the sphere, degrees (B,).

    The harmonics are orthonormal, so that this is the angle between the vectors. Brightness does
    not enter. Most of a light is ambient: see `direction_angle` for the rest.
    """
    return _angle(estimated, truth)


def direction_angle(estimated: Tensor, truth: Tensor) -> Tensor:
    """Between the mean directions of two lights (B, 9), degrees (B,): those of their first bands.

    Meaningless where a light has none; 90 for an estimate without direction.
    """
    return _angle(estimated[:, 1:4], truth[:, 1:4])


def _angle(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    # Exact also for small angles, where the cosine is flat.
    unit_a, unit_b = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-12) for v in (a, b))
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=-1), (unit_a + unit_b).norm(dim=-1))
    return torch.rad2deg(angle).float()


def cross_relight_error(
    reflectance: Tensor, illumination: Tensor, surface: Surface, truth: Tensor, region: Tensor
) -> Tensor:
    """Albedo from frame i, light from frame j, against the true rendering of frame j.

    Of the n frames of one clip; i is the frame before j, the last before the first. Geometry is
    the true one, so that only reflectance and light count. One factor for the whole clip makes up
    for what nobody can know; frames that share brightness differently between albedo and light
    are in error.

    Args:
        reflectance: (n, 3, s, s) estimated.
        illumination: (n, 9) estimated.
        surface: of the n frames, rasterised from the true shape and viewpoint.
        truth: (n, 3, H, W) true renderings of the model: without shadows, highlights, camera.
        region: (n, 1, H, W).

    Returns:
        (n,), 0-255.
    """
    rendered, _ = shade_surface(surface, reflectance.roll(1, 0), illumination)
    region = region * surface.coverage
    factor = (truth * region).sum() / (rendered * region).sum().clamp(min=1e-6)
    return photometric_error_255(truth.clamp(0, 1), factor * rendered, region)


def albedo_deviation(reflectance: Tensor, visible: Tensor) -> Tensor:
    """How the albedo of one clip varies over its frames: root mean square deviation, 0-255.

    Args:
        reflectance: (n, 3, s, s) of n ≥ 2 frames.
        visible: (n, 1, s, s); compared are the texels seen in all of them.

    Returns:
        A scalar; 0 is what the clip's one true albedo has, NaN if no texel is seen in all.
    """
    everywhere = visible.amin(0)
    variance = reflectance.var(0, correction=0).mean(0, keepdim=True)
    deviation = 255 * ((variance * everywhere).sum() / everywhere.sum().clamp(min=1)).sqrt()
    return answered(deviation[None], everywhere[None])[0]


def albedo_similarity(estimated: Tensor, truth: Tensor, region: Tensor) -> Tensor:
    """Correlation of the albedos' details (B,), -1 to 1: a blurred guess of the right tone has 0.

    Both maps (B, 3, S, S) lose their mean over the region first.
    """
    estimated = resized(estimated, truth.shape[-1])
    pixels = region.sum((2, 3), keepdim=True).clamp(min=1)
    details = [
        ((m - (m * region).sum((2, 3), keepdim=True) / pixels) * region).flatten(1)
        for m in (estimated, truth)
    ]
    return answered(cosine_similarity(*details, dim=1), region)


def resized(texture: Tensor, size: int) -> Tensor:
    """(B, C, s, s) -> (B, C, size, size): bilinear, averaged where it shrinks."""
    if texture.shape[-1] == size:
        return texture
    return interpolate(texture, (size, size), mode="bilinear", antialias=True)
