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

ESTIMATE = 0.5
"""How much the estimated light counts for one of its harmonics: as much as half of the face does
where it is explained well. Of a face that is largely hidden it is believed more than the photo."""
ROUNDS = 3
"""Of reweighting: within 0.1 degrees of ten of them, on 60 held-out photos."""
TYPICAL = 10 / 255
"""The estimators' error on photographs. A pixel whose error is as large counts half, one with ten
times as much, on glasses, hair, a hand or a highlight, a hundredth (Cauchy's weights). Not in
proportion to the photo's own error: of a face behind a hand that is the hand's."""


@torch.no_grad()
def settle_light(image: Tensor, estimate: FaceParameters, landmark_ids: Tensor) -> FaceParameters:
    """An estimate with the light near its own that explains the photo best.

    Over the face's region about the estimated landmarks (`cest.face_region`), by least squares
    in which what is no skin hardly counts.

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
    counts = evidence(basis, albedo, surface.coverage)
    stiffness = ESTIMATE * counts.clamp(min=1e-6)[:, None].expand_as(near)
    for _ in range(ROUNDS):
        shading = (basis.flatten(1, 2) @ light[..., None]).view_as(region)
        error = (image - albedo * shading).abs().mean(1, keepdim=True)
        weight = region / (1 + (error / TYPICAL).square())
        light = solve_light(image, basis, albedo, weight, near, stiffness)
    return replace(estimate, illumination=light)


def evidence(basis: Tensor, albedo: Tensor, weight: Tensor) -> Tensor:
    """How much weighted pixels count for one harmonic in the mean (B,); see `solve_light`."""
    squares = (weight * albedo.square().sum(1, keepdim=True))[:, 0]
    return (squares * basis.square().mean(-1)).sum((1, 2))


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
        stiffness: (B, 9), how much each harmonic of `near` counts, on the scale of `evidence`.
    """
    basis, weight = basis.flatten(1, 2), weight.flatten(1)
    squares = weight * albedo.square().sum(1).flatten(1)
    normal = ((basis * squares[..., None]).mT @ basis).double()
    products = weight * (albedo * image).sum(1).flatten(1)
    right = (basis.mT @ products[..., None])[..., 0].double()
    stiff = stiffness.to(right)
    return torch.linalg.solve(normal + stiff.diag_embed(), right + stiff * near.double()).to(image)
