"""Find the faces in a photo and the square of it that shows each to an estimator.

Two detectors: YuNet (MIT, (c) Shiqi Yu), a file of 230 KB that is given or comes from the Hub, and
the small one that ships with this package. Coordinates are those of `cest.cropping`.
"""

import logging
import math
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError

from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop
from cest.embedded_detector import EmbeddedDetector

logger = logging.getLogger(__name__)

YUNET_REPOSITORY = "opencv/face_detection_yunet"
YUNET_FILES = ("face_detection_yunet_2026may.onnx", "face_detection_yunet_2023mar.onnx")
"""The better first. OpenCV 5 wants the first; before that, only the second could be read."""
EMBEDDED = "embedded"
"""Name, instead of a file's, that asks for the detector that ships with the package."""


SURE_SCORE, SURE_ROLL = 0.9, 0.5
"""A face scored above the first and rolled by less than the second (radians) is upright: at least
nine in ten upright faces are found so, and fewer than one in twenty that lie on their side."""


class DetectorError(ValueError):
    """A detector that cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class DetectedFace:
    """A face in a photo.

    box: left, top, right, bottom in photo pixels, as the detector drew it.
    score: in [0, 1].
    crop: the upright square to show an estimator, as far as the detector can tell.
    landmarks: (5, 2) photo pixels: the eyes, nose tip and mouth corners, each pair from the
        picture's left to its right on an upright face; None where the detector gives none.
    """

    box: tuple[float, float, float, float]
    score: float
    crop: SquareCrop
    landmarks: np.ndarray | None = None


class _Backend(Protocol):
    def find(self, photo: np.ndarray) -> list[DetectedFace]: ...


class FaceDetector:
    """Finds faces up to the size of the whole photo, however the photo is turned.

    The smallest that are found reliably measure, brow to chin, about 20 pixels with YuNet and 30
    with the embedded detector; in photos of more than 1280 or 2048 pixels a side, which are looked
    at scaled down to that, about a 65th of the longer side.

    model: a YuNet file, or "embedded". By default the file that the environment variable
        CEST_DETECTOR names, else YuNet from its cache or the Hub, else, or where that does not
        work with this OpenCV, the embedded detector. Raises DetectorError for a file that was
        named and cannot be used.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        model = model or os.environ.get("CEST_DETECTOR")
        self.backend: _Backend
        if model == EMBEDDED:
            self.backend = _Embedded()
        else:
            self.backend = _YuNet(Path(model)) if model else _best_available()

    def detect(self, photo: np.ndarray) -> list[DetectedFace]:
        """(H, W, 3) uint8 sRGB -> its faces, the largest first.

        Unless a face is surely upright, the photo is also looked at turned by quarters: a head
        on a pillow, or a camera that did not say how it was held. The turn in which some face
        scores best is taken.
        """
        faces = self.backend.find(photo)
        if not any(f.score > SURE_SCORE and abs(f.crop.angle) < SURE_ROLL for f in faces):
            turns = [faces]
            for quarters in (1, 2, 3):
                turned = self.backend.find(np.ascontiguousarray(np.rot90(photo, quarters)))
                turns.append([_turn_back(face, quarters, photo.shape) for face in turned])
            faces = max(turns, key=lambda turn: max((f.score for f in turn), default=0.0))
        return sorted(_without_repeats(faces), key=lambda face: -face.crop.size)


def _best_available() -> _Backend:
    """YuNet from the cache, else from the Hub; the embedded detector if there is none that works.

    Says in the log why it is not YuNet.
    """
    problems = []
    cached = {name: try_to_load_from_cache(YUNET_REPOSITORY, name) for name in YUNET_FILES}
    # A sort is stable: what is cached comes first, each group in the order of preference.
    for name in sorted(YUNET_FILES, key=lambda name: not isinstance(cached[name], str)):
        try:
            return _YuNet(Path(cached[name] if isinstance(cached[name], str) else _download(name)))
        except (DetectorError, EntryNotFoundError) as error:
            problems.append(f"{name}: {type(error).__name__}")
        # No connection, no disk space, a transfer that broke off: huggingface_hub lets its HTTP
        # library's own errors through, and which library that is depends on its version. All of
        # them would keep the other file away too, and none should keep a face from being found.
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}")
            break
    logger.warning(
        "YuNet could not be had from the Hub (%s); the embedded detector is used instead.",
        "; ".join(problems),
    )
    return _Embedded()


def _download(name: str) -> str:
    # hf_hub_download alone repeats its attempts for half a minute when there is no network.
    get_hf_file_metadata(hf_hub_url(YUNET_REPOSITORY, name), timeout=3)
    return hf_hub_download(YUNET_REPOSITORY, name)


class _YuNet:
    """YuNet through OpenCV."""

    LONG_SIDES = (320, 1280)
    """The photo's longer side is brought down to these: the first finds what fills the photo."""
    THRESHOLD = 0.7

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DetectorError(f"{path} is not a file; give a YuNet .onnx file, or {EMBEDDED!r}.")
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._lock = threading.Lock()  # the input size is the network's state
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(path), "", (320, 320), score_threshold=self.THRESHOLD
            )
            # Some networks that OpenCV reads, it cannot run.
            self.find(np.zeros((64, 64, 3), np.uint8))
        except cv2.error:
            raise DetectorError(f"{path} is not a YuNet model that OpenCV can read.") from None
        finally:
            cv2.utils.logging.setLogLevel(level)

    def find(self, photo: np.ndarray) -> list[DetectedFace]:
        height, width = photo.shape[:2]
        bgr = photo[..., ::-1]
        faces = []
        for long_side in {min(side, max(height, width)) for side in self.LONG_SIDES}:
            scale = long_side / max(height, width)
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            level = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
            # Faces that the photo's border cuts need room around them.
            rim = long_side // 8
            level = cv2.copyMakeBorder(level, rim, rim, rim, rim, cv2.BORDER_REPLICATE)
            with self._lock:
                self._network.setInputSize(level.shape[1::-1])
                _, rows = self._network.detect(level)
            if rows is None:
                continue
            for row in rows:
                points = (row[:14].reshape(7, 2) - rim) * (width / size[0], height / size[1])
                points[1] = row[2:4] * (width / size[0], height / size[1])
                faces.append(_from_yunet(points[0], points[1], points[2:], float(row[14])))
        return faces


def _from_yunet(
    corner: np.ndarray, extent: np.ndarray, landmarks: np.ndarray, score: float
) -> DetectedFace:
    """YuNet's box and five points -> the box of the 68 landmarks, turned upright.

    Fitted on 1,172 faces rolled by 14 degrees (one standard deviation). On 479 others: centre off
    by 3.5 % of the box (median; 13 % at the 98th percentile), size right to within 10 to 15 %,
    roll to 3 degrees (21). Beyond 45 degrees of roll YuNet's points lag behind.
    """
    (right_eye, left_eye), mouth = landmarks[:2], landmarks[3:].mean(0)
    eyes = (right_eye + left_eye) / 2
    up = eyes - mouth
    across = (left_eye - right_eye) + (-up[1], up[0])
    reach = float(np.hypot(*across))
    angle = math.atan2(-across[1], across[0])
    right = np.array([math.cos(angle), -math.sin(angle)])
    upward = np.array([-math.sin(angle), -math.cos(angle)])
    middle = (eyes + mouth) / 2
    offset = corner + extent / 2 - middle
    center = middle + right * (offset @ right) + upward * (0.14 * offset @ upward - 0.11 * reach)
    size = 0.47 * math.sqrt(max(extent[0] * extent[1], 1e-6)) + 0.52 * reach
    return DetectedFace(
        box=(*map(float, corner), *map(float, corner + extent)),
        score=score,
        crop=SquareCrop(*map(float, center), size * LANDMARK_BOX_TO_CROP, angle),
        landmarks=landmarks,
    )


class _Embedded:
    """The detector that ships with the package; its boxes are the landmarks' already."""

    def __init__(self) -> None:
        self._detector = EmbeddedDetector()

    def find(self, photo: np.ndarray) -> list[DetectedFace]:
        faces = []
        for (x, y), size, roll, score in zip(*self._detector.detect(photo)):
            x, y, half = float(x), float(y), float(size) / 2
            crop = SquareCrop(x, y, 2 * half * LANDMARK_BOX_TO_CROP, float(roll))
            faces.append(DetectedFace((x - half, y - half, x + half, y + half), float(score), crop))
        return faces


def _without_repeats(faces: list[DetectedFace]) -> list[DetectedFace]:
    """Of faces whose centres lie within 0.7 of a face of each other only the best is kept.

    Cheek to cheek, faces are further apart; a face seen upside down as another is 0.6 away.
    """
    kept: list[DetectedFace] = []
    for face in sorted(faces, key=lambda face: -face.score):
        for other in kept:
            reach = 0.7 * max(face.crop.size, other.crop.size) / LANDMARK_BOX_TO_CROP
            apart = math.hypot(
                face.crop.center_x - other.crop.center_x, face.crop.center_y - other.crop.center_y
            )
            if apart < reach:
                break
        else:
            kept.append(face)
    return kept


def _turn_back(face: DetectedFace, quarters: int, shape: tuple[int, ...]) -> DetectedFace:
    """A face found in `np.rot90(photo, quarters)`, 1 to 3 -> in the photo of this shape."""
    height, width = shape[:2]

    def back(points: np.ndarray) -> np.ndarray:
        x, y = points[..., 0], points[..., 1]
        moved = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[quarters]
        return np.stack(moved, -1)

    corners = back(np.reshape(face.box, (2, 2)))
    center = back(np.array([face.crop.center_x, face.crop.center_y]))
    return DetectedFace(
        box=(*map(float, corners.min(0)), *map(float, corners.max(0))),
        score=face.score,
        crop=SquareCrop(
            *map(float, center),
            face.crop.size,
            math.remainder(face.crop.angle - quarters * math.pi / 2, 2 * math.pi),
        ),
        landmarks=None if face.landmarks is None else back(face.landmarks),
    )
