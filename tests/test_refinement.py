"""The test-time fit: it descends, each photo by itself, and finds true factors again."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from cest.cli import main
from cest.configuration import FaceEstimatorConfig
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation.metrics import photometric_error_255
from cest.geometry import ambient_illumination
from cest.lighting import directional_light
from cest.modeling import FaceEstimator, FaceParameters
from cest.reconstruction import Reconstructor
from cest.refinement import FACTORS, RefinementConfig, face_parameters, refine, with_factors
from cest.rendering import shade_surface

SIZE = 64
PHOTO = Path(str(files("cest") / "assets" / "astronaut.jpg"))


@pytest.fixture(scope="module")
def model(face_model) -> FaceEstimator:
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=SIZE, width=0.125)
    return FaceEstimator(config, face_model=face_model).eval()


@pytest.fixture(scope="module")
def photos(model) -> tuple[torch.Tensor, FaceParameters]:
    """Two rendered faces on black, and what is true of them."""
    generator = torch.Generator().manual_seed(1)
    albedo = torch.nn.functional.interpolate(
        0.3 + 0.4 * torch.rand(2, 3, 5, 5, generator=generator), (SIZE, SIZE), mode="bicubic"
    ).clamp(0, 1)
    albedo = (albedo + albedo.flip(-1)) / 2
    factors = {
        "viewpoint": torch.tensor([[-0.3, 0.05, 0.2, 0.1, 0.05, 0.0, 0.0], [-0.2] + 6 * [0.0]]),
        "shape_coefficients": 0.5 * torch.randn(2, 228, generator=generator),
        "reflectance_map": albedo,
        "illumination": torch.stack(
            [directional_light((-1, 0, 1), 0.7, 0.4), directional_light((1, 1, 1), 0.6, 0.5)]
        ),
    }
    blank = torch.zeros(2, 3, SIZE, SIZE)
    truth = face_parameters(model.face_model, model.texel_map, blank, **factors)
    image, _ = shade_surface(truth.surface, albedo, factors["illumination"])
    return image.clamp(0, 1), truth


def error(image: torch.Tensor, estimate: FaceParameters) -> torch.Tensor:
    rendered, _ = shade_surface(estimate.surface, estimate.reflectance_map, estimate.illumination)
    return photometric_error_255(image, rendered, estimate.surface.coverage)


def test_face_parameters_are_what_the_estimator_says(model, photos):
    image, _ = photos
    with torch.no_grad():
        estimate = model(image)
    again = face_parameters(
        model.face_model, model.texel_map, image, *(getattr(estimate, name) for name in FACTORS)
    )
    for name in ("vertices", "projected", "illuminated_texture", "texture_visibility"):
        assert torch.equal(getattr(again, name), getattr(estimate, name))
    assert torch.equal(again.surface.uv, estimate.surface.uv)


def test_no_step_changes_nothing(model, photos):
    image, truth = photos
    same = refine(model, image, truth, steps=0)
    for name in FACTORS:
        assert torch.equal(getattr(same, name), getattr(truth, name))
    with pytest.raises(ValueError, match="0 or more steps"):
        refine(model, image, truth, steps=-1)


def test_it_finds_the_light_again(model, photos):
    """Everything else true and symmetric, as the objective has it: the light has to turn back."""
    image, truth = photos
    start = with_factors(model.face_model, truth, illumination=ambient_illumination().expand(2, -1))
    only_light = RefinementConfig(
        viewpoint=0.0,
        shape_coefficients=0.0,
        reflectance_map=0.0,
        illumination=0.05,
        illumination_weight=0.0,
    )
    found = refine(model, image, start, steps=150, config=only_light)
    assert (error(image, start) > 15).all()
    assert (error(image, found) < 1.5).all()
    for name in FACTORS[:3]:
        assert torch.equal(getattr(found, name), getattr(start, name))


def test_all_factors_together_and_progress(model, photos):
    image, truth = photos
    grey = torch.full_like(truth.reflectance_map, 0.5)
    start = with_factors(model.face_model, truth, reflectance_map=grey)
    seen = []
    faster = RefinementConfig(reflectance_map=0.01)
    with torch.no_grad():  # as an app would call it
        found = refine(
            model,
            image,
            start,
            steps=40,
            config=faster,
            progress=lambda step, loss: seen.append((step, loss)),
        )
    assert [step for step, _ in seen] == list(range(1, 41))
    assert seen[-1][1] < 0.7 * seen[0][1]
    assert (error(image, found) < 0.5 * error(image, start)).all()
    assert found.reflectance_map.min() >= 0 and found.reflectance_map.max() <= 1
    assert not any(getattr(found, name).requires_grad for name in FACTORS)
    assert not any(p.grad is not None for p in model.parameters())
    # Landmarks are held: they stay within two pixels.
    ids = model.face_model.landmarks
    assert (found.projected - start.projected)[:, ids, :2].abs().mean() < 2 * 2 / SIZE


@pytest.mark.parametrize("factor", ["reflectance", "illumination"])
def test_a_factor_that_has_a_weight_stays_near_the_estimate(model, photos, factor):
    image, truth = photos
    start = with_factors(model.face_model, truth, illumination=ambient_illumination().expand(2, -1))
    (name,) = (name for name in FACTORS if name.startswith(factor))
    alone = dict.fromkeys(FACTORS, 0.0) | {name: getattr(RefinementConfig(), name)}
    moved = []
    for weight in ({}, {f"{factor}_weight": 0.0}):
        found = refine(model, image, start, steps=60, config=RefinementConfig(**alone, **weight))
        assert (error(image, found) < error(image, start)).all()
        moved.append((getattr(found, name) - getattr(start, name)).norm())
    assert moved[0] < 0.8 * moved[1]


def test_hair_over_the_forehead_does_not_turn_the_light(model, photos):
    """Users have no mask: what has not the colour of the cheeks is left out by itself."""
    image, truth = photos
    brows = truth.projected[:, model.face_model.landmarks[17:27], 1].amax(1)
    rows = ((1 - brows) * SIZE / 2).long() - 1

    def light(hair: float, mask: torch.Tensor | None) -> torch.Tensor:
        worn = image.clone()
        for photo, row in zip(worn, rows):
            photo[:, :row] = hair
        return refine(model, worn, truth, mask, steps=5).illumination

    assert torch.equal(light(0.02, None), light(0.05, None))
    everything = torch.ones(2, 1, SIZE, SIZE)
    assert not torch.equal(light(0.02, everything), light(0.05, everything))


def test_each_photo_goes_its_own_way(model, photos):
    image, truth = photos
    start = with_factors(model.face_model, truth, illumination=ambient_illumination().expand(2, -1))
    first = {name: getattr(start, name)[:1] for name in FACTORS}
    alone = with_factors(model.face_model, start, **first)
    both = refine(model, image, start, steps=5)
    one = refine(model, image[:1], alone, steps=5)
    for name in FACTORS:
        torch.testing.assert_close(getattr(both, name)[:1], getattr(one, name), rtol=0, atol=1e-4)


def test_outside_the_mask_nothing_pulls(model, photos):
    """Spoilt pixels do not matter where the mask is 0, and do where it is not."""
    image, truth = photos
    spoilt = image.clone()
    spoilt[..., : SIZE // 2] = 1
    mask = torch.ones(2, 1, SIZE, SIZE)
    mask[..., : SIZE // 2] = 0
    kept = refine(model, image, truth, mask, steps=5)
    also = refine(model, spoilt, truth, mask, steps=5)
    pulled = refine(model, spoilt, truth, steps=5)
    assert torch.equal(kept.illumination, also.illumination)
    assert not torch.equal(kept.illumination, pulled.illumination)


def test_a_reconstruction_is_refined_and_says_so(model, tmp_path, capsys):
    reconstructor = Reconstructor(model, FaceDetector(EMBEDDED), "cpu", name="untrained")
    (face,) = reconstructor.reconstruct(PHOTO)
    better = reconstructor.refine(face, 15)
    assert better.photometric_error < face.photometric_error
    assert (face.refined, better.refined, reconstructor.refine(better, 1).refined) == (0, 15, 16)
    assert better.describe()["model"]["refinement_steps"] == 15
    assert better.crop == face.crop

    model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--device", "cpu", "--detector", "embedded"]
    common = ["reconstruct", str(PHOTO), "-o", str(tmp_path / "out"), *arguments]
    assert main([*common, "--refine", "15"]) == 0
    written = json.loads((tmp_path / "out/astronaut/cest/parameters.json").read_text())
    assert written["model"]["refinement_steps"] == 15
    assert written["photometric_error"] == pytest.approx(better.photometric_error, abs=0.2)
    capsys.readouterr()
    assert main([*common, "--refine", "-1"]) == 1
    assert "--refine -1 is less than nothing" in capsys.readouterr().err
