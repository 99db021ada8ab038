"""Errors of the shape against three-dimensional truth (paper, §4: NME of dense point clouds).

Dense NME: the shape is moved onto the truth by rigid ICP, started from landmarks; the error is the
mean distance from the truth's vertices to the shape's surface, over the outer interocular distance
of the truth in three dimensions (landmarks 36 and 45), in %. ICP finds the nearest point, not the
right one, so it flatters; where vertices correspond, as on synthetic faces, `vertex_error` is the
true error and stands beside it.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cest.evaluation.alignment import Alignment, TriangleSurface, icp, procrustes
from cest.face_model import FaceModel

FACE_RADIUS = 0.95
"""Decimetres around the tip of the nose: what counts as the face, on mean shape and scans."""
OUTER_EYE_CORNERS = (36, 45)
NOSE_TIP = 30
SEEN = (0, 2)
"""`FaceModel.parts` that count: skin and lips, not eyeballs or the inside of the mouth."""


@dataclass(frozen=True, eq=False)
class Shape:
    """Geometry alone, of one face.

    Attributes:
        vertices: (K, 3): x right, y up, z to the viewer; of a face in a photo, the photo's pixels.
        triangles: (F, 3), any winding.
        landmarks: (68,) vertices of the iBUG points.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    landmarks: np.ndarray

    @classmethod
    def of(cls, face_model: FaceModel, vertices: Tensor) -> "Shape":
        """vertices: (K, 3) of the face model."""
        tensors = vertices.double(), face_model.triangles, face_model.landmarks
        return cls(*(tensor.cpu().numpy() for tensor in tensors))

    @property
    def landmarks_photo(self) -> np.ndarray:
        """(68, 2) pixel-edge coordinates of the photo."""
        return self.vertices[self.landmarks, :2] * (1, -1)


def interocular_distance(landmarks: np.ndarray) -> float:
    """Between the outer eye corners of (68, 3) landmarks, in their unit."""
    right, left = OUTER_EYE_CORNERS
    return float(np.linalg.norm(landmarks[right] - landmarks[left]))


def face_vertices(face_model: FaceModel) -> np.ndarray:
    """The fixed face region: indices of skin and lips near the tip of the mean shape's nose."""
    mean = face_model.mean.double().cpu().numpy()
    tip = mean[face_model.landmarks[NOSE_TIP].item()]
    near = np.linalg.norm(mean - tip, axis=1) <= FACE_RADIUS
    return np.flatnonzero(near & np.isin(face_model.parts.cpu().numpy(), SEEN))


def within_radius(points: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """The points (N, 3) that are at most `radius` from `centre`, all in one unit."""
    return points[np.linalg.norm(points - centre, axis=1) <= radius]


@dataclass(frozen=True, eq=False)
class DenseError:
    """Of one face.

    Attributes:
        nme: mean distance / interocular distance, %.
        alignment: what ICP did, and whether it converged.
    """

    nme: float
    alignment: Alignment


def dense_nme(
    vertices: np.ndarray,
    triangles: np.ndarray,
    anchors: tuple[np.ndarray, np.ndarray],
    truth: np.ndarray,
    interocular: float,
    scale: bool,
) -> DenseError:
    """Dense NME of one shape.

    Args:
        vertices: (K, 3) estimated, any unit.
        triangles: (F, 3).
        anchors: points (n, 3) of the estimate and of the truth that about correspond, where ICP
            starts from: landmarks, for instance.
        truth: (N, 3) points of the face region, for which the distance is taken.
        interocular: `interocular_distance` of the truth, in its unit.
        scale: whether the alignment may scale the shape. Without it the estimate must be in the
            truth's unit.
    """
    truth = np.asarray(truth, float)
    surface = TriangleSurface(vertices, triangles)
    alignment = icp(surface, truth, scale, procrustes(*anchors, scale))
    places, _, _ = surface.nearest(alignment.motion.inverse(truth))
    distance = np.linalg.norm(alignment.motion(places) - truth, axis=1)
    return DenseError(100 * float(distance.mean()) / interocular, alignment)


def shape_errors(
    shape: Shape | None,
    anchors: tuple[np.ndarray, np.ndarray],
    truth: np.ndarray,
    interocular: float,
    metric: bool = True,
) -> dict[str, float]:
    """Figures of one shape: "dense" and "dense_scaled", without and with scale, and "converged".

    Args:
        shape: estimated; None where a method found none, of which every figure is NaN.
        anchors, truth, interocular: as in `dense_nme`.
        metric: whether the shape is in the truth's unit; without one there is no "dense".

    Returns:
        The errors in %, and the share of the alignments that converged.
    """
    scales = {"dense": False, "dense_scaled": True} if metric else {"dense_scaled": True}
    if shape is None:
        return dict.fromkeys((*scales, "converged"), float("nan"))
    errors = {
        name: dense_nme(shape.vertices, shape.triangles, anchors, truth, interocular, scale)
        for name, scale in scales.items()
    }
    converged = np.mean([error.alignment.converged for error in errors.values()])
    return {name: error.nme for name, error in errors.items()} | {"converged": float(converged)}


def errors_from_model(
    shape: Shape | None, face_model: FaceModel, true: np.ndarray, metric: bool = True
) -> dict[str, float]:
    """`shape_errors` against the face of true vertices (K, 3) of a face model, by landmarks."""
    landmarks = true[face_model.landmarks.cpu().numpy()]
    anchors = landmarks if shape is None else shape.vertices[shape.landmarks], landmarks
    region, interocular = true[face_vertices(face_model)], interocular_distance(landmarks)
    return shape_errors(shape, anchors, region, interocular, metric)


def vertex_error(
    vertices: np.ndarray, truth: np.ndarray, face_model: FaceModel, scale: bool
) -> float:
    """True per-vertex error where correspondence is known, % of the interocular distance.

    Args:
        vertices, truth: (K, 3) of one face model, each in a frame of its own.
        face_model: gives the region and the landmarks.
        scale: whether the alignment (Procrustes over the region) may scale.
    """
    region = face_vertices(face_model)
    vertices, truth = np.asarray(vertices, float), np.asarray(truth, float)
    motion = procrustes(vertices[region], truth[region], scale)
    distance = np.linalg.norm(motion(vertices[region]) - truth[region], axis=1)
    landmarks = truth[face_model.landmarks.cpu().numpy()]
    return 100 * float(distance.mean()) / interocular_distance(landmarks)
