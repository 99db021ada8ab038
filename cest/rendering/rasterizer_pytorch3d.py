"""pytorch3d's rasteriser behind our interface: a yardstick, where pytorch3d is installed.

Its frame differs from ours in three ways: +x points left; the shorter side of the image spans
[-1, 1] and the longer one more; z grows away from the viewer and must be positive. It computes
in float32, gives pixels exactly on an edge to no triangle, drops triangles whose doubled area is
less than 1e-8, and on the CPU tests every triangle for every pixel (seconds an image).
"""

from __future__ import annotations

import torch
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor


def rasterize(
    projected: Tensor, triangles: Tensor, image_size: tuple[int, int], cull_backfaces: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`cest.rendering.rasterizer.rasterize` for checked arguments, on their device.

    Raises:
        TypeError: `projected` is float64.
    """
    if projected.dtype != torch.float32:
        raise TypeError("pytorch3d rasterises float32 alone")
    height, width = image_size
    shorter = min(height, width)
    x, y, z = projected.unbind(-1)
    far = z.detach().amax() + 1 if z.numel() else 1.0
    theirs = torch.stack([-x * (width / shorter), y * (height / shorter), far - z], dim=-1)
    pix_to_face, distance, barycentric, _ = rasterize_meshes(
        Meshes(verts=theirs, faces=triangles.expand(len(theirs), -1, -1)),
        image_size=(height, width),
        blur_radius=0.0,
        faces_per_pixel=1,
        bin_size=0,
        perspective_correct=False,
        clip_barycentric_coords=False,
        cull_backfaces=cull_backfaces,
    )
    covered = pix_to_face[..., 0] >= 0
    # They count the triangles of the whole batch.
    offset = torch.arange(len(theirs), device=projected.device)[:, None, None] * len(triangles)
    return (
        torch.where(covered, pix_to_face[..., 0] - offset, -1),
        torch.where(covered[..., None], barycentric[..., 0, :], 0.0),
        torch.where(covered, far - distance[..., 0], -torch.inf),
    )
