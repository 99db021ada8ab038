import dataclasses
import math

import pytest
import torch

from cest.geometry import ambient_illumination, project, rotate, sample_image, shade, to_pixels
from cest.rendering import (
    TexelMap,
    rasterize_surface,
    render,
    shade_surface,
    unwrap,
    vertex_normals,
)


@pytest.fixture(scope="module")
def scene(face_model):
    """One face in float64, turned and lit from a side, with a smooth reflectance."""
    model = face_model.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(0)
    coefficients = 0.7 * torch.randn(
        1, model.n_coefficients, generator=generator, dtype=torch.float64
    )
    viewpoint = torch.tensor([[-0.15, 0.1, 0.35, -0.1, 0.02, -0.03, 0.0]], dtype=torch.float64)
    axis = torch.linspace(0, 1, 64, dtype=torch.float64)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    reflectance = 0.5 + 0.3 * torch.stack(
        (torch.sin(7 * u), torch.cos(5 * v), torch.sin(6 * u * v))
    )
    illumination = torch.tensor(
        [[2.8, 0.3, 0.6, -0.5, 0.1, 0.05, 0.1, -0.1, 0.08]], dtype=torch.float64
    )
    return model, coefficients, viewpoint, reflectance[None], illumination


def sphere(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit sphere of 2 n² triangles or so; vertices (K, 3) and triangles seen from outside."""
    polar = torch.linspace(0, math.pi, n + 1, dtype=torch.float64)
    turn = torch.linspace(0, 2 * math.pi, 2 * n + 1, dtype=torch.float64)
    p, t = torch.meshgrid(polar, turn, indexing="ij")
    points = torch.stack((p.sin() * t.sin(), p.cos(), p.sin() * t.cos()), dim=-1).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(n), torch.arange(2 * n), indexing="ij")
    a = (row * (2 * n + 1) + column).flatten()
    b, c, d = a + 1, a + 2 * n + 1, a + 2 * n + 2
    return points, torch.cat((torch.stack((a, c, d), -1), torch.stack((a, d, b), -1)))


def test_shading_of_a_sphere_is_analytic():
    n, size = 96, 64
    points, triangles = sphere(n)
    viewpoint = torch.tensor([[math.log(0.9), 0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    illumination = torch.randn(1, 9, generator=torch.Generator().manual_seed(1)).double()
    # On the unit sphere the normal is the point itself.
    surface = rasterize_surface(
        project(points[None], viewpoint), points[None], triangles, points[:, :2], (size, size)
    )
    image, shading = shade_surface(surface, None, illumination)
    axis = ((torch.arange(size, dtype=torch.float64) + 0.5) * (2 / size) - 1) / 0.9
    x, y = torch.meshgrid(axis, -axis, indexing="xy")
    # A flat facet's interpolated normal is off by its sagitta's share: (π/n)²/8 per radius, and
    # the perspective-free look-up shifts it by sagitta/tan at grazing angles: stay off the rim.
    inside = x * x + y * y < 0.9
    z = (1 - x * x - y * y).clamp(min=0).sqrt()
    expected = shade(torch.stack((x, y, z), -1)[None], illumination)[0]
    steepest = illumination.abs().sum() * 3
    difference = (shading[0, 0] - expected)[inside].abs().max()
    assert difference < steepest * (math.pi / n) ** 2 / 8 / math.sqrt(0.1)
    torch.testing.assert_close(image[0, 0], shading[0, 0])


def test_vertex_normals_of_a_sphere_point_outside():
    points, triangles = sphere(24)
    normals = vertex_normals(points[None], triangles)[0]
    away_from_seam_and_poles = (points[:, 2] > -0.9) & (points[:, 1].abs() < 0.9)
    cosine = (normals * points).sum(-1)[away_from_seam_and_poles]
    assert cosine.min() > math.cos(math.pi / 24)


@pytest.mark.parametrize("argument", ["viewpoint", "coefficients", "reflectance", "illumination"])
def test_gradient_of_the_image_is_the_finite_difference(scene, argument):
    model, coefficients, viewpoint, reflectance, illumination = scene
    size = (48, 48)
    values = {
        "viewpoint": viewpoint,
        "coefficients": coefficients,
        "reflectance": reflectance,
        "illumination": illumination,
    }

    def run(**changed):
        now = values | changed
        return render(
            model,
            model.vertices(now["coefficients"]),
            now["viewpoint"],
            now["reflectance"],
            now["illumination"],
            size,
        )

    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(values[argument].shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        step = 1e-6
        ahead, behind = (
            run(**{argument: values[argument] + sign * step * direction}) for sign in (1, -1)
        )
        # The gradient is that of a fixed visibility; bilinear look-ups have kinks at texel
        # centres, so pixels whose look-up crosses one within the step are left out as well.
        same = (ahead.fragments.pix_to_face == behind.fragments.pix_to_face)[:, None]
        texels = [
            (wrap_position(model, rendering) * 64 - 0.5).floor() for rendering in (ahead, behind)
        ]
        same = same & (texels[0] == texels[1]).all(-1)[:, None]
        weights = torch.rand(same.shape, generator=generator, dtype=torch.float64) * same
        variable = values[argument].clone().requires_grad_()
        (run(**{argument: variable}).image * weights).sum().backward()
        predicted = (variable.grad * direction).sum()
        measured = ((ahead.image - behind.image) * weights).sum() / (2 * step)
        # Truncation step² f''' and rounding eps |f| / step are both near 1e-9 of the sum.
        torch.testing.assert_close(predicted, measured, rtol=1e-5, atol=1e-6)
        assert same.double().mean() > 0.9


def wrap_position(model, rendering):
    """(B, H, W, 2) UV coordinates of the pixels of a rendering."""
    corners = model.uv[model.triangles[rendering.fragments.pix_to_face.clamp(min=0)]]
    return (corners * rendering.fragments.barycentric[..., None]).sum(-2)


def test_gradient_of_the_texture_is_the_finite_difference(scene):
    """In the viewpoint and the shape, as training needs it; the visibility is fixed."""
    model, coefficients, viewpoint, _, _ = scene
    generator = torch.Generator().manual_seed(4)
    image = torch.rand(1, 3, 40, 48, generator=generator, dtype=torch.float64)
    texel_map = TexelMap.build(model.uv, model.triangles, 48)

    def run(viewpoint, coefficients):
        vertices = model.vertices(coefficients)
        projected = project(vertices, viewpoint)
        normals = rotate(vertex_normals(vertices, model.triangles), viewpoint)
        surface = rasterize_surface(projected, normals, model.triangles, model.uv, (40, 48))
        texture, visible = unwrap(image, projected, normals, surface.fragments, texel_map)
        points = to_pixels(texel_map.on_texels(projected)[..., :2], 48, 40)
        return texture, visible, texel_map.to_map((points - 0.5).floor())

    step = 1e-6
    values = (viewpoint, coefficients)
    for changed in (0, 1):
        direction = torch.randn(values[changed].shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        (ahead, seen, cell), (behind, seen_too, cell_too) = (
            run(*(v + sign * step * direction if i == changed else v for i, v in enumerate(values)))
            for sign in (1, -1)
        )
        # Bilinear look-ups have kinks at pixel centres: texels that cross one are left out.
        same = (seen == seen_too) & (cell == cell_too).all(1, keepdim=True)
        assert same.double().mean() > 0.99 and seen.mean() > 0.3
        weights = torch.rand(ahead.shape, generator=generator, dtype=torch.float64) * same
        variables = [value.clone().requires_grad_(i == changed) for i, value in enumerate(values)]
        (run(*variables)[0] * weights).sum().backward()
        predicted = (variables[changed].grad * direction).sum()
        measured = ((ahead - behind) * weights).sum() / (2 * step)
        # Truncation is step² f'''; rounding eps |f| / step, below 1e-6 for the sum of all texels.
        torch.testing.assert_close(predicted, measured, rtol=1e-5, atol=1e-6)


def test_unwrapping_a_rendering_gives_its_texture_back(face_model):
    """On a turned cap of a sphere, which hides nothing of itself but what faces away."""
    n, size, texels, (height, width) = 48, 128, 64, (180, 240)
    points, triangles = sphere(n)
    triangles = triangles[(points[triangles][..., 2] > 0.2).all(1)]
    viewpoint = torch.tensor([[-0.2, 0.3, 0.5, -0.2, -0.1, 0.05, 0.0]], dtype=torch.float64)
    projected = project(points[None], viewpoint)
    # The map is the picture, turned, squeezed and moved: affine in it, hence without error of the
    # mesh's. What faces away would fold back in it, where `TexelMap` drops it as clockwise.
    affine = torch.tensor([[0.4, 0.15], [-0.1, 0.35]], dtype=torch.float64)
    uv = projected[0, :, :2] @ affine.T + 0.5
    assert uv.min() > 0 and uv.max() < 1
    model = dataclasses.replace(face_model, triangles=triangles, uv=uv)

    def colours(uv):
        u, v = uv.unbind(-1)
        return 0.5 + 0.3 * torch.stack((torch.sin(7 * u), torch.cos(7 * v), torch.sin(5 * (u + v))))

    def centres(n):
        along = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return torch.stack(torch.meshgrid(along, 1 - along, indexing="xy"), dim=-1)

    ambient = ambient_illumination().double()[None]
    rendering = render(
        model, points[None], viewpoint, colours(centres(texels))[None], ambient, (height, width)
    )
    texel_map = TexelMap.build(uv, triangles, size)
    normals = rotate(points[None], viewpoint)  # of the unit sphere
    texture, visible = unwrap(rendering.image, projected, normals, rendering.fragments, texel_map)

    # To be seen: faces the viewer, and its look-up reads covered pixels alone.
    position = texel_map.on_texels(projected)[..., :2]
    covered = sample_image(rendering.coverage, position)[:, 0] > 1 - 1e-9
    facing = texel_map.on_texels(normals)[..., 2] > 0.3
    due = texel_map.to_map((covered & facing)[..., None].double()) > 0
    assert due.sum() > 2000 and visible[due].all()
    # A bilinear look-up leaves step²/8 of the second derivative along each of its two axes. Here
    # two add up, at most 0.3 · 50 |step|² each: one of steps of the reflectance's texels, one of
    # the image's pixels, carried to the map.
    steps = affine * torch.tensor([2 / width, 2 / height])
    bound = 0.3 * 50 / 8 * (2 / texels**2 + steps.square().sum())
    error = (texture[0] - colours(centres(size)))[:, due[0, 0]].abs().max()
    assert error < bound


def test_what_lies_behind_a_sheet_is_not_unwrapped():
    """A sheet, half hidden by another one 0.2 dm before it: each has its half of the map."""
    size = 64
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    behind = torch.nn.functional.pad(square * 1.6 - 0.8, (0, 1), value=0.0)
    before = torch.nn.functional.pad(square * torch.tensor([0.8, 1.8]) - 0.9, (0, 1), value=0.2)
    projected = torch.cat((behind, before))[None]
    uv = torch.cat(
        (square * torch.tensor([0.5, 1]) + torch.tensor([0.5, 0]), square * torch.tensor([0.5, 1]))
    )
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    normals = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand_as(projected)
    surface = rasterize_surface(projected, normals, triangles, uv, (size, size))
    texel_map = TexelMap.build(uv, triangles, size)
    _, visible = unwrap(
        torch.ones(1, 3, size, size).double(), projected, normals, surface.fragments, texel_map
    )
    x = texel_map.to_map(texel_map.on_texels(projected)[..., :1])[0, 0]
    of_behind = torch.arange(size) >= size // 2
    assert (visible[0, 0] > 0)[:, ~of_behind].all()
    rim = before[:, 0].max()
    clear = of_behind & ((x - rim).abs() > 1 / size)  # half a pixel: the buffer's nearest
    assert torch.equal((visible[0, 0] > 0)[clear], (x > rim)[clear])


def test_hidden_texels_are_marked(face_model):
    """Seen from the side, the far half of the face is invisible."""
    viewpoint = torch.tensor([[0.0, 0.0, math.pi / 3, 0.0, 0.0, 0.0, 0.0]])
    vertices = face_model.mean[None]
    normals = rotate(vertex_normals(vertices, face_model.triangles), viewpoint)
    projected = project(vertices, viewpoint)
    surface = rasterize_surface(projected, normals, face_model.triangles, face_model.uv, (128, 128))
    texel_map = TexelMap.build(face_model.uv, face_model.triangles, 128)
    _, visible = unwrap(
        torch.ones(1, 3, 128, 128), projected, normals, surface.fragments, texel_map
    )
    left, right = visible[0, 0, :, :64].mean(), visible[0, 0, :, 64:].mean()
    # Turned to the right (+x), it shows its left half in the image, which is u < 1/2.
    assert left > 4 * right


def test_mirrored_reflectance_renders_the_mirrored_face(face_model):
    model = face_model.to("cpu", torch.float64)
    reflectance = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)).double()
    arguments = (model.mean[None], torch.zeros(1, 7, dtype=torch.float64))
    light = ambient_illumination().double()[None]
    a = render(model, *arguments, reflectance, light, (128, 128))
    b = render(model, *arguments, reflectance.flip(-1), light, (128, 128))
    # The mirror image of each triangle, as a triangle of the list.
    index = {tuple(t): f for f, t in enumerate(model.triangles.sort(1).values.tolist())}
    images = model.mirror[model.triangles].sort(1).values.tolist()
    partner = torch.tensor([*(index[tuple(t)] for t in images), -1])  # of no triangle: none
    mirrored = partner[a.fragments.pix_to_face].flip(-1) == b.fragments.pix_to_face
    # A pixel centre on an edge may go either way.
    assert mirrored.double().mean() > 0.999
    # A triangle's weights round by some eps over its area (16 for three products of corners'
    # differences); uv by as much of the triangle's extent; 128 texels of noise, at most 1 apart
    # from one to the next, multiply that by 128.
    corners = project(*arguments)[0, model.triangles, :2]
    area = torch.linalg.det(corners[:, 1:] - corners[:, :1]).abs()
    extent = model.uv[model.triangles].amax(1) - model.uv[model.triangles].amin(1)
    eps = torch.finfo(torch.float64).eps
    rounding = 16 * eps / area * extent.sum(1) * 128 + 16 * eps
    difference = (a.image.flip(-1) - b.image).abs().amax(1)
    face = b.fragments.pix_to_face
    assert (difference <= rounding[face])[mirrored & (face >= 0)].all()
    assert (difference[mirrored & (face < 0)] == 0).all()
    assert rounding[face[face >= 0]].max() < 1e-6
