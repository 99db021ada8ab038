"""Catmull-Clark subdivision of quad meshes as linear operators.

New vertices come after the old ones (old vertices, then one an edge, then one a face), so vertex
ids of a coarse level stay valid on every finer one. Catmull & Clark 1978; boundary curves are
cubic B-splines of their own vertices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array, vstack

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Subdivision:
    """One step from K to K' vertices.

    smooth, linear (K', K): operators for positions (Catmull-Clark) and for what must stay where it
    is (UV, bilinear). quads (4F, 4), mirror (K',): the finer topology. parents (K', 4): the coarse
    vertices that each new vertex lies between (its own id repeated for an old one).
    """

    smooth: csr_array
    linear: csr_array
    quads: IntArray
    mirror: IntArray
    parents: IntArray


def subdivide(quads: IntArray, mirror: IntArray) -> Subdivision:
    """Subdivide the mesh of `quads` (F, 4) with mirror map `mirror` (K,) once."""
    k, f = len(mirror), len(quads)
    half_edges = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    edges, edge_of, owners = np.unique(
        np.sort(half_edges, 1), axis=0, return_inverse=True, return_counts=True
    )
    edge_of = edge_of.reshape(-1, 4)
    e = len(edges)
    border = owners == 1

    def table(rows: IntArray, columns: IntArray, values, shape: tuple[int, int]) -> csr_array:
        data = np.broadcast_to(values, rows.shape).ravel()
        return csr_array(coo_array((data, (rows.ravel(), columns.ravel())), shape=shape))

    face_ids, edge_ids = np.arange(f)[:, None], np.arange(e)[:, None]
    face_points = table(np.repeat(face_ids, 4, 1), quads, 0.25, (f, k))
    midpoints = table(np.repeat(edge_ids, 2, 1), edges, 0.5, (e, k))
    faces_at_edge = table(edge_of, np.repeat(face_ids, 4, 1), 1.0, (e, f))
    inner = diags_array((~border).astype(float))
    edge_points = midpoints - inner @ midpoints * 0.5 + inner @ (faces_at_edge @ face_points) * 0.25

    # Old vertices: (average face point + 2 average edge midpoint + (n - 3) itself) / n inside,
    # (left + 6 itself + right) / 8 on a boundary.
    faces_at_vertex = table(quads, np.repeat(face_ids, 4, 1), 1.0, (k, f))
    edges_at_vertex = table(edges, np.repeat(edge_ids, 2, 1), 1.0, (k, e))
    n = np.maximum(faces_at_vertex.sum(1), 1.0)
    on_border = np.zeros(k, dtype=bool)
    on_border[edges[border]] = True
    inside = (
        diags_array(1 / n**2) @ (faces_at_vertex @ face_points)
        + diags_array(2 / n**2) @ (edges_at_vertex @ midpoints)
        + diags_array((n - 3) / n)
    )
    border_edges = edges_at_vertex @ diags_array(border.astype(float))
    outside = border_edges @ midpoints * 0.25 + diags_array(np.full(k, 0.5))
    old_points = diags_array((~on_border).astype(float)) @ inside
    old_points = old_points + diags_array(on_border.astype(float)) @ outside

    edge_at = k + edge_of
    centre = k + e + face_ids[:, 0]
    finer = [np.stack([quads[:, i], edge_at[:, i], centre, edge_at[:, i - 1]], 1) for i in range(4)]
    return Subdivision(
        csr_array(vstack([old_points, edge_points, face_points])),
        csr_array(vstack([diags_array(np.ones(k)), midpoints, face_points])),
        np.stack(finer, 1).reshape(-1, 4),
        np.concatenate(
            [mirror, k + _match(mirror[edges], edges), k + e + _match(mirror[quads], quads)]
        ),
        np.concatenate([np.repeat(np.arange(k)[:, None], 4, 1), np.repeat(edges, 2, 1), quads]),
    )


def _match(wanted: IntArray, among: IntArray) -> IntArray:
    """Row of `among` with the same set of vertices, for each row of `wanted`."""
    a, b = np.sort(wanted, 1), np.sort(among, 1)
    order_a, order_b = np.lexsort(a.T), np.lexsort(b.T)
    if not np.array_equal(a[order_a], b[order_b]):
        raise ValueError("the mesh is not symmetric under its mirror map")
    result = np.empty(len(a), dtype=np.int64)
    result[order_a] = order_b
    return result


def triangulate(quads: IntArray, mirror: IntArray, positions: NDArray) -> IntArray:
    """Split each of `quads` (F, 4) along its shorter diagonal: triangles (2F, 3).

    `positions` (K, 3) must be exactly mirror-symmetric: then a quad and its mirror image are split
    alike. Ties go to the diagonal with the lowest vertex id of both sides.
    """
    corner = [positions[quads[:, i]] for i in range(4)]
    first = ((corner[0] - corner[2]) ** 2).sum(1)
    second = ((corner[1] - corner[3]) ** 2).sum(1)
    key = np.minimum(quads, mirror[quads])
    lowest = np.minimum(key[:, 0], key[:, 2]) < np.minimum(key[:, 1], key[:, 3])
    along_first = np.where(first == second, lowest, first < second)
    turned = np.where(along_first[:, None], quads, np.roll(quads, -1, 1))
    return turned[:, [0, 1, 2, 0, 2, 3]].reshape(-1, 3)
