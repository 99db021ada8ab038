"""The rasteriser in plain torch operations: for any device with float64.

No loop runs over triangles or pixels. To find what is visible, every triangle is expanded into
the pixels of its bounding box, candidates are tested all at once (in chunks, to bound memory), and
one scatter keeps for each pixel the largest of integers that hold depth and face index: the result
does not depend on the order in which a parallel device gets there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cest.rendering.rasterizer import BOX_SLACK, EXCLUSIVE, FLOAT32_MAX

# Candidates of one chunk: their coordinates and edges take about 200 MB.
CHUNK = 1 << 20
NOTHING = torch.iinfo(torch.int64).min
LOW_BITS = (1 << 32) - 1


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
    height, width = image_size
    batch = projected.shape[0]
    device = projected.device
    corners = projected.double()[:, triangles]  # (B, F, 3 corners, 3 coordinates)
    (x0, y0), (x1, y1), (x2, y2) = (corners[:, :, k, :2].unbind(-1) for k in range(3))
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    shown = area > 0 if cull_backfaces else area != 0
    shown &= (corners.abs() <= FLOAT32_MAX).all(-1).all(-1)
    image, face = shown.nonzero(as_tuple=True)  # the N triangles that may show, in order

    corners = corners[image, face]  # (N, 3, 3)
    clockwise = (area[image, face] < 0)[:, None, None]
    corners = torch.where(clockwise, corners[:, [0, 2, 1]], corners)
    x, y, z = corners.unbind(-1)  # (N, 3) each
    # Edge k is opposite to vertex k. Both triangles of a shared edge start from the same end of
    # it: their values are exact negatives.
    x_from, y_from, x_to, y_to = x[:, [1, 2, 0]], y[:, [1, 2, 0]], x[:, [2, 0, 1]], y[:, [2, 0, 1]]
    dx, dy = x_to - x_from, y_to - y_from
    forward = (x_from < x_to) | ((x_from == x_to) & (y_from < y_to))
    x_start, y_start = torch.where(forward, x_from, x_to), torch.where(forward, y_from, y_to)
    left_or_top = (dy < 0) | ((dy == 0) & (dx < 0))
    least = (~left_or_top).double() * EXCLUSIVE

    (left, right), (low, high) = x.aminmax(dim=1), y.aminmax(dim=1)
    column = ((left + 1.0) * width / 2 - 0.5 - BOX_SLACK).clamp(0, width).ceil().long()
    column_end = ((right + 1.0) * width / 2 - 0.5 + BOX_SLACK).clamp(-1, width - 1).floor().long()
    row = ((1.0 - high) * height / 2 - 0.5 - BOX_SLACK).clamp(0, height).ceil().long()
    row_end = ((1.0 - low) * height / 2 - 0.5 + BOX_SLACK).clamp(-1, height - 1).floor().long()
    columns = (column_end + 1 - column).clamp_min(0)
    rows = (row_end + 1 - row).clamp_min(0)
    ends = (columns * rows).cumsum(0)

    best = torch.full((batch * height * width,), NOTHING, device=device)
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, CHUNK):
        candidate = torch.arange(first, min(first + CHUNK, total), device=device)
        n = torch.searchsorted(ends, candidate, right=True)
        offset = candidate - (ends[n] - columns[n] * rows[n])
        i = row[n] + offset // columns[n]
        j = column[n] + offset % columns[n]
        y_pixel = (1.0 - (2 * i + 1).double() / height)[:, None]
        x_pixel = ((2 * j + 1).double() / width - 1.0)[:, None]
        edges = dx[n] * (y_pixel - y_start[n]) - dy[n] * (x_pixel - x_start[n])  # (M, 3)
        inside = (edges >= least[n]).all(-1).nonzero()[:, 0]
        edges, n, i, j = edges[inside], n[inside], i[inside], j[inside]
        e0, e1, e2 = edges.unbind(-1)
        z0, z1, z2 = z[n].unbind(-1)
        depth = ((e0 * z0 + e1 * z1 + e2 * z2) / (e0 + e1 + e2)).float()
        best.scatter_reduce_(
            0, (image[n] * height + i) * width + j, _key(depth, face[n]), reduce="amax"
        )
    pix_to_face = torch.where(best == NOTHING, -1, LOW_BITS - (best & LOW_BITS))
    return pix_to_face.reshape(batch, height, width)


def _key(depth: Tensor, face: Tensor) -> Tensor:
    """An int64 that is larger for a larger float32 depth, then for a lower face index."""
    bits = (depth + 0.0).view(torch.int32)  # + 0.0: there is but one zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # two's complement in place of sign, magnitude
    return (ordered.long() << 32) | (LOW_BITS - face)


def barycentric_and_depth(
    projected: Tensor, triangles: Tensor, pix_to_face: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. A.3 and depth of given visible triangles, differentiable in `projected`.

    Computed in float64, in which no triangle that is visible is too thin for its area, and for
    every pixel, covered or not: picking out the covered ones would make the host wait for the
    device.

    Returns:
        (B, H, W, 3) and (B, H, W) in the dtype of `projected`; 0 and -inf without a triangle.
    """
    batch, height, width = pix_to_face.shape
    if not len(triangles):
        zeros = projected.new_zeros(batch, height, width, 3) + 0 * projected.sum()
        return zeros, zeros[..., 0] - torch.inf
    covered, corners = _corners(pix_to_face, triangles, projected)
    pixel = torch.arange(pix_to_face.numel(), device=projected.device)
    x, y, z = corners.double().unbind(-1)  # (P, 3) each
    y = y - (1.0 - (2 * (pixel // width % height) + 1).double() / height)[:, None]
    x = x - ((2 * (pixel % width) + 1).double() / width - 1.0)[:, None]
    edges = torch.stack(
        [
            x[:, 1] * y[:, 2] - y[:, 1] * x[:, 2],
            x[:, 2] * y[:, 0] - y[:, 2] * x[:, 0],
            x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1],
        ],
        dim=-1,
    )
    area = torch.where(covered, edges.sum(-1, keepdim=True), 1.0)
    weights = torch.where(covered, edges / area, 0.0)
    depth = torch.where(covered[:, 0], (weights * z).sum(-1), -torch.inf)
    return (
        weights.to(projected.dtype).reshape(batch, height, width, 3),
        depth.to(projected.dtype).reshape(batch, height, width),
    )


def interpolate(
    pix_to_face: Tensor, barycentric: Tensor, triangles: Tensor, attributes: Tensor
) -> Tensor:
    """`cest.rendering.rasterizer.interpolate` for checked arguments, on their device."""
    channels = attributes.shape[-1]
    if not len(triangles):
        return attributes.new_zeros(*pix_to_face.shape, channels) + 0 * attributes.sum()
    covered, corners = _corners(pix_to_face, triangles, attributes)
    weights = torch.where(covered, barycentric.reshape(-1, 3), 0.0)
    values = (weights[:, :, None] * corners).sum(1)
    return values.reshape(*pix_to_face.shape, channels)


def _corners(pix_to_face: Tensor, triangles: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the three corners of every pixel's triangle have; zeros where there is none.

    Args:
        pix_to_face: (B, H, W), P pixels in all.
        triangles: (F, 3), at least one.
        values: (B, K, C).

    Returns:
        Whether a pixel is covered (P, 1), and (P, 3, C).
    """
    n_vertices, channels = values.shape[1:]
    flat = pix_to_face.reshape(-1)
    covered = (flat >= 0)[:, None]
    pixel = torch.arange(len(flat), device=flat.device)[:, None]
    # Pixels without a triangle read some vertex or other, not all the same one: on a device their
    # gradients, though zero, would queue for it.
    vertex = torch.where(covered, triangles[flat.clamp(min=0)], pixel % n_vertices)
    vertex = vertex + pixel // pix_to_face.shape[1:].numel() * n_vertices
    corners = values.reshape(-1, channels).index_select(0, vertex.reshape(-1))
    return covered, torch.where(covered[:, :, None], corners.view(-1, 3, channels), 0.0)
