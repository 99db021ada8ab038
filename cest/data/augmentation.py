"""Geometric augmentation of frames, and relighting them about a mean face."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from cest.face_model import MIRRORED_LANDMARKS, FaceModel
from cest.geometry import sh_basis
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

    def image(self, image: np.ndarray, size: int) -> np.ndarray:
        """(H, W, 3) uint8 -> (size, size, 3) uint8, edges replicated."""
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


class Relighter:
    """Multiplies a photo by the shading of a mean face under random light.

    Two relit copies of one photo are two frames of a "clip" whose reflectance is the same by
    construction, while their light differs by what is known to be light. Stills thereby take
    part in the consistency constraint (eq. 7), which is otherwise idle on them, and clips, whose
    light seldom changes, see more of it. The mean face is posed by the landmarks.
    """

    def __init__(self, face_model: FaceModel) -> None:
        self.triangles, self.uv = face_model.triangles, face_model.uv
        self.vertices = face_model.mean.numpy()
        self.normals = vertex_normals(face_model.mean[None], face_model.triangles)[0].numpy()
        self.landmarks = self.vertices[face_model.landmarks.numpy()]

    def __call__(
        self, image: np.ndarray, landmarks: np.ndarray, rng: np.random.Generator, strength: float
    ) -> np.ndarray:
        """Relights.

        Args:
            image: (S, S, 3) uint8.
            landmarks: (68, 2) pixel-edge coordinates.
            rng: decides the light.
            strength: standard deviation of the directional part against the ambient.

        Returns:
            (S, S, 3) uint8.
        """
        size = len(image)
        target = landmarks * (2 / size, -2 / size) + (-1, 1)
        scale, rotation, shift = fit_weak_perspective(self.landmarks[17:], target[17:])
        projected = scale * self.vertices @ rotation.T
        projected[:, :2] += shift
        as_batch = lambda array: torch.from_numpy(np.float32(array))[None]  # noqa: E731
        surface = rasterize_surface(
            as_batch(projected),
            as_batch(self.normals @ rotation.T),
            self.triangles,
            self.uv,
            (size, size),
        )
        covered = surface.coverage[0, 0].numpy()
        if covered.sum() < 20:
            return image
        # Bands fall off as the irradiance of natural light does (cosine lobe: 1, 2/3, 1/4).
        light = rng.normal(0, strength, 9) * np.repeat((0, 2 / 3, 1 / 4), (1, 3, 5)) * 3.5
        shading = 1 + sh_basis(surface.normals[0]).numpy() @ light.astype(np.float32)
        shading = np.clip(shading, 0.15, None) * covered
        # Beyond the face the light of its rim goes on, so that no edge gives the trick away.
        blur = lambda array: cv2.GaussianBlur(array, (0, 0), size / 16)  # noqa: E731
        around = blur(shading) / np.maximum(blur(covered), 1e-3)
        around = np.where(blur(covered) > 1e-3, around, 1)
        shading = np.where(covered > 0, shading, around)
        shading *= np.exp(rng.normal(0, 0.1)) / shading[covered > 0].mean()
        # Clipped highlights carry no reflectance: darken rather than clip more than 1 in 100.
        lit = image * shading[..., None]
        peak = np.percentile(lit[covered > 0], 99)
        return np.clip(lit * min(1, 250 / max(peak, 1)), 0, 255).astype(np.uint8)
