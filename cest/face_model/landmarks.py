"""Place the 68 iBUG landmarks on the cropped face by rule.

Lids and lips are found on their edge loops, the nose on the midline. Brows, nostrils and jaw have
no loop of their own: they are the skin vertices nearest to where the average frontal layout of
annotated photographs, scaled to the average adult's eyes and mouth, puts them (dm from the middle
between the inner eye corners; the depths of the jaw follow its bone). Quads are up to a centimetre
wide there, so those vertices are slid over the surface, by less than half a quad, to the point
itself.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, identity

from cest.face_model.crop import INNER_MOUTH, LIP_RINGS, SKIN, Crop
from cest.face_model.makehuman import FloatArray, IntArray
from cest.face_model.model import MIRRORED_LANDMARKS

LID_RING = 3  # the lids' front edge
LIP_CONTACT_RING = 2  # where the closed lips meet

# Landmark: (x, y, z) dm from the middle between the inner eye corners.
_OUTLINE = {
    8: (0.000, -1.045, -0.04),
    9: (0.214, -1.000, -0.10),
    10: (0.366, -0.890, -0.20),
    11: (0.450, -0.806, -0.29),
    12: (0.545, -0.650, -0.42),
    13: (0.597, -0.512, -0.52),
    14: (0.638, -0.288, -0.60),
    15: (0.648, -0.152, -0.62),
    16: (0.654, -0.020, -0.62),
}
_FRONT = {
    22: (0.142, 0.218),
    23: (0.280, 0.236),
    24: (0.396, 0.244),
    25: (0.485, 0.217),
    26: (0.541, 0.164),
    33: (0.000, -0.428),
    34: (0.077, -0.423),
    35: (0.128, -0.392),
}
_DEPTH_WEIGHT = 0.3  # the layout knows x and y much better than z


def place_landmarks(crop: Crop, shape: FloatArray) -> tuple[IntArray, csr_array]:
    """Vertices (68,) of the landmarks on `shape` (K, 3), mirror-consistent, and the slide (K, K).

    The slide is a linear operator on positions and displacements; it moves brow, nostril and jaw
    landmarks and is the identity elsewhere. Landmarks come in pairs, so only the subject's left
    half (x >= 0) is searched.
    """
    found = np.full(68, -1)
    x, y, z = shape.T
    right = x >= -1e-9  # the half on the right of the image

    def nearest(candidates: IntArray, target: FloatArray, weights: FloatArray) -> int:
        offset = shape[candidates][:, : len(target)] - target
        return int(candidates[np.argmin((offset**2 * weights).sum(1))])

    # Eyes: corners at the loop's extremes, the others at fractions of the width between them.
    lid = np.flatnonzero((crop.lid_rings == LID_RING) & right)
    inner, outer = lid[np.argmin(x[lid])], lid[np.argmax(x[lid])]
    found[42], found[45] = inner, outer
    chord = np.interp(x[lid], x[[inner, outer]], y[[inner, outer]])
    for landmark, fraction, side in ((43, 0.41, 1), (44, 0.78, 1), (46, 0.71, -1), (47, 0.34, -1)):
        half = lid[(y[lid] - chord) * side > 0]
        target = x[inner] + fraction * (x[outer] - x[inner])
        found[landmark] = half[np.argmin(np.abs(x[half] - target))]

    # Lips: likewise, on the vermilion border and on the line of contact.
    for ring, corner, upper, lower in (
        (LIP_RINGS, 54, {51: 0.0, 52: 0.31, 53: 0.60}, {57: 0.0, 56: 0.32, 55: 0.79}),
        (LIP_CONTACT_RING, 64, {62: 0.0, 63: 0.28}, {66: 0.0, 65: 0.28}),
    ):
        lip = np.flatnonzero((crop.lip_rings == ring) & right & (crop.parts != INNER_MOUTH))
        found[corner] = lip[np.argmax(x[lip])]
        middle = np.sort(y[lip][np.abs(x[lip]) < 1e-9])
        cut = np.interp(x[lip], [0, x[found[corner]]], [middle.mean(), y[found[corner]]])
        for fractions, side in ((upper, 1), (lower, -1)):
            half = lip[(y[lip] - cut) * side > 0]
            for landmark, fraction in fractions.items():
                target = fraction * x[found[corner]]
                found[landmark] = half[np.argmin(np.abs(x[half] - target))]

    # Nose: from eye height down to the tip, the foremost vertex of the midline.
    skin = np.flatnonzero((crop.parts == SKIN) & right & (crop.seam_depth == 0))
    midline = skin[np.abs(x[skin]) < 1e-9]
    tip, top = midline[np.argmax(z[midline])], y[inner]
    for landmark, fraction in ((27, 0.0), (28, 0.43), (29, 0.75), (30, 1.0)):
        height = top + fraction * (y[tip] - top)
        ridge = midline[z[midline] > z[midline].max() - 0.3]
        found[landmark] = ridge[np.argmin(np.abs(y[ridge] - height))]

    origin = np.array([0.0, y[inner], z[inner]])
    forward = skin[_faces_forward(crop, shape)[skin]]
    slide = identity(len(shape), format="lil")
    for landmark, layout in (_FRONT | _OUTLINE).items():
        target = np.array(layout) + origin[: len(layout)]
        weights = np.array([1, 1, _DEPTH_WEIGHT])[: len(layout)]
        on_midline = layout[0] == 0
        candidates = midline if on_midline else (forward if len(layout) == 2 else skin)
        vertex = found[landmark] = nearest(candidates, target, weights)
        if not on_midline:
            row = _slide(crop.quads, shape, vertex, target, weights)
            slide[vertex] = 0
            slide[crop.mirror[vertex]] = 0
            for corner, share in row.items():
                slide[vertex, corner] = share
                slide[crop.mirror[vertex], crop.mirror[corner]] = share

    missing = found < 0
    found[missing] = crop.mirror[found[MIRRORED_LANDMARKS[missing]]]
    return found, csr_array(slide)


def _slide(
    quads: IntArray, shape: FloatArray, vertex: int, target: FloatArray, weights: FloatArray
) -> dict[int, float]:
    """Bilinear weights over one adjacent quad's corners that bring `vertex` closest to `target`.

    Stays within 0.45 of an edge, so that no quad turns over.
    """
    s, t = np.meshgrid(np.linspace(0, 0.45, 46), np.linspace(0, 0.45, 46))
    bilinear = np.stack([(1 - s) * (1 - t), s * (1 - t), s * t, (1 - s) * t], -1)
    best, result = np.inf, {vertex: 1.0}
    for quad in quads[(quads == vertex).any(1)]:
        corners = np.roll(quad, -int(np.flatnonzero(quad == vertex)[0]))
        offset = (bilinear @ shape[corners])[..., : len(target)] - target
        distance = (offset**2 * weights).sum(-1)
        if distance.min() < best:
            best = distance.min()
            share = bilinear.reshape(-1, 4)[distance.argmin()]
            result = dict(zip(corners.tolist(), share.tolist()))
    return result


def _faces_forward(crop: Crop, shape: FloatArray) -> np.ndarray:
    """Vertices (K,) whose surface looks at the viewer rather than up, down or sideways."""
    a, b, c, d = (shape[crop.quads[:, i]] for i in range(4))
    quad_normal = np.cross(c - a, d - b)
    normal = np.zeros_like(shape)
    for corner in range(4):
        np.add.at(normal, crop.quads[:, corner], quad_normal)
    return normal[:, 2] > 0.3 * np.linalg.norm(normal, axis=1)
