"""Things before a face: glasses, medical masks, hands, microphones; drawn over it, posed with it.

Points are those of the 68 landmarks and of a frame of glasses built around the eyes, projected
with the face; a point counts as hidden when the face's depth buffer is nearer.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.data.synthetic.layers import Layer
from cest.face_model import FaceModel
from cest.geometry import project, to_pixels

Array = np.ndarray

SUBPIXEL = 4  # binary places of the coordinates that cv2 is given


@dataclass(frozen=True)
class View:
    """What an occluder sees of one frame.

    Attributes:
        points: (68, 2) landmarks, pixel-edge.
        rims: (P, 3) points of the glasses: pixel-edge x, y, and depth.
        depth: (S, S) of the face, -inf beside it.
        shading: (S, S) of the face, 0 beside it.
        light: its mean over the face.
    """

    points: Array
    rims: Array
    depth: Array
    shading: Array
    light: float

    @classmethod
    def of(cls, points: Array, rims: Array, depth: Array, face: Layer, shading: Array) -> "View":
        """shading: (P,) of the pixels of ``face``."""
        whole = np.zeros(depth.shape, np.float32)
        whole.reshape(-1)[face.pixels] = shading
        return cls(points, rims, depth, whole, float(shading.mean()) if len(shading) else 1.0)


class Occluder(Protocol):
    """Something before a face."""

    def layer(self, view: View) -> Layer: ...


class Glasses:
    """Glasses or sunglasses, their lenses tinted or reflecting.

    Clear lenses cover the eyes, too: what is seen through them is bent and mirrored over.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.dark = rng.random() < 0.25
        if self.dark:
            self.tint, self.opacity = np.float32(rng.uniform(0.02, 0.2, 3)), rng.uniform(0.75, 0.98)
        else:
            self.tint = np.full(3, rng.uniform(0.1, 0.9), np.float32)
            self.opacity = rng.uniform(0.09, 0.16)
        # Black, metal, or coloured.
        grey = rng.uniform(0.02, 0.12) if rng.random() < 0.6 else rng.uniform(0.1, 0.6)
        tinted = rng.uniform(0.4, 1.6, 3) if rng.random() < 0.3 else np.ones(3)
        self.colour = np.float32(np.clip(grey * tinted, 0.02, 0.9))
        self.width = rng.uniform(0.012, 0.05)  # dm
        self.squareness = rng.uniform(2, 5)  # of the superellipse
        self.half_width, self.half_height = rng.uniform(0.21, 0.27), rng.uniform(0.13, 0.21)
        self.reflection = rng.uniform(0.1, 0.6) if rng.random() < 0.3 else 0.0
        self.drop = rng.uniform(-0.02, 0.05)

    def shape(self, model: FaceModel, vertices: Tensor) -> Tensor:
        """Points (n, 2 * 40 + 2 * 12 + 8, 3) of the two rims, the temples and the bridge."""
        points = vertices[:, model.landmarks]
        angle = torch.linspace(0, 2 * np.pi, 41)[:-1]
        bow = [torch.sign(f) * f.abs() ** (2 / self.squareness) for f in (angle.cos(), angle.sin())]
        parts = []
        bridge = points[:, 27]
        for side, first in ((-1, 36), (1, 42)):
            eye = points[:, first : first + 6].mean(1)
            x = eye[:, :1] + side * 0.01 + self.half_width * bow[0]
            y = eye[:, 1:2] - self.drop + self.half_height * bow[1]
            # A gently curved front, before brows and lashes.
            curve = 0.35 * (x - bridge[:, :1]) ** 2
            z = torch.maximum(bridge[:, 2:], eye[:, 2:] + 0.1) + 0.05 - curve
            parts.append(torch.stack((x, y, z), -1))
        ends = []
        for side, rim in zip((-1, 1), parts):
            hinge = rim[:, 20 if side < 0 else 0]
            ear = points[:, 0 if side < 0 else 16] + torch.tensor([side * 0.06, 0.14, -0.1])
            t = torch.linspace(0, 1, 12)[None, :, None]
            line = hinge[:, None] + t * (ear - hinge)[:, None]
            # Temples stand off the cheekbones.
            line = line + torch.tensor([side * 0.06, 0, 0]) * (t * (1 - t) * 4)
            ends.append(line)
        left, right = parts[0][:, 3], parts[1][:, 17]
        t = torch.linspace(0, 1, 8)[None, :, None]
        middle = left[:, None] + t * (right - left)[:, None]
        middle = middle + torch.tensor([0, 0.03, 0.03]) * (t * (1 - t) * 4)
        return torch.cat((*parts, *ends, middle), 1)

    def layer(self, view: View) -> Layer:
        size = len(view.depth)
        scale = np.linalg.norm(view.points[45] - view.points[36]) / 0.83
        thick = max(self.width * max(scale, size * 0.25), 0.8)
        frame = np.zeros((size, size), np.uint8)
        lens = np.zeros((size, size), np.uint8)
        rims = view.rims[:40], view.rims[40:80]
        for rim in rims:
            if self._shown(rim, view).mean() > 0.5:
                _fill(lens, rim)
        for line, closed in (
            *((rim, True) for rim in rims),
            (view.rims[80:92], False),
            (view.rims[92:104], False),
            (view.rims[104:112], False),
        ):
            shown = self._shown(line, view)
            following = np.roll(np.arange(len(line)), -1)
            for i in range(len(line) if closed else len(line) - 1):
                if shown[i] and shown[following[i]]:
                    _stroke(frame, line[[i, following[i]], :2], thick)
        pixels = np.flatnonzero(frame | lens)
        glass, rim = (mask.ravel()[pixels] / np.float32(255) for mask in (lens, frame))
        alpha = self.opacity * glass
        colour = np.repeat(self.tint[None], len(alpha), 0)
        if self.reflection:
            row, column = np.divmod(pixels, size)
            stripe = np.exp(-((((row + column) / size * 6) % 2 - 1) ** 2) / 0.08)
            reflection = np.float32(self.reflection * stripe) * glass
            colour = _mix(colour, 1.0, reflection)
            alpha = np.maximum(alpha, reflection)
        colour = _mix(colour, self.colour * np.float32(view.light), rim)
        return Layer.of(pixels, colour, np.maximum(alpha, rim))

    @staticmethod
    def _shown(line: Array, view: View) -> Array:
        size = len(view.depth)
        column, row = np.clip(line[:, :2].astype(int), 0, size - 1).T
        return line[:, 2] > view.depth[row, column] - 0.02


class MedicalMask:
    """Cloth from the bridge of the nose to under the chin, with straps."""

    JAW = tuple(range(2, 15))  # landmarks

    def __init__(self, rng: np.random.Generator) -> None:
        common = ((0.62, 0.74, 0.83), (0.85, 0.86, 0.87), (0.08, 0.08, 0.09))
        self.colour = np.float32(
            common[rng.integers(3)] if rng.random() < 0.7 else rng.uniform(0.05, 0.9, 3)
        )
        self.height = rng.uniform(0, 1)  # 0: to the nose's tip, 1: to its root
        self.pleats = rng.uniform(0, 0.12)

    def layer(self, view: View) -> Layer:
        size = len(view.depth)
        p = view.points
        nose = p[30] + (0.15 + 0.65 * self.height) * (p[27] - p[30])
        below = p[8] - 0.06 * (p[27] - p[8])
        sides = [p[1] + 0.12 * (p[30] - p[1]), p[15] + 0.12 * (p[30] - p[15])]
        # Stretched over what stands out: in profile, too.
        outline = np.array([*p[list(self.JAW)], *p[30:36], *sides, nose, below])
        cover = np.zeros((size, size), np.uint8)
        _fill(cover, cv2.convexHull(np.float32(outline))[:, 0])
        for side in sides:
            strap = np.array([side, side + 0.5 * (side - nose)])
            if np.linalg.norm(side - nose) > 0.2 * np.linalg.norm(p[8] - p[27]):
                _stroke(cover, strap, 0.008 * size)
        face = view.shading > 0
        blur = size / 18
        weight = cv2.GaussianBlur(face.astype(np.float32), (0, 0), blur)
        light = cv2.GaussianBlur(view.shading, (0, 0), blur) / np.maximum(weight, 1e-3)
        light = np.where(weight > 1e-3, light, view.light)
        axis = (p[8] - p[27]) / np.linalg.norm(p[8] - p[27])
        y, x = np.mgrid[0:size, 0:size]
        along = (x * axis[0] + y * axis[1]) / size
        light = light * (1 + self.pleats * np.sin(along * 120))
        colour = self.colour * light[..., None]
        pixels = np.flatnonzero(cover)
        alpha = cover.ravel()[pixels] / np.float32(255)
        return Layer.of(pixels, np.float32(colour.reshape(-1, 3)[pixels]), alpha)


class Hand:
    """A few fingers, or a microphone in a hand, before the lower half of the face."""

    def __init__(self, rng: np.random.Generator, skin: Array) -> None:
        self.skin, self.side = skin, rng.choice((-1, 1))
        self.fingers = int(rng.integers(1, 5))
        self.start = rng.uniform(-0.35, 0.35, 2)
        self.angle = rng.normal(np.pi / 2, 0.7)
        self.microphone = rng.random() < 0.3
        self.jitter = rng.normal(0, 1, (5, 3))

    def layer(self, view: View) -> Layer:
        size = len(view.depth)
        mouth, nose = view.points[48:68].mean(0), view.points[27]
        unit = np.linalg.norm(view.points[8] - nose)
        tip = mouth + self.start * unit * (1, 0.6) + (self.side * 0.35 * unit, 0.1 * unit)
        away = np.array([self.side * np.cos(self.angle), np.sin(self.angle)])
        across = np.array([-away[1], away[0]])
        colour = np.zeros((size, size, 3), np.float32)
        cover = np.zeros((size, size), np.float32)
        strokes = []
        if self.microphone:
            strokes.append((mouth + 0.25 * unit * away, 0.20, 0.12, np.float32([0.05] * 3)))
        for k in range(self.fingers):
            shift = (k - self.fingers / 2) * 0.145 * unit
            start = tip + across * shift + away * unit * (0.04 * self.jitter[k, 0] + 0.05 * k)
            strokes.append((start, 0.075, 1.0, self.skin))
        strokes.append((tip + 0.62 * unit * away, 0.34, 2.0, self.skin))
        light = view.light
        for start, radius, reach, paint in strokes:
            mask = np.zeros((size, size), np.uint8)
            end = start + away * unit * max(reach, 0.05) * 1.6
            _stroke(mask, np.array([start, end]), 2 * radius * unit)
            inside = cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (radius * unit)
            # Lit like a cylinder: full in the middle, dark at its sides.
            round_ = np.sqrt(np.clip(1 - (1 - np.clip(inside, 0, 1)) ** 2, 0, 1))
            shade = light * (0.5 + 0.5 * round_)
            alpha = np.clip(mask / np.float32(255), 0, 1)
            colour = _mix(colour, paint * shade[..., None], alpha)
            cover = np.maximum(cover, alpha)
        pixels = np.flatnonzero(cover)
        return Layer.of(pixels, np.float32(colour.reshape(-1, 3)[pixels]), cover.ravel()[pixels])


def points(
    model: FaceModel, vertices: Tensor, viewpoint: Tensor, glasses: Glasses | None, size: int
) -> tuple[Array, Array]:
    """Landmarks (n, 68, 2) in pixels and points of the glasses (n, P, 3), P = 0 without any."""
    marks = to_pixels(project(vertices[:, model.landmarks], viewpoint)[..., :2], size, size)
    if glasses is None:
        return marks.numpy(), np.zeros((len(vertices), 0, 3), np.float32)
    placed = project(glasses.shape(model, vertices), viewpoint)
    flat = to_pixels(placed[..., :2], size, size)
    return marks.numpy(), torch.cat((flat, placed[..., 2:]), -1).numpy()


def _mix(under: Array, over: Array | float, alpha: Array) -> Array:
    return under + alpha[..., None] * (over - under)


def _fixed(points: Array) -> Array:
    """Pixel-edge coordinates -> the fixed-point ones of cv2's pixel centres."""
    return np.round((points[:, :2] - 0.5) * 2**SUBPIXEL).astype(np.int32)


def _fill(mask: Array, points: Array) -> None:
    cv2.fillPoly(mask, [_fixed(points)], 255, cv2.LINE_AA, SUBPIXEL)


def _stroke(mask: Array, points: Array, width: float) -> None:
    width = max(round(width), 1)
    cv2.polylines(mask, [_fixed(points)], False, 255, width, cv2.LINE_AA, SUBPIXEL)
