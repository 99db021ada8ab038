"""Bringing one shape onto another: known correspondence (Procrustes), or none (rigid ICP).

All lengths are in one unit, whichever the caller's; points are rows of float64 arrays.
"""

from dataclasses import dataclass

import numpy as np
import trimesh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

ITERATIONS = 100
SETTLED, SETTLED_STEPS = 1e-3, 3
"""An alignment has arrived when so many steps in a row are smaller than this: radians, change of
scale, and shift over the points' extent together. Nearest points change with every step, so that
steps between different shapes never shrink to nothing."""
ALIGNMENT_POINTS = 1_000
"""ICP is driven by so many of the points, evenly spread over their order."""
NEAREST_TRIANGLES = 10
"""The nearest point is searched on so many triangles: of the face model's it is missed for one
point in thirty, by less than a hundredth of the mean distance."""
OUTLIERS = 5.0
"""A pair further apart than so many medians does not pull: hair, collars, what one side lacks."""
LEAST_OVERLAP = 0.3
"""Below this fraction of pairs that count an alignment is not to be trusted."""
FIRST_ANGLE, FIRST_ITERATIONS = np.radians(15), 10
"""Without a first guess, starts turned by this about each axis are tried besides the one as is."""


@dataclass(frozen=True, eq=False)
class Motion:
    """x -> scale · rotation x + translation.

    Attributes:
        scale: 1 for a rigid motion.
        rotation: (3, 3).
        translation: (3,).
    """

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    @classmethod
    def identity(cls) -> "Motion":
        return cls(1.0, np.eye(3), np.zeros(3))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3)."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) -> (N, 3), back."""
        return (points - self.translation) @ self.rotation / self.scale

    def then(self, other: "Motion") -> "Motion":
        """This motion first, the other after it."""
        return Motion(
            other.scale * self.scale,
            other.rotation @ self.rotation,
            other(self.translation[None])[0],
        )

    @property
    def angle(self) -> float:
        """Of the rotation, radians; exact also where it is tiny."""
        r = self.rotation
        axis = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
        return float(np.arctan2(np.linalg.norm(axis), np.trace(r) - 1))


def procrustes(source: np.ndarray, target: np.ndarray, scale: bool) -> Motion:
    """The motion that brings corresponding points together, in the least squares sense (Umeyama).

    Args:
        source, target: (N, 3), N ≥ 3.
        scale: whether the motion may scale.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    centre, target_centre = source.mean(0), target.mean(0)
    a, b = source - centre, target - target_centre
    u, singular, vt = np.linalg.svd(b.T @ a)
    # A reflection is no motion: the least direction is turned back.
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u * signs @ vt
    factor = float((singular * signs).sum() / (a**2).sum()) if scale else 1.0
    return Motion(factor, rotation, target_centre - factor * rotation @ centre)


class TriangleSurface:
    """A triangle mesh that is asked for the nearest of its points.

    Args:
        vertices: (K, 3).
        triangles: (F, 3).
    """

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray) -> None:
        vertices, triangles = np.asarray(vertices, float), np.asarray(triangles)
        edge = np.diff(vertices[triangles], axis=1)
        normals = np.cross(edge[:, 0], edge[:, 1])
        area = np.linalg.norm(normals, axis=1)
        # A triangle without area has no normal, and nothing lies on it that a neighbour lacks.
        triangles, self.normals = triangles[area > 0], normals[area > 0] / area[area > 0, None]
        self.corners = vertices[triangles]
        self.tree = cKDTree(self.corners.mean(1))
        edges = np.sort(triangles[:, [[1, 2], [2, 0], [0, 1]]], axis=-1)  # across from each corner
        _, index, count = np.unique(
            edges.reshape(-1, 2), axis=0, return_inverse=True, return_counts=True
        )
        self.rim_edge = (count[index.ravel()] == 1).reshape(-1, 3)
        rim = np.zeros(len(vertices), bool)
        rim[edges[self.rim_edge]] = True
        self.rim_corner = rim[triangles]

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nearest point of the surface to each point (N, 3).

        It is searched on the triangles with the nearest centres. Returns points (N, 3), unit
        normals of their triangles (N, 3), and whether they lie on the surface's rim (N,), where
        the surface ends rather than meets the point.
        """
        count = min(NEAREST_TRIANGLES, len(self.corners))
        _, candidates = self.tree.query(points, k=list(range(1, count + 1)))
        places = trimesh.triangles.closest_point(
            self.corners[candidates.ravel()], np.repeat(points, count, axis=0)
        ).reshape(-1, count, 3)
        best = ((places - points[:, None]) ** 2).sum(-1).argmin(1)
        rows = np.arange(len(points))
        found, triangle = places[rows, best], candidates[rows, best]
        weights = trimesh.triangles.points_to_barycentric(self.corners[triangle], found)
        on_edge = (weights < 1e-9) & self.rim_edge[triangle]
        on_corner = (weights > 1 - 1e-9) & self.rim_corner[triangle]
        return found, self.normals[triangle], (on_edge | on_corner).any(1)


@dataclass(frozen=True, eq=False)
class Alignment:
    """What ICP arrived at.

    Attributes:
        motion: of the surface onto the points.
        converged: the motion had stopped changing, and enough pairs counted.
        iterations: until then.
        overlap: fraction of the points whose pair counted.
        residual: root mean square distance of those pairs.
    """

    motion: Motion
    converged: bool
    iterations: int
    overlap: float
    residual: float


def icp(
    surface: TriangleSurface,
    points: np.ndarray,
    scale: bool = False,
    start: Motion | None = None,
    iterations: int = ITERATIONS,
) -> Alignment:
    """Moves a surface onto points that do not correspond to it (rigid ICP, point to plane).

    Each point is paired with the nearest point of the surface; the motion then descends on the
    distances along the surface's normals (Chen and Medioni 1992), which lets it slide. Overlap may
    be partial on both sides: pairs on the surface's rim (Turk and Levoy 1994) and outliers do not
    count. Distances are taken from the points, so a surface that shrinks gains nothing.

    What it finds is an optimum near the start. Without a first guess it tries a few, and goes on
    with the one that fits best.

    Args:
        surface: moves.
        points: (N, 3), stay.
        scale: whether the motion may scale.
        start: a first guess, from landmarks for instance.
        iterations: at most.
    """
    points = np.asarray(points, float)
    if len(points) > ALIGNMENT_POINTS:
        chosen = np.linspace(0, len(points) - 1, ALIGNMENT_POINTS).round().astype(int)
        points = points[chosen]
    if start is None:
        tried = [
            _descent(surface, points, scale, motion, min(FIRST_ITERATIONS, iterations))
            for motion in _starts(points)
        ]
        start = min(tried, key=lambda a: a.residual / max(a.overlap, 1e-9)).motion
    return _descent(surface, points, scale, start, iterations)


def _starts(points: np.ndarray) -> list[Motion]:
    """As it is, and turned either way about each axis through the points' centre."""
    centre = points.mean(0)
    turns = [
        Rotation.from_rotvec(angle) for angle in FIRST_ANGLE * np.vstack((np.eye(3), -np.eye(3)))
    ]
    turned = [Motion(1.0, r.as_matrix(), centre - r.apply(centre)) for r in turns]
    return [Motion.identity(), *turned]


def _descent(
    surface: TriangleSurface, points: np.ndarray, scale: bool, motion: Motion, iterations: int
) -> Alignment:
    extent = np.linalg.norm(np.ptp(points, axis=0))
    settled, done = 0, 0
    places, normals, distance, counts = _pairs(surface, points, motion)
    while done < iterations and settled < SETTLED_STEPS:
        step = _step(
            points[counts], motion(places[counts]), normals[counts] @ motion.rotation.T, scale
        )
        if step is None:
            break
        done += 1
        motion = motion.then(step)
        places, normals, distance, counts = _pairs(surface, points, motion)
        centre = points.mean(0, keepdims=True)
        shift = np.linalg.norm(step(centre) - centre) / extent
        settled = settled + 1 if step.angle + abs(step.scale - 1) + shift < SETTLED else 0
    overlap = float(counts.mean())
    return Alignment(
        motion=motion,
        converged=settled == SETTLED_STEPS and overlap >= LEAST_OVERLAP,
        iterations=done,
        overlap=overlap,
        residual=float(np.sqrt((distance[counts] ** 2).mean())) if counts.any() else float("inf"),
    )


def _pairs(
    surface: TriangleSurface, points: np.ndarray, motion: Motion
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places and normals in the surface's frame, distances in the points', which pairs count."""
    places, normals, rim = surface.nearest(motion.inverse(points))
    distance = np.linalg.norm(motion(places) - points, axis=1)
    if rim.all():
        return places, normals, distance, ~rim
    # Where the fit is exact, distances are rounding errors, and none is an outlier.
    limit = OUTLIERS * np.median(distance[~rim]) + 1e-9 * np.ptp(points)
    return places, normals, distance, ~rim & (distance <= limit)


def _step(
    points: np.ndarray, places: np.ndarray, normals: np.ndarray, scale: bool
) -> Motion | None:
    """One Gauss-Newton step of Σ (n · (q - M y))² over small motions M; None with too few pairs."""
    if len(points) < 7:
        return None
    centre = places.mean(0)
    arm = places - centre
    columns = [np.cross(arm, normals), normals]
    if scale:
        columns.append((normals * arm).sum(1, keepdims=True))
    residual = (normals * (points - places)).sum(1)
    # Directions that the normals do not determine (a plane slides on itself) stay as they are.
    solution = np.linalg.lstsq(np.concatenate(columns, axis=1), residual, rcond=1e-8)[0]
    rotation = Rotation.from_rotvec(solution[:3]).as_matrix()
    factor = float(np.exp(np.clip(solution[6], -0.2, 0.2))) if scale else 1.0
    return Motion(factor, rotation, centre + solution[3:6] - factor * rotation @ centre)
