"""Clips made of footage: a face is found, followed, and cropped with its landmarks.

A crop is an upright square, 1.65 times the longer side of the box of the frame's landmarks about
that box's centre, edge pixels repeated where it leaves the photo: no warp.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import datasets
import numpy as np
import torch

from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop, crop_image
from cest.data.annotations import Annotations
from cest.data.footage import Footage, SourceFrame, read_frames
from cest.detection import FaceDetector
from cest.landmarks import (
    Box,
    LandmarkDetector,
    LandmarkError,
    load_landmark_detector,
    square_around,
)

FRAME_SIZE = 256
JPEG_QUALITY = 95
SAME_FACE = 0.4
"""Intersection over union of a face's squares in two frames, above which it is one face: it moved
by less than 0.43 of its side; two heads cheek to cheek are 0.7 apart, which is 0.18."""
SAME_SHOT = 0.75
"""Common part of two crops' colour histograms, above which they are of one shot. Of 1,007 pairs of
neighbours in 51 shots 0.7 % are below; of 3,996 pairs from two videos 0.1 % are above, of 465 from
two videos of one person 4 %."""
SEARCH, SEARCH_SIZE = 3.0, 320
"""A face that is followed is looked for in a square three times its size, of so many pixels."""
FEATURES = datasets.Features(
    {
        "clip_id": datasets.Value("string"),
        "video_id": datasets.Value("string"),
        "person": datasets.Value("string"),
        "source": datasets.Value("string"),
        "license": datasets.Value("string"),
        "frames": datasets.List(datasets.Image()),
        "landmarks": datasets.List(datasets.Array2D(shape=(68, 2), dtype="float32")),
    }
)


class PreparationError(ValueError):
    """A clip set that cannot be made so; the message is one sentence."""


@dataclass(frozen=True)
class PreparationSettings:
    """How a clip set is made.

    Attributes:
        source, license: of the footage; written into every row.
        landmarks: "known" (see `Annotations`) or one of `cest.landmarks.DETECTORS`.
        landmark_model: see `load_landmark_detector`.
        detector: see `FaceDetector`; "known" landmarks need none.
        device: of torch, for the landmarks.
        every: which frames are taken, 1 for all; None to choose by kind (`footage.EVERY`).
        frames_per_clip: longer stretches become several clips.
        smallest_face: pixels; faces whose landmarks' box is smaller are left out.
        items_per_shard: videos, folders or stills a Parquet file.
    """

    source: str
    license: str = "unknown"
    landmarks: str = "cest"
    landmark_model: str | None = None
    detector: str | None = None
    device: str = "cpu"
    every: int | None = None
    frames_per_clip: int = 24
    smallest_face: int = 64
    items_per_shard: int = 100

    def __post_init__(self) -> None:
        for name in ("every", "frames_per_clip", "smallest_face", "items_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PreparationError(f"{name} is {value}; it must be 1 or more.")


# -- faces ---------------------------------------------------------------------------------------


class Unusable(Exception):
    """Why a frame is left out."""


class FaceFinder:
    """The landmarks of the face to follow in a frame: known ones, or detected."""

    def __init__(
        self,
        annotations: Annotations | None,
        faces: FaceDetector | None,
        landmarks: LandmarkDetector | None,
        smallest_face: int,
    ) -> None:
        self.annotations, self.faces, self.landmarks = annotations, faces, landmarks
        self.smallest_face = smallest_face

    @classmethod
    def load(cls, folder: Path, settings: PreparationSettings) -> "FaceFinder":
        """Raises LandmarkError or DetectorError."""
        if settings.landmarks == "known":
            return cls(Annotations(folder), None, None, settings.smallest_face)
        landmarks = load_landmark_detector(
            settings.landmarks, settings.landmark_model, settings.device
        )
        return cls(None, FaceDetector(settings.detector), landmarks, settings.smallest_face)

    def __call__(self, frame: SourceFrame, previous: Box | None) -> np.ndarray:
        """(68, 2) pixel-edge coordinates of the frame's face.

        Of several it is the one where ``previous`` was, else the largest.

        Raises:
            Unusable: there is none that can be used.
        """
        if frame.image is None:
            raise Unusable(frame.problem)
        if self.annotations:
            try:
                points = self.annotations(frame.path)
            except LandmarkError as error:
                raise Unusable(str(error)) from error
            if points is None:
                raise Unusable("no landmarks come with it")
        else:
            points = self._detect(frame.image, previous)
        side = np.ptp(points, axis=0).max()
        if side < self.smallest_face:
            raise Unusable(f"its face is smaller than {self.smallest_face} pixels")
        return points

    def _detect(self, image: np.ndarray, previous: Box | None) -> np.ndarray:
        box = previous and self._near(image, previous)
        if not box:
            faces = self.faces.detect(image)
            if not faces:
                raise Unusable("no face was found")
            crop = faces[0].crop
            box = _square(crop.center_x, crop.center_y, crop.size / LANDMARK_BOX_TO_CROP)
        points = self.landmarks(image, box)
        if points is None or not np.isfinite(points).all() or np.ptp(points, axis=0).min() <= 0:
            raise Unusable("no landmarks were found on its face")
        if overlap(face_square(points), box) <= SAME_FACE:
            raise Unusable("the landmarks found are not where the face is")
        return points

    def _near(self, image: np.ndarray, previous: Box) -> Box | None:
        """The face that was at ``previous``, if it still is: looks there only, which is fast."""
        around = square_around(previous, SEARCH)
        boxes = []
        for face in self.faces.detect(crop_image(image, around, SEARCH_SIZE)):
            x, y = face.crop.center_x, face.crop.center_y
            x, y = around.to_photo(np.array([x, -y]) * (2 / SEARCH_SIZE) + (-1, 1))
            side = face.crop.size / LANDMARK_BOX_TO_CROP * around.size / SEARCH_SIZE
            boxes.append(_square(float(x), float(y), side))
        found = max(boxes, key=lambda box: overlap(box, previous), default=None)
        return found if found and overlap(found, previous) > SAME_FACE else None


def face_square(landmarks: np.ndarray) -> Box:
    """(68, 2) -> the square about the landmarks' box, its side the longer of the box's."""
    low, high = landmarks.min(0), landmarks.max(0)
    x, y = (low + high) / 2
    return _square(float(x), float(y), float((high - low).max()))


def _square(x: float, y: float, side: float) -> Box:
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = ((right - left) * (bottom - top) for left, top, right, bottom in (a, b))
    return common / (sum(areas) - common)


def crop_frame(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop (256, 256, 3) uint8 of a photo, and its landmarks in the crop (68, 2) float32."""
    left, top, right, bottom = face_square(landmarks)
    side = (right - left) * LANDMARK_BOX_TO_CROP
    x, y = (left + right) / 2, (top + bottom) / 2
    picture = crop_image(image, SquareCrop(x, y, side), FRAME_SIZE)
    corner = (x - side / 2, y - side / 2)
    return picture, ((landmarks - corner) * (FRAME_SIZE / side)).astype(np.float32)


def colours(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (216,) histogram of its colours, of sum 1."""
    small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
    counts = cv2.calcHist([small], [0, 1, 2], None, [6, 6, 6], [0, 256] * 3)
    return counts.ravel() / small[..., 0].size


# -- clips ---------------------------------------------------------------------------------------


class Skipped(dict[tuple[str, str], list[int]]):
    """Numbers of the frames that were left out, by (file, reason)."""

    def add(self, file: str, reason: str, frame: int) -> None:
        self.setdefault((file, reason), []).append(frame)


@dataclass
class Clip:
    """A clip that is being made."""

    footage: Footage
    first: int
    frames: list[bytes] = field(default_factory=list)
    landmarks: list[np.ndarray] = field(default_factory=list)

    def row(self, settings: PreparationSettings) -> dict:
        still = self.footage.kind == "still"
        return {
            "clip_id": self.footage.name if still else f"{self.footage.name}:{self.first:06d}",
            "video_id": self.footage.video_id,
            "person": self.footage.person,
            "source": settings.source,
            "license": settings.license,
            "frames": [{"bytes": frame, "path": None} for frame in self.frames],
            "landmarks": self.landmarks,
        }


def make_clips(
    footage: Footage, finder: FaceFinder, settings: PreparationSettings, skipped: Skipped
) -> Iterator[dict]:
    """Rows of one footage, each as soon as it is complete.

    In continuous footage a clip ends where the face is lost, jumps, or the shot changes.
    """
    clip: Clip | None = None
    box: Box | None = None
    before: np.ndarray | None = None
    for frame in _while_readable(footage, settings, skipped):
        try:
            points = finder(frame, box if footage.continuous else None)
            picture, landmarks = crop_frame(frame.image, points)
        # Unusable, or what one image brings to light in a detector: the others do without it.
        except Exception as error:
            _must_be_the_image(error)
            skipped.add(footage.name, _reason(error), frame.number)
            if footage.continuous:
                if clip:
                    yield clip.row(settings)
                clip = box = None
            continue
        here, now = face_square(points), colours(picture)
        cut = footage.continuous and not (
            box and overlap(here, box) > SAME_FACE and np.minimum(now, before).sum() > SAME_SHOT
        )
        if clip and (cut or len(clip.frames) == settings.frames_per_clip):
            yield clip.row(settings)
            clip = None
        clip = clip or Clip(footage, frame.number)
        clip.frames.append(_jpeg(picture))
        clip.landmarks.append(landmarks)
        box, before = here, now
    if clip:
        yield clip.row(settings)


def _while_readable(
    footage: Footage, settings: PreparationSettings, skipped: Skipped
) -> Iterator[SourceFrame]:
    """Frames until the end or an error: one file that breaks a reader does not stop a run."""
    try:
        yield from read_frames(footage, settings.every)
    except Exception as error:
        _must_be_the_image(error)
        skipped.add(footage.name, _reason(error), 0)


def _must_be_the_image(error: Exception) -> None:
    """Raises what another try may do without: it must not cost good frames for ever."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ENOSPC):
        raise error


def _reason(error: Exception) -> str:
    if isinstance(error, Unusable):
        return str(error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _jpeg(picture: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()
