"""The rasteriser: its rules on hand-made triangles, against brute force, and between backends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cest.rendering import rasterizer_numba, rasterizer_torch
from cest.rendering.rasterizer import Fragments, interpolate, rasterize

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TARGETS = [
    pytest.param("numba", "cpu", id="numba"),
    pytest.param("torch", "cpu", id="torch"),
    pytest.param("torch", "cuda", id="torch-cuda", marks=needs_cuda),
]
every_target = pytest.mark.parametrize("backend, device", TARGETS)


@pytest.fixture(autouse=True)
def threads():
    """Set torch's number of threads, which the rasteriser follows; one unless a test says so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pixel_centres(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y (H, W) of the centres, as the contract has them."""
    y, x = np.meshgrid(
        1 - (np.arange(height) + 0.5) / height * 2,
        (np.arange(width) + 0.5) / width * 2 - 1,
        indexing="ij",
    )
    return x, y


def soup(
    seed: int, batch: int = 2, n_vertices: int = 60, n_triangles: int = 90
) -> tuple[Tensor, Tensor]:
    """Random triangles, some of which hang over the edge of the image."""
    generator = torch.Generator().manual_seed(seed)
    projected = (
        torch.rand(batch, n_vertices, 3, generator=generator, dtype=torch.float64) * 2.6 - 1.3
    )
    order = torch.rand(n_triangles, n_vertices, generator=generator).argsort(1)
    return projected, order[:, :3].contiguous()


def dome(n: int = 24) -> tuple[Tensor, Tensor]:
    """A bulging sheet of 2 (n - 1)^2 triangles that covers most of the image."""
    v, u = torch.meshgrid(
        torch.linspace(0.9, -0.9, n, dtype=torch.float64),
        torch.linspace(-0.8, 0.8, n, dtype=torch.float64),
        indexing="ij",
    )
    vertices = torch.stack([u + 0.03 * v, v - 0.02 * u, torch.sqrt(2 - u**2 - v**2)], -1)
    i = torch.arange(n * (n - 1)).reshape(n - 1, n)[:, :-1].reshape(-1)
    below = torch.stack([i, i + n, i + n + 1], 1)
    above = torch.stack([i, i + n + 1, i + 1], 1)
    return vertices.reshape(1, -1, 3), torch.cat([below, above])


def same(a: Fragments, b: Fragments) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b))


def single(corners: list[tuple[float, float, float]], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([corners], dtype=dtype)


ONE = torch.tensor([[0, 1, 2]])
HALF = [(-1.0, -1.0, 0.5), (1.0, -1.0, 1.5), (-1.0, 1.0, -0.5)]  # the lower left half of the image


# ------------------------------------------------------------------------------ the rules


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(4, 4), (3, 8), (8, 3)])
def test_analytic_triangle(backend, device, dtype, size):
    x, y = pixel_centres(*size)
    fragments = rasterize(single(HALF, dtype).to(device), ONE, size, backend=backend)
    assert fragments.pix_to_face.dtype == torch.int64
    assert fragments.barycentric.dtype == fragments.depth.dtype == dtype
    assert all(tensor.device.type == device for tensor in fragments)
    # The long side is a right edge: centres on it (x + y = 0) are not covered. In exact twelfths.
    on_or_beyond = np.round((x + y) * 12 * size[0] * size[1]) >= 0
    expected = np.where(on_or_beyond, -1, 0)
    assert np.array_equal(fragments.pix_to_face[0].cpu(), expected)
    weights = np.stack([-(x + y) / 2, (x + 1) / 2, (y + 1) / 2], -1)
    depth = weights @ np.array([0.5, 1.5, -0.5])
    eps = torch.finfo(dtype).eps
    covered = expected == 0
    got = fragments.barycentric[0].cpu().numpy()
    np.testing.assert_allclose(got[covered], weights[covered], atol=2 * eps, rtol=0)
    np.testing.assert_allclose(fragments.depth[0].cpu()[covered], depth[covered], atol=4 * eps)
    assert (got[~covered] == 0).all()
    assert (fragments.depth[0].cpu()[~covered] == -torch.inf).all()


@every_target
def test_shared_edges_leave_no_hole_and_no_double(backend, device):
    """A sheet whose vertices lie on pixel centres, so that edges go through many of them."""
    size, n = 32, 9
    generator = torch.Generator().manual_seed(1)
    lattice = torch.arange(n) * 4.0
    j = lattice.repeat(n, 1) - 0.5 + torch.randint(-1, 2, (n, n), generator=generator) * 0.5
    i = (
        lattice[:, None].repeat(1, n)
        - 0.5
        + torch.randint(-1, 2, (n, n), generator=generator) * 0.5
    )
    j[:, 0], j[:, -1], i[0], i[-1] = -1, size, -1, size  # to the image's outside
    vertices = torch.stack([(j + 0.5) / size * 2 - 1, 1 - (i + 0.5) / size * 2, 0 * i], -1)
    k = torch.arange(n * (n - 1)).reshape(n - 1, n)[:, :-1].reshape(-1)
    triangles = torch.cat(
        [torch.stack([k, k + n, k + n + 1], 1), torch.stack([k, k + n + 1, k + 1], 1)]
    )
    # Each triangle alone, as one image of a batch.
    alone = vertices.reshape(-1, 3)[triangles].double().to(device)
    fragments = rasterize(alone, ONE, (size, size), backend=backend)
    count = (fragments.pix_to_face >= 0).sum(0).cpu()
    assert torch.equal(count, torch.ones_like(count))
    on_an_edge = (fragments.barycentric == 0).any(-1) & (fragments.pix_to_face >= 0)
    assert on_an_edge.sum() > 100, "the test is to hit edges"


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_edges_through_a_pixel_centre_but_for_rounding(backend, device, dtype):
    """Pairs of triangles along a line through a pixel's centre: the pixel is in one of them."""
    generator = torch.Generator().manual_seed(2)
    n, size = 600, 11  # of no power of two, so that centres are rounded
    i, j = torch.randint(0, size, (2, n), generator=generator)
    x, y = pixel_centres(size, size)
    centre = torch.from_numpy(np.stack([x, y], -1))[i, j]
    angle, a, b, c, d = torch.rand(5, n, 1, generator=generator, dtype=torch.float64)
    along = torch.cat([(angle * 6.3).cos(), (angle * 6.3).sin()], 1)
    across = along.flip(1) * torch.tensor([-1, 1])
    corners = [centre + along * a, centre - along * b, centre + across * c, centre - across * d]
    vertices = torch.nn.functional.pad(torch.stack(corners, 1), (0, 1)).to(device, dtype)

    def covers(*triangle: int) -> Tensor:
        fragments = rasterize(vertices, torch.tensor([triangle]), (size, size), backend=backend)
        return fragments.pix_to_face.cpu()[torch.arange(n), i, j] == 0

    right = covers(0, 2, 1)
    for left in (covers(0, 1, 3), covers(1, 3, 0), covers(3, 0, 1)):
        assert (left ^ right).all()


@every_target
def test_nearest_wins_whatever_the_order(backend, device):
    near = [(x, y, z + 2) for x, y, z in HALF]
    for first, second, winner in [(HALF, near, 1), (near, HALF, 0)]:
        projected = single([*first, *second]).to(device)
        fragments = rasterize(projected, torch.arange(6).reshape(2, 3), (8, 8), backend=backend)
        assert set(fragments.pix_to_face.unique().tolist()) == {-1, winner}


@every_target
def test_crossing_triangles_are_ordered_by_pixel(backend, device):
    left_near = [(-2.0, -2.0, 2.0), (2.0, -2.0, -2.0), (0.0, 3.0, 0.0)]
    right_near = [(-2.0, -2.0, -2.0), (2.0, -2.0, 2.0), (0.0, 3.0, 0.0)]
    projected = single([*left_near, *right_near]).to(device)
    fragments = rasterize(projected, torch.arange(6).reshape(2, 3), (6, 6), backend=backend)
    x, _ = pixel_centres(6, 6)
    covered = fragments.pix_to_face[0].cpu().numpy() >= 0
    assert covered[:, 2:4].all()
    assert np.array_equal(fragments.pix_to_face[0].cpu().numpy()[covered], (x > 0)[covered])


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tie_goes_to_the_lowest_index(backend, device, dtype):
    """Copies of a slanted triangle, each starting from another corner, tie on every pixel."""
    projected = single([(-0.93, -0.81, 0.3), (0.87, -0.61, 0.7), (0.11, 0.97, -0.2)], dtype)
    triangles = torch.tensor([[1, 2, 0], [0, 1, 2], [2, 0, 1]])
    for copies in (triangles, triangles[[1, 2, 0]], triangles[[2, 1, 0]]):
        fragments = rasterize(projected.to(device), copies, (64, 64), backend=backend)
        assert set(fragments.pix_to_face.unique().tolist()) == {-1, 0}
    projected = projected.repeat(1, 2, 1)
    projected[:, :3, 2], projected[:, 3:, 2] = -0.0, 0.0  # zeros of both signs tie as well
    fragments = rasterize(
        projected.to(device), torch.arange(6).reshape(2, 3), (64, 64), backend=backend
    )
    assert set(fragments.pix_to_face.unique().tolist()) == {-1, 0}


@every_target
def test_back_faces(backend, device):
    projected, back = single(HALF).to(device), ONE.flip(1)
    assert (rasterize(projected, back, (8, 8), backend=backend).pix_to_face == -1).all()
    front = rasterize(projected, ONE, (8, 8), backend=backend)
    shown = rasterize(projected, back, (8, 8), cull_backfaces=False, backend=backend)
    assert torch.equal(shown.pix_to_face, front.pix_to_face)
    torch.testing.assert_close(shown.barycentric.flip(-1), front.barycentric, atol=1e-15, rtol=0)
    torch.testing.assert_close(shown.depth, front.depth, atol=1e-15, rtol=0)


BAD = {
    "point": [(0.0, 0.0, 0.0)] * 3,
    "line": [(-1.0, -1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)],
    "left of the image": [(-9.0, -1.0, 0.0), (-7.0, -1.0, 0.0), (-8.0, 1.0, 0.0)],
    "above the image": [(-1.0, 7.0, 0.0), (1.0, 7.0, 0.0), (0.0, 9.0, 0.0)],
    "far off": [(1e30, 1e30, 0.0), (3e30, 1e30, 0.0), (2e30, 2e30, 0.0)],
    "far off, other side": [(-3e30, -3e30, 0.0), (-1e30, -3e30, 0.0), (-2e30, -2e30, 0.0)],
    "far to the right": [(1e30, -1.0, 0.0), (3e30, -1.0, 0.0), (2e30, 1.0, 0.0)],
    "beyond float32": [(-1e39, -1e39, 0.0), (1e39, -1e39, 0.0), (0.0, 1e39, 0.0)],
    "nan x": [(float("nan"), -1.0, 0.0), (1.0, -1.0, 0.0), (0.0, 1.0, 0.0)],
    "nan y": [(-1.0, -1.0, 0.0), (1.0, float("nan"), 0.0), (0.0, 1.0, 0.0)],
    "nan z": [(-1.0, -1.0, 0.0), (1.0, -1.0, float("nan")), (0.0, 1.0, 0.0)],
    "infinite x": [(-1.0, -1.0, 0.0), (float("inf"), -1.0, 0.0), (0.0, 1.0, 0.0)],
    "infinite z": [(-1.0, -1.0, 0.0), (1.0, -1.0, float("inf")), (0.0, 1.0, 0.0)],
    "nan": [(float("nan"),) * 3] * 3,
}


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("corners", BAD.values(), ids=BAD.keys())
def test_what_cannot_show_does_not(backend, device, dtype, corners):
    """... nor does it disturb the triangle beside it, or that one's gradient."""
    projected = single([*HALF, *corners], dtype).to(device).requires_grad_()
    triangles = torch.tensor([[3, 4, 5], [0, 1, 2]])
    for cull in (True, False):
        fragments = rasterize(projected, triangles, (8, 8), cull_backfaces=cull, backend=backend)
        alone = rasterize(projected[:, :3], ONE, (8, 8), backend=backend)
        assert torch.equal(fragments.pix_to_face, torch.where(alone.pix_to_face == 0, 1, -1))
        (gradient,) = torch.autograd.grad(fragments.barycentric[..., 0].sum(), projected)
        assert gradient[:, :3].isfinite().all() and (gradient[:, :3] != 0).any()
        assert (gradient[:, 3:] == 0).all()


@every_target
@pytest.mark.parametrize("far", [1e6, 1e18, 1e30])
def test_huge_triangle_over_the_whole_image(backend, device, far):
    projected = single([(-far, -far, 0.0), (far, -far, 0.0), (0.0, far, 0.0)], torch.float32)
    fragments = rasterize(projected.to(device), ONE, (16, 16), backend=backend)
    assert (fragments.pix_to_face == 0).all()
    # All pixels sit in its middle, where the weights are 1/4, 1/4, 1/2, to 1 / far.
    torch.testing.assert_close(
        fragments.barycentric.cpu(),
        torch.tensor([0.25, 0.25, 0.5]).expand(1, 16, 16, 3),
        atol=2 / far + 1e-7,
        rtol=0,
    )


@every_target
def test_nothing_to_draw(backend, device):
    for batch, n_vertices, n_triangles in [(2, 3, 0), (2, 0, 0), (0, 3, 1)]:
        projected = torch.zeros(batch, n_vertices, 3, device=device, requires_grad=True)
        triangles = torch.arange(3)[None][:n_triangles]
        fragments = rasterize(projected, triangles, (4, 5), backend=backend)
        assert fragments.pix_to_face.shape == (batch, 4, 5)
        assert (fragments.pix_to_face == -1).all()
        assert (fragments.barycentric == 0).all() and (fragments.depth == -torch.inf).all()
        colours = interpolate(fragments, triangles, torch.ones(batch, n_vertices, 2, device=device))
        assert colours.shape == (batch, 4, 5, 2) and (colours == 0).all()
        fragments.barycentric.sum().backward()
        assert (projected.grad == 0).all()


def test_bad_arguments_are_refused():
    projected = single(HALF)
    for bad, error in [
        (lambda: rasterize(projected[0], ONE, (4, 4)), ValueError),
        (lambda: rasterize(projected[..., :2], ONE, (4, 4)), ValueError),
        (lambda: rasterize(projected.half(), ONE, (4, 4)), TypeError),
        (lambda: rasterize(projected, ONE.float(), (4, 4)), TypeError),
        (lambda: rasterize(projected, ONE[0], (4, 4)), ValueError),
        (lambda: rasterize(projected, ONE, (0, 4)), ValueError),
        (lambda: rasterize(projected, ONE, (4, 4), backend="opengl"), ValueError),
        (lambda: rasterize(projected, ONE + 1, (4, 4), backend="numba"), IndexError),
        (lambda: rasterize(projected, ONE - 1, (4, 4), backend="numba"), IndexError),
        (lambda: rasterize(projected, ONE + 1, (4, 4), backend="torch"), IndexError),
    ]:
        with pytest.raises(error):
            bad()
    fragments = rasterize(projected, ONE, (4, 4))
    with pytest.raises(ValueError):
        interpolate(fragments, ONE, torch.zeros(2, 3, 1))
    with pytest.raises(IndexError):
        interpolate(fragments, ONE, torch.zeros(1, 2, 1))
    with pytest.raises(IndexError):
        interpolate(fragments, ONE[:0], torch.zeros(1, 3, 1))


# ---------------------------------------------------------------- against an independent truth


def brute_force(projected: np.ndarray, triangles: np.ndarray, size: tuple[int, int], cull: bool):
    """Every triangle against every pixel, by solving for the weights.

    Returns the nearest face, its weights and depth, and which pixels are near a tie: on an edge
    of some triangle, or with two triangles at the same depth.
    """
    x, y = pixel_centres(*size)
    target = np.stack([x, y, np.ones_like(x)], -1)
    face, best = np.full(size, -1), np.full(size, -np.inf)
    weights, tie = np.zeros((*size, 3)), np.zeros(size, bool)
    for f, corners in enumerate(projected[triangles]):
        matrix = np.concatenate([corners[:, :2].T, np.ones((1, 3))])
        determinant = np.linalg.det(matrix)
        if determinant == 0 or (cull and determinant < 0):
            continue
        k = target @ np.linalg.inv(matrix).T
        z = k @ corners[:, 2]
        inside = k.min(-1) > 0
        tie |= np.abs(k).min(-1) < 1e-9
        tie |= inside & (np.abs(z - best) < 1e-6)  # float32 depths
        nearer = inside & (z > best)
        face[nearer], best[nearer], weights[nearer] = f, z[nearer], k[nearer]
    return face, weights, best, tie


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (20, 45), (45, 20)])
def test_soup_against_brute_force(backend, device, dtype, cull, size):
    projected, triangles = soup(seed=3)
    projected = projected.to(dtype)
    fragments = rasterize(
        projected.to(device), triangles, size, cull_backfaces=cull, backend=backend
    )
    for b in range(len(projected)):
        face, weights, depth, tie = brute_force(
            projected[b].double().numpy(), triangles.numpy(), size, cull
        )
        assert tie.mean() < 0.01 and len(np.unique(face)) > 20
        assert np.array_equal(fragments.pix_to_face[b].cpu().numpy()[~tie], face[~tie])
        # Rounding of the result, and of the reference's inverse of thin triangles.
        atol = max(2 * torch.finfo(dtype).eps, 1e-11)
        got = fragments.barycentric[b].cpu().numpy()[~tie]
        np.testing.assert_allclose(got, weights[~tie], atol=atol, rtol=0)
        got = fragments.depth[b].cpu().numpy()[~tie]
        np.testing.assert_allclose(got, depth[~tie], atol=2 * atol, rtol=0)


@every_target
def test_interpolating_the_vertices_gives_the_pixel_centres(backend, device):
    projected, triangles = dome()
    projected, size = projected.to(device), (40, 56)
    fragments = rasterize(projected, triangles, size, backend=backend)
    centres = interpolate(fragments, triangles, projected)[0].cpu().numpy()
    covered = fragments.pix_to_face[0].cpu().numpy() >= 0
    assert 0.5 < covered.mean() < 1
    expected = np.stack([*pixel_centres(*size), fragments.depth[0].cpu().numpy()], -1)
    np.testing.assert_allclose(centres[covered], expected[covered], atol=1e-14)
    assert (centres[~covered] == 0).all()


# ----------------------------------------------------------------------------------- gradients


@every_target
def test_gradients_of_weights_and_depth(backend, device):
    projected, triangles = soup(seed=5, batch=2, n_vertices=9, n_triangles=6)
    projected = projected.to(device).requires_grad_()
    covered = rasterize(projected, triangles, (4, 5), backend=backend).pix_to_face >= 0
    assert covered.any() and not covered.all()

    def visible(projected: Tensor) -> tuple[Tensor, Tensor]:
        fragments = rasterize(projected, triangles, (4, 5), backend=backend)
        return fragments.barycentric, fragments.depth[covered]

    # Thin triangles have large second derivatives: a small step, and relative tolerance.
    assert torch.autograd.gradcheck(visible, (projected,), eps=1e-7, atol=1e-5, rtol=1e-4)


@every_target
def test_gradients_of_interpolation(backend, device):
    projected, triangles = soup(seed=5, batch=2, n_vertices=12, n_triangles=8)
    fragments = rasterize(projected.to(device), triangles, (5, 6), backend=backend)
    barycentric = fragments.barycentric.clone().requires_grad_()
    attributes = torch.rand(2, 12, 4, dtype=torch.float64, device=device, requires_grad=True)

    def shade(barycentric: Tensor, attributes: Tensor) -> Tensor:
        return interpolate(fragments._replace(barycentric=barycentric), triangles, attributes)

    assert torch.autograd.gradcheck(shade, (barycentric, attributes))


def gradients(
    projected: Tensor, triangles: Tensor, size: tuple[int, int], backend: str
) -> tuple[Tensor, Tensor]:
    """Of a smooth function of the interpolated attributes and depth, on the backend's own path."""
    projected = projected.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    attributes = torch.rand(*projected.shape[:2], 3, generator=generator, dtype=torch.float64)
    attributes = attributes.to(projected).requires_grad_()
    fragments = rasterize(projected, triangles, size, backend=backend)
    module = {"numba": rasterizer_numba, "torch": rasterizer_torch}[backend]
    image = module.interpolate(
        fragments.pix_to_face, fragments.barycentric, triangles.to(projected.device), attributes
    )
    depth = torch.where(fragments.pix_to_face >= 0, fragments.depth, 0.0)
    ((image**2).sum() + depth.sin().sum()).backward()
    return projected.grad, attributes.grad


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_backends_have_the_same_gradients(device, dtype):
    vertices, triangles = dome()
    projected = torch.cat([vertices, vertices * 0.9]).to(dtype)
    expected = gradients(projected.double(), triangles, (48, 48), "numba")
    ours = gradients(projected, triangles, (48, 48), "numba")
    theirs = gradients(projected.to(device), triangles, (48, 48), "torch")
    # A vertex sums some tens of pixels whose terms are as large as the largest gradient.
    for reference, a, b in zip(expected, ours, theirs):
        atol = 64 * torch.finfo(dtype).eps * float(reference.abs().max())
        torch.testing.assert_close(a.double(), reference, atol=atol, rtol=0)
        torch.testing.assert_close(b.cpu().double(), reference, atol=atol, rtol=0)


# ------------------------------------------------------------------- batches, backends, threads


@every_target
def test_a_batch_is_its_images(backend, device):
    projected, triangles = soup(seed=7, batch=5)
    projected = projected.to(device)
    together = rasterize(projected, triangles, (24, 24), backend=backend)
    for b in range(5):
        alone = rasterize(projected[b : b + 1], triangles, (24, 24), backend=backend)
        assert same(Fragments(*(tensor[b : b + 1] for tensor in together)), alone)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cull", [True, False])
def test_backends_agree_on_every_pixel(device, dtype, cull, monkeypatch):
    monkeypatch.setattr(rasterizer_torch, "CHUNK", 20_000)  # many chunks, which cut triangles
    for projected, triangles in (soup(seed=11), dome(), soup(12, n_vertices=6, n_triangles=12)):
        projected = projected.to(dtype)
        numba = rasterize(projected, triangles, (61, 47), cull_backfaces=cull, backend="numba")
        plain = rasterize(
            projected.to(device), triangles, (61, 47), cull_backfaces=cull, backend="torch"
        )
        assert torch.equal(plain.pix_to_face.cpu(), numba.pix_to_face)
        eps = 4 * torch.finfo(dtype).eps
        for a, b in ((plain.barycentric, numba.barycentric), (plain.depth, numba.depth)):
            torch.testing.assert_close(a.cpu(), b, atol=eps, rtol=eps)


def test_triton_agrees_on_every_pixel(tmp_path):
    """The kernel itself: on the GPU, or else in Triton's interpreter, in a process of its own."""
    pytest.importorskip("triton")
    code = """
        import sys
        import torch
        from test_rasterizer import rasterize, soup

        device = "cuda" if torch.cuda.is_available() else "cpu"
        for dtype in (torch.float32, torch.float64):
            for cull in (True, False):
                projected, triangles = soup(12, n_vertices=6, n_triangles=12)
                projected = projected.to(dtype)
                projected[0, 0] = torch.nan
                one, two = (
                    rasterize(x, triangles, (19, 23), cull_backfaces=cull, backend=backend)
                    for x, backend in ((projected, "numba"), (projected.to(device), "triton"))
                )
                assert torch.equal(one.pix_to_face, two.pix_to_face.cpu())
                assert (one.pix_to_face >= 0).float().mean() > 0.3
    """
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    folder = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | interpreted | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])},
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "device, expected", [("cpu", "numba"), pytest.param("cuda", "torch", marks=needs_cuda)]
)
def test_default_backend_follows_the_device(device, expected, monkeypatch):
    used = []

    def spied(name, function):
        return lambda *arguments: used.append(name) or function(*arguments)

    monkeypatch.setattr("cest.rendering.rasterizer.find_spec", lambda name: None)  # no triton
    for name, module in (("numba", rasterizer_numba), ("torch", rasterizer_torch)):
        for function in ("rasterize", "interpolate"):
            monkeypatch.setattr(module, function, spied(name, getattr(module, function)))
    projected, triangles = dome(4)
    projected = projected.to(device)
    fragments = rasterize(projected, triangles, (16, 16))
    interpolate(fragments, triangles, projected)
    assert used == [expected, expected]
    assert fragments.depth.device.type == device


@pytest.mark.parametrize("cull", [True, False])
@pytest.mark.parametrize("size", [(48, 48), (30, 72), (72, 30)])
def test_pytorch3d_agrees_away_from_ties(cull, size):
    pytest.importorskip("pytorch3d.renderer.mesh.rasterize_meshes")
    for projected, triangles in (soup(seed=13), dome(16)):
        projected = projected.float()
        ours = rasterize(projected, triangles, size, cull_backfaces=cull, backend="numba")
        theirs = rasterize(projected, triangles, size, cull_backfaces=cull, backend="pytorch3d")
        # They compute edge values, in float32, from coordinates of up to 1.3 x the aspect: some
        # roundings of products of that size, over the triangle's own area.
        unit = 1.3 * max(size) / min(size)
        corners = projected[:, triangles, :2].double()
        ab, ac = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
        area = (ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]).abs()
        image = torch.arange(len(projected))[:, None, None]
        smaller = torch.minimum(area[image, ours.pix_to_face], area[image, theirs.pix_to_face])
        slack = 16 * torch.finfo(torch.float32).eps * unit**2 / smaller
        differ = ours.pix_to_face != theirs.pix_to_face
        assert differ.float().mean() < 2e-3

        def margin(f: Fragments) -> Tensor:
            return torch.where(f.pix_to_face >= 0, f.barycentric.amin(-1), torch.inf)

        tie = torch.minimum(margin(ours), margin(theirs)) < slack
        tie |= (ours.depth - theirs.depth).abs() < 4 * slack
        assert tie[differ].all()
        agree = ~differ & (ours.pix_to_face >= 0)
        assert agree.any()
        error = (ours.barycentric - theirs.barycentric).abs().amax(-1)
        assert (error[agree] < slack[agree]).all()
        assert ((ours.depth - theirs.depth).abs()[agree] < 8 * slack[agree]).all()


def test_pytorch3d_has_the_same_gradients():
    pytest.importorskip("pytorch3d.renderer.mesh.rasterize_meshes")
    vertices, triangles = dome(12)
    results = []
    for backend in ("numba", "pytorch3d"):
        projected = vertices.float().requires_grad_()
        fragments = rasterize(projected, triangles, (32, 24), backend=backend)
        weights = torch.linspace(0, 1, 3)
        depth = torch.where(fragments.pix_to_face >= 0, fragments.depth, 0.0)
        ((fragments.barycentric * weights).sum() + depth.sum()).backward()
        results.append(projected.grad)
    # float32 edge values over an area of 0.02: 1e-5 of the largest gradient.
    torch.testing.assert_close(*results, atol=2e-5 * float(results[0].abs().max()), rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_number_of_threads_changes_nothing_visible(threads, monkeypatch, batch):
    monkeypatch.setattr(rasterizer_numba, "SMALL_WORK", 0)
    vertices, triangles = dome()
    projected = torch.cat([vertices * scale for scale in (1.0, 0.8, 1.3)[:batch]])
    threads(1)
    expected, gradient = (
        rasterize(projected, triangles, (33, 21)),
        gradients(projected, triangles, (33, 21), "numba"),
    )
    for n in (2, 3, 5, 64):
        threads(n)
        assert same(rasterize(projected, triangles, (33, 21)), expected)
        once = gradients(projected, triangles, (33, 21), "numba")
        again = gradients(projected, triangles, (33, 21), "numba")
        for a, b, c in zip(once, again, gradient):
            assert torch.equal(a, b), "the same number of threads adds in the same order"
            torch.testing.assert_close(a, c, atol=1e-12, rtol=1e-12)


def test_several_python_threads_at_once(threads, monkeypatch):
    monkeypatch.setattr(rasterizer_numba, "SMALL_WORK", 0)
    threads(2)
    scenes = [soup(seed) for seed in range(8)]
    expected = [gradients(*scene, (32, 32), "numba") for scene in scenes]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = pool.map(lambda scene: gradients(*scene, (32, 32), "numba"), scenes)
            for result, right in zip(results, expected):
                # A new thread has torch's default number of threads, not ours: another order.
                for a, b in zip(result, right):
                    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_rasterises_too(threads, monkeypatch):
    """As a data loader's workers do, after their parent has used threads."""
    monkeypatch.setattr(rasterizer_numba, "SMALL_WORK", 0)
    threads(2)

    def covered() -> int:
        return int((rasterize(single(HALF), ONE, (8, 8)).pix_to_face == 0).sum())

    assert covered() == 28 and rasterizer_numba._pool is not None
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # it must not hang, nor return into pytest
            os._exit(0 if rasterizer_numba._pool is None and covered() == 28 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kernels_compile_without_a_place_for_the_cache():
    """numba finds no place for a function that has no file, as where no folder is writable."""
    namespace: dict = {}
    exec("def double(x):\n    return 2 * x\n", namespace)
    assert rasterizer_numba._jit(namespace["double"])(21) == 42
