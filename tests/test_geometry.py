import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cest.geometry import (
    ambient_illumination,
    canonical_crop,
    from_pixels,
    project,
    rotation_matrix,
    sample_image,
    sh_basis,
    shade,
    to_pixels,
)
from cest.geometry.viewpoint import CROP_HALF_SIDE


def test_rotation_matrix_is_rodrigues():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 3)) * np.geomspace(1e-9, 3.1, 200)[:, None]
    vectors[0] = 0
    expected = Rotation.from_rotvec(vectors).as_matrix()
    found = rotation_matrix(torch.tensor(vectors)).numpy()
    # Rounding, and below the switch to the series its neglected φ⁴/120 with φ² < √eps.
    np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-4, 0.5, 3.0])
def test_rotation_matrix_has_gradients_everywhere(angle):
    vector = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64) * angle
    assert torch.autograd.gradcheck(rotation_matrix, vector.requires_grad_())


def test_projection_follows_the_axes():
    points = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    quarter = math.pi / 2
    # Turning about +y by a quarter brings what looked at the viewer (+z) to the right (+x).
    viewpoint = torch.tensor([[math.log(2), 0, quarter, 0, 0.1, 0.2, 0.3]])
    expected = torch.tensor([[[0.1, 0.2, -1.7], [0.1, 2.2, 0.3], [2.1, 0.2, 0.3]]])
    torch.testing.assert_close(project(points, viewpoint), expected)


def test_pixels_and_back():
    points = torch.rand(5, 68, 2) * 2 - 1
    torch.testing.assert_close(from_pixels(to_pixels(points, 31, 57), 31, 57), points)
    corner = to_pixels(torch.tensor([-1.0, 1.0]), 31, 57)
    torch.testing.assert_close(corner, torch.zeros(2))


def test_sample_image_at_pixel_centres_is_the_image():
    image = torch.rand(1, 2, 5, 7)
    x = torch.arange(7) + 0.5
    y = torch.arange(5) + 0.5
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    torch.testing.assert_close(sample_image(image, from_pixels(centres, 7, 5)[None]), image)


def smooth(points: torch.Tensor) -> torch.Tensor:
    """A picture without symmetry; its second derivatives are at most 9 in each direction."""
    x, y = points.unbind(-1)
    return torch.sin(3 * x + 0.5) + 0.5 * torch.cos(2 * y - x) + 0.3 * y


@pytest.mark.parametrize("roll", [0.0, 0.7, -2.0, math.pi])
def test_canonical_crop_undoes_roll_scale_and_shift(roll):
    size = 256
    viewpoint = torch.tensor([[-0.6, 0, 0, roll, 0.12, -0.08, 0.5]], dtype=torch.float64)
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) * (2 / size) - 1
    grid = torch.stack(torch.meshgrid(axis, -axis, indexing="xy"), dim=-1)
    # The face-frame point that the viewpoint shows at each pixel, by the projection's inverse.
    shown = (grid - viewpoint[0, 4:6]) / viewpoint[0, 0].exp()
    rotation = rotation_matrix(viewpoint[:, 1:4])[0, :2, :2]
    image = smooth(shown @ rotation)[None, None]
    crop = canonical_crop(image, viewpoint)[0, 0]
    # Bilinear look-up errs by at most h²/8 (|f_xx| + |f_yy|) with h one pixel, in decimetres.
    h = 2 / size / math.exp(-0.6)
    assert (crop - smooth(grid * CROP_HALF_SIDE)).abs().max() < h * h / 8 * 18


def test_canonical_crop_is_differentiable():
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    viewpoint = torch.tensor([[-0.3, 0.1, 0.2, 0.3, 0.013, 0.021, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda v, i: canonical_crop(i, v),
        (viewpoint.requires_grad_(), image.requires_grad_()),
    )


def sphere_quadrature() -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights exact for polynomials of degree 9: Gauss in z, equal steps around."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    turns = np.arange(10) * (2 * np.pi / 10)
    z, turn = (array.ravel() for array in np.meshgrid(nodes, turns, indexing="ij"))
    ring = np.sqrt(1 - z * z)
    points = np.stack((ring * np.cos(turn), ring * np.sin(turn), z), axis=-1)
    return torch.tensor(points), torch.tensor(np.repeat(weights, 10) * (2 * np.pi / 10))


def test_harmonics_are_orthonormal():
    points, weights = sphere_quadrature()
    basis = sh_basis(points)
    torch.testing.assert_close(
        (basis * weights[:, None]).T @ basis, torch.eye(9, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_irradiance_of_a_lamp_is_the_known_series():
    """Nine coefficients of max(0, n·l) have the factors π, 2π/3, π/4 of the cosine lobe."""
    lamp = torch.nn.functional.normalize(torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64), dim=0)
    factors = torch.tensor([math.pi] + [2 * math.pi / 3] * 3 + [math.pi / 4] * 5)
    illumination = (sh_basis(lamp) * factors).unsqueeze(0)
    # The truncated series at the lamp and opposite: 1/4 ± 1/2 + 5/16.
    normals = torch.stack((lamp, -lamp)).unsqueeze(0)
    expected = torch.tensor([[1 / 4 + 1 / 2 + 5 / 16, 1 / 4 - 1 / 2 + 5 / 16]])
    torch.testing.assert_close(shade(normals, illumination), expected.double(), atol=1e-7, rtol=0)


def test_shade_is_the_sum_over_the_basis():
    points, _ = sphere_quadrature()
    illumination = torch.randn(3, 9, dtype=torch.float64)
    expected = torch.einsum("bk,nk->bn", illumination, sh_basis(points))
    torch.testing.assert_close(shade(points.expand(3, -1, -1), illumination), expected)
    ambient = shade(points[None], ambient_illumination(0.7).double()[None])
    torch.testing.assert_close(ambient, torch.full_like(ambient, 0.7))


def test_looking_up_at_nan_is_survived():
    """A training run whose weights are NaN must live to say so: torch alone would crash here."""
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    points = torch.full((1, 64, 2), torch.nan, requires_grad=True)
    sample_image(image, points).sum().backward()
    assert image.grad.isfinite().all()
