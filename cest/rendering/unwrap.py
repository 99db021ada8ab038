"""Unwrapping an image into the UV plane (paper §3.2, Fig. 3) and wrapping back (A.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cest.geometry import sample_image
from cest.rendering.rasterizer import Fragments, rasterize

# How far behind the z-buffer, in the image frame, a texel may lie and still count as seen: 0.03
# (3 mm of a face at scale 1) for the error of reading the buffer between pixel centres, plus the
# surface's slope over one pixel's width.
DEPTH_TOLERANCE = 0.03
STEEPEST_SLOPE = 4.0


@dataclass(frozen=True, eq=False)
class TexelMap:
    """Which point of the mesh each texel shows: constant for a face model and a texture size.

    Attributes:
        texels: (N,) flat indices of the texels that show the face.
        vertices: (N, 3) the corners of each one's triangle.
        weights: (N, 3) their barycentric coefficients κ (A.3).
        size: side of the square texture.
    """

    texels: Tensor
    vertices: Tensor
    weights: Tensor
    size: int

    @classmethod
    def build(cls, uv: Tensor, triangles: Tensor, size: int) -> "TexelMap":
        """Rasterises the UV layout itself: a texture is the picture of ``2 uv - 1``."""
        flat = torch.cat((2 * uv - 1, torch.zeros_like(uv[:, :1])), dim=-1).unsqueeze(0)
        fragments = rasterize(flat, triangles, (size, size))
        face = fragments.pix_to_face.flatten()
        texels = (face >= 0).nonzero().squeeze(-1)
        return cls(
            texels=texels,
            vertices=triangles[face[texels]],
            weights=fragments.barycentric.reshape(-1, 3)[texels],
            size=size,
        )

    def on_texels(self, attributes: Tensor) -> Tensor:
        """(B, K, C) values at vertices -> (B, N, C) at the texels: Σ κ · value."""
        weights = self.weights.to(attributes)
        # A corner at a time: all three at once would be written to memory and read again.
        corners = (
            weights[:, k, None] * attributes.index_select(1, self.vertices[:, k]) for k in range(3)
        )
        return sum(corners)

    def to_map(self, values: Tensor) -> Tensor:
        """(B, N, C) values of the texels -> (B, C, size, size), zero elsewhere."""
        full = values.new_zeros(values.shape[0], values.shape[2], self.size * self.size)
        full[:, :, self.texels] = values.mT
        return full.unflatten(2, (self.size, self.size))


def unwrap(
    image: Tensor, projected: Tensor, normals: Tensor, fragments: Fragments, texel_map: TexelMap
) -> tuple[Tensor, Tensor]:
    """The illuminated texture T: the image's colours, moved to the UV plane.

    Args:
        image: (B, C, H, W).
        projected: (B, K, 3) image frame.
        normals: (B, K, 3) unit, camera's axes.
        fragments: the rasterised face, at any resolution: its depth decides visibility.
        texel_map: of the face model.

    Returns:
        T (B, C, size, size), zero at texels that turn away, are hidden or lie outside the
        image, and their visibility (B, 1, size, size), 1 or 0. T is differentiable in the
        image and in ``projected``; the visibility is not.
    """
    points = texel_map.on_texels(projected)
    position = points[..., :2]
    colours = sample_image(image, position)
    with torch.no_grad():
        facing = texel_map.on_texels(normals[..., 2:]).squeeze(-1)
        # The buffer holds -inf where nothing was drawn; there nothing hides the texel.
        buffer = sample_image(fragments.depth.unsqueeze(1), position, mode="nearest").squeeze(1)
        pixel = 2 / min(fragments.depth.shape[-2:])
        slope = (1 / facing.clamp(min=1e-3).square() - 1).clamp(min=0).sqrt()
        tolerance = DEPTH_TOLERANCE + pixel * slope.clamp(max=STEEPEST_SLOPE)
        inside = (position.abs() <= 1).all(-1)
        visible = (facing > 0) & inside & (points[..., 2] + tolerance >= buffer)
    texture = texel_map.to_map(colours.mT * visible.unsqueeze(-1))
    return texture, texel_map.to_map(visible.unsqueeze(-1).to(image.dtype))


def wrap(texture: Tensor, uv: Tensor) -> Tensor:
    """Ψ (A.4): the texture's values at UV coordinates, bilinear.

    Args:
        texture: (B, C, h, w) a UV map.
        uv: (K, 2) of vertices, giving (B, C, K); or (B, H, W, 2) of pixels, giving (B, C, H, W).
    """
    if uv.ndim == 2:
        uv = uv.to(texture).expand(len(texture), -1, -1)
    return sample_image(texture, 2 * uv - 1)
