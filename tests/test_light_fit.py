"""The light that explains a photo best: the solution is one, stays near, and is not dazzled."""

from dataclasses import replace

import pytest
import torch

from cest import light_fit
from cest.geometry import ambient_illumination, sh_basis, shade
from cest.light_fit import evidence, settle_light, solve_light
from cest.lighting import directional_light
from cest.modeling import FaceParameters
from cest.objective import photometric_error
from cest.refinement import face_parameters
from cest.rendering import TexelMap, shade_surface

SIZE = 96
LIGHT = directional_light((-1.0, 0.3, 0.8), 0.6, 0.35)[None]
WRONG = directional_light((-0.7, 0.2, 0.9), 0.65, 0.37)[None]
"""As far from it as an estimate: the photo is explained to some ten of 255."""


@pytest.fixture(scope="module")
def lit(face_model) -> tuple[torch.Tensor, FaceParameters]:
    """A skin-coloured face under LIGHT, and all that is true of it."""
    viewpoint = torch.tensor([[-0.4, 0.05, 0.3, 0.0, 0.0, 0.0, 0.0]])
    shape = torch.zeros(1, face_model.n_coefficients)
    skin = torch.tensor([0.62, 0.45, 0.36])[None, :, None, None].expand(1, 3, SIZE, SIZE)
    texels = TexelMap.build(face_model.uv, face_model.triangles, SIZE)
    blank = torch.zeros(1, 3, SIZE, SIZE)
    truth = face_parameters(face_model, texels, blank, viewpoint, shape, skin.clone(), LIGHT)
    image, _ = shade_surface(truth.surface, truth.reflectance_map, LIGHT)
    assert image.max() < 1  # nothing is overexposed: the equations hold for every pixel
    return image, truth


def shading_error(truth: FaceParameters, light: torch.Tensor) -> float:
    """Of the shading that the photo shows: mean difference from LIGHT's."""
    normals = truth.surface.normals[truth.surface.coverage[:, 0] > 0]
    return float((shade(normals[None], light) - shade(normals[None], LIGHT)).abs().mean())


def test_a_true_light_stays(lit, face_model):
    image, truth = lit
    settled = settle_light(image, truth, face_model.landmarks)
    # To float32's rounding in sums over 2,000 pixels: 2,000 · 2^-24 of coefficients of about 1.
    torch.testing.assert_close(settled.illumination, LIGHT, rtol=0, atol=1.2e-4)
    assert settled.reflectance_map is truth.reflectance_map


def test_a_wrong_light_comes_nearer_and_all_the_way_if_it_counts_nothing(
    lit, face_model, monkeypatch
):
    image, truth = lit
    start = replace(truth, illumination=WRONG)
    rendered, _ = shade_surface(truth.surface, truth.reflectance_map, WRONG)
    off = 255 * photometric_error(image, rendered, truth.surface.coverage)
    assert 5 < float(off) < 20
    near = settle_light(image, start, face_model.landmarks).illumination
    # Well explained pixels count twice as much as it: what they know is met more than half-way.
    assert shading_error(truth, near) < 0.5 * shading_error(truth, WRONG)
    assert (near - WRONG).norm() < (LIGHT - WRONG).norm()
    monkeypatch.setattr(light_fit, "ESTIMATE", 0.0)
    found = settle_light(image, start, face_model.landmarks).illumination
    assert shading_error(truth, found) < 1e-3  # a quarter of a level of 255


def test_the_solution_is_the_least_of_the_weighted_squares():
    generator = torch.Generator().manual_seed(0)
    image, albedo = torch.rand(2, 2, 3, 12, 12, generator=generator)
    weight = torch.rand(2, 1, 12, 12, generator=generator).double()
    normals = torch.randn(2, 12, 12, 3, generator=generator)
    basis = sh_basis(torch.nn.functional.normalize(normals, dim=-1)).double()
    image, albedo, near = image.double(), albedo.double(), torch.rand(2, 9).double()
    stiffness = 30 * torch.rand(2, 9, generator=generator).double()
    light = solve_light(image, basis, albedo, weight, near, stiffness).requires_grad_()
    shading = (basis * light[:, None, None]).sum(-1)[:, None]
    photo = (weight * (image - albedo * shading).square()).sum((1, 2, 3))
    stiff = (stiffness * (light - near).square()).sum(1)
    (gradient,) = torch.autograd.grad((photo + stiff).sum(), light)
    counts = evidence(basis, albedo, weight)
    assert gradient.abs().max() < 1e-9 * counts.max()
    # What pixels count is the mean of the diagonal of the equations: second derivatives, halved.
    diagonal = [
        (weight * (albedo * basis[..., k][:, None]).square()).sum((1, 2, 3)) for k in range(9)
    ]
    torch.testing.assert_close(counts, torch.stack(diagonal).mean(0))


def test_glasses_and_highlights_do_not_turn_the_light(lit, face_model, monkeypatch):
    image, truth = lit
    start = replace(truth, illumination=WRONG)
    hidden = image.clone()
    rows, columns = slice(36, 46), slice(42, 64)
    hidden[..., rows, columns] = 1.0
    assert (truth.surface.coverage[..., rows, columns] > 0).all()
    clean = settle_light(image, start, face_model.landmarks).illumination
    dazzled = settle_light(hidden, start, face_model.landmarks).illumination
    monkeypatch.setattr(light_fit, "TYPICAL", 1e6)  # plain least squares
    plain = settle_light(hidden, start, face_model.landmarks).illumination
    # White is 0.35 and more from this skin: a weight of 1/80 at most, of some 0.3 for the skin.
    assert (dazzled - clean).norm() < 0.05 * (plain - clean).norm()


def test_of_a_face_behind_a_hand_the_estimate_is_believed(lit, face_model, monkeypatch):
    image, truth = lit
    start = replace(truth, illumination=WRONG)
    hidden = image.clone()
    hidden[..., 28:, :] = torch.tensor([0.25, 0.2, 0.15])[:, None, None]
    assert truth.surface.coverage[..., 28:, :].sum() > 0.6 * truth.surface.coverage.sum()
    settled = settle_light(hidden, start, face_model.landmarks).illumination
    assert shading_error(truth, settled) < 1.1 * shading_error(truth, WRONG)
    monkeypatch.setattr(light_fit, "TYPICAL", 1e6)
    plain = settle_light(hidden, start, face_model.landmarks).illumination
    assert shading_error(truth, plain) > 1.5 * shading_error(truth, WRONG)


def test_without_a_face_the_light_stays(lit, face_model):
    image, truth = lit
    nowhere = replace(truth.surface, coverage=torch.zeros_like(truth.surface.coverage))
    lost = replace(truth, surface=nowhere, illumination=ambient_illumination()[None])
    settled = settle_light(image, lost, face_model.landmarks)
    torch.testing.assert_close(settled.illumination, lost.illumination)
