"""Rendered frames, augmented, and what is then true of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cest.data import Batches, Recipe
from cest.data.augmentation import fit_weak_perspective
from cest.data.synthetic import AppearanceRanges, SyntheticClips
from cest.geometry import ambient_illumination, sh_basis
from cest.known_factors import known_factor_errors
from cest.lighting import mirror_light
from cest.rendering import render

SIZE = 128


def test_mirrored_light_lights_a_mirrored_normal():
    rng = torch.Generator().manual_seed(0)
    normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=rng), dim=-1)
    light = torch.randn(9, generator=rng)
    mirrored = normals * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(sh_basis(mirrored) @ mirror_light(light), sh_basis(normals) @ light)


@pytest.fixture(scope="module")
def batch():
    bare = AppearanceRanges.lambertian(yaw=20, glasses=0, medical_mask=0, hand=0, hair=0, padded=0)
    clips = SyntheticClips(4, seed=3, frames=2, size=SIZE, appearance=bare)
    recipe = Recipe(clips=0, synthetic=4, frames=2, degrees=40)
    ((found, _),) = Batches({"synthetic": clips}, recipe, SIZE, seed=1, stop=1)
    return found.to(torch.device("cpu"))


def test_the_truth_renders_the_augmented_frames(batch, face_model):
    """Shape, reflectance and light, moved as the picture is, give the picture again."""
    truth = batch.truth
    assert truth.mirrored.any() and not truth.mirrored.all()
    vertices = truth.vertices(face_model)
    for k, i in enumerate(truth.frame.tolist()):
        scale, rotation, shift = fit_weak_perspective(
            vertices[k, face_model.landmarks].double().numpy(), batch.landmarks[i].double().numpy()
        )
        viewpoint = torch.tensor(
            np.r_[np.log(scale), Rotation.from_matrix(rotation).as_rotvec(), shift, 0],
            dtype=torch.float32,
        )
        rendered = render(
            face_model, vertices[k : k + 1], viewpoint[None], truth.reflectance_map[k : k + 1],
            truth.illumination[k : k + 1], (SIZE, SIZE),
        )  # fmt: skip
        inside = (batch.mask[i] * rendered.coverage[0]).bool()[0]
        difference = (rendered.image[0] - batch.image[i]).abs().mean(0)[inside]
        # 8 bits, two bilinear look-ups and another level of detail; a light turned the wrong way
        # is off by tens.
        assert difference.median() < 3 / 255, k


def test_the_true_shape_is_mirrored_as_its_frame_is(batch, face_model):
    """Faces are not symmetric: the landmarks lie nearer on the right one of the two shapes."""

    def distances(truth):
        shapes = truth.vertices(face_model)[:, face_model.landmarks].double().numpy()
        found = []
        for points, i in zip(shapes, truth.frame.tolist(), strict=True):
            landmarks = batch.landmarks[i].double().numpy()
            scale, rotation, shift = fit_weak_perspective(points, landmarks)
            found.append(np.abs(scale * (points @ rotation.T)[:, :2] + shift - landmarks).mean())
        return np.array(found)

    other = replace(batch.truth, mirrored=~batch.truth.mirrored)
    assert (distances(batch.truth) < distances(other)).all()


def test_errors_are_zero_for_the_truth_and_follow_one_factor_each(batch, tiny_model):
    model, truth = tiny_model, batch.truth
    small = torch.nn.functional.interpolate(truth.reflectance_map, (64, 64))
    truth = replace(truth, reflectance_map=small)
    estimate = model(torch.nn.functional.interpolate(batch.image, (64, 64)))
    right = replace(
        estimate,
        vertices=truth.vertices(model.face_model),
        reflectance_map=small,
        illumination=truth.illumination,
    )

    def errors(**changes):
        found = known_factor_errors(
            replace(right, **changes), truth, model.face_model, model.texel_map
        )
        return [round(value.item(), 5) for value in found.values()]

    assert errors() == [0, 0, 0]
    assert errors(vertices=right.vertices + 0.1) == [0.1, 0, 0]
    # A tenth of every texel is a tenth, on dark skin and on light skin.
    assert errors(reflectance_map=0.9 * small) == [0, 0.1, 0]
    assert errors(illumination=2 * right.illumination) == [0, 0, 0]

    # Shading 3 (1 - x / 2) where 1 + x / 2 is true. Over directions spread evenly within 60 degrees
    # of the viewer |x| has the mean 2 / π (π / 3 - √3 / 4): z is uniform in [1 / 2, 1], and x is
    # √(1 - z²) times a cosine. 64 directions stand for all of them.
    right_to_left = torch.zeros(9)
    right_to_left[3] = 0.5 / math.sqrt(3 / (4 * math.pi))
    lit = replace(truth, illumination=(ambient_illumination() + right_to_left).expand(4 * 2, -1))
    turned = replace(
        right, illumination=3 * (ambient_illumination() - right_to_left).expand(4 * 2, -1)
    )
    found = known_factor_errors(turned, lit, model.face_model, model.texel_map)["true_light"]
    expected = 2 / math.pi * 2 * (math.pi / 6 - math.sqrt(3) / 8)
    assert found.item() == pytest.approx(expected, rel=0.03)
