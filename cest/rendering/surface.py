"""Normals of a mesh and the surface that each pixel of an image sees."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cest.rendering.rasterizer import Fragments, interpolate, rasterize


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Unit normals, the mean of the adjacent triangles' weighted by their areas.

    Args:
        vertices: (B, K, 3), any frame.
        triangles: (F, 3), counter-clockwise from outside.

    Returns:
        (B, K, 3) unit vectors in the frame of ``vertices``, pointing outside.
    """
    a, b, c = (vertices[:, triangles[:, corner]] for corner in range(3))
    weighted = torch.cross(b - a, c - a, dim=-1)
    normals = torch.zeros_like(vertices)
    for corner in range(3):
        normals = normals.index_add(1, triangles[:, corner], weighted)
    return F.normalize(normals, dim=-1, eps=1e-12)


@dataclass(frozen=True, eq=False)
class Surface:
    """What each pixel sees of the face; zeros where it sees none.

    Attributes:
        uv: (B, H, W, 2) UV coordinates, differentiable in the vertices.
        normals: (B, H, W, 3) unit normals in the camera's axes, differentiable likewise.
        coverage: (B, 1, H, W), 1 where there is a face, without gradient.
        fragments: the rasteriser's answer.
    """

    uv: Tensor
    normals: Tensor
    coverage: Tensor
    fragments: Fragments


def rasterize_surface(
    projected: Tensor,
    normals: Tensor,
    triangles: Tensor,
    uv: Tensor,
    image_size: tuple[int, int],
) -> Surface:
    """Rasterises a face and interpolates its UV coordinates and normals.

    Args:
        projected: (B, K, 3) image frame.
        normals: (B, K, 3) in the camera's axes.
        triangles: (F, 3).
        uv: (K, 2).
        image_size: (H, W).
    """
    fragments = rasterize(projected, triangles, image_size)
    attributes = torch.cat((uv.to(projected).expand(len(projected), -1, -1), normals), dim=-1)
    values = interpolate(fragments, triangles, attributes)
    return Surface(
        uv=values[..., :2],
        normals=F.normalize(values[..., 2:], dim=-1, eps=1e-12),
        coverage=(fragments.pix_to_face >= 0).unsqueeze(1).to(projected.dtype),
        fragments=fragments,
    )
