"""Figures of merit, each defined once; NaN over an empty region, which is no answer."""

import torch
from torch import Tensor

from cest.geometry import blur_within
from cest.objective import N_JAW, photometric_error
from cest.rendering import Surface, shade_surface

LOW_PASS = 1 / 16
"""Of a picture's side: standard deviation of the blur that keeps light and loses detail."""
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of R, G and B (Rec. 709), on sRGB values, as shading multiplies them."""


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


def low_passed(image: Tensor, region: Tensor) -> Tensor:
    """(B, C, H, W) blurred within a region (B, 1, H, W): nothing outside bleeds in; 0 outside."""
    return blur_within(image, region, LOW_PASS * image.shape[-1]) * region


def one_sidedness(texture: Tensor, visible: Tensor) -> Tensor:
    """How much a UV map is lit from one side: `asymmetry` of what is left of it after a blur.

    Detail that differs from side to side hardly counts, so that a sharp albedo can have as little
    of it as a blurred one.

    Args:
        texture, visible: as in `asymmetry`.

    Returns:
        (B,), 0-255.
    """
    return asymmetry(low_passed(texture, visible * visible.flip(-1)), visible)


def shading_explained(image: Tensor, shading: Tensor, region: Tensor) -> Tensor:
    """Share of a photo's variance that the shading explains on a face of one colour: R².

    Luminance of the photo and shading are blurred within the region; the shading may be scaled,
    which stands for that colour. Flat light explains nothing, whatever the albedo makes up for.

    Args:
        image: (B, 3, H, W) in [0, 1].
        shading: (B, 1, H, W), of the estimated light on the estimated geometry.
        region: (B, 1, H, W), 1 or 0.

    Returns:
        (B,): 1 is all of it, 0 what flat light explains. Not below -1, which keeps evenly lit
        photos, of hardly any variance, from deciding means. NaN where the photo varies by less
        than one level of 255: there is nothing to explain.
    """
    luminance = (image * image.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
    photo, light = low_passed(torch.cat((luminance, shading), 1), region).flatten(2).unbind(1)
    inside = region.flatten(1)
    pixels = inside.sum(1, keepdim=True).clamp(min=1)
    gain = (photo * light).sum(1, keepdim=True) / light.square().sum(1, keepdim=True).clamp(1e-6)
    variance = ((photo - photo.sum(1, keepdim=True) / pixels) * inside).square().sum(1)
    explained = 1 - (photo - gain * light).square().sum(1) / variance.clamp(min=1e-12)
    flat = variance < pixels[:, 0] / 255**2
    return explained.clamp(min=-1).masked_fill(flat, torch.nan)


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


def photometric_error_elsewhere(
    image: Tensor, surface: Surface, reflectance: Tensor, illumination: Tensor, region: Tensor
) -> Tensor:
    """How well another picture's albedo explains a photo: mean |I - s Î|, 0-255.

    Î has the photo's own geometry and light, and the albedo that was estimated from another picture
    of the same face. An albedo without the person's features fails at this, and so does one that
    the other picture's light is painted into, if that light is another. One factor s a photo
    matches their means, for a level belongs to albedo and light together.

    Args:
        image: (B, 3, H, W) in [0, 1].
        surface, illumination: estimated from it.
        reflectance: (B, 3, s, s) estimated from another picture.
        region: (B, 1, H, W), 1 on face pixels.

    Returns:
        (B,).
    """
    rendered, _ = shade_surface(surface, reflectance, illumination)
    region = region * surface.coverage
    scale = (image * region).sum((1, 2, 3)) / (rendered * region).sum((1, 2, 3)).clamp(min=1e-6)
    return photometric_error_255(image, scale[:, None, None, None] * rendered, region)


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
