"""Viewpoint, spherical harmonics and the UV plane: pure functions of tensors.

Frames. *Face frame*: decimetres, +x to the right of a frontal image, +y up, +z to the viewer.
*Image frame*: [-1, 1] from edge to edge, x right, y **up**, z in the same scale and larger when
nearer. *UV plane*: [0, 1], u right, v up; ``2 * uv - 1`` is an image frame whose picture is the
texture, so a texel is looked up exactly as a pixel is.
"""

from cest.geometry.blurring import blur, blur_within
from cest.geometry.sampling import from_pixels, sample_image, to_pixels
from cest.geometry.spherical_harmonics import ambient_illumination, sh_basis, shade
from cest.geometry.viewpoint import (
    canonical_crop,
    project,
    rotate,
    rotation_matrix,
)

__all__ = [
    "ambient_illumination",
    "blur",
    "blur_within",
    "canonical_crop",
    "from_pixels",
    "project",
    "rotate",
    "rotation_matrix",
    "sample_image",
    "sh_basis",
    "shade",
    "to_pixels",
]
