import math

import pytest
import torch

from cest.geometry import ambient_illumination, project, rotate, sample_image, shade
from cest.rendering import (
    TexelMap,
    rasterize_surface,
    render,
    shade_surface,
    unwrap,
    vertex_normals,
    wrap,
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


def test_unwrapping_a_rendering_gives_its_texture_back(scene):
    model, coefficients, viewpoint, reflectance, _ = scene
    vertices = model.vertices(coefficients)
    size = 512
    ambient = ambient_illumination().double()[None]
    rendering = render(model, vertices, viewpoint, reflectance, ambient, (size, size))
    normals = rotate(vertex_normals(vertices, model.triangles), viewpoint)
    texel_map = TexelMap.build(model.uv, model.triangles, 128)
    texture, visible = unwrap(
        rendering.image, project(vertices, viewpoint), normals, rendering.fragments, texel_map
    )
    centre = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    uv = torch.stack(torch.meshgrid(centre, 1 - centre, indexing="xy"), dim=-1)[None]
    expected = wrap(reflectance, uv)
    # Where a texel's four neighbouring pixels all show its own stretch of surface, the image is
    # the texture there, bilinear twice. Next to an occluder's rim they do not: such texels are
    # those whose pixel neighbourhood jumps in uv by more than a few pixels' worth.
    position = texel_map.on_texels(project(vertices, viewpoint))[..., :2]
    shown = wrap_position(model, rendering).permute(0, 3, 1, 2)
    jump = (
        torch.nn.functional.max_pool2d(shown, 5, 1, 2)
        + torch.nn.functional.max_pool2d(-shown, 5, 1, 2)
    ).amax(1, keepdim=True)
    jump = texel_map.to_map(sample_image(jump, position, mode="nearest").mT)
    # The depth buffer's tolerance lets through what lies less than 3 mm behind what is shown,
    # an eyeball under its lid for instance: there the pixel shows another part of the map.
    shown = texel_map.to_map(sample_image(shown, position, mode="nearest").mT)
    own = (shown - uv.permute(0, 3, 1, 2)).abs().amax(1, keepdim=True) < 0.05
    assert own[visible > 0].double().mean() > 0.97
    sure = (visible > 0) & own & (jump < 0.05)
    error = (texture - expected).abs().amax(1, keepdim=True)[sure]
    # A bilinear look-up over a cell of h in uv leaves h²/8 of each second derivative, at most
    # 0.3 · 49; the texture's own cells are 1/64, the image's, stretched, at most 0.05 / 4.
    bound = 0.3 * 49 / 8 * 2 * ((1 / 64) ** 2 + (0.05 / 4) ** 2)
    assert (error < bound).double().mean() > 0.99
    # The rest may show a neighbouring fold, up to 0.05 away in each direction: slope 0.3 · 7.
    assert error.max() < 2 * 0.05 * 0.3 * 7
    assert sure.double().mean() > 0.3


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
    reflectance = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(reflectance, 9, 1, 4)
    arguments = (face_model.mean[None], torch.zeros(1, 7))
    light = ambient_illumination()[None]
    a = render(face_model, *arguments, smooth, light, (128, 128))
    b = render(face_model, *arguments, smooth.flip(-1), light, (128, 128))
    both = a.coverage * a.coverage.flip(-1)
    difference = ((a.image.flip(-1) - b.image).abs() * both).amax(1)
    # Ties between symmetric triangles may go either way along the rim of the eyes and mouth.
    assert (difference > 1e-4).float().mean() < 0.01
