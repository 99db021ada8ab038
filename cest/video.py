"""From a short clip of one person to the same clip with the face drawn over it, and relit.

Viewpoint, shape and light are every frame's own; the reflectance is the person's, one for the whole
clip: what every frame saw of the skin, averaged. Time and memory: each frame is decoded and seen
twice, and a few numbers of it are kept in between.
"""

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.cropping import SquareCrop, crop_image
from cest.detection import FaceDetector
from cest.modeling import FaceParameters
from cest.reconstruction import Reconstruction, Reconstructor

# Only files that hold the pictures themselves: a playlist would have FFmpeg open what it names, and
# wait for more. OpenCV reads this when it opens a file.
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS", "format_whitelist;mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
)

MAX_FRAME_PIXELS = 4096 * 2304
MAX_RATE = 30.0
"""Frames a second: of faster clips only every second frame is taken, or every third …"""
PATIENCE = 8
"""Frames in a row in which the detector may miss the face before it counts as gone."""
SETTLED = 5
"""Frames in which the detector must have seen a face before the clip is that face's."""
LOOK_SIZE = 64
"""Pixels a side that the followed face's crop has where the detector looks at it: next to what the
estimator takes, the time for so few is small, so that it is asked at every frame."""
UNSEEN_WEIGHT = 0.05
"""In the shared reflectance, of a frame at texels that it did not see; 1 at those it did."""
LABEL_HEIGHT = 24


class VideoError(ValueError):
    """A clip that cannot be used; the message is one sentence for the person who gave it."""


@dataclass(frozen=True)
class Clip:
    """A video file that can be read again and again.

    rate: frames a second, of those that are taken. frames: how many are given out at most;
    expected: about how many there are, as far as the file says. size: width and height in pixels,
    of what is given out. step: each how many-th frame is taken.
    """

    path: Path
    rate: float
    frames: int
    expected: int
    size: tuple[int, int]
    step: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 sRGB each, turned upright as the file says."""
        capture = _opened(self.path)
        try:
            for number in range(self.frames * self.step):
                if not capture.grab():
                    return
                if number % self.step:
                    continue
                read, frame = capture.retrieve()
                if not read:
                    return
                frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
                yield np.ascontiguousarray(frame[..., ::-1])
        finally:
            capture.release()


def open_clip(
    path: str | os.PathLike[str], max_seconds: float = 10.0, long_side: int = 640
) -> Clip:
    """Look at a video file.

    max_seconds: a longer one is refused. long_side: pixels; larger frames are scaled down.
    Raises VideoError. How long a file is it may not say truly: no more than that is ever read.
    """
    path = Path(path)
    capture = _opened(path)
    try:
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # The first frame has the size that counts, upright.
        read, frame = capture.read()
    finally:
        capture.release()
    if not read:
        raise VideoError(f"{path} has no pictures that can be decoded; give an MP4 or WebM file.")
    # Browsers' recordings do not say how fast and how long they are. Of a file whose frames come at
    # uneven times OpenCV may count milliseconds, 1000 a second: no rate, but right together.
    seconds = count / rate if count > 0 and rate > 0 else None
    if seconds is not None and seconds > max_seconds + 0.5:
        raise VideoError(f"{path} lasts {seconds:.0f} seconds; cut it to at most {max_seconds:g}.")
    rate = rate if 1 <= rate <= 240 else MAX_RATE
    step = max(1, round(rate / MAX_RATE))
    height, width = frame.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    # Encoders want even sides.
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))
    frames = max(1, round(max_seconds * rate / step))
    expected = frames if seconds is None else max(1, round(seconds * rate / step))
    return Clip(path, rate / step, frames, min(frames, expected), size, step)


def _opened(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise VideoError(f"{path} does not exist.")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        # Only FFmpeg: other backends take names for patterns of pictures.
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if not capture.isOpened() or width < 1 or height < 1:
        capture.release()
        raise VideoError(f"{path} is not a video that can be read; give an MP4 or WebM file.")
    if width * height > MAX_FRAME_PIXELS:
        capture.release()
        raise VideoError(
            f"{path} has frames of {width:.0f} x {height:.0f} pixels; scale it to 4096 x 2304 at "
            "most."
        )
    return capture


@dataclass(frozen=True)
class FrameEstimate:
    """What is kept of a frame: its crop and three of its four factors, each (1, ...)."""

    crop: SquareCrop
    viewpoint: Tensor
    shape_coefficients: Tensor
    illumination: Tensor


def track(
    frames: Iterable[np.ndarray], reconstructor: Reconstructor
) -> Iterator[tuple[SquareCrop, FaceParameters] | None]:
    """What the estimator says of every frame, and of which square; None where there is no face.

    A clip is about one face: the largest at first. The detector looks for it at every frame, on a
    small picture of where the landmarks in the frame before say that it is; a network that is shown
    no face finds one all the same. Frames in which it is missed are held back until it is seen
    again in its place, and are then its own. After `PATIENCE` of them, or where the clip ends, they
    are not: so a face that comes back sooner is drawn over up to `PATIENCE` - 1 frames without it.

    Lost, it is searched for around its last place and at about its size. No other face is taken for
    it, and it is itself not found where it comes back far away: the reflectance would be two
    people's. Only one that was seen in fewer than `SETTLED` frames is given up for the largest
    then. People who change places unseen, as at a cut from one portrait to another, are not told
    apart.
    """
    # Where the face was last seen, in how many frames so far, and where to look in the next one.
    known: SquareCrop | None = None
    sightings = 0
    crop: SquareCrop | None = None
    # What was said of the frames since.
    held: list[tuple[SquareCrop, FaceParameters]] = []
    for frame in frames:
        if crop is None:
            known = known if sightings >= SETTLED else None
            found = _searched(frame, known, reconstructor.detector)
            if found is None:
                yield None
                continue
            crop, seen = reconstructor.second_look(frame, found), True
        else:
            seen = _still_there(frame, crop, known, reconstructor.detector)
        parameters = reconstructor.estimate(frame, crop)
        held.append((crop, parameters))
        if seen:
            known, sightings = crop, sightings + 1
            yield from held
            held.clear()
        crop = reconstructor.followed(crop, parameters)
        if crop is None or len(held) == PATIENCE:
            crop = None
            yield from [None] * len(held)
            held.clear()
    yield from [None] * len(held)


def _searched(
    frame: np.ndarray, known: SquareCrop | None, detector: FaceDetector
) -> SquareCrop | None:
    """The crop of the largest face; if it is known where it was, of the nearest around there."""
    if known is None:
        return next((face.crop for face in detector.detect(frame)), None)
    # People who sit side by side are further apart than a crop is wide. The picture has room for
    # the rest of a face whose middle is as far away as that.
    near = [one for one in _faces_around(frame, known, 3.0, detector) if _near(known, one, 1.0)]
    return min(near, key=partial(_distance, known), default=None)


def _still_there(
    frame: np.ndarray, crop: SquareCrop, known: SquareCrop, detector: FaceDetector
) -> bool:
    """Whether a crop that was followed still shows a face, and has not strayed from its place."""
    faces = _faces_around(frame, crop, 1.25, detector)
    return _near(known, crop, 1.0) and any(_near(crop, one, 1 / 3) for one in faces)


def _faces_around(
    frame: np.ndarray, crop: SquareCrop, reach: float, detector: FaceDetector
) -> list[SquareCrop]:
    """The crops of the faces that are found in a square, `reach` times as large as a crop.

    It is looked at upright, on a picture that shows a face of the crop's size large enough for the
    detector, and is small.
    """
    window, side = replace(crop, size=reach * crop.size), round(reach * LOOK_SIZE)
    crops = []
    for face in detector.detect(crop_image(frame, window, side)):
        found, scale = face.crop, window.size / side
        x, y = window.to_photo((2 * found.center_x / side - 1, 1 - 2 * found.center_y / side))
        crops.append(SquareCrop(float(x), float(y), scale * found.size, found.angle + crop.angle))
    return crops


def _near(crop: SquareCrop, other: SquareCrop, reach: float) -> bool:
    """Whether another crop is no further away than `reach` times a crop's size, and like it in
    size."""
    return _distance(crop, other) < reach * crop.size and 0.5 < other.size / crop.size < 2


def _distance(one: SquareCrop, other: SquareCrop) -> float:
    return math.hypot(one.center_x - other.center_x, one.center_y - other.center_y)


@dataclass(frozen=True)
class ClipFace:
    """The face of a clip.

    template: of the frame that shows most of it, with the reflectance that all frames share.
    estimates: what is every frame's own; None where there is no face.
    """

    template: Reconstruction
    estimates: list[FrameEstimate | None]

    def on(self, frame: np.ndarray, estimate: FrameEstimate) -> Reconstruction:
        """A frame's face: (H, W, 3) uint8 and what is its own -> a reconstruction."""
        return replace(self.template, photo=frame, crop=estimate.crop).with_factors(
            viewpoint=estimate.viewpoint,
            shape_coefficients=estimate.shape_coefficients,
            illumination=estimate.illumination,
        )

    def describe(self, rate: float) -> Iterator[dict]:
        """Every frame's `Reconstruction.factors`.

        rate: frames a second. "face" is None where there is none.
        """
        for number, estimate in enumerate(self.estimates):
            record = {"frame": number, "seconds": round(number / rate, 4), "face": None}
            if estimate is not None:
                record["face"] = self.on(self.template.photo, estimate).factors()
            yield record


def draw_frames(
    frames: Iterable[np.ndarray], face: ClipFace, light: Callable[[Reconstruction], Tensor]
) -> Iterator[np.ndarray]:
    """Each frame, the face drawn over it, and relit: side by side, or wide ones one below another.

    light: a frame's face -> (9,) harmonics in the photo's axes. A frame without a face is shown as
    it is. (H', W', 3) uint8.
    """
    for frame, estimate in zip(frames, face.estimates):
        drawn = relit = frame
        if estimate is not None:
            own = face.on(frame, estimate)
            drawn, relit = np.asarray(own.overlay()), np.asarray(own.relight(light(own)))
        panels = {"clip": frame, face.template.conditioning.upper(): drawn, "relit": relit}
        labelled = [_labelled(name, picture) for name, picture in panels.items()]
        yield np.concatenate(labelled, axis=1 if frame.shape[0] >= frame.shape[1] else 0)


def _labelled(name: str, picture: np.ndarray) -> np.ndarray:
    band = np.full((LABEL_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(band, name, (8, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate((band, picture))


def write_video(path: Path, frames: Iterable[np.ndarray], rate: float) -> Iterator[None]:
    """Write (H, W, 3) uint8 frames with even sides as H.264 in MP4; yields after each.

    A video that is not written to its end is removed. Raises VideoError without PyAV.
    """
    av = _encoder()
    try:
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = None
            for frame in frames:
                if stream is None:
                    rate = Fraction(rate).limit_denominator(1001)
                    stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "yuv420p"
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                yield
            if stream is not None:
                container.mux(stream.encode())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _encoder() -> ModuleType:
    """PyAV, which is asked for before any work is done."""
    try:
        import av
    except ImportError:
        raise VideoError("Writing a video takes PyAV: pip install av.") from None
    return av


def reconstruct_clip(
    clip: Clip,
    reconstructor: Reconstructor,
    output: Path,
    light: Callable[[Reconstruction], Tensor],
    tracker: Callable[..., Iterator] = track,
) -> Generator[float, None, ClipFace]:
    """Reconstruct a clip, write the video, and yield after each frame the share that is done.

    The generator returns what it found in the end. light: a frame's face -> (9,) harmonics in the
    photo's axes, for the relit picture. tracker: `track`, or what runs it elsewhere. Raises
    VideoError if no frame has a face.
    """
    _encoder()
    estimates: list[FrameEstimate | None] = []
    # Of the frame that shows most of the face: how much, its number, and what was said of it.
    clearest: tuple[float, int, SquareCrop, FaceParameters] | None = None
    # The mean of the frames' reflectance maps, each weighted by what the frame saw of the skin.
    total, weights = torch.zeros(()), torch.zeros(())
    for said in tracker(clip, reconstructor):
        if said is None:
            estimates.append(None)
        else:
            crop, p = said
            estimates.append(FrameEstimate(crop, p.viewpoint, p.shape_coefficients, p.illumination))
            weight = p.texture_visibility + UNSEEN_WEIGHT
            total, weights = total + weight * p.reflectance_map, weights + weight
            # Texels that it shows, by the pixels that it shows them with.
            pixels = crop.size * float(p.viewpoint[0, 0].exp())
            seen = float(p.texture_visibility.sum()) * pixels**2
            if clearest is None or seen > clearest[0]:
                clearest = seen, len(estimates) - 1, crop, p
        yield 0.5 * min(1.0, len(estimates) / clip.expected)
    if clearest is None:
        raise VideoError(
            f"No face was found in {clip.path}; give a clip in which one is larger and less turned "
            "away."
        )
    # One frame's fine detail serves for all: a mean of many would be blurred.
    _, number, crop, p = clearest
    for _ in islice(frames := iter(clip), number):
        yield 0.5
    template = reconstructor.assemble(next(frames), crop, p)
    shared = template.with_factors(reflectance_map=total / weights)
    face = ClipFace(replace(shared, detail=template.detail), estimates)
    frames = draw_frames(clip, face, light)
    for done, _ in enumerate(write_video(output, frames, clip.rate), 1):
        yield 0.5 + 0.5 * done / len(estimates)
    return face
