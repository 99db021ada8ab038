"""Figures of disentanglement on constructed cases: known answers, and worse when it should be."""

import math

import cv2
import numpy as np
import pytest
import torch

from cest.evaluation.disentanglement import (
    albedo_deviation,
    albedo_error,
    albedo_level,
    albedo_similarity,
    cross_relight_error,
    direction_angle,
    light_angle,
)
from cest.evaluation.groups import TONE_GROUPS, tone_group, typology_angle
from cest.evaluation.metrics import (
    asymmetry,
    photometric_error_elsewhere,
    shading_explained,
)
from cest.face_model import FaceModel
from cest.geometry import ambient_illumination, project, rotate, sh_basis
from cest.lighting import directional_light, roll_light
from cest.rendering import rasterize_surface, shade_surface, vertex_normals

FRAMES, SIZE = 3, 48


@pytest.fixture(scope="module")
def clip(face_model: FaceModel) -> dict[str, torch.Tensor]:
    """One face in three poses under three lights, and its true renderings."""
    generator = torch.Generator().manual_seed(0)
    albedo = 0.3 + 0.4 * torch.rand(1, 3, 32, 32, generator=generator)
    vertices = face_model.mean.expand(FRAMES, -1, -1)
    viewpoint = 0.1 * torch.randn(FRAMES, 7, generator=generator)
    lights = torch.stack([directional_light(d) for d in ((-1, 0, 1), (1, 0, 1), (0, 1, 1))])
    normals = rotate(vertex_normals(vertices, face_model.triangles), viewpoint)
    surface = rasterize_surface(
        project(vertices, viewpoint), normals, face_model.triangles, face_model.uv, (SIZE, SIZE)
    )
    albedo = albedo.expand(FRAMES, -1, -1, -1)
    # Dim enough that nothing is clipped.
    lights = 0.8 * lights
    return {
        "albedo": albedo,
        "lights": lights,
        "surface": surface,
        "truth": shade_surface(surface, albedo, lights)[0],
        "region": torch.ones(FRAMES, 1, SIZE, SIZE),
        "texels": torch.ones(FRAMES, 1, 32, 32),
    }


def test_albedo_error_is_blind_to_scale_only(clip):
    true, texels = clip["albedo"], clip["texels"]
    assert albedo_error(true, true, texels).max() == 0
    assert albedo_error(0.6 * true, true, texels).max() < 1e-4
    shaded = true.clone()
    shaded[..., :16] *= 0.5  # light painted into one half
    # Means match at 4/3 of it: the bright half is a third too bright, the other a third too dark.
    expected = 255 * true[0].mean() / 3
    torch.testing.assert_close(
        albedo_error(shaded, true, texels).mean(), expected, rtol=0.02, atol=0
    )
    stronger = true.clone()
    stronger[..., :16] *= 0.25
    assert (albedo_error(stronger, true, texels) > albedo_error(shaded, true, texels)).all()


def test_albedo_error_counts_texels_of_the_region_alone(clip):
    true, texels = clip["albedo"], clip["texels"].clone()
    texels[..., :16] = 0
    spoilt = true.clone()
    spoilt[..., :16] = 0
    assert albedo_error(spoilt, true, texels).max() == 0
    smooth = torch.full((1, 3, 8, 8), 0.5)
    assert albedo_error(smooth, torch.full((1, 3, 32, 32), 0.25), texels[:1]).max() < 1e-4


def test_albedo_level_by_hand():
    texture = torch.full((1, 3, 4, 4), 0.2)
    texture[..., :2] = 0.6
    whole, left = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4)
    left[..., 2:] = 0
    torch.testing.assert_close(albedo_level(texture, whole), torch.tensor([255 * 0.4]))
    torch.testing.assert_close(albedo_level(texture, left), torch.tensor([255 * 0.6]))


def test_albedo_similarity_is_of_detail(clip):
    true, texels = clip["albedo"], clip["texels"]
    torch.testing.assert_close(albedo_similarity(true, true, texels), torch.ones(FRAMES))
    torch.testing.assert_close(albedo_similarity(0.5 * true + 0.2, true, texels), torch.ones(3))
    flat = true.mean((2, 3), keepdim=True).expand_as(true)
    assert albedo_similarity(flat, true, texels).abs().max() < 1e-3
    assert albedo_similarity(1 - true, true, texels).max() < -0.99


def test_light_angle_by_hand(clip):
    lights = clip["lights"]
    assert light_angle(3 * lights, lights).max() < 1e-4
    a, b = torch.zeros(1, 9), torch.zeros(1, 9)
    a[0, 0], b[0, 0], b[0, 2] = 1, 1, 1
    torch.testing.assert_close(light_angle(a, b), torch.tensor([45.0]))
    torch.testing.assert_close(light_angle(a, -a), torch.tensor([180.0]))


@pytest.mark.parametrize("degrees", [0.01, 5.0, 90.0, 170.0])
def test_direction_angle_is_that_by_which_a_light_was_turned(degrees):
    light = directional_light((1, 0, 0), ambient=0.5)[None]
    turned = roll_light(light, math.radians(degrees))
    torch.testing.assert_close(
        direction_angle(turned, light), torch.tensor([degrees]), rtol=1e-3, atol=1e-4
    )
    dimmer = 0.3 * turned + ambient_illumination(0.7)
    torch.testing.assert_close(direction_angle(dimmer, light), direction_angle(turned, light))
    assert direction_angle(ambient_illumination()[None], light).item() == pytest.approx(90)


def test_sh_angle_is_that_of_functions_on_the_sphere(clip):
    """Against the integral over many directions."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=generator), dim=-1)
    a, b = clip["lights"][:2]
    f, g = sh_basis(directions) @ a, sh_basis(directions) @ b
    cosine = (f * g).mean() / (f.square().mean() * g.square().mean()).sqrt()
    expected = torch.rad2deg(torch.acos(cosine))
    torch.testing.assert_close(light_angle(a[None], b[None])[0], expected, rtol=0.01, atol=0)


def cross(clip, albedo=None, lights=None):
    return cross_relight_error(
        clip["albedo"] if albedo is None else albedo,
        clip["lights"] if lights is None else lights,
        clip["surface"],
        clip["truth"],
        clip["region"],
    )


def test_cross_relight_error(clip):
    assert cross(clip).max() < 1e-4
    # Brightness may move from albedo to light, in all frames alike ...
    assert cross(clip, 0.5 * clip["albedo"], 2 * clip["lights"]).max() < 1e-3
    assert cross(clip, 0.5 * clip["albedo"]).max() < 1e-3
    # ... but not in each frame as it likes.
    share = torch.tensor([0.5, 1.0, 1.5])
    shared = cross(clip, share.view(-1, 1, 1, 1) * clip["albedo"], clip["lights"] / share[:, None])
    assert shared.mean() > 5
    # Light painted into albedo, and flat light: each frame by itself would be rendered well.
    flat = ambient_illumination().expand(FRAMES, -1)
    assert cross(clip, lights=flat).mean() > 5
    assert cross(clip, lights=clip["lights"].roll(1, 0)).mean() > 5


def test_cross_relight_takes_the_albedo_of_another_frame(clip):
    """A frame's own albedo does not enter its own error."""
    spoilt = clip["albedo"].clone()
    spoilt[0] = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    errors = cross(clip, spoilt)
    assert errors[1] > 3 * errors[0] and errors[1] > 3 * errors[2]


def test_neither_a_blurred_nor_a_lit_albedo_explains_another_picture(clip):
    """Photos 0 and 1 by the albedo of each other: only the true one is right."""

    def error(reflectance):
        found = photometric_error_elsewhere(
            clip["truth"], clip["surface"], reflectance, clip["lights"], clip["region"]
        )
        assert found.shape == (FRAMES,)
        return found.mean()

    true = clip["albedo"]
    assert error(true) < 1e-4
    assert error(0.6 * true) < 1e-3  # its level cannot be known
    assert error(true.mean((2, 3), keepdim=True).expand_as(true)) > 5
    # The light of the picture that it came from: brighter on one side, by a third at the rim.
    across = torch.linspace(-1, 1, 32)
    assert error(true * (1 + across / 3)) > 5


def test_shading_explains_a_photo_under_the_true_light_alone(clip):
    covered, lights = clip["surface"].coverage, clip["lights"]

    def explained(light, photo=clip["truth"]):
        shading = shade_surface(clip["surface"], None, light)[1]
        return shading_explained(photo, shading, covered)

    # On a face of one colour it is all of the photo, however bright the light is said to be.
    _, shading = shade_surface(clip["surface"], None, lights)
    plain = 0.4 * shading.expand(-1, 3, -1, -1)
    torch.testing.assert_close(explained(3 * lights, plain), torch.ones(FRAMES))
    # Around the features of a face it is the most of it; flat light is none of it.
    true, flat = explained(lights), explained(ambient_illumination(0.7).expand(FRAMES, -1))
    assert true.min() > 0.8
    torch.testing.assert_close(flat, torch.zeros(FRAMES), rtol=0, atol=1e-4)
    half_as_strong = explained(lights + 3 * ambient_illumination())
    assert ((half_as_strong > 0.1) & (half_as_strong < true - 0.1)).all()
    # x -> -x: the functions that are odd in x change their sign. The last light is from above.
    mirrored = explained(lights * torch.tensor([1, 1, 1, -1, -1, 1, 1, -1, 1]))
    assert (mirrored[:2] < -0.3).all() and mirrored.min() >= -1
    assert explained(lights, torch.full_like(clip["truth"], 0.5)).isnan().all()


def test_albedo_deviation_by_hand(clip):
    same, seen = clip["albedo"], clip["texels"]
    assert albedo_deviation(same, seen) == 0
    apart = torch.stack((same[0], same[0] + 0.1))
    torch.testing.assert_close(
        albedo_deviation(apart, seen[:2]), torch.tensor(255 * 0.05), rtol=1e-4, atol=0
    )
    hidden = seen[:2].clone()
    hidden[1, :, :, :16] = 0
    elsewhere = torch.stack((same[0], same[0].clone()))
    elsewhere[1, :, :, :16] = 0
    assert albedo_deviation(elsewhere, hidden) == 0


def test_asymmetry_of_a_mirrored_face(clip):
    symmetric = (clip["albedo"] + clip["albedo"].flip(-1)) / 2
    assert asymmetry(symmetric, clip["texels"]).max() == 0
    one_side = symmetric.clone()
    one_side[..., :16] *= 0.8
    expected = 255 * 0.2 * symmetric[..., :16].mean()
    torch.testing.assert_close(
        asymmetry(one_side, clip["texels"]).mean(), expected, rtol=1e-4, atol=0
    )


def test_tone_groups_of_colours_with_a_known_angle():
    angles = (60.0, 35.0, 20.0, -10.0, -45.0)
    found = []
    for angle in angles:
        lightness = 50 + 15 * math.tan(math.radians(angle))
        lab = np.float32([[[lightness, 10, 15]]])
        colour = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0, 0]
        assert typology_angle(colour) == pytest.approx(angle, abs=0.5)
        picture = np.broadcast_to((colour * 255).round().astype(np.uint8), (4, 4, 3))
        found.append(tone_group(picture, np.eye(4)))
    assert found == list(TONE_GROUPS)
    assert tone_group(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4))) == "unknown"
