"""Backgrounds that look like what stands behind people in photos: walls, windows, bokeh, leaves."""

import cv2
import numpy as np

from cest.data.synthetic.noise import fractal, smoothstep

Array = np.ndarray


def random_background(rng: np.random.Generator, size: int) -> Array:
    """(size, size, 3) float32 sRGB in [0, 1]; drawn at half the size, for it is out of focus."""
    half = size // 2
    canvas = _wall(rng, half)
    kind = rng.random()
    if kind < 0.3:
        _furniture(canvas, rng)
    elif kind < 0.5:
        _bokeh(canvas, rng)
    elif kind < 0.7:
        canvas = _foliage(canvas, rng)
    if rng.random() < 0.85:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.5, 7) * half / 128)
    return np.clip(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_LINEAR), 0, 1)


def _colour(rng: np.random.Generator) -> Array:
    """(3,): a colour of things: mostly dull, at times bright."""
    value, dullness = rng.uniform(0.03, 0.95), rng.beta(1, 6)
    hue = rng.dirichlet([2.0, 1.8, 1.8]) * 3
    return np.float32(np.clip(value * (1 + dullness * (hue - 1)), 0.01, 1))


def _wall(rng: np.random.Generator, size: int) -> Array:
    """Two colours mixed by a slope and by large smooth noise."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    mix = smoothstep(-0.6, 0.6, slope + np.float32(0.15) * fractal(rng, size, 2, 3))[..., None]
    first = _colour(rng)
    second = _colour(rng) if rng.random() < 0.4 else first * np.float32(rng.uniform(0.4, 1.3))
    plaster = fractal(rng, size, size // 4, 3) * np.float32(rng.uniform(0, 0.03))
    return first + mix * (second - first) + plaster[..., None]


def _furniture(canvas: Array, rng: np.random.Generator) -> None:
    """Rectangles with straight edges: shelves, windows, doors, pictures; in place."""
    size = len(canvas)
    for _ in range(rng.integers(2, 14)):
        x, y = rng.integers(-size // 4, size, 2)
        width, height = (rng.exponential(0.25, 2) * size).astype(int) + 2
        tilt = int(rng.normal(0, 0.03) * size)
        corners = np.array(
            [[x, y], [x + width, y + tilt], [x + width, y + height + tilt], [x, y + height]]
        )
        cv2.fillPoly(canvas, [corners], _colour(rng).tolist(), cv2.LINE_AA)


def _bokeh(canvas: Array, rng: np.random.Generator) -> None:
    """Lamps out of focus; in place."""
    size = len(canvas)
    canvas *= np.float32(rng.uniform(0.2, 0.8))
    lights = np.zeros_like(canvas)
    radius = rng.uniform(0.02, 0.09) * size
    for _ in range(rng.integers(5, 35)):
        disc = np.zeros_like(canvas)
        centre = rng.uniform(0, size, 2).astype(int).tolist()
        r = max(int(radius * rng.uniform(0.7, 1.2)), 1)
        left, top = max(centre[0] - r - 1, 0), max(centre[1] - r - 1, 0)
        window = np.s_[top : centre[1] + r + 2, left : centre[0] + r + 2]
        cv2.circle(disc, centre, r, (rng.uniform(0.1, 0.7) * _colour(rng)).tolist(), -1)
        lights[window] += disc[window]
    canvas += cv2.GaussianBlur(lights, (0, 0), 0.8)


def _foliage(canvas: Array, rng: np.random.Generator) -> Array:
    """Leaves before a bright sky, or rocks, or a crowd: patches of two colours at all scales."""
    size = len(canvas)
    pattern = fractal(rng, size, int(rng.integers(3, 9)), 5, rng.uniform(0.5, 0.9))
    cover = smoothstep(-0.3, 0.3, pattern + rng.normal(0, 0.5))[..., None]
    leaf = np.float32([rng.uniform(0.1, 0.5), rng.uniform(0.2, 0.55), rng.uniform(0.05, 0.3)])
    light = np.exp(np.float32(0.35) * fractal(rng, size, 10, 4, 0.7))[..., None]
    return canvas * (1 - cover) + leaf * light * cover
