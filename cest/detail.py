"""The photo's fine detail, carried over into the reflectance.

The estimators work at a small size, so that their reflectance knows brows and beard but no lashes,
freckles or pores; the photo shows these. What it shows at a scale that the estimate does not
resolve is skin far more than light, for light on a face changes slowly, shadows' edges aside. So
the estimate keeps the word on everything coarse, and the photo, freed from the estimated shading,
has it on what is finer:

    A_detailed = A · exp(h(log T / shading) - h(log A)),   h(x) = x - blurred x

with the reflectance A, the illuminated texture T, and a blur of about a texel of A.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d, normalize

from cest.face_model import FaceModel
from cest.geometry import blur, blur_within, project, rotate, shade
from cest.modeling import FaceParameters
from cest.rendering import TexelMap, rasterize, unwrap, vertex_normals

BLUR = 1.0
"""Texels of the estimated reflectance: standard deviation of the blur between coarse and fine."""
STRONGEST = 0.8
"""Of the logarithm: more than a factor of 2.2 is a highlight, or what hides the skin."""
GRAZING, FACING = 0.15, 0.4
"""Cosines of the angle under which a texel is seen: up to the first the photo is not asked, from
the second on it is believed."""
UNLIKE, ANOTHER = 0.5, 1.0
"""Of the logarithm: where the photo's brightness differs from the estimate's also coarsely, it is
doubted from the first on, and beyond the second it shows hair, a hand or the background."""
DARKEST = 0.02
"""Of reflectance and shading, where their logarithms are cut off."""


@torch.no_grad()
def fine_detail(
    image: Tensor,
    shown: Tensor,
    estimate: FaceParameters,
    face_model: FaceModel,
    texel_map: TexelMap,
) -> Tensor:
    """What the photo adds to the reflectance.

    Where the photo does not show a texel but its mirror image, that one's detail is taken: faces
    are about symmetric.

    Args:
        image: (B, 3, H, W) in [0, 1], the crop of the estimate at any resolution.
        shown: (B, 1, H, W), 1 where the photo has a pixel, 0 where the crop reaches beyond it.
        estimate: of B images.
        face_model: at any level of detail.
        texel_map: of this face model, at the size that is wanted.

    Returns:
        (B, 3, N, N) factors for `with_detail`, 1 where the photo says nothing.
    """
    vertices = face_model.vertices(estimate.shape_coefficients)
    projected = project(vertices, estimate.viewpoint)
    normals = rotate(vertex_normals(vertices, face_model.triangles), estimate.viewpoint)
    fragments = rasterize(projected, face_model.triangles, image.shape[-2:])
    texture, visible = unwrap(
        torch.cat((image, shown), dim=1), projected, normals, fragments, texel_map
    )
    texture, inside = texture.split((3, 1), dim=1)
    visible = visible * (inside > 0.999)  # no pixel beyond the photo has a share in it
    on_texels = normalize(texel_map.on_texels(normals), dim=-1)
    shading = texel_map.to_map(shade(on_texels, estimate.illumination).unsqueeze(-1))
    facing = texel_map.to_map(on_texels[..., 2:])
    seen = visible * ((facing - GRAZING) / (FACING - GRAZING)).clamp(0, 1)

    size = texel_map.size
    sigma = BLUR * size / estimate.reflectance_map.shape[-1]
    skin = (texture / shading.clamp(min=DARKEST)).clamp(min=DARKEST).log()
    estimated = _enlarged(estimate.reflectance_map, size).clamp(min=DARKEST).log()
    difference = skin - estimated
    coarse = blur_within(difference, seen, sigma)
    detail = (difference - coarse).clamp(-STRONGEST, STRONGEST) * visible
    unlike = coarse.mean(1, keepdim=True).abs()
    believed = seen * ((ANOTHER - unlike) / (ANOTHER - UNLIKE)).clamp(0, 1)
    # An edge of what is seen is no detail: texels beside unseen ones are left out, and around them
    # it fades.
    trust = blur(believed * _least_around(visible, round(sigma / 2)), sigma / 2)
    mirrored = (1 - trust) * trust.flip(-1)
    return (trust * detail + mirrored * detail.flip(-1)).exp()


def with_detail(reflectance_map: Tensor, detail: Tensor) -> Tensor:
    """(B, 3, S, S) in [0, 1] and factors (B, 3, N, N) -> (B, 3, N, N) in [0, 1]."""
    return (_enlarged(reflectance_map, detail.shape[-1]) * detail.to(reflectance_map)).clamp(0, 1)


def _least_around(values: Tensor, radius: int) -> Tensor:
    """(B, 1, H, W) -> the least value of each square of so many pixels to either side."""
    return -max_pool2d(-values, 2 * radius + 1, stride=1, padding=radius)


def _enlarged(reflectance_map: Tensor, size: int) -> Tensor:
    """Smoothly: a bilinear look-up's creases would be seen."""
    return interpolate(reflectance_map, (size, size), mode="bicubic").clamp(0, 1)
