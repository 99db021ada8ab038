"""Flatten the face into one UV chart with little distortion, mirror-symmetric and injective.

Skin, lid linings and inner mouth are one surface: it starts from a convex embedding, which cannot
overlap, and is relaxed until it is nearly isometric to the mean face, which cannot fold.
(MakeHuman's own UV has no seam in the face either, but gives eyes, nose and mouth very few texels.)
The two eyeballs are discs in the corners that the chart leaves free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array, csc_array, csr_array, diags_array
from scipy.sparse.linalg import splu

from cest.face_model.crop import EYEBALL, INNER_MOUTH, Crop
from cest.face_model.makehuman import FloatArray, IntArray

MARGIN = 0.012  # of the unit square, left free around and between islands
FEATURE_SCALE, BORDER_SCALE = 1.35, 0.85  # wanted texels per length, eyes to mouth and outline
LINING_SCALE = 0.45  # the same inside the mouth and behind the lids, which are rarely seen
RASTER = 1024  # cells a side used to find room for the eyeballs


def _corner_triangles(quads: IntArray) -> IntArray:
    """The four triangles (4F, 3) at the corners of each quad: all positive = quad convex."""
    return np.concatenate([np.roll(quads, -i, 1)[:, [3, 0, 1]] for i in range(4)])


def signed_areas(uv: FloatArray, triangles: IntArray) -> FloatArray:
    """Signed areas (F,) of `triangles` in the plane; positive = counter-clockwise."""
    a, b, c = (uv[triangles[:, i]] for i in range(3))
    return 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])


def _boundary_loops(quads: IntArray) -> list[IntArray]:
    """Closed boundary curves, each as its vertices in order (the surface on the left)."""
    edges = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    known = set(map(tuple, edges.tolist()))
    following = {a: b for a, b in known if (b, a) not in known}
    loops = []
    while following:
        first = min(following)
        loop = [first]
        while (vertex := following.pop(loop[-1])) != first:
            loop.append(vertex)
        loops.append(np.array(loop))
    return loops


@dataclass(frozen=True)
class _Disc:
    """The surface to flatten, its holes closed by one extra vertex each: a topological disc.

    points (K + H, 3), quads (F, 4), covers (C, 3): triangles over the holes, mirror (K + H,),
    outline: the vertices of the boundary that is left, counter-clockwise from its top.
    """

    points: FloatArray
    quads: IntArray
    covers: IntArray
    mirror: IntArray
    outline: IntArray


def _closed(shape: FloatArray, quads: IntArray, mirror: IntArray) -> _Disc:
    """Close every boundary of the surface but the longest: those of the lids' linings."""
    loops = _boundary_loops(quads)
    loops.sort(
        key=lambda loop: -np.linalg.norm(shape[np.roll(loop, -1)] - shape[loop], axis=1).sum()
    )
    outline, holes = loops[0], loops[1:]
    midline = np.flatnonzero(mirror[outline] == outline)
    top = midline[np.argmax(shape[outline[midline], 1])]
    sets = [set(hole.tolist()) for hole in holes]
    n = len(shape)
    partner = [n + sets.index(set(mirror[hole].tolist())) for hole in holes]
    covers = [
        np.stack([np.roll(hole, -1), hole, np.full_like(hole, n + i)], 1)
        for i, hole in enumerate(holes)
    ]
    return _Disc(
        np.concatenate([shape, [shape[hole].mean(0) for hole in holes]]),
        quads,
        np.concatenate(covers),
        np.concatenate([mirror, partner]),
        np.roll(outline, -top),
    )


def _convex_start(disc: _Disc) -> FloatArray:
    """Injective start (K + H, 2): every vertex at the average of its neighbours (Tutte 1963).

    The outline goes onto a circle by arc length from its top, which makes all faces convex.
    """
    loop = disc.outline
    length = np.linalg.norm(disc.points[np.roll(loop, -1)] - disc.points[loop], axis=1)
    angle = 2 * np.pi * np.concatenate([[0], np.cumsum(length)[:-1]]) / length.sum()
    n = len(disc.points)
    position = np.zeros((n, 2))
    position[loop] = np.stack([-np.sin(angle), np.cos(angle)], 1)  # counter-clockwise

    edges = [disc.quads[:, [i, (i + 1) % 4]] for i in range(4)]
    edges += [disc.covers[:, [i, (i + 1) % 3]] for i in range(3)]
    edges = np.unique(np.sort(np.concatenate(edges), 1), axis=0)
    adjacency = coo_array((np.ones(len(edges)), edges.T), shape=(n, n)).tocsr()
    adjacency = adjacency + adjacency.T
    degree = np.asarray(adjacency.sum(1)).ravel()
    fixed = np.zeros(n, dtype=bool)
    fixed[loop] = True
    free = np.flatnonzero(~fixed & (degree > 0))
    laplacian = csr_array(diags_array(degree)) - adjacency
    right = -laplacian[free][:, np.flatnonzero(fixed)] @ position[fixed]
    position[free] = splu(csc_array(laplacian[free][:, free])).solve(right)
    return position


def _rest_triangles(shape: FloatArray, triangles: IntArray, scale: FloatArray):
    """Gradient operator of each triangle laid flat: inverse edge matrices (F, 2, 2), areas (F,).

    Corners flatter than a few degrees are opened: no chart can or need reproduce them.
    """
    e1 = shape[triangles[:, 1]] - shape[triangles[:, 0]]
    e2 = shape[triangles[:, 2]] - shape[triangles[:, 0]]
    factor = scale[triangles].mean(1)
    l1, l2 = np.linalg.norm(e1, axis=1) * factor, np.linalg.norm(e2, axis=1) * factor
    floor = 0.1 * np.maximum(l1, l2)
    l1, l2 = np.maximum(l1, floor), np.maximum(l2, floor)
    cosine = (e1 * e2).sum(1) / np.linalg.norm(e1, axis=1) / np.linalg.norm(e2, axis=1)
    angle = np.clip(np.arccos(np.clip(cosine, -1, 1)), np.deg2rad(20), np.deg2rad(160))
    edges = np.zeros((len(triangles), 2, 2))
    edges[:, 0, 0], edges[:, 0, 1] = l1, l2 * np.cos(angle)
    edges[:, 1, 1] = l2 * np.sin(angle)
    return np.linalg.inv(edges), 0.5 * l1 * l2 * np.sin(angle)


def _relax(uv: FloatArray, disc: _Disc, scale: FloatArray, steps: int = 100) -> FloatArray:
    """Minimise the symmetric Dirichlet energy of the map from the surface to `uv` (K + H, 2).

    The energy |J|^2 + |J^-1|^2 is infinite for a flipped or collapsed triangle (Smith & Schaefer
    2015, "Bijective parameterization with free boundaries"), so a start without flips stays
    without; the covers keep the two sides of a hole from sliding over each other. Newton's method
    with each triangle's Hessian made positive; steps are mirrored, which keeps u = 0 the axis of
    symmetry. `scale` (K + H,): wanted length ratio.
    """

    def symmetric(vectors: FloatArray) -> FloatArray:
        return (vectors + vectors[disc.mirror] * [-1.0, 1.0]) / 2

    triangles = np.concatenate([_corner_triangles(disc.quads), disc.covers])
    inverse, area = _rest_triangles(disc.points, triangles, scale)
    # J = [uv1 - uv0, uv2 - uv0] @ inverse = sum over corners of uv_c (x) gradient_c.
    gradient = np.concatenate([-inverse.sum(1)[:, None], inverse], 1)  # (F, 3, 2)
    used = np.unique(triangles)
    unknown = np.full(len(uv), -1)
    unknown[used] = np.arange(len(used))
    degrees = (2 * unknown[triangles][:, :, None] + np.arange(2)).reshape(-1, 6)
    rows, columns = np.repeat(degrees, 6, 1).ravel(), np.tile(degrees, 6).ravel()
    # Keeps the chart from floating along v, which costs no energy.
    anchor = 1e-9 * diags_array(np.ones(2 * len(used)))

    def jacobian(points: FloatArray) -> tuple[FloatArray, FloatArray]:
        j = np.einsum("fca,fcb->fab", points[triangles], gradient)
        return j, np.linalg.det(j)

    def energy(points: FloatArray) -> float:
        j, det = jacobian(points)
        if (det <= 0).any():
            return np.inf
        square = (j**2).sum((1, 2))
        return float((area * (square + square / det**2)).sum())

    uv = symmetric(uv * np.sqrt(area.sum() / signed_areas(uv, triangles).sum()))
    value = energy(uv)
    if not np.isfinite(value):
        raise ValueError("the start of the chart is folded")
    for _ in range(steps):
        slope, hessian = _symmetric_dirichlet(*jacobian(uv))
        slope = np.einsum("f,fab,fcb->fca", area, slope, gradient).ravel()
        slope = np.bincount(degrees.ravel(), slope, 2 * len(used))
        local = np.einsum("f,fib,fabcd,fjd->fiajc", area, gradient, hessian, gradient)
        matrix = coo_array((local.ravel(), (rows, columns)), shape=(len(slope),) * 2)
        direction = np.zeros_like(uv)
        direction[used] = -splu(csc_array(matrix + anchor)).solve(slope).reshape(-1, 2)
        direction = symmetric(direction)
        decrease = (direction[used].ravel() * slope).sum()
        step = 1.0
        while (new_value := energy(uv + step * direction)) > value + 1e-4 * step * decrease:
            step /= 2
            if step < 1e-12:
                return uv
        uv, value = uv + step * direction, new_value
        if np.abs(step * direction).max() < 1e-9:
            return uv
    raise ValueError("the chart did not settle")


def _symmetric_dirichlet(j: FloatArray, det: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Slope (F, 2, 2) and positive Hessian (F, 2, 2, 2, 2) of |J|^2 + |J|^2 / det^2 by J."""
    square = (j**2).sum((1, 2))
    cofactor = np.stack([j[:, 1, 1], -j[:, 1, 0], -j[:, 0, 1], j[:, 0, 0]], 1)  # of det by J
    flat = j.reshape(-1, 4)
    slope = 2 * (1 + det**-2)[:, None] * flat - 2 * (square / det**3)[:, None] * cofactor
    bilinear = np.zeros((4, 4))  # second derivative of det
    bilinear[[0, 3], [3, 0]], bilinear[[1, 2], [2, 1]] = 1, -1
    cross = flat[:, :, None] * cofactor[:, None]
    hessian = (
        2 * (1 + det**-2)[:, None, None] * np.eye(4)
        - 4 * (det**-3)[:, None, None] * (cross + cross.transpose(0, 2, 1))
        + 6 * (square / det**4)[:, None, None] * cofactor[:, :, None] * cofactor[:, None]
        - 2 * (square / det**3)[:, None, None] * bilinear
    )
    values, vectors = np.linalg.eigh(hessian)
    hessian = (vectors * np.maximum(values, 0)[:, None]) @ vectors.transpose(0, 2, 1)
    return slope.reshape(-1, 2, 2), hessian.reshape(-1, 2, 2, 2, 2)


def build_chart(crop: Crop, shape: FloatArray, centre_of_features: FloatArray) -> FloatArray:
    """UV (K, 2) in [0, 1] of the cropped mean `shape` (K, 3).

    `centre_of_features` (3,) is about where the nose is: texels are denser around it.
    """
    eyeball = crop.parts == EYEBALL
    surface = crop.quads[~eyeball[crop.quads].any(1)]
    disc = _closed(shape, surface, crop.mirror)
    distance = np.linalg.norm((disc.points - centre_of_features) * [1, 0.9, 0.6], axis=1)
    scale = BORDER_SCALE + (FEATURE_SCALE - BORDER_SCALE) * np.exp(-((distance / 0.55) ** 4))
    lining = (crop.parts == INNER_MOUTH) | (crop.seam_depth > 0)
    scale[: len(shape)][lining] *= LINING_SCALE
    scale[len(shape) :] *= LINING_SCALE
    flat = _relax(_convex_start(disc), disc, scale)[: len(shape)]
    low, high = flat[~eyeball].min(0), flat[~eyeball].max(0)
    uv = MARGIN + (1 - 2 * MARGIN) * (flat - low) / (high - low)
    uv[:, 0] += 0.5 - (uv[:, 0] + uv[crop.mirror, 0]) / 2
    _place_eyeballs(uv, crop, shape, surface)
    return uv


def _covered(uv: FloatArray, triangles: IntArray, size: int) -> np.ndarray:
    """How many triangles cover the centre of each cell (size, size); row 0 is v = 0."""
    count = np.zeros((size, size), dtype=np.int32)
    for triangle in uv[triangles] * size - 0.5:
        (x0, y0), (x1, y1) = np.ceil(triangle.min(0)), np.floor(triangle.max(0))
        x = np.arange(max(x0, 0), min(x1, size - 1) + 1)
        y = np.arange(max(y0, 0), min(y1, size - 1) + 1)
        if len(x) == 0 or len(y) == 0:
            continue
        a, b, c = triangle
        inside = True
        for p, q in ((a, b), (b, c), (c, a)):
            cross = (q[0] - p[0]) * (y[:, None] - p[1]) - (q[1] - p[1]) * (x[None] - p[0])
            inside = inside & (cross > 0)
        count[int(y[0]) : int(y[-1]) + 1, int(x[0]) : int(x[-1]) + 1] += inside
    return count


def _place_eyeballs(uv: FloatArray, crop: Crop, shape: FloatArray, surface: IntArray) -> None:
    """Give each eyeball an equidistant disc in the largest free space of its half, in place."""
    triangles = np.concatenate([surface[:, [0, 1, 2]], surface[:, [0, 2, 3]]])
    free = _covered(uv, triangles, RASTER) == 0
    padded = np.pad(free, 1)
    padded[:, RASTER // 2 + 1] = False  # keep to the left half: the other eye takes the right
    room = distance_transform_edt(padded)[1:-1, 1:-1] / RASTER
    room[:, RASTER // 2 :] = 0
    row, column = np.unravel_index(room.argmax(), room.shape)
    centre = (np.array([column, row]) + 0.5) / RASTER
    radius = room[row, column] - MARGIN / 2
    left = np.flatnonzero((crop.parts == EYEBALL) & (shape[:, 0] < 0))
    middle = (shape[left].min(0) + shape[left].max(0)) / 2
    middle[2] = shape[left, 2].min()  # the patch ends about where the ball is widest
    direction = shape[left] - middle
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    polar = np.arccos(np.clip(direction[:, 2], -1, 1))
    around = direction[:, :2] / np.maximum(np.linalg.norm(direction[:, :2], axis=1), 1e-12)[:, None]
    uv[left] = centre + radius * (polar / polar.max())[:, None] * around
    uv[crop.mirror[left]] = uv[left] * [-1, 1] + [1, 0]
