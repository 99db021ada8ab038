"""The rasteriser on the CPU: kernels compiled by numba on first use.

Each kernel works on a range of image rows of the whole batch and releases the GIL. The ranges go
to a small thread pool of our own rather than to numba's `parallel=True`: of the threading layers
numba has without TBB, one aborts the process when called from two Python threads (a web app) and
the other when used on both sides of a fork (a data loader). As many threads are used as torch
would use (`torch.get_num_threads()`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from cest.rendering.rasterizer import BOX_SLACK, EXCLUSIVE, FLOAT32_MAX

Array = np.ndarray

# Pixels and triangles below which starting a second thread costs more than it saves.
SMALL_WORK = 1 << 15


def _jit(function: Callable[..., None]) -> Callable[..., None]:
    """Compile without the GIL, and keep the result on disk where there is a writable place."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(function, cache=True, **options)
    except RuntimeError:  # neither the package nor the user's cache folder is writable
        return numba.njit(function, **options)


@_jit
def _corner(vertices, b, i):
    """Vertex i of image b, in float64."""
    return (
        np.float64(vertices[b, i, 0]),
        np.float64(vertices[b, i, 1]),
        np.float64(vertices[b, i, 2]),
    )


# ---------------------------------------------------------------------------------- visibility


@_jit
def _visible_kernel(vertices, triangles, cull_backfaces, first, last, pix_to_face):
    """Write the visible face of rows [first, last), counted through the batch."""
    height, width = pix_to_face.shape[1:]
    n_vertices = vertices.shape[1]
    for b in range(first // height, (last + height - 1) // height):
        top = max(first - b * height, 0)
        bottom = min(last - b * height, height)
        nearest = np.full((bottom - top, width), -np.inf, np.float32)
        pix_to_face[b, top:bottom] = -1
        # Triangles entirely in other parts of the image are passed over early; a pixel to spare.
        highest, lowest = 1.0 - (2 * top - 1) / height, 1.0 - (2 * bottom + 1) / height
        for f in range(triangles.shape[0]):
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            if min(i0, i1, i2) < 0 or max(i0, i1, i2) >= n_vertices:
                raise IndexError("a triangle names a vertex that does not exist")
            x0, y0, z0 = _corner(vertices, b, i0)
            x1, y1, z1 = _corner(vertices, b, i1)
            x2, y2, z2 = _corner(vertices, b, i2)
            low, high = min(y0, y1, y2), max(y0, y1, y2)
            if high < lowest or low > highest:
                continue
            left, right = min(x0, x1, x2), max(x0, x1, x2)
            if right < -1.0 or left > 1.0:
                continue
            area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
            if area < 0.0 and not cull_backfaces:
                x1, y1, z1, x2, y2, z2 = x2, y2, z2, x1, y1, z1
                area = -area
            if not area > 0.0:  # also when it is NaN
                continue
            if not (
                max(-left, right, -low, high) <= FLOAT32_MAX
                and abs(z0) <= FLOAT32_MAX
                and abs(z1) <= FLOAT32_MAX
                and abs(z2) <= FLOAT32_MAX
            ):
                continue
            # Clamped before they become integers, so that no coordinate overflows.
            j_first = math.ceil(max((left + 1.0) * width / 2 - 0.5 - BOX_SLACK, 0.0))
            j_last = math.floor(min((right + 1.0) * width / 2 - 0.5 + BOX_SLACK, width - 1.0))
            i_first = math.ceil(max((1.0 - high) * height / 2 - 0.5 - BOX_SLACK, float(top)))
            i_last = math.floor(min((1.0 - low) * height / 2 - 0.5 + BOX_SLACK, bottom - 1.0))
            # Edge k is opposite to vertex k. Both triangles of a shared edge start from the same
            # end of it: their values are exact negatives.
            dx0, dy0, dx1, dy1, dx2, dy2 = x2 - x1, y2 - y1, x0 - x2, y0 - y2, x1 - x0, y1 - y0
            ox0, oy0 = (x1, y1) if x1 < x2 or (x1 == x2 and y1 < y2) else (x2, y2)
            ox1, oy1 = (x2, y2) if x2 < x0 or (x2 == x0 and y2 < y0) else (x0, y0)
            ox2, oy2 = (x0, y0) if x0 < x1 or (x0 == x1 and y0 < y1) else (x1, y1)
            least0 = 0.0 if dy0 < 0.0 or (dy0 == 0.0 and dx0 < 0.0) else EXCLUSIVE
            least1 = 0.0 if dy1 < 0.0 or (dy1 == 0.0 and dx1 < 0.0) else EXCLUSIVE
            least2 = 0.0 if dy2 < 0.0 or (dy2 == 0.0 and dx2 < 0.0) else EXCLUSIVE
            for i in range(i_first, i_last + 1):
                y = 1.0 - (2 * i + 1) / height
                row0, row1, row2 = dx0 * (y - oy0), dx1 * (y - oy1), dx2 * (y - oy2)
                for j in range(j_first, j_last + 1):
                    x = (2 * j + 1) / width - 1.0
                    e0 = row0 - dy0 * (x - ox0)
                    e1 = row1 - dy1 * (x - ox1)
                    e2 = row2 - dy2 * (x - ox2)
                    if e0 >= least0 and e1 >= least1 and e2 >= least2:
                        # Never 0 / 0: no triangle has three left or top edges.
                        z = np.float32((e0 * z0 + e1 * z1 + e2 * z2) / (e0 + e1 + e2))
                        if z > nearest[i - top, j]:
                            nearest[i - top, j] = z
                            pix_to_face[b, i, j] = f


# ------------------------------------------------------------ barycentric coefficients and depth


@_jit
def _barycentric_kernel(vertices, triangles, pix_to_face, first, last, barycentric, depth):
    """Write eq. A.3 and depth for rows [first, last), counted through the batch."""
    height, width = pix_to_face.shape[1:]
    for row in range(first, last):
        b, i = row // height, row % height
        y = 1.0 - (2 * i + 1) / height
        for j in range(width):
            f = pix_to_face[b, i, j]
            if f < 0:
                barycentric[b, i, j, :] = 0.0
                depth[b, i, j] = -np.inf
                continue
            x = (2 * j + 1) / width - 1.0
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            x0, y0, z0 = _corner(vertices, b, i0)
            x1, y1, z1 = _corner(vertices, b, i1)
            x2, y2, z2 = _corner(vertices, b, i2)
            e0 = (x1 - x) * (y2 - y) - (y1 - y) * (x2 - x)
            e1 = (x2 - x) * (y0 - y) - (y2 - y) * (x0 - x)
            e2 = (x0 - x) * (y1 - y) - (y0 - y) * (x1 - x)
            area = e0 + e1 + e2
            e0, e1, e2 = e0 / area, e1 / area, e2 / area
            barycentric[b, i, j, 0] = e0
            barycentric[b, i, j, 1] = e1
            barycentric[b, i, j, 2] = e2
            depth[b, i, j] = e0 * z0 + e1 * z1 + e2 * z2


@_jit
def _barycentric_backward_kernel(
    vertices, triangles, pix_to_face, barycentric, grad_barycentric, grad_depth, first, last,
    grad_vertices, grad_first,
):  # fmt: skip
    """Add the gradient of rows [first, last) to `grad_first` for the image they start in the
    middle of, to `grad_vertices[b]` for every image b they have the start of.

    The coefficients k satisfy sum_i k_i q_i = pixel. Moving vertex q_n by d therefore changes
    k_i by -k_n (d . grad k_i), where grad k_i, the slope of k_i over the image, is the opposite
    edge turned by a right angle, over twice the area.
    """
    height, width = pix_to_face.shape[1:]
    for row in range(first, last):
        b, i = row // height, row % height
        grad = grad_first if b * height < first else grad_vertices[b]
        for j in range(width):
            f = pix_to_face[b, i, j]
            if f < 0:
                continue
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            x0, y0, z0 = _corner(vertices, b, i0)
            x1, y1, z1 = _corner(vertices, b, i1)
            x2, y2, z2 = _corner(vertices, b, i2)
            k0, k1, k2 = barycentric[b, i, j, 0], barycentric[b, i, j, 1], barycentric[b, i, j, 2]
            gd = grad_depth[b, i, j]
            g0 = grad_barycentric[b, i, j, 0] + gd * z0
            g1 = grad_barycentric[b, i, j, 1] + gd * z1
            g2 = grad_barycentric[b, i, j, 2] + gd * z2
            area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
            gx = (g0 * (y2 - y1) + g1 * (y0 - y2) + g2 * (y1 - y0)) / area
            gy = (g0 * (x1 - x2) + g1 * (x2 - x0) + g2 * (x0 - x1)) / area
            grad[i0, 0] += k0 * gx
            grad[i0, 1] += k0 * gy
            grad[i0, 2] += k0 * gd
            grad[i1, 0] += k1 * gx
            grad[i1, 1] += k1 * gy
            grad[i1, 2] += k1 * gd
            grad[i2, 0] += k2 * gx
            grad[i2, 1] += k2 * gy
            grad[i2, 2] += k2 * gd


class _Barycentric(torch.autograd.Function):
    """(projected, triangles, pix_to_face) -> (barycentric, depth) of the visible triangles."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, projected: Tensor, triangles: Tensor, pix_to_face: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, height, width = pix_to_face.shape
        barycentric = projected.new_empty(batch, height, width, 3)
        depth = projected.new_empty(batch, height, width)
        arrays = _numpy(projected, triangles, pix_to_face)
        outputs = _numpy(barycentric, depth)
        _over_rows(
            lambda part, first, last: _barycentric_kernel(*arrays, first, last, *outputs),
            batch, height, work=pix_to_face.numel(),
        )  # fmt: skip
        ctx.save_for_backward(projected, triangles, pix_to_face, barycentric)
        return barycentric, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_barycentric: Tensor, grad_depth: Tensor) -> tuple:
        projected, triangles, pix_to_face, barycentric = ctx.saved_tensors
        height = pix_to_face.shape[1]
        arrays = _numpy(projected, triangles, pix_to_face, barycentric)
        arrays += _numpy(grad_barycentric, grad_depth)
        grad = _accumulate(
            lambda first, last, total, start: _barycentric_backward_kernel(
                *arrays, first, last, total, start
            ),
            projected, height, work=pix_to_face.numel(),
        )  # fmt: skip
        return grad, None, None


# --------------------------------------------------------------------------------- interpolation


@_jit
def _interpolate_kernel(pix_to_face, barycentric, triangles, attributes, first, last, output):
    """Write the attributes of rows [first, last), counted through the batch."""
    height, width = pix_to_face.shape[1:]
    n_vertices, channels = attributes.shape[1:]
    for row in range(first, last):
        b, i = row // height, row % height
        for j in range(width):
            f = pix_to_face[b, i, j]
            if f < 0:
                output[b, i, j, :] = 0.0
                continue
            if f >= triangles.shape[0]:
                raise IndexError("a fragment names a triangle that does not exist")
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            if min(i0, i1, i2) < 0 or max(i0, i1, i2) >= n_vertices:
                raise IndexError("a triangle names a vertex that does not exist")
            k0, k1, k2 = barycentric[b, i, j, 0], barycentric[b, i, j, 1], barycentric[b, i, j, 2]
            for c in range(channels):
                output[b, i, j, c] = (
                    k0 * attributes[b, i0, c]
                    + k1 * attributes[b, i1, c]
                    + k2 * attributes[b, i2, c]
                )


@_jit
def _interpolate_attributes_backward_kernel(
    pix_to_face, barycentric, triangles, grad_output, first, last, grad_attributes, grad_first
):
    """Add the gradient of rows [first, last), shared out as in `_barycentric_backward_kernel`."""
    height, width, channels = grad_output.shape[1:]
    for row in range(first, last):
        b, i = row // height, row % height
        grad = grad_first if b * height < first else grad_attributes[b]
        for j in range(width):
            f = pix_to_face[b, i, j]
            if f < 0:
                continue
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            k0, k1, k2 = barycentric[b, i, j, 0], barycentric[b, i, j, 1], barycentric[b, i, j, 2]
            for c in range(channels):
                g = grad_output[b, i, j, c]
                grad[i0, c] += k0 * g
                grad[i1, c] += k1 * g
                grad[i2, c] += k2 * g


@_jit
def _interpolate_barycentric_backward_kernel(
    pix_to_face, triangles, attributes, grad_output, first, last, grad_barycentric
):
    """Write the gradient of the coefficients for rows [first, last)."""
    height, width, channels = grad_output.shape[1:]
    for row in range(first, last):
        b, i = row // height, row % height
        for j in range(width):
            f = pix_to_face[b, i, j]
            if f < 0:
                grad_barycentric[b, i, j, :] = 0.0
                continue
            i0, i1, i2 = triangles[f, 0], triangles[f, 1], triangles[f, 2]
            g0 = g1 = g2 = grad_barycentric.dtype.type(0.0)
            for c in range(channels):
                g = grad_output[b, i, j, c]
                g0 += g * attributes[b, i0, c]
                g1 += g * attributes[b, i1, c]
                g2 += g * attributes[b, i2, c]
            grad_barycentric[b, i, j, 0] = g0
            grad_barycentric[b, i, j, 1] = g1
            grad_barycentric[b, i, j, 2] = g2


class _Interpolate(torch.autograd.Function):
    """(pix_to_face, barycentric, triangles, attributes) -> attributes of the pixels."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        pix_to_face: Tensor,
        barycentric: Tensor,
        triangles: Tensor,
        attributes: Tensor,
    ) -> Tensor:
        batch, height, width = pix_to_face.shape
        output = attributes.new_empty(batch, height, width, attributes.shape[-1])
        arrays = _numpy(pix_to_face, barycentric, triangles, attributes)
        (target,) = _numpy(output)
        _over_rows(
            lambda part, first, last: _interpolate_kernel(*arrays, first, last, target),
            batch, height, work=pix_to_face.numel(),
        )  # fmt: skip
        ctx.save_for_backward(pix_to_face, barycentric, triangles, attributes)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple:
        pix_to_face, barycentric, triangles, attributes = ctx.saved_tensors
        batch, height, _ = pix_to_face.shape
        work = pix_to_face.numel()
        faces, weights, corners, values, grad = _numpy(
            pix_to_face, barycentric, triangles, attributes, grad_output
        )
        grad_barycentric = grad_attributes = None
        if ctx.needs_input_grad[1]:
            grad_barycentric = torch.empty_like(barycentric, memory_format=torch.contiguous_format)
            (target,) = _numpy(grad_barycentric)
            _over_rows(
                lambda part, first, last: _interpolate_barycentric_backward_kernel(
                    faces, corners, values, grad, first, last, target
                ),
                batch, height, work,
            )  # fmt: skip
        if ctx.needs_input_grad[3]:
            grad_attributes = _accumulate(
                lambda first, last, total, start: _interpolate_attributes_backward_kernel(
                    faces, weights, corners, grad, first, last, total, start
                ),
                attributes, height, work,
            )  # fmt: skip
        return None, grad_barycentric, None, grad_attributes


# --------------------------------------------------------------------------------- the interface


def rasterize(
    projected: Tensor, triangles: Tensor, image_size: tuple[int, int], cull_backfaces: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`cest.rendering.rasterizer.rasterize` for checked arguments on the CPU."""
    batch = projected.shape[0]
    pix_to_face = torch.empty(batch, *image_size, dtype=torch.int64)
    vertices, corners, faces = _numpy(projected, triangles, pix_to_face)
    _over_rows(
        lambda part, first, last: _visible_kernel(
            vertices, corners, cull_backfaces, first, last, faces
        ),
        batch, image_size[0], work=pix_to_face.numel() + batch * len(triangles),
    )  # fmt: skip
    return pix_to_face, *_Barycentric.apply(projected, triangles, pix_to_face)


def interpolate(
    pix_to_face: Tensor, barycentric: Tensor, triangles: Tensor, attributes: Tensor
) -> Tensor:
    """`cest.rendering.rasterizer.interpolate` for checked arguments on the CPU."""
    return _Interpolate.apply(pix_to_face, barycentric, triangles, attributes)


# --------------------------------------------------------------------------------------- threads


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    """A forked process inherits the pool but not its threads: it starts its own."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _over_rows(
    task: Callable[[int, int, int], None], batch: int, height: int, work: int
) -> list[tuple[int, int]]:
    """Call task(part, first, last) over parts of all rows of a batch, one part a thread.

    `work` is a count of pixels and triangles. Returns the (first, last) of every part. They
    depend on the shapes and torch's number of threads alone, and so does any sum over them.
    """
    global _pool
    rows = batch * height
    threads = 1 if work < SMALL_WORK else min(torch.get_num_threads(), rows)
    bounds = [rows * part // threads for part in range(threads + 1)]
    parts = list(pairwise(bounds))
    if threads > 1 and _pool is None:
        # Two threads may come here at once; the loser's pool ends with its last task.
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="rasterizer")
    others = [_pool.submit(task, n, *parts[n]) for n in range(1, threads)] if threads > 1 else []
    task(0, *parts[0])
    for n, other in enumerate(others, start=1):
        if other.cancel():  # nobody has had time for it: the cores are busy
            task(n, *parts[n])
        else:
            other.result()
    return parts


def _accumulate(
    task: Callable[[int, int, Array, Array], None], like: Tensor, height: int, work: int
) -> Tensor:
    """Sum task(first, last, total, start) over the rows of a batch into a new (B, K, C).

    A part of the rows that starts inside an image shares this image with the part before it, so
    it gets a `start` (K, C) of its own for it, added in afterwards, in order.
    """
    # numpy's zeros, as torch's fill would wake torch's own threads, and ours wait for a core.
    total = np.zeros(like.shape, like.detach().numpy().dtype)
    starts: dict[int, Array] = {}
    unused = np.empty((0, 0), total.dtype)

    def part_task(part: int, first: int, last: int) -> None:
        if first % height:
            starts[part] = np.zeros(total.shape[1:], total.dtype)
        task(first, last, total, starts.get(part, unused))

    parts = _over_rows(part_task, len(total), height, work)
    for part in sorted(starts):
        total[parts[part][0] // height] += starts[part]
    return torch.from_numpy(total)


def _numpy(*tensors: Tensor) -> tuple[Array, ...]:
    """The tensors as C-contiguous arrays, sharing memory where they already are."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)
