"""The photo's fine detail: it is found, light is not taken for it, and nothing else is changed."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from cest.detail import FACING, fine_detail, with_detail
from cest.geometry import rotate
from cest.lighting import directional_light
from cest.refinement import face_parameters
from cest.rendering import TexelMap, render, vertex_normals

COARSE, FINE = 64, 256
FRONTAL = torch.tensor([[-0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
FROM_THE_SIDE = directional_light((1.0, 0.3, 0.6), 0.8, 0.3)[None]


@pytest.fixture(scope="module")
def texel_map(face_model) -> TexelMap:
    return TexelMap.build(face_model.uv, face_model.triangles, FINE)


def photo_and_estimate(face_model, reflectance, coarse, viewpoint=FRONTAL):
    """A face under light from the side, and what an estimator would say that knows all of it but
    what is finer than its reflectance."""
    shape = torch.zeros(1, face_model.n_coefficients)
    size = (512, 512)
    image = render(
        face_model, face_model.vertices(shape), viewpoint, reflectance, FROM_THE_SIDE, size
    ).image.clamp(0, 1)
    small = interpolate(image, (COARSE, COARSE), mode="area")
    coarse_map = TexelMap.build(face_model.uv, face_model.triangles, COARSE)
    factors = viewpoint, shape, coarse, FROM_THE_SIDE
    return image, face_parameters(face_model, coarse_map, small, *factors)


def skin(detail: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A reflectance with freckles that are finer than a coarse map tells, and that map."""
    column = torch.arange(FINE) / FINE
    smooth = 0.45 + 0.1 * torch.cos(2 * math.pi * column)
    smooth = smooth.expand(1, 3, FINE, FINE)
    wave = torch.sin(2 * math.pi * 24 * column)
    freckles = 1 + detail * wave[:, None] * wave
    return smooth * freckles, interpolate(smooth, (COARSE, COARSE), mode="area")


def everywhere(image: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(image[:, :1])


def well_seen(estimate, texel_map) -> torch.Tensor:
    """(1, 1, N, N): texels that are seen, with all that is around them."""
    normals = texel_map.to_map(torch.ones(1, len(texel_map.texels), 1))
    seen = interpolate(estimate.texture_visibility, (FINE, FINE)) * normals
    return (-torch.nn.functional.max_pool2d(-seen, 25, 1, 12)).bool()


def test_freckles_are_found(face_model, texel_map):
    truth, coarse = skin(0.15)
    image, estimate = photo_and_estimate(face_model, truth, coarse)
    detail = fine_detail(image, everywhere(image), estimate, face_model, texel_map)
    found = with_detail(coarse, detail)
    normals = rotate(vertex_normals(estimate.vertices, face_model.triangles), FRONTAL)
    believed = texel_map.to_map(texel_map.on_texels(normals)[..., 2:]) > FACING
    inside = (believed & well_seen(estimate, texel_map)).expand(-1, 3, -1, -1)
    before = (interpolate(coarse, (FINE, FINE), mode="bicubic") - truth).abs()[inside].mean()
    after = (found - truth).abs()[inside].mean()
    assert inside.float().mean() > 0.05 and before > 0.01
    # Each of two bilinear look-ups takes 3 % of a wave of 11 texels in either direction.
    assert after < 0.15 * before


def test_light_is_not_taken_for_detail(face_model, texel_map):
    truth, coarse = skin(0.0)
    image, estimate = photo_and_estimate(face_model, truth, coarse)
    inside = well_seen(estimate, texel_map).expand(-1, 3, -1, -1)
    assert image.amax() - image[image > 0].amin() > 0.3
    # Even a light that was estimated all wrong is smooth.
    for light in (FROM_THE_SIDE, directional_light((-1.0, 0.0, 0.6), 0.8, 0.4)[None]):
        lit = replace(estimate, illumination=light)
        detail = fine_detail(image, everywhere(image), lit, face_model, texel_map)[inside]
        assert (detail - 1).abs().mean() < 0.02


def test_a_side_that_is_hidden_gets_the_other_sides(face_model, texel_map):
    truth, coarse = skin(0.15)
    turned = torch.tensor([[-0.4, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    image, estimate = photo_and_estimate(face_model, truth, coarse, turned)
    detail = fine_detail(image, everywhere(image), estimate, face_model, texel_map)
    seen = well_seen(estimate, texel_map)
    hidden = interpolate(1 - estimate.texture_visibility, (FINE, FINE)).bool()
    hidden = -torch.nn.functional.max_pool2d(-hidden.float(), 9, 1, 4) > 0
    only_there = (hidden & seen.flip(-1)).expand(-1, 3, -1, -1)
    assert only_there.float().mean() > 0.02
    assert (detail[only_there] - 1).abs().mean() > 0.01
    # What is seen at a slant is believed in part, on the other side as here.
    difference = (detail - detail.flip(-1)).abs()[only_there]
    assert difference.median() < 0.002


def test_what_lies_beyond_the_photo_is_not_believed(face_model, texel_map):
    """The photo ends in the middle of the face; its rim is repeated there, as crops have it."""
    truth, coarse = skin(0.15)
    image, estimate = photo_and_estimate(face_model, truth, coarse)
    half = image.clone()
    half[..., 256:] = image[..., 255:256]
    shown = everywhere(image)
    shown[..., 256:] = 0
    found = fine_detail(half, shown, estimate, face_model, texel_map)
    whole = fine_detail(image, everywhere(image), estimate, face_model, texel_map)
    believed = fine_detail(half, everywhere(image), estimate, face_model, texel_map)
    # Some way off the middle line. What is believed in full on one side is unchanged there, and
    # mirrored on the other.
    left, right = slice(0, 120), slice(136, 256)
    assert (found - whole)[..., left].abs().median() < 1e-5
    assert (found[..., right] - whole[..., left].flip(-1)).abs().median() < 0.002
    assert (believed - found)[..., right].abs().mean() > 0.01


def test_a_photo_that_says_nothing_changes_nothing(face_model, texel_map):
    truth, coarse = skin(0.15)
    away = torch.tensor([[-0.4, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0]])
    image, estimate = photo_and_estimate(face_model, truth, coarse, away)
    detail = fine_detail(image, everywhere(image), estimate, face_model, texel_map)
    assert (detail == 1).all()
    smooth = interpolate(coarse, (FINE, FINE), mode="bicubic")
    torch.testing.assert_close(with_detail(coarse, detail), smooth)


def test_a_reflectance_stays_one(face_model, texel_map):
    """Noise, black and white, is bounded, and so is what comes of it."""
    _, coarse = skin(0.0)
    image, estimate = photo_and_estimate(face_model, skin(0.0)[0], coarse)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)).round()
    detail = fine_detail(noise, everywhere(noise), estimate, face_model, texel_map)
    assert detail.isfinite().all() and detail.amax() < 2.3 and detail.amin() > 1 / 2.3
    found = with_detail(torch.ones_like(coarse), detail)
    assert found.amin() >= 0 and found.amax() <= 1
