"""Lights to relight a face with: nine spherical harmonics from a direction, a name or a file.

Coefficients are those of `cest.geometry.spherical_harmonics`: of the irradiance over the normal, in
the camera's axes (x right, y up, z to the viewer).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cest.geometry import ambient_illumination, sh_basis

DIRECTIONS = {
    "left": (-1.0, 0.2, 0.6),
    "right": (1.0, 0.2, 0.6),
    "top": (0.0, 1.0, 0.6),
    "bottom": (0.0, -1.0, 0.6),
    "front": (0.0, 0.0, 1.0),
}
"""Named lights: the side of the *picture* they stand on. "ambient" is the one without direction."""
LIGHT_NAMES = (*DIRECTIONS, "ambient")

# Bands of a clamped cosine lobe, divided by pi (Ramamoorthi and Hanrahan 2001): how a Lambertian
# surface answers to a far light, cut after the third band.
COSINE_LOBE = torch.tensor([1.0, *[2 / 3] * 3, *[1 / 4] * 5])


class LightError(ValueError):
    """A light that cannot be used; the message is one sentence."""


def directional_light(
    direction: Sequence[float], strength: float = 1.0, ambient: float = 0.25
) -> Tensor:
    """A far light over some ambient light.

    direction: (x, y, z) towards the light, any length but 0. strength: shading of a surface that
    faces it; ambient: of one that does not, both to within the harmonics' accuracy (a tenth).
    Returns (9,).
    """
    vector = torch.tensor([float(value) for value in direction])
    if vector.shape != (3,) or not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise LightError(
            f"A light direction is three numbers, not all 0, but this one is {tuple(direction)}."
        )
    lobe = math.pi * COSINE_LOBE * sh_basis(vector / vector.norm())
    return strength * lobe + ambient_illumination(ambient)


def named_light(name: str) -> Tensor:
    """One of `LIGHT_NAMES` -> (9,)."""
    if name == "ambient":
        return ambient_illumination()
    if name not in DIRECTIONS:
        raise LightError(f"{name!r} is no light; choose one of {', '.join(LIGHT_NAMES)}.")
    return directional_light(DIRECTIONS[name])


def read_light(path: str | Path) -> Tensor:
    """A JSON file -> (9,): a list of 9 numbers, or an object whose "illumination" is one.

    The `parameters.json` of a reconstruction is such an object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise LightError(f"{path} cannot be read as a light: {reason}.") from None
    if isinstance(values, dict):
        values = values.get("illumination")
    try:
        light = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        light = torch.zeros(0)
    if light.shape != (9,) or not bool(torch.isfinite(light).all()):
        raise LightError(
            f'{path} must hold a list of 9 numbers, or an object with one under "illumination".'
        )
    return light


def mirror_light(illumination: Tensor) -> Tensor:
    """The light (..., 9) of a mirrored picture: harmonics that are odd in x change their sign."""
    return illumination * illumination.new_tensor([1, 1, 1, -1, -1, 1, 1, -1, 1])


def roll_light(illumination: Tensor, angle: float) -> Tensor:
    """Turn a light about the axis to the viewer, counter-clockwise as the picture is seen.

    illumination: (..., 9); angle: radians. Within a band, harmonics of order m and -m turn into
    each other by m times the angle.
    """
    turned = illumination.clone()
    for cosine_like, sine_like, order in ((3, 1, 1), (7, 5, 1), (8, 4, 2)):
        c, s = math.cos(order * angle), math.sin(order * angle)
        x, y = illumination[..., cosine_like], illumination[..., sine_like]
        turned[..., cosine_like] = c * x - s * y
        turned[..., sine_like] = s * x + c * y
    return turned
