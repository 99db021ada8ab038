"""What a camera and a video site do to a picture: colour, focus, noise, compression."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

Array = np.ndarray


def _grain(side: int) -> Array:
    """(side, side, 3) noise of deviation 1, partly the same in all colours."""
    rng = np.random.default_rng(0)
    grain = rng.standard_normal((side, side, 3), dtype=np.float32)
    return (grain + np.float32(0.8) * grain[..., :1].copy()) / np.float32(1.5)


# Pictures take their noise from a place in this one: new noise would take longer than the rest.
_GRAIN = _grain(768)


@dataclass(frozen=True)
class Camera:
    """One camera, the same for all frames of a clip.

    Attributes:
        balance: (3,) gains of the colour channels.
        gamma, contrast, saturation: of the tone curve; 1 leaves things as they are.
        focus: standard deviation of the blur, pixels of a 256-pixel picture.
        resolution: side that the picture had before it was enlarged, as a part of its side.
        noise: standard deviation of a mid-grey pixel's noise.
        coarse: how far the noise is blurred, pixels: that of compressed video is.
        sharpening: of the camera, 0 for none.
        motion: length of the blur of a moving camera, pixels of a 256-pixel picture.
        qualities: of each JPEG compression in turn.
    """

    balance: Array
    gamma: float
    contrast: float
    saturation: float
    focus: float
    resolution: float
    noise: float
    coarse: float
    sharpening: float
    motion: float
    qualities: tuple[int, ...]

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Camera":
        # Lamps are warmer than daylight, and cameras do not correct all of it.
        cast = rng.normal(0, (0.05, 0.015, 0.06)) * (1 if rng.random() < 0.9 else 2.5)
        cast += (0.02, 0.0, -0.04)
        small = rng.random() < 0.35
        qualities = [int(rng.integers(55, 97))]
        if rng.random() < 0.35:  # uploaded again, or a frame of a video
            qualities.insert(0, int(rng.integers(25, 80)))
        return cls(
            balance=np.float32(np.exp(cast)),
            gamma=float(np.exp(rng.normal(0, 0.12))),
            contrast=float(np.exp(rng.normal(0.05, 0.12))),
            saturation=float(np.exp(rng.normal(0.0, 0.2))),
            focus=float(0.45 + rng.gamma(1.5, 0.3)),
            resolution=float(rng.uniform(0.25, 0.7)) if small else 1.0,
            noise=float(rng.gamma(1.2, 0.006)),
            coarse=float(rng.uniform(0, 1.0)),
            sharpening=float(rng.uniform(0, 1.0)) if rng.random() < 0.4 else 0.0,
            motion=float(rng.uniform(2, 7)) if rng.random() < 0.08 else 0.0,
            qualities=tuple(qualities),
        )

    def photograph(self, picture: Array, rng: np.random.Generator) -> bytes:
        """(S, S, 3) float32 sRGB -> the encoded JPEG."""
        size = len(picture)
        picture = np.clip(cv2.transform(picture, self._colours()), 0, 1)
        picture = cv2.pow(picture, self.gamma)
        picture = 0.45 + np.float32(self.contrast) * (picture - 0.45)

        unit = size / 256
        picture = cv2.GaussianBlur(picture, (0, 0), max(self.focus * unit, 0.3))
        if self.motion:
            kernel = motion_kernel(self.motion * unit, rng.uniform(0, np.pi))
            picture = cv2.filter2D(picture, -1, kernel)
        if self.resolution < 1:
            side = max(int(self.resolution * size), 8)
            picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        picture = self._noisy(picture, rng)
        if self.resolution < 1:
            picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_CUBIC)
        if self.sharpening:
            soft = cv2.GaussianBlur(picture, (0, 0), 1.2 * unit)
            picture = picture + np.float32(self.sharpening) * (picture - soft)

        pixels = np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)[..., ::-1]
        for quality in self.qualities[:-1]:
            pixels = cv2.imdecode(_jpeg(pixels, quality), cv2.IMREAD_COLOR)
        return _jpeg(pixels, self.qualities[-1]).tobytes()

    def _colours(self) -> Array:
        """(3, 3): white balance, then saturation."""
        grey = np.outer(np.ones(3), (0.299, 0.587, 0.114))
        return (grey + self.saturation * (np.eye(3) - grey)) * self.balance

    def _noisy(self, picture: Array, rng: np.random.Generator) -> Array:
        """Of photons, which grows with the root of the light, the same share of it in colour."""
        height, width = picture.shape[:2]
        side = len(_GRAIN)
        room = side - max(height, width)
        # A picture larger than the grain sees it repeat.
        top, left = rng.integers(room if room > 0 else side, size=2)
        rows, columns = (top + np.arange(height)) % side, (left + np.arange(width)) % side
        grain = _GRAIN[np.ix_(rows, columns)]
        if self.coarse > 0.3:
            grain = cv2.GaussianBlur(grain, (0, 0), self.coarse) * np.float32(1 + 2 * self.coarse)
        level = np.sqrt(np.clip(picture, 0, 1) + np.float32(0.1))
        return picture + np.float32(self.noise * 1.2) * level * grain


def motion_kernel(length: float, angle: float) -> Array:
    """A line of so many pixels (at least one) as a blur, (k, k) float32 with sum 1 and k odd.

    Symmetric about its middle pixel, so that a picture stays where its landmarks are.

    angle: radians from the x axis.
    """
    length = max(int(length), 1)
    half = math.ceil(length / 2)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    reach = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple(np.round(half + s * reach).astype(int).tolist()) for s in (-1, 1)]
    cv2.line(kernel, *ends, 1.0)
    kernel = kernel + kernel[::-1, ::-1]  # a line between rounded ends leans to one side
    return kernel / kernel.sum()


def _jpeg(pixels: Array, quality: int) -> Array:
    """(S, S, 3) uint8 BGR -> the bytes of a JPEG as an array."""
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
