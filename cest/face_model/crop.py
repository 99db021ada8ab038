"""Cut the face out of the MakeHuman head: skin, lid linings, inner mouth, eyeballs.

MakeHuman's UV islands tell the head's outer skin, the mouth cavity and the two eye cavities apart;
around each opening the mesh is made of concentric edge loops ("rings", ring 0 is the seam), which
is what crop, parts and landmarks are defined by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix, csr_array, dia_array, identity
from scipy.sparse.csgraph import connected_components

from cest.face_model.makehuman import FloatArray, IntArray, MakeHuman

SKIN, EYEBALL, LIPS, INNER_MOUTH = range(4)

LIP_RINGS = 7  # from the seam to the vermilion border
MOUTH_CAVITY_RINGS = 4  # kept behind the lips; beyond them a sheet from upper to lower closes it
EYE_CAVITY_RINGS = 2  # linings of the lids: the second one lies inside the eyeball
OUTLINE_SMOOTHING = 8  # steps
EYEBALL_ANGLE = 100.0  # degrees from the straight gaze up to which the eyeball is kept


@dataclass(frozen=True)
class Crop:
    """A part of the base mesh.

    source (K,): base-mesh vertex of each kept vertex; quads (F, 4) and mirror (K,) index the kept
    ones. parts (K,) uint8. lid_rings, lip_rings: ring number (0 at the seam, counted outwards over
    skin) of each vertex, -1 where it is further away than anything uses. seam_depth (K,): rings
    counted from a seam into its cavity, 0 on skin. relaxation (K, K): the crop's outline is a
    staircase of quads; this linear operator straightens it and is the identity elsewhere.
    """

    source: IntArray
    quads: IntArray
    mirror: IntArray
    parts: np.ndarray
    lid_rings: IntArray
    lip_rings: IntArray
    seam_depth: IntArray
    relaxation: csr_array

    def take(self, vectors: FloatArray) -> FloatArray:
        """Positions or displacements (N, 3) of the base mesh -> those of the crop (K, 3)."""
        return self.relaxation @ vectors[self.source]

    def adjusted(self, operator: csr_array) -> Crop:
        """The same crop with `operator` (K, K) applied to whatever is taken."""
        return replace(self, relaxation=csr_array(operator @ self.relaxation))


def rings(quads: IntArray, seeds: IntArray, n_vertices: int, count: int) -> IntArray:
    """Edge distance (n_vertices,) of each vertex of `quads` from `seeds`; -1 beyond `count`."""
    edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
    distance = np.full(n_vertices, -1)
    distance[seeds] = 0
    for ring in range(1, count + 1):
        for a, b in ((0, 1), (1, 0)):
            reached = edges[distance[edges[:, a]] == ring - 1, b]
            distance[reached[distance[reached] < 0]] = ring
    return distance


def islands(mesh: MakeHuman, body: np.ndarray) -> IntArray:
    """UV island of each quad selected by `body`."""
    corners = mesh.quad_uv[body]
    edges = np.concatenate([corners[:, [i, (i + 1) % 4]] for i in range(4)])
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(len(mesh.uv),) * 2)
    return connected_components(graph, directed=False)[1][corners[:, 0]]


def _is_front(mesh: MakeHuman, shape: FloatArray, quads: IntArray):
    """Quads of the head's skin that belong to the face (hairline to under the chin, ear to ear),
    and those that must not: the ears and what is behind them.
    """
    x, y, z = shape[quads].mean(1).T
    below_hairline = y < 8.02 - 0.35 * (1.26 - z)
    before_ear = z > 0.57
    before_neck = z > 0.57 + 0.675 * (6.60 - y)
    is_ear = (z < 0.5) | ((z < 0.75) & (np.abs(x) > 0.665) & (y < 6.95)) | (np.abs(x) > 0.705)
    return below_hairline & before_ear & before_neck & ~is_ear, is_ear


def _smooth_outline(quads: IntArray, chosen: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
    """Fill the notches of the region `chosen` (F,) and drop its single teeth.

    A quad outside that shares two edges with the region joins it, unless `forbidden` (two passes:
    more would climb every staircase); one inside that hangs on by a single edge leaves it.
    """
    edges = np.sort(np.stack([quads, np.roll(quads, -1, 1)], -1), -1).reshape(-1, 2)
    inverse = np.unique(edges, axis=0, return_inverse=True)[1].reshape(-1, 4)
    owners = np.bincount(inverse.ravel())
    chosen = chosen.copy()

    def shared() -> np.ndarray:
        count = np.bincount(inverse[chosen].ravel(), minlength=len(owners))
        return ((count[inverse] - chosen[:, None]) > 0).sum(1)

    for _ in range(2):
        chosen |= ~forbidden & (shared() > 1)
    while (teeth := chosen & (shared() < 2)).any():
        chosen &= ~teeth
    return chosen


def _relaxation(quads: IntArray, n_vertices: int, shape: FloatArray) -> csr_array:
    """Operator (K, K) that smooths the longest boundary curve along itself."""
    edges = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    inverse, count = np.unique(np.sort(edges, 1), axis=0, return_inverse=True, return_counts=True)[
        1:
    ]
    border = edges[count[inverse.ravel()] == 1]
    graph = coo_matrix((np.ones(len(border)), border.T), shape=(n_vertices,) * 2)
    label = connected_components(graph, directed=False)[1]
    length = np.linalg.norm(shape[border[:, 0]] - shape[border[:, 1]], axis=1)
    outline = border[label[border[:, 0]] == np.bincount(label[border[:, 0]], length).argmax()]
    neighbours = csr_array(graph + graph.T)
    moving = np.zeros(n_vertices)
    moving[outline] = 1
    on, off = _diagonal(moving), _diagonal(1 - moving)
    step = off + on @ (0.5 * identity(n_vertices) + 0.25 * neighbours)
    result = identity(n_vertices, format="csr")
    for _ in range(OUTLINE_SMOOTHING):
        result = step @ result
    return csr_array(result)


def _diagonal(values: np.ndarray) -> csr_array:
    return csr_array(dia_array((values[None], [0]), shape=(len(values),) * 2))


def _ordered_ring(quads: IntArray, ring: IntArray, shape: FloatArray) -> IntArray:
    """Vertices of a closed ring, starting at its top on the midline, right side (x > 0) first."""
    members = set(ring.tolist())
    neighbours: dict[int, set[int]] = {i: set() for i in members}
    for quad in quads.tolist():
        for a, b in zip(quad, quad[1:] + quad[:1]):
            if a in members and b in members:
                neighbours[a].add(b)
                neighbours[b].add(a)
    midline = ring[np.abs(shape[ring, 0]) < 1e-9]
    path = [int(midline[np.argmax(shape[midline, 1])])]
    path.append(max(neighbours[path[0]], key=lambda i: shape[i, 0]))
    while len(path) < len(ring):
        path.append(next(i for i in neighbours[path[-1]] if i != path[-2]))
    return np.array(path)


def cut_face(mesh: MakeHuman, shape: FloatArray) -> Crop:
    """Cut the face out of `mesh`; `shape` (N, 3) are the average adult's positions."""
    n = len(shape)
    body = mesh.groups == "body"
    quads, island = mesh.quads[body], islands(mesh, body)
    centre = shape[quads].mean(1)
    island_of = {
        "head": island[np.argmax(np.where(np.abs(centre[:, 0]) < 0.1, centre[:, 2], -9))],
    }
    head = quads[island == island_of["head"]]
    head_vertices = np.unique(head)

    # The other islands that touch the face are its cavities: the mouth on the midline, one an eye.
    front, ear = _is_front(mesh, shape, head)
    skin = [head[_smooth_outline(head, front, ear)]]
    parts_kept = list(skin)
    lid_rings, lip_rings = np.full(n, -1), np.full(n, -1)
    depth = np.zeros(n, dtype=np.int64)
    parts = np.zeros(n, dtype=np.uint8)
    for label in np.unique(island):
        cavity = quads[island == label]
        seam = np.intersect1d(cavity, skin[0])
        if label == island_of["head"] or len(seam) == 0 or centre[island == label, 2].mean() < 0.8:
            continue
        is_mouth = np.abs(shape[seam, 0].mean()) < 1e-6
        around = rings(head, seam, n, 9)
        inside = rings(cavity, seam, n, 9)
        count = MOUTH_CAVITY_RINGS if is_mouth else EYE_CAVITY_RINGS
        parts_kept.append(cavity[(inside[cavity] <= count).all(1) & (inside[cavity] >= 0).all(1)])
        depth = np.maximum(depth, np.where(inside <= count, inside, 0))
        if is_mouth:
            lip_rings = np.where(around >= 0, around, lip_rings)
            parts[(around > 0) & (around <= LIP_RINGS)] = LIPS
            parts[inside >= 0] = INNER_MOUTH
            r = _ordered_ring(cavity, np.flatnonzero(inside == count), shape)
            half = len(r) // 2
            right = [[r[j], r[half - j], r[half - 1 - j], r[j + 1]] for j in range(half // 2)]
            right = np.array(right)
            parts_kept += [right, mesh.mirror[right][:, ::-1]]
        else:
            lid_rings = np.where(around >= 0, around, lid_rings)

    eye = mesh.quads[np.isin(mesh.groups, ["helper-l-eye", "helper-r-eye"])]
    for side in (eye[shape[eye[:, 0], 0] > 0], eye[shape[eye[:, 0], 0] < 0]):
        vertices = np.unique(side)
        direction = shape - shape[vertices].mean(0)
        cosine = direction[:, 2] / np.linalg.norm(direction, axis=1)
        kept = side[(cosine[side] > np.cos(np.deg2rad(EYEBALL_ANGLE))).all(1)]
        parts_kept.append(kept)
        parts[np.unique(kept)] = EYEBALL

    kept_quads = np.concatenate(parts_kept)
    assert set(head_vertices) >= set(np.unique(skin[0]))
    source = np.unique(kept_quads)
    index = np.full(n, -1)
    index[source] = np.arange(len(source))
    mirror = index[mesh.mirror[source]]
    if (mirror < 0).any():
        raise ValueError("the crop is not symmetric: a rule of _is_front cuts through a tie")
    return Crop(
        source,
        index[kept_quads],
        mirror,
        parts[source],
        lid_rings[source],
        lip_rings[source],
        depth[source],
        _relaxation(index[kept_quads], len(source), shape[source]),
    )
