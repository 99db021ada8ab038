"""Light: a few lamps over ambient light, as the nine harmonics of the model and as what they are.

Shading multiplies sRGB values, as everywhere in the project: 1 leaves an albedo as it is.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cest.face_model import FaceModel
from cest.geometry import ambient_illumination, sh_basis
from cest.lighting import COSINE_LOBE, directional_light
from cest.rendering import rasterize, vertex_normals

Array = np.ndarray

LOWEST = 0.06  # of the mean shading: nothing out of doors or in a room is darker


@dataclass(frozen=True)
class Light:
    """Light over the frames of a clip.

    Attributes:
        illumination: (n, 9) harmonics of the irradiance, camera's axes.
        direction: (n, 3) unit, to the strongest lamp.
        strength: (n,) its shading of a surface that faces it.
    """

    illumination: Tensor
    direction: Tensor
    strength: Tensor

    @classmethod
    def random(cls, rng: np.random.Generator, frames: int, exposure: float) -> "Light":
        """Key, fill, a light from behind and a bright sky, each as strong as chance will have it.

        exposure: mean shading of a face that looks at the camera.
        """
        contrast = float(rng.beta(1.6, 1.5))  # 0: a cloudy day, 1: one lamp in the dark
        # Mostly from above and in front; sometimes from the side or below.
        azimuth = rng.normal(0, 1.0)
        height = rng.normal(0.45, 0.4)
        steady = rng.random() < 0.6
        drift = np.zeros(frames) if steady else np.cumsum(rng.normal(0, 0.25, frames))
        key = _directions(azimuth + drift, height)
        strength = np.full(frames, contrast)
        if not steady:
            strength = strength * np.exp(np.cumsum(rng.normal(0, 0.1, frames)))
        ambient = 1.05 - 0.85 * contrast
        fill, rim = contrast * rng.beta(1, 3) * 0.6, rng.beta(1, 4) * 0.8 * (rng.random() < 0.4)
        sky, floor = ambient * rng.uniform(0, 0.35), ambient * rng.uniform(0, 0.12)
        soft = rng.uniform(0.4, 1)  # a large lamp has weak second-order harmonics
        first_order = rng.random() < 0.15

        rest = ambient_illumination(ambient - 0.5 * (sky + floor))
        for direction, value in (
            (_directions(azimuth + math.pi * rng.uniform(0.6, 1.4), rng.normal(0, 0.3)), fill),
            (_directions(math.pi + rng.normal(0, 0.9), 0.5), rim),
            (np.array([0.0, 1.0, 0.1]), sky),
            (np.array([0.0, -1.0, 0.3]), floor),
        ):
            rest = rest + directional_light(direction, value, 0.0)
        total = torch.stack(
            [
                rest + directional_light(direction, value, 0.0)
                for direction, value in zip(key, strength)
            ]
        )
        total[:, 4:] *= 0.0 if first_order else soft
        # Harmonics cut off after the third band can turn negative; ambient light lifts them.
        everywhere = total @ sh_basis(_SPHERE).T
        front = everywhere[:, _SPHERE[:, 2] > 0.2].mean(1)
        lift = (LOWEST * front - everywhere.min(1).values).clamp(min=0)
        total = total + lift[:, None] * ambient_illumination()
        scale = exposure / (front + lift).mean()
        return cls(
            (total * scale).float(),
            torch.from_numpy(np.float32(key)),
            torch.from_numpy(np.float32(strength)) * scale,
        )


def _directions(azimuth: Array | float, height: float) -> Array:
    """(..., 3) unit: azimuth 0 to the viewer, positive right; height above the horizon, radians."""
    azimuth = np.asarray(azimuth, float)
    height = np.clip(height, -0.8, 1.3)
    return np.stack(
        (
            np.sin(azimuth) * np.cos(height),
            np.full(azimuth.shape, np.sin(height)),
            np.cos(azimuth) * np.cos(height),
        ),
        -1,
    )


def _sphere(count: int) -> Array:
    """(count, 3): evenly spread directions (Fibonacci's spiral)."""
    k = np.arange(count) + 0.5
    y = 1 - 2 * k / count
    angle = k * math.pi * (1 + 5**0.5)
    r = np.sqrt(1 - y * y)
    return np.stack((r * np.cos(angle), y, r * np.sin(angle)), 1)


_SPHERE = torch.from_numpy(np.float32(_sphere(200)))


class SelfShadow:
    """How much of the light the head keeps from itself: precomputed radiance transfer.

    For each vertex of the mean face the cosine lobe times the visibility of the sky is projected
    on the harmonics (Sloan, Kautz and Snyder 2002); divided by the same without visibility it says
    what part of any light arrives, softly, without casting a ray.

    Args:
        face_model: whose mean face it is.
        surroundings: (H, 3) of the mean head, face frame, with its triangles (F, 3).
    """

    DIRECTIONS, RESOLUTION, TOLERANCE = 128, 160, 0.04

    def __init__(self, face_model: FaceModel, surroundings: Tensor, triangles: Tensor) -> None:
        vertices = torch.cat((face_model.mean, surroundings))
        faces = torch.cat((face_model.triangles, triangles + face_model.n_vertices))
        normals = torch.cat(
            (
                vertex_normals(face_model.mean[None], face_model.triangles)[0],
                vertex_normals(surroundings[None], triangles)[0],
            )
        )
        blocked = torch.zeros(len(vertices), 9)
        open_sky = torch.zeros(len(vertices), 9)
        for direction in torch.from_numpy(np.float32(_sphere(self.DIRECTIONS))):
            facing = normals @ direction
            visible = self._seen(vertices, faces, direction) & (facing > 0)
            contribution = facing.clamp(min=0)[:, None] * sh_basis(direction)
            open_sky += contribution
            blocked += visible[:, None] * contribution
        self._blocked, self._open = blocked, open_sky

    def _seen(self, vertices: Tensor, faces: Tensor, direction: Tensor) -> Tensor:
        """(K,) bool: no other part of the head between the vertex and ``direction``."""
        helper = torch.tensor([0.0, 1, 0]) if abs(direction[1]) < 0.9 else torch.tensor([1.0, 0, 0])
        right = torch.nn.functional.normalize(torch.linalg.cross(helper, direction), dim=0)
        up = torch.linalg.cross(direction, right)
        turned = vertices @ torch.stack((right, up, direction), 1)
        low, high = turned[:, :2].min(0).values, turned[:, :2].max(0).values
        scale = 1.98 / (high - low).max()
        turned = (turned - torch.cat(((low + high) / 2, torch.zeros(1)))) * scale
        size = self.RESOLUTION
        depth = rasterize(turned[None], faces, (size, size)).depth[0]
        column = ((turned[:, 0] + 1) * size / 2).long().clamp(0, size - 1)
        row = ((1 - turned[:, 1]) * size / 2).long().clamp(0, size - 1)
        return turned[:, 2] + self.TOLERANCE * scale >= depth[row, column]

    def arriving(self, illumination: Tensor, rotation: Tensor) -> Tensor:
        """(n, K): the part of the light that arrives at each vertex, face first, then the rest.

        illumination: (n, 9) harmonics of the irradiance, camera's axes; rotation: (n, 3, 3) from
        the face frame to the camera's axes.
        """
        radiance = illumination / COSINE_LOBE
        # Harmonics are turned by reading the light in turned directions and projecting again.
        seen = sh_basis(_SPHERE @ rotation.mT) @ radiance[:, :, None]
        turned = seen[..., 0] @ sh_basis(_SPHERE) * (4 * math.pi / len(_SPHERE))
        reaches, free = turned @ self._blocked.T, turned @ self._open.T
        return (reaches / free.clamp(min=1e-3)).clamp(0.25, 1.0)


def highlights(normals: Array, direction: Array, exponent: float) -> Array:
    """Blinn-Phong: (..., 3) normals, light (3,) and a viewer at +z -> (...,) in [0, 1]."""
    half = direction + np.array([0, 0, 1], np.float32)
    half = np.float32(half / max(np.linalg.norm(half), 1e-6))
    return np.clip(normals @ half, 0, 1) ** np.float32(exponent)
