"""Geometric augmentation of frames, and relighting them about a mean face."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cest.face_model import MIRRORED_LANDMARKS, FaceModel
from cest.geometry import blur, shade
from cest.rendering import rasterize_surface, vertex_normals


@dataclass(frozen=True)
class Similarity:
    """x' = s R x + t between pixel-edge coordinates of two square images; optionally mirrored.

    Attributes:
        matrix: (2, 3).
        mirrored: the source is flipped left to right first.
    """

    matrix: np.ndarray
    mirrored: bool

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        source: int,
        target: int,
        degrees: float,
        scale: float,
        shift: float,
        mirrored: bool,
    ) -> "Similarity":
        """Uniform rotation (±degrees), zoom (×exp ±scale) and shift (± of the side)."""
        angle = np.radians(rng.uniform(-degrees, degrees))
        zoom = np.exp(rng.uniform(-scale, scale)) * target / source
        linear = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = target / 2 * (1 + 2 * rng.uniform(-shift, shift, 2))
        offset = centre - linear @ np.full(2, source / 2)
        return cls(np.column_stack((linear, offset)), mirrored)

    @property
    def angle(self) -> float:
        """By which the picture is turned counter-clockwise, as it is seen, radians."""
        return -math.atan2(self.matrix[1, 0], self.matrix[0, 0])

    @classmethod
    def resize(cls, source: int, target: int) -> "Similarity":
        """The whole image, at another size."""
        scale = target / source
        return cls(np.array([[scale, 0, 0], [0, scale, 0]]), mirrored=False)

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """(H, W, 3) or (H, W) uint8 -> (size, size, 3) or (size, size), edges replicated."""
        if self.mirrored:
            image = image[:, ::-1]
        # cv2 speaks of pixel centres; ours are half a pixel off the edge coordinates.
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.full(2, 0.5) - 0.5
        shrink = np.sqrt(np.linalg.det(matrix[:, :2]))
        if shrink < 0.7:  # the bilinear look-up alone would alias
            image = cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), 0.35 / shrink)
        return cv2.warpAffine(
            np.ascontiguousarray(image),
            matrix,
            (size, size),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def landmarks(self, landmarks: np.ndarray, width: int) -> np.ndarray:
        """(68, 2) pixel-edge coordinates of the source -> of the target."""
        if self.mirrored:
            landmarks = landmarks[MIRRORED_LANDMARKS] * (-1, 1) + (width, 0)
        return (landmarks @ self.matrix[:, :2].T + self.matrix[:, 2]).astype(np.float32)


def fit_weak_perspective(points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scaled rotation and shift that bring 3D points onto 2D ones, nearly least squares.

    Args:
        points: (n, 3), y up.
        target: (n, 2), y up.

    Returns:
        scale (), rotation (3, 3), translation (2,).
    """
    centre, target_centre = points.mean(0), target.mean(0)
    affine, *_ = np.linalg.lstsq(points - centre, target - target_centre, rcond=None)
    u, s, vt = np.linalg.svd(affine.T, full_matrices=False)
    first = u @ vt
    rotation = np.vstack((first, np.cross(first[0], first[1])))
    scale = s.mean()
    return scale, rotation, target_centre - scale * (rotation @ centre)[:2]


@dataclass(frozen=True)
class Relighting:
    """Another light for one photo: everything that is random about it.

    Attributes:
        pose: (3, 4) brings the mean face onto the photo's face, image frame.
        light: (9,) spherical harmonics of the irradiance beside the ambient 1.
        exposure: factor of the whole.
    """

    pose: np.ndarray
    light: np.ndarray
    exposure: float


class Relighter:
    """Multiplies photos by the shading of a mean face under random light.

    Two relit copies of one photo are two frames of a "clip" whose reflectance is the same by
    construction, while their light differs by what is known to be light. Stills thereby take
    part in the consistency constraint (eq. 7), which is otherwise idle on them, and clips, whose
    light seldom changes, see more of it. The mean face is posed by the landmarks.

    What is random is drawn on the CPU, a photo at a time; the pixels are worked on in batches,
    on the device of the face model.
    """

    def __init__(self, face_model: FaceModel) -> None:
        self.triangles, self.uv, self.mean = face_model.triangles, face_model.uv, face_model.mean
        self.normals = vertex_normals(face_model.mean[None], face_model.triangles)[0]
        self.landmarks = face_model.mean[face_model.landmarks].cpu().numpy()

    def draw(
        self, landmarks: np.ndarray, size: int, rng: np.random.Generator, strength: float
    ) -> Relighting:
        """Poses the mean face and draws a light.

        Args:
            landmarks: (68, 2) pixel-edge coordinates of a (size, size) photo.
            size: its side.
            rng: decides the light.
            strength: standard deviation of the directional part against the ambient.
        """
        target = landmarks * (2 / size, -2 / size) + (-1, 1)
        scale, rotation, shift = fit_weak_perspective(self.landmarks[17:], target[17:])
        pose = np.column_stack((scale * rotation, (*shift, 0)))
        # Bands fall off as the irradiance of natural light does (cosine lobe: 1, 2/3, 1/4).
        light = rng.normal(0, strength, 9) * np.repeat((0, 2 / 3, 1 / 4), (1, 3, 5)) * 3.5
        return Relighting(np.float32(pose), np.float32(light), float(np.exp(rng.normal(0, 0.1))))

    @torch.no_grad()
    def __call__(self, image: Tensor, pose: Tensor, light: Tensor, exposure: Tensor) -> Tensor:
        """Relights.

        Args:
            image: (B, 3, S, S) in [0, 1].
            pose, light, exposure: (B, 3, 4), (B, 9) and (B,): `Relighting`s, stacked.

        Returns:
            (B, 3, S, S) in [0, 1].
        """
        size = image.shape[-1]
        rotation = F.normalize(pose[:, :, :3], dim=-1)
        surface = rasterize_surface(
            self.mean @ pose[:, :, :3].mT + pose[:, None, :, 3],
            self.normals @ rotation.mT,
            self.triangles,
            self.uv,
            (size, size),
        )
        covered = surface.coverage
        pixels = covered.sum((1, 2, 3), keepdim=True)
        shading = (1 + shade(surface.normals, light)[:, None]).clamp(min=0.15) * covered
        mean = shading.sum((1, 2, 3), keepdim=True) / pixels.clamp(min=1)
        shading = shading / mean.clamp(min=1e-3)
        # Beyond the face the light of its rim goes on and fades: no edge gives the trick away.
        near, fade = blur(covered, size / 16), 0.02
        around = (blur(shading, size / 16) + fade) / (near + fade)
        factor = torch.where(covered > 0, shading, around)
        lit = image * factor * exposure[:, None, None, None]
        # Clipped highlights carry no reflectance: darken rather than clip more than 1 in 100.
        # A quarter of the pixels tells as well as all of them.
        sample = torch.where(covered > 0, lit, -1)[:, :, ::2, ::2].flatten(1).sort(1).values
        count = (sample >= 0).sum(1, keepdim=True)
        index = (sample.shape[1] - 1 - count // 100).clamp(0, sample.shape[1] - 1)
        peak = sample.gather(1, index)[:, :, None, None]
        lit = (lit * (250 / 255 / peak.clamp(min=1 / 255)).clamp(max=1)).clamp(0, 1)
        return torch.where(pixels >= 20, lit, image)
