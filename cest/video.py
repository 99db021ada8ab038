"""From a short clip of one person to the same clip with the face drawn over it, and relit.

Viewpoint, shape and light are every frame's own; the reflectance is the person's, one for the whole
clip: what every frame saw of the skin, averaged. Time and memory: each frame is decoded and seen
twice, and a few numbers of it are kept in between.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
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

from cest.cropping import SquareCrop
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
LOOK_AGAIN = 25
"""Frames after which the detector is asked again whether the face is still there."""
UNSEEN_WEIGHT = 0.05
"""In the shared reflectance, of a frame at texels that it did not see; 1 at those it did."""
LABEL_HEIGHT = 24


class VideoError(ValueError):
    """A clip that cannot be used; the message is one sentence for the person who gave it."""


@dataclass(frozen=True)
class Clip:
    """A video file that can be read again and again.

    rate: frames a second, of those that are taken. frames: how many are given out at most;
    expected: how many there are, as far as the file says. size: width and height in pixels, of what
    is given out. step: each how many-th frame is taken.
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
    # Browsers' recordings do not say how fast and how long they are.
    rate = rate if 1 <= rate <= 240 else MAX_RATE
    if count > 0 and count / rate > max_seconds + 0.5:
        raise VideoError(
            f"{path} lasts {count / rate:.0f} seconds; cut it to at most {max_seconds:g}."
        )
    step = max(1, round(rate / MAX_RATE))
    height, width = frame.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    # Encoders want even sides.
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in (width, height))
    frames = max(1, round(max_seconds * rate / step))
    expected = max(1, round(count / step)) if count > 0 else frames
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

    The face is searched for in the first frame, then every `LOOK_AGAIN` frames and where it was
    lost; elsewhere its crop follows from the landmarks in the frame before.
    """
    crop = None
    for number, frame in enumerate(frames):
        if crop is None or number % LOOK_AGAIN == 0:
            crops = [found.crop for found in reconstructor.detector.detect(frame)]
            if not crops:
                crop = None
                yield None
                continue
            nearest = min(crops, key=partial(_distance, crop)) if crop else crops[0]
            if crop is None or _distance(crop, nearest) > crop.size / 3:
                crop = reconstructor.second_look(frame, nearest)
        parameters = reconstructor.estimate(frame, crop)
        yield crop, parameters
        crop = reconstructor.followed(crop, parameters)


def _distance(one: SquareCrop, other: SquareCrop) -> float:
    return math.hypot(one.center_x - other.center_x, one.center_y - other.center_y)


def draw_frames(
    frames: Iterable[np.ndarray],
    estimates: Iterable[FrameEstimate | None],
    template: Reconstruction,
    light: Callable[[Reconstruction], Tensor],
) -> Iterator[np.ndarray]:
    """Each frame, the face drawn over it, and relit: side by side, or wide ones one below another.

    template: some frame's face, with the reflectance that all share. light: a frame's face -> (9,)
    harmonics in the photo's axes. A frame without a face is shown as it is. (H', W', 3) uint8.
    """
    for frame, estimate in zip(frames, estimates):
        drawn = relit = frame
        if estimate is not None:
            face = replace(template, photo=frame, crop=estimate.crop).with_factors(
                viewpoint=estimate.viewpoint,
                shape_coefficients=estimate.shape_coefficients,
                illumination=estimate.illumination,
            )
            drawn, relit = np.asarray(face.overlay()), np.asarray(face.relight(light(face)))
        panels = {"clip": frame, template.conditioning.upper(): drawn, "relit": relit}
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
) -> Iterator[float]:
    """Reconstruct a clip, write the video, and yield after each frame the share that is done.

    light: a frame's face -> (9,) harmonics in the photo's axes, for the relit picture. tracker:
    `track`, or what runs it elsewhere. Raises VideoError if no frame has a face.
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
    template = replace(shared, detail=template.detail)
    frames = draw_frames(clip, estimates, template, light)
    for done, _ in enumerate(write_video(output, frames, clip.rate), 1):
        yield 0.5 + 0.5 * done / len(estimates)
