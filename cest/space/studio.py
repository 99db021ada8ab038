"""What every visitor shares: the detector and the models, and what they say of a photo."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from cest.cropping import SquareCrop
from cest.detection import DetectedFace, FaceDetector
from cest.lighting import LightError, directional_light
from cest.modeling import FaceEstimator, FaceParameters
from cest.photo import MIN_SIDE, PhotoError, read_photo
from cest.reconstruction import Reconstruction, Reconstructor, choose_faces
from cest.space.answers import RequestError
from cest.space.gpu import on_gpu
from cest.video import Clip, VideoError, open_clip, reconstruct_clip, track

LONG_SIDE = 2048
"""Pixels: larger photos are scaled down to this, which bounds a session's memory and its waiting.
The command line works at full size."""
MAX_SECONDS = 10.0
CLIP_LONG_SIDE = 640
"""Pixels: larger clips are scaled down to this."""


@dataclass(frozen=True)
class Light:
    """A light of one's own: a direction in degrees, 0 from the viewer, and a strength.

    azimuth: positive to the right of the picture. elevation: positive above. strength: 1 is as
    bright as the light that was estimated in the photo. Raises LightError for what is none.
    """

    azimuth: float = 0.0
    elevation: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        limits = {"azimuth": (-180, 180), "elevation": (-90, 90), "strength": (0, 5)}
        for name, (low, high) in limits.items():
            if not within(getattr(self, name), low, high):
                raise LightError(f"A light's {name} is a number from {low} to {high}.")

    def on(self, face: Reconstruction) -> Tensor:
        """(9,) harmonics in the photo's axes, as bright as the face's own light at strength 1."""
        azimuth, elevation = np.radians((self.azimuth, self.elevation))
        direction = (
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        )
        return directional_light(direction, self.strength) * face.exposure


def expression_amounts(given: object, known: Sequence[str]) -> dict[str, float]:
    """What a program or a page asks for -> actions and amounts. Raises RequestError."""
    if not isinstance(given, Mapping) or not all(
        isinstance(name, str) and within(amount, -2, 2) for name, amount in given.items()
    ):
        raise RequestError(
            "An expression is an object of actions and amounts from -2 to 2, such as "
            '{"jawOpen": 0.5}.'
        )
    if unknown := sorted(set(given) - set(known)):
        raise RequestError(
            f"There is no action {unknown[0][:40]!r}; the face model knows {', '.join(known)}."
        )
    return {name: float(amount) for name, amount in given.items()}


def square_on(pixels: np.ndarray, given: object) -> SquareCrop:
    """What a program or a page asks for -> a square of a photo. Raises RequestError."""
    try:
        square = SquareCrop(**{name: float(value) for name, value in dict(given).items()})
    except (TypeError, ValueError, OverflowError):
        raise RequestError(
            "A crop is an object with center_x, center_y and size in pixels, and angle in radians "
            "if need be."
        ) from None
    height, width = pixels.shape[:2]
    inside = 0 <= square.center_x <= width and 0 <= square.center_y <= height
    if not inside or not MIN_SIDE <= square.size <= 3 * max(width, height):
        raise RequestError(
            f"The square must lie on the photo, {width} x {height} pixels, and be at least "
            f"{MIN_SIDE} wide."
        )
    return square


@contextlib.contextmanager
def named(path: str | Path) -> Iterator[None]:
    """A file is known to a person by its name, not by where the server keeps it."""
    try:
        yield
    except (PhotoError, VideoError) as error:
        raise type(error)(str(error).replace(str(path), Path(path).name)) from None


def step_by_step(work: Callable[[Callable[[Any], None]], Any]) -> Iterator[Any]:
    """What a function reports through a callback, as it comes; at last what it returns.

    The function, in a thread of its own, goes on when the next is asked for, and is ended at its
    report when no more is wanted. So a GPU's function can be followed and stopped from another
    process, which neither a callback nor a flag would reach.
    """
    reports, wanted = queue.SimpleQueue(), threading.Semaphore(0)
    end, closed = object(), False

    def report(value: Any) -> None:
        reports.put(value)
        wanted.acquire()
        if closed:
            raise GeneratorExit

    def run() -> Any:
        try:
            return work(report)
        finally:
            reports.put(end)

    with ThreadPoolExecutor(1) as pool:
        returned = pool.submit(run)
        try:
            while (value := reports.get()) is not end:
                yield value
                wanted.release()
        finally:
            closed = True
            wanted.release()
        yield returned.result()


def within(value: object, low: float, high: float) -> bool:
    """Whether it is a number, and in these limits; NaN is not."""
    return isinstance(value, (int, float)) and low <= value <= high


@dataclass(frozen=True)
class Result:
    """One face of a photo by every model, and the seconds it took them."""

    faces: Mapping[str, Reconstruction]
    seconds: Mapping[str, float] = field(default_factory=dict)


class Studio:
    """The detector and the models, one computation at a time.

    reconstructors: by the name they are shown under. One computation at a time makes the best of
    few cores, and is fair: a clip gives way to photos after each of its frames.
    """

    def __init__(self, reconstructors: Mapping[str, Reconstructor], detector: FaceDetector) -> None:
        self.reconstructors = dict(reconstructors)
        self.detector = detector
        self.turn = threading.Lock()

        # A function of its own, not a method: what a GPU's function is called with is sent to
        # another process, and so is what it returns.
        @on_gpu
        def estimate(
            pixels: np.ndarray, crop: SquareCrop, names: Sequence[str]
        ) -> dict[str, tuple[SquareCrop, FaceParameters, float]]:
            said = {}
            for name in names:
                reconstructor, start = self.reconstructors[name], time.perf_counter()
                better = reconstructor.second_look(pixels, crop)
                parameters = reconstructor.estimate(pixels, better)
                said[name] = better, parameters, time.perf_counter() - start
            return said

        @on_gpu
        def follow(clip: Clip, name: str) -> Iterator[tuple[SquareCrop, FaceParameters] | None]:
            yield from track(clip, self.reconstructors[name])

        @on_gpu
        def refine(
            pixels: np.ndarray, said: dict[str, tuple[SquareCrop, FaceParameters]], steps: int
        ) -> Iterator[float | dict[str, FaceParameters]]:
            def work(told: Callable[[float], None]) -> dict[str, FaceParameters]:
                refined = {}
                for number, (name, (crop, parameters)) in enumerate(said.items()):

                    def after(step: int, loss: float, number: int = number) -> None:
                        told((number + step / steps) / len(said))

                    fit = self.reconstructors[name].fit
                    refined[name] = fit(pixels, crop, parameters, steps, after)
                return refined

            yield from step_by_step(work)

        self._estimate, self._follow, self._refine = estimate, follow, refine

    @property
    def actions(self) -> list[str]:
        """Facial actions that every model's face knows."""
        known = [r.face_model.actions for r in self.reconstructors.values()]
        return [name for name in known[0] if all(name in actions for actions in known)]

    def read(self, path: str | Path) -> np.ndarray:
        """A file -> (H, W, 3) uint8 sRGB, at most `LONG_SIDE` on a side. Raises PhotoError."""
        with named(path):
            pixels = read_photo(path)
        height, width = pixels.shape[:2]
        if max(height, width) <= LONG_SIDE:
            return pixels
        scale = LONG_SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)

    def find(self, pixels: np.ndarray) -> list[DetectedFace]:
        """The faces of a photo, the largest first."""
        with self.turn:
            return self.detector.detect(pixels)

    def reconstruct(
        self,
        pixels: np.ndarray,
        crop: SquareCrop,
        index: int = 0,
        names: Sequence[str] | None = None,
        detail: bool = True,
    ) -> Result:
        """The face in a square of the photo, by every model, or by those named.

        The square need not be exact: each model looks twice. index: of the face, for the record.
        detail: whether with the photo's, which takes longer than the estimate.
        """
        with self.turn:
            said = self._estimate(pixels, crop, list(names or self.reconstructors))
            faces = {
                name: self.reconstructors[name].assemble(pixels, better, parameters, index, detail)
                for name, (better, parameters, _) in said.items()
            }
        return Result(faces, {name: seconds for name, (_, _, seconds) in said.items()})

    def reconstruct_photo(
        self,
        pixels: np.ndarray,
        face: int = 0,
        crop: SquareCrop | None = None,
        names: Sequence[str] | None = None,
        detail: bool = True,
    ) -> Result:
        """The face of that number, 0 the largest, or what is in a square. Raises PhotoError."""
        if crop is None:
            found = self.find(pixels)
            ((face, crop),) = choose_faces([one.crop for one in found], face)
        return self.reconstruct(pixels, crop, face, names, detail)

    def refine(self, result: Result, steps: int, told: Callable[[float], bool]) -> Result | None:
        """Every model's reconstruction, fitted further to the photo by so many steps.

        told: is called with the share that is done after every step, and returns whether to go on;
        None is returned if not. Other requests have their turn between steps.
        """
        faces = result.faces
        pixels = next(iter(faces.values())).photo
        said = {name: (face.crop, face.parameters) for name, face in faces.items()}
        with contextlib.closing(self._refine(pixels, said, steps)) as work:
            while True:
                with self.turn:
                    news = next(work)
                if not isinstance(news, float):
                    break
                if not told(news):
                    return None
                time.sleep(0.001)  # or the lock would be ours again before others have woken
        with self.turn:
            refined = {
                name: self.reconstructors[name].fitted(face, news[name], steps)
                for name, face in faces.items()
            }
        return Result(refined, result.seconds)

    def reconstruct_clip(
        self, path: str | Path, name: str, light: Light, output: Path
    ) -> Iterator[float]:
        """A clip by one model -> an MP4; yields the share that is done. Raises VideoError.

        Other requests have their turn between frames.
        """
        with named(path):
            clip = open_clip(path, MAX_SECONDS, CLIP_LONG_SIDE)
        work = reconstruct_clip(
            clip,
            self.reconstructors[name],
            output,
            light.on,
            lambda clip, _: self._follow(clip, name),
        )
        with named(path), contextlib.closing(work):
            while True:
                with self.turn:
                    share = next(work, None)
                if share is None:
                    return
                yield share


def load_studio(sources: Mapping[str, str]) -> Studio:
    """Name -> folder or Hub id. Raises CheckpointError, DetectorError."""
    detector = FaceDetector()
    reconstructors = {
        # Named so that no path of the server gets into a visitor's files.
        name: Reconstructor(FaceEstimator.from_pretrained(source), detector, name=name)
        for name, source in sources.items()
    }
    studio = Studio(reconstructors, detector)
    # The first time costs a second more, which no visitor need wait for; but a GPU that is lent to
    # requests only is not there yet.
    if all(reconstructor.device.type == "cpu" for reconstructor in reconstructors.values()):
        grey = np.full((64, 64, 3), 128, np.uint8)
        studio.find(grey)
        for face in studio.reconstruct(grey, SquareCrop(32.0, 32.0, 64.0)).faces.values():
            face.overlay()
    return studio
