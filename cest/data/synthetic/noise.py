"""Noise with structure, made from few random numbers."""

import cv2
import numpy as np


def fractal(
    rng: np.random.Generator,
    size: int | tuple[int, int],
    coarsest: int,
    octaves: int,
    falloff: float = 0.5,
) -> np.ndarray:
    """Sum of smooth noises, each twice as fine as the one before and ``falloff`` as strong.

    Args:
        rng: the source of randomness.
        size: side, or (height, width), in pixels.
        coarsest: cells a side of the coarsest noise.
        octaves: how many noises.
        falloff: ratio of successive amplitudes.

    Returns:
        (height, width) float32 of mean about 0 and standard deviation about 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    total = np.zeros((height, width), np.float32)
    amplitude, variance = 1.0, 0.0
    for octave in range(octaves):
        cells = min(coarsest * 2**octave, max(height, width))
        grid = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
        total += amplitude * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        variance += amplitude**2
        amplitude *= falloff
    return total / np.float32(0.75 * np.sqrt(variance))  # cubic interpolation averages


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, smooth between; falling when high < low."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
