"""MediaPipe's Face Mesh as a baseline: a shape and its landmarks, no albedo and no light.

Its z is a guess in the unit of x, and its size is the picture's, so it is compared with scale only.
It needs the package and the file `face_landmarker.task`, which the package does not bring; tested
with what stands in for them, for neither was at hand with its model.
"""

from collections.abc import Sequence

import numpy as np

from cest.cropping import crop_image
from cest.evaluation.dense import Shape
from cest.landmarks import (
    CLOSE_UP,
    CLOSE_UP_SCALE,
    MESH_TO_IBUG,
    Box,
    MediaPipeLandmarks,
    square_around,
)


class MediaPipeMesh:
    """The mesh that FaceLandmarker finds.

    Args:
        landmarks: a loaded `MediaPipeLandmarks`, whose landmarker is asked.
        edges: (start, end) of the mesh's edges, three in a row a triangle, as MediaPipe lists them.
    """

    def __init__(self, landmarks: MediaPipeLandmarks, edges: Sequence[tuple[int, int]]) -> None:
        self.landmarks = landmarks
        self.triangles = np.array([start for start, _ in edges]).reshape(-1, 3)

    @classmethod
    def load(cls, model: str) -> "MediaPipeMesh":
        """model: `face_landmarker.task`. Raises LandmarkError, as `MediaPipeLandmarks.load`."""
        landmarks = MediaPipeLandmarks.load(model)
        from mediapipe.tasks.python.vision import FaceLandmarksConnections

        edges = FaceLandmarksConnections.FACE_LANDMARKS_TESSELATION
        return cls(landmarks, [(edge.start, edge.end) for edge in edges])

    def __call__(self, photo: np.ndarray, box: Box) -> Shape | None:
        close_up = square_around(box, CLOSE_UP_SCALE)
        pixels = np.ascontiguousarray(crop_image(photo, close_up, CLOSE_UP))
        faces = self.landmarks.landmarker.detect(self.landmarks.to_image(pixels)).face_landmarks
        if not faces:
            return None
        # Normalised by the close-up's side; y down and z away from the viewer.
        points = np.array([(point.x, point.y, point.z) for point in faces[0]])
        points = (points - (0.5, 0.5, 0)) * close_up.size + (
            close_up.center_x,
            close_up.center_y,
            0,
        )
        return Shape(points * (1, -1, -1), self.triangles, np.array(MESH_TO_IBUG))
