"""Which triangle does each pixel show, and where in it: the rasteriser's one interface.

Frame. `projected` holds vertices in the normalised image frame: x to the right and y UP, both
in [-1, 1] from one edge of the image to the other; z larger is nearer to the viewer. Pixel
(row i, column j) of an H x W image has its centre at x = (2j + 1) / W - 1, y = 1 - (2i + 1) / H.
A triangle that runs counter-clockwise in this frame faces the viewer.

Every backend keeps the same rules, so that they agree pixel for pixel:

- A pixel belongs to a triangle when its centre lies inside it. A centre exactly on an edge
  belongs to the triangle that has it as a left or top edge: triangles that share an edge leave
  no hole and overlap nowhere. Edges are tested in float64 whatever the input.
- The nearest triangle wins. Depths are compared in float32, so that coplanar copies of a
  triangle tie instead of being ordered by rounding; of a tie the lowest face index wins.
- Triangles without area, and those with a vertex that is NaN, infinite or beyond the float32
  range, show nowhere.

Visibility carries no gradient. Given the visible triangle, barycentric coefficients (paper,
eq. A.3) and depth are differentiable in the projected vertices. Under weak perspective both are
exactly linear in the image plane, so no perspective correction is needed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ("numba", "triton", "torch", "pytorch3d")

# What the numba and the torch backend must share in order to agree. numba's cache on disk follows
# rasterizer_numba.py alone: touch that file when one of these changes.
FLOAT32_MAX = torch.finfo(torch.float32).max
# Added to a triangle's bounding box, in pixels: more than float64 rounding, less than anything
# that would cost a candidate pixel.
BOX_SLACK = 1e-6
# Edge values are at least this on the edges whose pixels belong to the neighbour: excludes zero.
EXCLUSIVE = 1e-300


class Fragments(NamedTuple):
    """What `rasterize` says of each pixel of a batch of images."""

    pix_to_face: Tensor
    """(B, H, W) int64: index of the visible triangle, -1 where there is none."""
    barycentric: Tensor
    """(B, H, W, 3): weights of the triangle's three vertices, sum 1; zero where there is none."""
    depth: Tensor
    """(B, H, W): z of the visible point, in the unit of `projected`; -inf where there is none."""


def rasterize(
    projected: Tensor,
    triangles: Tensor,
    image_size: tuple[int, int],
    *,
    cull_backfaces: bool = True,
    backend: str | None = None,
) -> Fragments:
    """Rasterise one mesh in B poses.

    Args:
        projected: (B, K, 3) float32 or float64, vertices in the normalised image frame.
        triangles: (F, 3) int64, vertex indices, counter-clockwise seen from outside.
        image_size: (H, W) in pixels.
        cull_backfaces: drop triangles that run clockwise in the image.
        backend: "numba" (CPU, compiled on first use), "triton" (CUDA), "torch" (any device with
            float64) or "pytorch3d" (float32, if installed). Default: for CUDA tensors "triton",
            or "torch" where triton is not installed; else "numba", by which devices other than
            CPU and CUDA are served through the CPU.

    Returns:
        Fragments on the device of `projected`, floats in its dtype. `barycentric` and `depth`
        are differentiable (once) in `projected`.

    Raises:
        TypeError: `projected` is not float32 or float64, or `triangles` is not integer.
        ValueError: a shape does not fit, or the backend is unknown.
        IndexError: a triangle names a vertex that does not exist (on CPU; on CUDA a device-side
            assertion).
        ImportError: backend "pytorch3d" or "triton" without that package.
    """
    if projected.ndim != 3 or projected.shape[-1] != 3:
        raise ValueError(f"projected must be (B, K, 3), got {tuple(projected.shape)}")
    if projected.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"projected must be float32 or float64, got {projected.dtype}")
    _check_triangles(triangles)
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be positive, got {image_size}")
    device = projected.device
    if backend is None:
        backend = _default_backend(device)
    if backend not in BACKENDS:
        raise ValueError(f"unknown rasteriser backend {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "numba":
        projected = projected.cpu()
    triangles = triangles.to(projected.device, torch.int64)
    module = import_module(f"{__package__}.rasterizer_{backend}")
    pix_to_face, barycentric, depth = module.rasterize(
        projected, triangles, (height, width), cull_backfaces
    )
    return Fragments(pix_to_face.to(device), barycentric.to(device), depth.to(device))


def interpolate(fragments: Fragments, triangles: Tensor, attributes: Tensor) -> Tensor:
    """Carry vertex attributes to pixels: the barycentric mean over the visible triangle.

    Args:
        fragments: of `rasterize`.
        triangles: (F, 3) int64, the triangles that were rasterised.
        attributes: (B, K, C) float, one row a vertex.

    Returns:
        (B, H, W, C), zero where no triangle is visible; differentiable (once) in the barycentric
        coefficients and in the attributes.

    Raises:
        ValueError: a shape does not fit.
        IndexError: a fragment or a triangle points outside (on CPU).
    """
    pix_to_face, barycentric, _ = fragments
    if attributes.ndim != 3 or attributes.shape[0] != pix_to_face.shape[0]:
        raise ValueError(
            f"attributes must be ({pix_to_face.shape[0]}, K, C), got {tuple(attributes.shape)}"
        )
    _check_triangles(triangles)
    dtype = torch.promote_types(barycentric.dtype, attributes.dtype)
    backend = "numba" if pix_to_face.device.type == "cpu" else "torch"
    module = import_module(f"{__package__}.rasterizer_{backend}")
    return module.interpolate(
        pix_to_face,
        barycentric.to(dtype),
        triangles.to(pix_to_face.device, torch.int64),
        attributes.to(dtype),
    )


def _default_backend(device: torch.device) -> str:
    if device.type != "cuda":
        return "numba"
    return "triton" if find_spec("triton") else "torch"


def _check_triangles(triangles: Tensor) -> None:
    if triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must be (F, 3), got {tuple(triangles.shape)}")
    if triangles.is_floating_point() or triangles.is_complex():
        raise TypeError(f"triangles must be integer, got {triangles.dtype}")
