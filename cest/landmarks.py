"""68 iBUG landmarks of a face that was found: three detectors behind one interface.

Points are (68, 2) in pixel-edge coordinates: x right, y down, the first pixel's centre (0.5, 0.5).
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cest.configuration import CheckpointError
from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop, crop_image
from cest.detection import DetectedFace
from cest.reconstruction import Reconstructor
from cest.released import released_checkpoint

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels: about the box of the 68 landmarks, brows to chin."""


class LandmarkError(ValueError):
    """Landmarks that cannot be had; the message is one sentence."""


class LandmarkDetector(Protocol):
    """Landmarks of one face of an image."""

    def __call__(self, image: np.ndarray, box: Box) -> np.ndarray | None:
        """(H, W, 3) uint8 sRGB and where the face is -> (68, 2); None where it finds none."""


DETECTORS = ("cest", "face-alignment", "mediapipe")


def load_landmark_detector(
    name: str, model: str | None = None, device: str = "cpu"
) -> LandmarkDetector:
    """One of DETECTORS.

    Args:
        name: which.
        model: a checkpoint's folder or Hub id for "cest" (default: the released CEST); the file
            face_landmarker.task for "mediapipe".
        device: of torch; mediapipe does without.

    Raises:
        LandmarkError: a package, file or device that it needs is missing.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise LandmarkError(f"The device {device!r} is not there; try cpu.") from None
    if name == "cest":
        return CestLandmarks.load(model, device)
    if name == "face-alignment":
        return FaceAlignmentLandmarks.load(device)
    if name == "mediapipe":
        return MediaPipeLandmarks.load(model)
    raise LandmarkError(f"{name!r} is no landmark detector: choose {', '.join(DETECTORS)}.")


def square_around(box: Box, scale: float) -> SquareCrop:
    """An upright square about the box, its side ``scale`` times the box's longer side."""
    left, top, right, bottom = box
    return SquareCrop(
        (left + right) / 2, (top + bottom) / 2, scale * max(right - left, bottom - top)
    )


class CestLandmarks:
    """This package's own estimator: the landmarks of the face that it fits.

    Works wherever the package does. Its mean error on held-out photos is 1.8 % of the face's size
    (NME-68, against another network's landmarks); expressions and turned heads come out too mild. A
    model that learns landmarks from it learns nothing about landmarks that it did not know.
    """

    def __init__(self, reconstructor: Reconstructor) -> None:
        self.reconstructor = reconstructor

    @classmethod
    def load(cls, model: str | None = None, device: str = "cpu") -> "CestLandmarks":
        try:
            source = model or released_checkpoint("cest")
            return cls(Reconstructor.from_pretrained(source, device=device))
        except CheckpointError as error:
            raise LandmarkError(str(error)) from error

    def __call__(self, image: np.ndarray, box: Box) -> np.ndarray:
        face = DetectedFace(box, 1.0, square_around(box, LANDMARK_BOX_TO_CROP))
        return self.reconstructor.reconstruct(image, faces=[face])[0].landmarks_photo


CLOSE_UP = 512
"""Pixels: side of what the detectors of other packages are shown, whatever the photo's size."""
CLOSE_UP_SCALE = 2.4
"""Its side over the face's: holds the 2.05 that face-alignment cuts out, a little above centre."""


class FaceAlignmentLandmarks:
    """FAN of the package face-alignment (Bulat & Tzimiropoulos, ICCV 2017), which the paper used.

    Its "2.5D" points: the jaw is where the 3D jaw is projected to, as the face model's is, not the
    outline that is seen.

    Args:
        aligner: ``face_alignment.FaceAlignment`` or what has its ``get_landmarks_from_image``.
    """

    def __init__(self, aligner: Any) -> None:
        self.aligner = aligner

    @classmethod
    def load(cls, device: str = "cpu") -> "FaceAlignmentLandmarks":
        """Makes FAN; the package fetches its weights from its author's site once."""
        try:
            import face_alignment
        except ImportError as error:
            raise LandmarkError(
                f"face-alignment cannot be imported ({error}): pip install 'face-alignment>=1.5', "
                "or choose another landmark detector."
            ) from error
        try:
            aligner = face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_HALF_D,
                device=device,
                face_detector="folder",  # boxes are given; this one loads no network
                compile=False,
            )
        except OSError as error:  # urllib's errors are OSErrors
            raise LandmarkError(
                f"face-alignment could not fetch its weights ({error}): connect once, or choose "
                "another landmark detector."
            ) from error
        return cls(aligner)

    def __call__(self, image: np.ndarray, box: Box) -> np.ndarray | None:
        close_up = square_around(box, CLOSE_UP_SCALE)
        inset = CLOSE_UP / 2 * (1 - 1 / CLOSE_UP_SCALE)
        # FAN was trained on crops about the landmarks' own box, which this is.
        found = self.aligner.get_landmarks_from_image(
            crop_image(image, close_up, CLOSE_UP),
            detected_faces=[[inset, inset, CLOSE_UP - inset, CLOSE_UP - inset]],
        )
        if not found:
            return None
        # It counts whole pixels, rounding down: the pixel's centre is half a pixel on.
        return _out_of_close_up(np.asarray(found[0])[:, :2] + 0.5, close_up)


class MediaPipeLandmarks:
    """MediaPipe's FaceLandmarker: 478 points of a mesh, of which MESH_TO_IBUG are taken.

    Args:
        landmarker: ``mediapipe.tasks.python.vision.FaceLandmarker`` or what has its ``detect``.
        to_image: makes what ``detect`` takes from (H, W, 3) uint8.
    """

    def __init__(self, landmarker: Any, to_image: Any) -> None:
        self.landmarker, self.to_image = landmarker, to_image

    @classmethod
    def load(cls, model: str | None) -> "MediaPipeLandmarks":
        """Reads the model's file, which the package does not bring."""
        if model is None or not Path(model).is_file():
            raise LandmarkError(
                f"mediapipe needs a model and {model or 'no file'} was given: download "
                "face_landmarker.task from its documentation's page on Face Landmarker."
            )
        try:
            import mediapipe
            from mediapipe.tasks.python import BaseOptions, vision
        except (ImportError, OSError) as error:  # OSError: a system library that it loads
            raise LandmarkError(
                f"mediapipe cannot be imported ({error}): pip install 'mediapipe>=0.10.30', or "
                "choose another landmark detector."
            ) from error
        options = vision.FaceLandmarkerOptions(BaseOptions(model_asset_path=str(model)))
        try:
            landmarker = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            raise LandmarkError(
                f"{model} is no face_landmarker.task that mediapipe can read ({error}): download "
                "it again."
            ) from error
        return cls(
            landmarker,
            lambda pixels: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels),
        )

    def __call__(self, image: np.ndarray, box: Box) -> np.ndarray | None:
        close_up = square_around(box, CLOSE_UP_SCALE)
        pixels = np.ascontiguousarray(crop_image(image, close_up, CLOSE_UP))
        faces = self.landmarker.detect(self.to_image(pixels)).face_landmarks
        if not faces:
            return None
        mesh = np.array([(point.x, point.y) for point in faces[0]])
        # Normalised from edge to edge of the picture.
        return _out_of_close_up(mesh[list(MESH_TO_IBUG)] * CLOSE_UP, close_up)


def _out_of_close_up(points: np.ndarray, close_up: SquareCrop) -> np.ndarray:
    """(n, 2) pixels of the close-up -> of the photo."""
    return close_up.to_photo(points * (2 / CLOSE_UP, -2 / CLOSE_UP) + (-1, 1))


MESH_TO_IBUG = (
    *(127, 234, 93, 132, 58, 136, 150, 149, 152, 378, 379, 365, 288, 361, 323, 454, 356),  # jaw
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),  # brows
    *(6, 195, 4, 1, 98, 97, 2, 326, 327),  # nose
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),  # eyes
    *(61, 39, 37, 0, 267, 269, 291, 321, 314, 17, 84, 91),  # outer lips
    *(78, 82, 13, 312, 308, 317, 14, 87),  # inner lips
)
"""Vertices of MediaPipe's face mesh that lie at the 68 iBUG points.

Counted off along the contours that MediaPipe names (its ``FaceLandmarksConnections``), the ridge of
the nose and its base; where several would do, the one nearest to the open face model's landmark
on MediaPipe's canonical face (``geometry_pipeline_metadata_landmarks.pbtxt``). There the inner 51
lie 1.5 % of the face's size from the open face model's landmarks on average, the jaw 3.2 %.
"""
