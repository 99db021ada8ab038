"""Hair, hats and scarves: a shell grown out of the head, ragged at its edge."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cest.data.synthetic.noise import smoothstep

Array = np.ndarray

CENTRE = torch.tensor([0.0, 0.35, -0.6])  # of the skull, face frame, dm
# The usual hairline: azimuth from the front and elevation, degrees, seen from the skull's centre.
# Forehead, temple, sideburn before the ear, over the ear, behind it, nape.
LINE_AZIMUTH = np.radians([0, 25, 45, 58, 68, 76, 83, 90, 108, 118, 140, 180])
LINE_HEIGHT = np.radians([50, 49, 43, 28, 8, -2, 12, 18, 16, -14, -36, -47])
NECK_BEHIND = 0.35  # dm
NECK = 1.35  # dm: what is further from the axis, and low, are shoulders
ROWS, COLUMNS = 128, 1024  # of the strands' texture
FREE_EAR = (0.85, 0.25)  # dm: ears end at this height, where hair that hides them has its volume


@dataclass(frozen=True)
class Hair:
    """One style.

    Attributes:
        colour: (3,) sRGB albedo.
        volume: dm that it stands off the scalp.
        edge: (COLUMNS,) elevation of the hairline, radians, over the azimuth from -pi to pi.
        length: dm below the origin that it hangs down to, None for hair that does not hang.
        opening: radians, azimuth at which hanging hair parts for the face.
        ragged: how far strands overstep the edge, radians.
        softness: of the edge, radians.
        strands: (ROWS, COLUMNS) texture over elevation and azimuth, mean 0, deviation 1.
        contrast: of the strands.
        gloss: strength of highlights.
    """

    colour: Array
    volume: float
    edge: Array
    length: float | None
    opening: float
    ragged: float
    softness: float
    strands: Array
    contrast: float
    gloss: float

    @classmethod
    def random(
        cls, rng: np.random.Generator, colour: Array, masculine: bool, age: float
    ) -> "Hair | None":
        """What is on the head of a person with hair of ``colour``; None for a bald head."""
        kinds = ("bald", "short", "medium", "long", "hat", "scarf")
        weights = (0.10, 0.55, 0.20, 0.05, 0.10, 0.0)
        if not masculine:
            weights = (0.01, 0.13, 0.29, 0.45, 0.06, 0.06)
        kind = rng.choice(kinds, p=weights)
        if kind == "bald":
            return None
        if kind in ("hat", "scarf"):
            return cls._cloth(rng, scarf=kind == "scarf")
        front = np.interp(LINE_AZIMUTH, np.radians([30, 70]), [1, 0])
        line = LINE_HEIGHT + front * np.radians(rng.normal(0, 4))
        line = line - np.radians(rng.normal(0, 4)) * (LINE_AZIMUTH > 1.0)
        if masculine:  # receding over the temples
            temple = np.exp(-(((LINE_AZIMUTH - 0.6) / 0.35) ** 2))
            line = line + temple * 0.35 * age * rng.random()
        ragged, slant = rng.uniform(0.03, 0.10), 0.0
        if kind != "short" or rng.random() < 0.3:
            slant = rng.normal(0, 0.25)
            if rng.random() < 0.45:  # a fringe
                line = line - front * np.radians(rng.uniform(5, 30))
                ragged = rng.uniform(0.08, 0.2)
        length = 2.5 if kind == "long" else None
        if kind == "medium" and not masculine:
            length = rng.uniform(0.0, 0.9)
        volume = {"short": (0.02, 0.12), "medium": (0.10, 0.28), "long": (0.10, 0.30)}[kind]
        return cls(
            colour=np.float32(colour),
            volume=rng.uniform(*volume),
            edge=_edge(line, slant),
            length=length,
            opening=math.radians(rng.uniform(42, 80)),
            ragged=ragged,
            softness=rng.uniform(0.04, 0.12),
            strands=_strands(rng, rng.uniform(0.6, 1.6), rng.uniform(3, 14)),
            contrast=rng.uniform(0.15, 0.4),
            gloss=rng.uniform(0, 0.35),
        )

    @classmethod
    def _cloth(cls, rng: np.random.Generator, scarf: bool) -> "Hair":
        """A cap, or a scarf around head and throat."""
        height = np.array([36, 22, 15, -5]) + rng.normal(0, 5)
        line = np.interp(LINE_AZIMUTH, [0, 1.2, 1.6, np.pi], np.radians(height))
        return cls(
            colour=np.float32(0.02 + rng.beta(0.8, 1.2) * rng.uniform(0.7, 1.1, 3)),
            volume=rng.uniform(0.05, 0.12) if scarf else rng.uniform(0.06, 0.2),
            edge=_edge(line, 0.0),
            length=2.5 if scarf else None,
            opening=math.radians(rng.uniform(58, 75)),
            ragged=0.01,
            softness=0.015,
            strands=_strands(rng, 1.0, 8.0),
            contrast=0.08,
            gloss=0.0,
        )

    @property
    def hangs(self) -> bool:
        return self.length is not None

    def grow(self, heads: Tensor, template: Tensor, place: Tensor) -> Tensor:
        """The shell's vertices (B, H, 3) around heads (B, H, 3).

        template: (H, 3); place: `around_skull` of it.
        """
        offset = template - CENTRE
        azimuth, elevation, _ = place.unbind(1)
        field = self._field_at(place)
        outwards = F.normalize(offset, dim=1)
        rise = _ramp(field, 0.0, 0.35) * (1 + 0.5 * _ramp(elevation, 0.5, 1.4))
        shift = (0.012 + self.volume * rise)[:, None] * outwards
        if self.hangs:
            # Hanging hair keeps the width that it has over the ears.
            flat = offset * torch.tensor([1.0, 0.0, 1.0])
            reach = flat.norm(dim=1)
            direction = flat / reach[:, None].clamp(min=1e-6)
            ellipse = 1 / torch.hypot(
                direction[:, 0] / (0.84 + self.volume), direction[:, 2] / (1.0 + self.volume)
            )
            outside = (ellipse - reach).clamp(min=0.03)
            hanging = _ramp(template[:, 1], *FREE_EAR) * _ramp(
                azimuth.abs(), self.opening - 0.35, self.opening
            )
            shift = shift + (hanging * outside)[:, None] * direction
        return heads + shift

    def reaches(self, template: Tensor, place: Tensor) -> Tensor:
        """(H,) bool: vertices that hair may be near."""
        shoulder = (template[:, 1] < -0.8) & (template[:, [0, 2]].norm(dim=1) > NECK)
        return (self._field_at(place) > -0.6) & ~shoulder

    def _field_at(self, place: Tensor) -> Tensor:
        return torch.from_numpy(np.float32(self._field(*place.numpy().T)))

    def look(self, place: Array) -> tuple[Array, Array]:
        """Cover and brightness (P,) of points with interpolated `around_skull` (P, 3)."""
        azimuth, elevation, height = np.ascontiguousarray(place.T)
        column = (azimuth / (2 * np.pi) + 0.5) * (COLUMNS - 1)
        row = (elevation / np.pi + 0.5) * (ROWS - 1)
        strand = _lookup(self.strands, column, row)
        field = self._field(azimuth, elevation, height)
        # Beside the face hair hangs in one sheet, over the forehead it ends strand by strand.
        ragged = self.ragged * (0.3 + 0.7 * np.clip(2 * elevation, 0, 1))
        cover = smoothstep(-self.softness, self.softness, field + ragged * (strand - 0.3))
        roots = 0.75 + 0.25 * smoothstep(0.0, 0.3, field)
        return cover, roots * np.exp(np.float32(self.contrast) * strand)

    def _field(self, azimuth: Array, elevation: Array, height: Array) -> Array:
        """Radians inside the hair; negative outside."""
        place = np.clip((azimuth / (2 * np.pi) + 0.5) * COLUMNS, 0, COLUMNS - 1)
        field = elevation - self.edge[place.astype(np.int32)]
        if self.hangs:
            side = np.abs(azimuth) - self.opening
            field = np.maximum(field, np.minimum(side, height + self.length))
        return field


def around_skull(points: Tensor) -> Tensor:
    """Points (H, 3) of the mean head -> their signed azimuth, elevation and height (H, 3)."""
    x, y, z = (points - CENTRE).unbind(-1)
    elevation = torch.atan2(y, torch.hypot(x, z))
    # The neck stands further back than the skull's centre.
    azimuth = torch.atan2(x, z + NECK_BEHIND * _ramp(points[:, 1], -0.1, -0.6))
    return torch.stack((azimuth, elevation, points[:, 1]), 1)


def _edge(line: Array, slant: float) -> Array:
    """(COLUMNS,) from elevations (12,) at LINE_AZIMUTH; ``slant``: how much higher on the right."""
    azimuth = ((np.arange(COLUMNS) + 0.5) / COLUMNS - 0.5) * 2 * np.pi
    front = np.interp(np.abs(azimuth), [0.6, 1.2], [1, 0])
    edge = np.interp(np.abs(azimuth), LINE_AZIMUTH, line) + front * slant * np.sin(azimuth)
    return edge.astype(np.float32)


def _ramp(value: Tensor, low: float, high: float) -> Tensor:
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _strands(rng: np.random.Generator, fine: float, length: float) -> Array:
    """Noise stretched along the strands: single hairs and locks of them."""
    single = rng.standard_normal((ROWS // 4, COLUMNS), dtype=np.float32)
    single = cv2.GaussianBlur(single, (0, 0), sigmaX=fine, sigmaY=length / 4)
    locks = rng.standard_normal((ROWS // 4, COLUMNS // 8), dtype=np.float32)
    locks = cv2.GaussianBlur(locks, (0, 0), sigmaX=fine, sigmaY=length / 3)
    locks = cv2.resize(locks / locks.std(), (COLUMNS, ROWS // 4))
    total = (single / single.std() + locks) / np.float32(np.sqrt(2))
    return cv2.resize(total, (COLUMNS, ROWS), interpolation=cv2.INTER_LINEAR)


def _lookup(texture: Array, column: Array, row: Array) -> Array:
    """Bilinear (P,); cv2 wants its maps to be pictures that are not too wide."""
    count, width = len(column), 256
    maps = [np.resize(values, (-(-count // width), width)) for values in (column, row)]
    if not count:
        return column
    found = cv2.remap(texture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return found.ravel()[:count]
