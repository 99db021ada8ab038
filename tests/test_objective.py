import numpy as np
import pytest
import torch

from cest.objective import (
    ObjectiveConfig,
    choose_partners,
    clip_mean,
    landmark_error,
    objective,
    photometric_error,
)


def test_photometric_error_by_hand():
    image = torch.zeros(1, 3, 2, 2)
    rendered = torch.tensor([[[[0.1, 0.2], [0.9, 0.9]]]]).expand(1, 3, 2, 2)
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    torch.testing.assert_close(photometric_error(image, rendered, mask), torch.tensor([0.15]))
    nothing = photometric_error(image, rendered, torch.zeros_like(mask))
    torch.testing.assert_close(nothing, torch.tensor([0.0]))


def test_an_outlier_counts_but_does_not_pull():
    image = torch.zeros(1, 3, 4, 4)
    rendered = torch.full((1, 3, 4, 4), 0.01)
    rendered[..., 0, 0] = 0.9
    rendered.requires_grad_()
    error = photometric_error(image, rendered, torch.ones(1, 1, 4, 4), outlier_factor=4.0)
    error.backward()
    assert (rendered.grad[..., 0, 0] == 0).all()
    assert (rendered.grad[..., 1, 1] > 0).all()
    mean = (15 * 0.01 + 0.9) / 16
    torch.testing.assert_close(error.detach(), torch.tensor([(15 * 0.01 + 4 * mean) / 16]))


def test_landmark_error_weighs_the_jaw():
    projected = torch.zeros(1, 68, 3)
    landmarks = torch.zeros(1, 68, 2)
    landmarks[0, 0, 0] = 1.0  # one jaw point off by 1 in x
    error = landmark_error(projected, landmarks, torch.arange(68), jaw_weight=0.5)
    torch.testing.assert_close(error, torch.tensor([0.5 * 0.5 / (17 * 0.5 + 51)]))


def test_partners_are_others_of_the_same_clip_and_uniform():
    rng = np.random.default_rng(0)
    draws = np.stack([choose_partners(3, rng) for _ in range(600)])
    assert (draws != np.arange(3)).all() and draws.min() == 0 and draws.max() == 2
    # Frame 0 takes 1 or 2 with equal chance: within five standard deviations of 300.
    assert abs((draws[:, 0] == 1).sum() - 300) < 5 * 600**0.5 / 2
    assert choose_partners(1, rng).tolist() == [0]


def test_clip_mean_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 20.0]])
    means = clip_mean(values, torch.tensor([0, 0, 2]))
    assert means.tolist() == [[2.0, 3.0], [2.0, 3.0], [10.0, 20.0]]


@pytest.mark.parametrize("partner", ["random", "average"])
@pytest.mark.parametrize("constraints", ["both", "consistency", "symmetry", "none"])
def test_constraints_choose_the_reflectances(tiny_model, constraints, partner, monkeypatch):
    import cest.objective as module

    image = torch.rand(4, 3, 64, 64)
    estimate = tiny_model(image)
    used = []
    original = module.shade_surface

    def spy(surface, reflectance, illumination):
        used.append(reflectance)
        return original(surface, reflectance, illumination)

    monkeypatch.setattr(module, "shade_surface", spy)
    partners = torch.tensor([1, 0, 3, 2])
    objective(
        estimate,
        image,
        torch.ones(4, 1, 64, 64),
        torch.zeros(4, 68, 2),
        torch.tensor([0, 0, 1, 1]),
        partners,
        tiny_model.face_model.landmarks,
        ObjectiveConfig(constraints=constraints, partner=partner),
    )
    own = estimate.reflectance_map
    shared = (own + own[partners]) / 2 if partner == "average" else own[partners]
    expected = {
        "both": [shared, shared.flip(-1)],
        "consistency": [shared],
        "symmetry": [own, own.flip(-1)],
        "none": [own],
    }[constraints]
    assert len(used) == 1 and torch.equal(used[0], torch.cat(expected, dim=1))


def test_loss_is_the_weighted_sum_of_its_terms(tiny_model):
    image = torch.rand(2, 3, 64, 64)
    config = ObjectiveConfig(landmark_weight=3.0, regularisation_weight=0.5)
    terms = objective(
        tiny_model(image),
        image,
        torch.ones(2, 1, 64, 64),
        torch.rand(2, 68, 2),
        torch.tensor([0, 0]),
        torch.tensor([1, 0]),
        tiny_model.face_model.landmarks,
        config,
    )
    torch.testing.assert_close(
        terms["loss"],
        2 * terms["photometric"] + 3 * terms["landmarks"] + 0.5 * terms["regularisation"],
    )


def test_unknown_constraints_are_refused():
    with pytest.raises(ValueError, match="constraints"):
        ObjectiveConfig(constraints="some")
