"""Weak perspective (A.2) and the canonical crop (A.1).

A viewpoint v is (..., 7): v1 the log of the scale (image frame per decimetre), (v2, v3, v4) a
rotation vector w in radians, (v5, v6, v7) a translation in the image frame.
"""

import torch
from torch import Tensor

from cest.geometry.sampling import sample_image

# Half the side, in decimetres, of the square that the canonical crop shows around the face's
# origin. The 68 landmarks of the mean face span 1.3 dm; the square leaves a sixth of them on
# each side, so that an error of the viewpoint does not cut the face.
CROP_HALF_SIDE = 0.95


def rotation_matrix(rotation_vector: Tensor) -> Tensor:
    """Rodrigues' formula (A.2), with its series near 0 so that value and gradient are finite.

    Args:
        rotation_vector: (..., 3) radians; its direction is the axis, its norm the angle.

    Returns:
        (..., 3, 3): cos φ 1 + (1 - cos φ) u uᵀ + sin φ [u]ₓ.
    """
    squared = (rotation_vector * rotation_vector).sum(-1)[..., None, None]
    # Below this the third terms of the series are under the rounding error of the type.
    small = squared < torch.finfo(squared.dtype).eps ** 0.5
    safe = torch.where(small, torch.ones_like(squared), squared)
    angle = safe.sqrt()
    sine = torch.where(small, 1 - squared / 6, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - squared / 24, (1 - angle.cos()) / safe)
    x, y, z = rotation_vector.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1)
    cross = cross.unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=squared.dtype, device=squared.device)
    return identity + sine * cross + cosine * (cross @ cross)


def rotate(vectors: Tensor, viewpoint: Tensor) -> Tensor:
    """Turns (B, K, 3) vectors of the face frame, normals for instance, into the camera's axes."""
    return vectors @ rotation_matrix(viewpoint[:, 1:4]).mT


def project(vertices: Tensor, viewpoint: Tensor) -> Tensor:
    """Weak perspective projection Q (A.2, eq. 11).

    Args:
        vertices: (B, K, 3) face frame, decimetres.
        viewpoint: (B, 7).

    Returns:
        (B, K, 3): x, y in the image frame; z in its scale, larger when nearer to the viewer.
    """
    scale = viewpoint[:, 0].exp()[:, None, None]
    return scale * rotate(vertices, viewpoint) + viewpoint[:, None, 4:7]


def canonical_crop(image: Tensor, viewpoint: Tensor, half_side: float = CROP_HALF_SIDE) -> Tensor:
    """I∘v (A.1, eq. 10): the face upright, centred and of one size; differentiable in both.

    (x, y) = exp(v1) h Rot(v4) (x', y') + (v5, v6), with h = ``half_side`` decimetres: the paper's
    formula with the crop's size tied to the face model's, in axes with y up (where a positive
    v4 turns counter-clockwise, hence the other sign of its sines).

    Args:
        image: (B, C, H, W).
        viewpoint: (B, 7).
        half_side: half the crop's side, decimetres.

    Returns:
        (B, C, H, W).
    """
    height, width = image.shape[-2:]
    x = (torch.arange(width, dtype=image.dtype, device=image.device) + 0.5) * (2 / width) - 1
    y = 1 - (torch.arange(height, dtype=image.dtype, device=image.device) + 0.5) * (2 / height)
    y, x = torch.meshgrid(y, x, indexing="ij")
    scale = (viewpoint[:, 0].exp() * half_side)[:, None, None]
    cosine = viewpoint[:, 3].cos()[:, None, None]
    sine = viewpoint[:, 3].sin()[:, None, None]
    points = torch.stack(
        (
            scale * (cosine * x - sine * y) + viewpoint[:, 4, None, None],
            scale * (sine * x + cosine * y) + viewpoint[:, 5, None, None],
        ),
        dim=-1,
    )
    return sample_image(image, points)
