"""Colour of skin and hair, and what else is decided about a person before anything is painted.

Skin is absorption by two pigments, melanin and haemoglobin, in linear RGB (Beer-Lambert, after the
two-layer models of skin of Donner and Jensen 2006 and Jimenez et al. 2010, with coefficients set by
hand so that the tones run through those of photographed skin).
"""

from dataclasses import dataclass

import numpy as np

from cest.data.synthetic.noise import smoothstep

Array = np.ndarray

PALE = np.float32([0.90, 0.71, 0.60])  # linear reflectance of skin without melanin
MELANIN = np.float32([0.66, 0.87, 1.00])
YELLOW = np.float32([-0.12, 0.05, 0.20])  # what the first melanin adds to it: lighter skins are
YELLOW_SOON = 0.5  # yellower than the dark ones made brighter
HAEMOGLOBIN = np.float32([0.06, 0.42, 0.34])
SURFACE = 0.018  # reflected by the horny layer, white
USUAL_BLOOD = 0.25

_MELANIN_GRID = np.linspace(0, 6, 300)


def skin_colour(melanin: Array, haemoglobin: Array) -> Array:
    """Pigment (...,) in optical depths -> linear RGB (..., 3)."""
    melanin, blood = np.asarray(melanin, np.float32), np.asarray(haemoglobin, np.float32)
    yellow = 1 - np.exp(-melanin / np.float32(YELLOW_SOON))
    depths = np.stack((melanin, yellow, blood), -1) @ np.stack((MELANIN, YELLOW, HAEMOGLOBIN))
    return SURFACE + (PALE - np.float32(SURFACE)) * np.exp(-depths)


def to_srgb(linear: Array) -> Array:
    """Linear light in [0, 1] -> sRGB values in [0, 1]."""
    linear = np.clip(linear, 0, 1)
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055
    )


def lightness(linear: Array) -> Array:
    """CIE L* of linear RGB (..., 3)."""
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


def melanin_of_lightness(value: float) -> float:
    """The melanin of skin with usual blood whose L* is ``value``."""
    table = lightness(skin_colour(_MELANIN_GRID, np.full(300, USUAL_BLOOD)))
    return float(np.interp(-value, -table, _MELANIN_GRID))


HAIR = {
    "black": (0.075, 0.062, 0.058),
    "dark brown": (0.17, 0.115, 0.085),
    "brown": (0.30, 0.205, 0.14),
    "blond": (0.62, 0.49, 0.33),
    "red": (0.46, 0.22, 0.11),
    "grey": (0.55, 0.54, 0.53),
}
"""sRGB albedo of hair."""


@dataclass(frozen=True)
class Complexion:
    """What is decided about a person's looks before anything is painted.

    Attributes:
        lightness: CIE L* of the skin.
        melanin, blood: optical depths of the skin's ground.
        age: 0 smooth to 1 wrinkled.
        beard: 0 none; up to 0.35 stubble; to 1 full.
        makeup: 0 none to 1 strong.
        hair: sRGB albedo (3,) of the hair on the head.
    """

    lightness: float
    melanin: float
    blood: float
    age: float
    beard: float
    makeup: float
    hair: Array

    @classmethod
    def random(
        cls, rng: np.random.Generator, skin_lightness: tuple[float, float], masculine: bool
    ) -> "Complexion":
        """A person; the skin's lightness is uniform in ``skin_lightness``, dark to light."""
        value = float(rng.uniform(*skin_lightness))
        age = float(rng.beta(1.1, 1.7))
        beard = 0.0
        if masculine and rng.random() < 0.7:
            beard = float(rng.uniform(0.05, 0.35) if rng.random() < 0.6 else rng.uniform(0.5, 1))
        makeup = float(rng.uniform(0.2, 1)) if not masculine and rng.random() < 0.6 else 0.0
        # Fair hair is rare on dark skin, though it exists, dyed.
        fair = smoothstep(45, 80, np.array(value)) + 0.06
        weights = np.array([1.0, 1.0, 0.9 * fair, 0.8 * fair, 0.25 * fair, 1.6 * age**2])
        name = rng.choice(list(HAIR), p=weights / weights.sum())
        hair = np.float32(HAIR[name]) * np.float32(np.exp(rng.normal(0, 0.18)))
        return cls(
            value,
            melanin_of_lightness(value),
            float(np.clip(rng.normal(USUAL_BLOOD, 0.12), 0, 0.6)),
            age,
            beard,
            makeup,
            np.clip(hair, 0.02, 0.9),
        )

    def colour(self) -> Array:
        """sRGB albedo (3,) of the plain skin."""
        return to_srgb(skin_colour(np.float32(self.melanin), np.float32(self.blood)))
