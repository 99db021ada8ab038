"""Nine real spherical harmonics: illumination of a Lambertian surface (paper §3.2, [28]).

Order: Y00; Y1-1 ~ y, Y10 ~ z, Y11 ~ x; Y2-2 ~ xy, Y2-1 ~ yz, Y20 ~ 3z² - 1, Y21 ~ xz,
Y22 ~ x² - y²; with their normalisation, so that they are orthonormal on the sphere. The
coefficients ℓ are of the *irradiance* (the cosine lobe is already in them).
"""

import math

import torch
from torch import Tensor

Y0 = 0.5 * math.sqrt(1 / math.pi)
Y1 = math.sqrt(3 / (4 * math.pi))
Y2 = 0.5 * math.sqrt(15 / math.pi)
Y20 = 0.25 * math.sqrt(5 / math.pi)
Y22 = 0.25 * math.sqrt(15 / math.pi)


def sh_basis(normals: Tensor) -> Tensor:
    """(..., 3) unit normals, camera axes (x right, y up, z to the viewer) -> (..., 9)."""
    x, y, z = normals.unbind(-1)
    return torch.stack(
        (
            torch.full_like(x, Y0),
            Y1 * y,
            Y1 * z,
            Y1 * x,
            Y2 * x * y,
            Y2 * y * z,
            Y20 * (3 * z * z - 1),
            Y2 * x * z,
            Y22 * (x * x - y * y),
        ),
        dim=-1,
    )


def shade(normals: Tensor, illumination: Tensor) -> Tensor:
    """Σₖ ℓₖ Yₖ(n): (B, ..., 3) unit normals and (B, 9) -> (B, ...) shading, 1 = unchanged."""
    x, y, z = normals.unbind(-1)
    l = illumination.reshape(-1, *(1,) * (x.ndim - 1), 9).unbind(-1)
    # Horner's scheme of Σ ℓₖ Yₖ: a third of the memory traffic of the basis, times, summed.
    constant = Y0 * l[0] - Y20 * l[6]
    in_x = Y1 * l[3] + Y22 * l[8] * x + Y2 * l[4] * y + Y2 * l[7] * z
    in_y = Y1 * l[1] - Y22 * l[8] * y + Y2 * l[5] * z
    in_z = Y1 * l[2] + 3 * Y20 * l[6] * z
    return constant + x * in_x + y * in_y + z * in_z


def ambient_illumination(strength: float = 1.0) -> Tensor:
    """(9,): light that multiplies every reflectance by ``strength``, whatever the normal."""
    illumination = torch.zeros(9)
    illumination[0] = strength / Y0
    return illumination
