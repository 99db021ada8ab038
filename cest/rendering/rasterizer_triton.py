"""Visibility on CUDA, as one kernel: the default there. The rest is `rasterizer_torch`'s.

Each program draws one triangle of one image into the pixels of its bounding box. As in the torch
backend a pixel keeps the largest of integers that hold depth and face index, by atomic maxima:
the order in which programs get there does not matter. The host waits for nothing.

Without a GPU the kernel runs in Triton's interpreter (TRITON_INTERPRET=1), which the tests use.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from cest.rendering.rasterizer_torch import LOW_BITS, NOTHING, barycentric_and_depth, interpolate

__all__ = ["interpolate", "rasterize"]

# Pixels of a bounding box that are tested at a time; most triangles of a face have fewer.
BLOCK = 32


def rasterize(
    projected: Tensor, triangles: Tensor, image_size: tuple[int, int], cull_backfaces: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`cest.rendering.rasterizer.rasterize` for checked arguments, on their device."""
    pix_to_face = visible_faces(projected, triangles, image_size, cull_backfaces)
    return pix_to_face, *barycentric_and_depth(projected, triangles, pix_to_face)


@torch.no_grad()
def visible_faces(
    projected: Tensor, triangles: Tensor, image_size: tuple[int, int], cull_backfaces: bool
) -> Tensor:
    """The index of the visible triangle, or -1, of each pixel: (B, H, W) int64."""
    batch, n_vertices, _ = projected.shape
    best = projected.new_full((batch, *image_size), NOTHING, dtype=torch.int64)
    if len(triangles) and batch:
        # Triton launches on the current device, whatever its arguments are on.
        with torch.cuda.device_of(projected):
            _draw[(len(triangles), batch)](
                projected.contiguous(),
                triangles.contiguous(),
                best,
                n_vertices,
                *image_size,
                CULL=cull_backfaces,
                SIZE=BLOCK,
                num_warps=1,
                # A fused multiply-add would round edges unlike the other backends do.
                enable_fp_fusion=False,
            )
    return torch.where(best == NOTHING, -1, LOW_BITS - (best & LOW_BITS))


@triton.jit
def _draw(vertices, triangles, best, n_vertices, height, width, CULL: tl.constexpr, SIZE: tl.constexpr):  # fmt: skip  # noqa: E501
    """Draw triangle program_id(0) of image program_id(1); names as in rasterizer_numba."""
    f = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    corner = vertices + b * n_vertices * 3
    i0 = tl.load(triangles + f * 3) * 3
    i1 = tl.load(triangles + f * 3 + 1) * 3
    i2 = tl.load(triangles + f * 3 + 2) * 3
    x0 = tl.load(corner + i0).to(tl.float64)
    y0 = tl.load(corner + i0 + 1).to(tl.float64)
    z0 = tl.load(corner + i0 + 2).to(tl.float64)
    x1 = tl.load(corner + i1).to(tl.float64)
    y1 = tl.load(corner + i1 + 1).to(tl.float64)
    z1 = tl.load(corner + i1 + 2).to(tl.float64)
    x2 = tl.load(corner + i2).to(tl.float64)
    y2 = tl.load(corner + i2 + 1).to(tl.float64)
    z2 = tl.load(corner + i2 + 2).to(tl.float64)
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    if not CULL:  # noqa: SIM102
        if area < 0:
            x1, y1, z1, x2, y2, z2 = x2, y2, z2, x1, y1, z1
            area = -area
    # The largest float32; comparisons with NaN are false.
    most = tl.full([], 3.4028234663852886e38, tl.float64)
    flat = (tl.abs(x0) <= most) & (tl.abs(x1) <= most) & (tl.abs(x2) <= most)
    flat = flat & (tl.abs(y0) <= most) & (tl.abs(y1) <= most) & (tl.abs(y2) <= most)
    deep = (tl.abs(z0) <= most) & (tl.abs(z1) <= most) & (tl.abs(z2) <= most)
    if (area > 0) & flat & deep:
        high, wide = height.to(tl.float64), width.to(tl.float64)
        slack = tl.full([], 1e-6, tl.float64)  # BOX_SLACK
        zero = tl.full([], 0.0, tl.float64)
        left = (tl.minimum(tl.minimum(x0, x1), x2) + 1.0) * wide / 2 - 0.5 - slack
        right = (tl.maximum(tl.maximum(x0, x1), x2) + 1.0) * wide / 2 - 0.5 + slack
        top = (1.0 - tl.maximum(tl.maximum(y0, y1), y2)) * high / 2 - 0.5 - slack
        bottom = (1.0 - tl.minimum(tl.minimum(y0, y1), y2)) * high / 2 - 0.5 + slack
        # Clamped before they become integers, so that no coordinate overflows.
        j_first = tl.ceil(tl.minimum(tl.maximum(left, zero), wide)).to(tl.int32)
        j_last = tl.floor(tl.maximum(tl.minimum(right, wide - 1), zero - 1)).to(tl.int32)
        i_first = tl.ceil(tl.minimum(tl.maximum(top, zero), high)).to(tl.int32)
        i_last = tl.floor(tl.maximum(tl.minimum(bottom, high - 1), zero - 1)).to(tl.int32)
        columns = tl.maximum(j_last + 1 - j_first, 0)
        candidates = columns * tl.maximum(i_last + 1 - i_first, 0)
        # Edge k is opposite to vertex k. Both triangles of a shared edge start from the same end
        # of it: their values are exact negatives.
        dx0, dy0, dx1, dy1, dx2, dy2 = x2 - x1, y2 - y1, x0 - x2, y0 - y2, x1 - x0, y1 - y0
        from0 = (x1 < x2) | ((x1 == x2) & (y1 < y2))
        from1 = (x2 < x0) | ((x2 == x0) & (y2 < y0))
        from2 = (x0 < x1) | ((x0 == x1) & (y0 < y1))
        ox0, oy0 = tl.where(from0, x1, x2), tl.where(from0, y1, y2)
        ox1, oy1 = tl.where(from1, x2, x0), tl.where(from1, y2, y0)
        ox2, oy2 = tl.where(from2, x0, x1), tl.where(from2, y0, y1)
        exclusive = tl.full([], 1e-300, tl.float64)  # EXCLUSIVE
        least0 = tl.where((dy0 < 0) | ((dy0 == 0) & (dx0 < 0)), zero, exclusive)
        least1 = tl.where((dy1 < 0) | ((dy1 == 0) & (dx1 < 0)), zero, exclusive)
        least2 = tl.where((dy2 < 0) | ((dy2 == 0) & (dx2 < 0)), zero, exclusive)
        low = tl.full([], 4294967295, tl.int64) - f
        for start in range(0, candidates, SIZE):
            candidate = start + tl.arange(0, SIZE)
            i = i_first + candidate // tl.maximum(columns, 1)
            j = j_first + candidate % tl.maximum(columns, 1)
            y = 1.0 - (2 * i + 1).to(tl.float64) / high
            x = (2 * j + 1).to(tl.float64) / wide - 1.0
            e0 = dx0 * (y - oy0) - dy0 * (x - ox0)
            e1 = dx1 * (y - oy1) - dy1 * (x - ox1)
            e2 = dx2 * (y - oy2) - dy2 * (x - ox2)
            inside = (e0 >= least0) & (e1 >= least1) & (e2 >= least2) & (candidate < candidates)
            total = tl.where(inside, e0 + e1 + e2, 1.0)
            depth = ((e0 * z0 + e1 * z1 + e2 * z2) / total).to(tl.float32) + 0.0
            bits = depth.to(tl.int32, bitcast=True)
            ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            key = (ordered.to(tl.int64) << 32) | low
            tl.atomic_max(best + (b * height + i) * width + j, key, mask=inside)
