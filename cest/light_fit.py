"""The light that explains a photo best, given everything else.

Rendering is linear in the light: Î = A · Σ ℓ Y(n), with the reflectance A and the normals n of what
a pixel sees. So the best light is the solution of nine equations, to which a network only comes
near. But one photo does not say all of it: a face shows half of all directions, and light may be
painted into the reflectance. So the answer stays near a light that is expected.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cest.face_region import face_regions
from cest.geometry import sh_basis
from cest.modeling import FaceParameters
from cest.rendering import wrap

ESTIMATE = 1.0
"""How much the estimated light counts: as much as the photo does for one of its harmonics."""
ROUNDS = 3
"""Of reweighting: within 0.06 degrees of ten of them, on 60 held-out photos."""
SMALL, LARGE = 0.3, 4.0
"""Of a photo's mean error: one well below the first counts squared, one above it about as it is,
as in the objective's |I - Î|; beyond the second it is glasses, hair or a highlight, and counts
nothing."""


@torch.no_grad()
def settle_light(image: Tensor, estimate: FaceParameters, landmark_ids: Tensor) -> FaceParameters:
    """An estimate with the light near its own that explains the photo best.

    Over the face's region about the estimated landmarks (`cest.face_region`), by least squares
    with outliers left out.

    Args:
        image: (B, 3, S, S) in [0, 1], as the estimator saw it.
        estimate: of B images, on the image's device.
        landmark_ids: (68,) vertices of the landmarks.
    """
    surface = estimate.surface
    region = face_regions(image, estimate.projected[:, landmark_ids, :2]) * surface.coverage
    albedo = wrap(estimate.reflectance_map, surface.uv)
    basis = sh_basis(surface.normals)
    light = near = estimate.illumination
    stiffness = near.new_full((9,), ESTIMATE)
    for _ in range(ROUNDS):
        shading = (basis.flatten(1, 2) @ light[..., None]).view_as(region)
        error = (image - albedo * shading).abs().mean(1, keepdim=True)
        mean = (error * region).sum((1, 2, 3)) / region.sum((1, 2, 3)).clamp(min=1)
        error = error / mean.clamp(min=1e-3)[:, None, None, None]
        weight = region * (error < LARGE) / (error + SMALL)
        light = solve_light(image, basis, albedo, weight, near, stiffness)
    return replace(estimate, illumination=light)


def solve_light(
    image: Tensor, basis: Tensor, albedo: Tensor, weight: Tensor, near: Tensor, stiffness: Tensor
) -> Tensor:
    """The light (B, 9) of the least weighted squared error, near a given one.

    Args:
        image: (B, 3, H, W) in [0, 1].
        basis: (B, H, W, 9), the harmonics of its pixels' normals.
        albedo: (B, 3, H, W) in [0, 1], its pixels'.
        weight: (B, 1, H, W), how much a pixel counts.
        near: (B, 9).
        stiffness: (9,) how much each of its harmonics counts; 1 is as much as the pixels count for
            one harmonic in the mean.
    """
    basis, weight = basis.flatten(1, 2), weight.flatten(1)
    squares = weight * albedo.square().sum(1).flatten(1)
    normal = ((basis * squares[..., None]).mT @ basis).double()
    products = weight * (albedo * image).sum(1).flatten(1)
    right = (basis.mT @ products[..., None])[..., 0].double()
    evidence = normal.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    stiff = evidence[:, None] * stiffness.to(right)
    return torch.linalg.solve(normal + stiff.diag_embed(), right + stiff * near.double()).to(image)
