"""Landmark and photometric errors and their curves on constructed cases."""

import csv
import math
import sys

import numpy as np
import pytest
import torch

from cest.evaluation.disentanglement import (
    albedo_deviation,
    albedo_error,
    albedo_level,
    albedo_similarity,
)
from cest.evaluation.metrics import (
    asymmetry,
    directional_share,
    normalised_mean_error,
    one_sidedness,
    photometric_error_255,
    scale_invariant_difference,
    shading_explained,
)
from cest.evaluation.plots import (
    area_under_curve,
    cumulative_errors,
    plot_curves,
    write_curves,
)
from cest.face_model import MIRRORED_LANDMARKS


@pytest.fixture
def landmarks(face_model) -> torch.Tensor:
    return face_model.mean[face_model.landmarks, :2][None]


def box(landmarks: torch.Tensor) -> torch.Tensor:
    return (landmarks.amax(1) - landmarks.amin(1)).prod(-1).sqrt()


def test_nme_of_a_copy_and_of_a_shifted_copy(landmarks):
    assert normalised_mean_error(landmarks, landmarks) == 0
    shifted = landmarks + torch.tensor([0.03, -0.04])
    expected = 100 * 0.05 / box(landmarks)
    torch.testing.assert_close(normalised_mean_error(shifted, landmarks), expected)
    torch.testing.assert_close(normalised_mean_error(shifted, landmarks, inner=True), expected)


def test_nme_does_not_depend_on_the_unit(landmarks):
    noisy = landmarks + 0.02 * torch.randn(landmarks.shape, generator=torch.Generator())
    torch.testing.assert_close(
        normalised_mean_error(100 * noisy, 100 * landmarks),
        normalised_mean_error(noisy, landmarks),
    )


def test_nme_of_a_scaled_copy_grows_with_the_scale(landmarks):
    centred = landmarks - landmarks.mean(1, keepdim=True)
    errors = [normalised_mean_error(s * centred, centred).item() for s in (1, 1.1, 1.2, 1.4)]
    expected = 100 * 0.1 * centred.norm(dim=-1).mean() / box(centred)
    assert errors[1] == pytest.approx(expected.item(), rel=1e-4)
    np.testing.assert_allclose(np.array(errors[2:]) / errors[1], [2, 4], rtol=1e-4)


def test_nme_of_swapped_landmarks_and_of_a_mirrored_face(landmarks):
    swapped = landmarks.clone()
    swapped[:, [36, 45]] = swapped[:, [45, 36]]
    apart = (landmarks[:, 36] - landmarks[:, 45]).norm()
    expected = 100 * 2 * apart / 68 / box(landmarks)
    torch.testing.assert_close(normalised_mean_error(swapped, landmarks), expected)
    mirrored = landmarks * torch.tensor([-1.0, 1.0])
    assert normalised_mean_error(mirrored, landmarks) > 30
    renamed = mirrored[:, MIRRORED_LANDMARKS]
    assert normalised_mean_error(renamed, landmarks) < 1e-3


def test_photometric_error_in_the_papers_unit():
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    region = torch.zeros(2, 1, 8, 8)
    region[..., :4] = 1
    assert photometric_error_255(image, image, region).max() == 0
    brighter = image + 10 / 255
    brighter[..., 4:] = 0  # outside the region: not counted
    torch.testing.assert_close(
        photometric_error_255(image, brighter, region), torch.full((2,), 10.0)
    )
    # What is shown is clipped: an overexposed rendering of white is right.
    white = torch.ones(1, 3, 8, 8)
    assert photometric_error_255(white, 1.5 * white, region[:1]) == 0
    assert photometric_error_255(image, image + 20 / 255, region).mean() == pytest.approx(20)


def test_scale_invariant_difference_is_blind_to_scale_only():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    region = torch.ones(1, 1, 8, 8)
    assert scale_invariant_difference(image, 0.3 * image, region) < 1e-4
    assert scale_invariant_difference(image, image + 0.3, region) > 5


def test_directional_share_of_flat_light_is_zero():
    coverage = torch.ones(1, 1, 8, 8)
    assert directional_share(0.7 * coverage, coverage) < 1e-6
    half = coverage.clone()
    half[..., :4] = 3.0
    # Mean 2, deviation 1.
    torch.testing.assert_close(directional_share(half, coverage), torch.tensor([0.5]))


@pytest.mark.parametrize(
    "figure",
    [
        photometric_error_255,
        scale_invariant_difference,
        albedo_error,
        albedo_similarity,
        lambda a, b, region: asymmetry(a, region),
        lambda a, b, region: one_sidedness(a, region),
        lambda a, b, region: shading_explained(a, b[:, :1], region),
        lambda a, b, region: albedo_level(a, region),
        lambda a, b, region: directional_share(a[:, :1], region),
        lambda a, b, region: torch.stack(
            [
                albedo_deviation(torch.stack((a[i], b[i])), region[i].expand(2, -1, -1, -1))
                for i in range(2)
            ]
        ),
    ],
)
def test_an_empty_region_is_no_answer_and_not_a_perfect_one(figure):
    a, b = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    region = torch.ones(2, 1, 8, 8)
    region[1] = 0
    seen, outside = figure(a, b, region)
    assert seen.isfinite() and outside.isnan()


@pytest.mark.parametrize("hidden", [0, 32])
def test_light_baked_into_one_side_is_one_sided(hidden):
    """Texels beyond `hidden` on either side are not seen, and may hold anything."""
    size, strength = 128, 0.2
    seen = torch.ones(1, 1, size, size)
    seen[..., :hidden] = 0
    baked = torch.full((1, 3, size, size), 0.5)
    baked[..., : size // 2] *= 1 - strength
    baked[..., size // 2 :] *= 1 + strength
    baked[..., :hidden] = 7
    # The blur turns the step into erf(x / √2 σ), whose mean over a half of n σ is 1 - √(2/π) / n.
    half = (size // 2 - hidden) / (size / 16)
    expected = 255 * 0.5 * 2 * strength * (1 - math.sqrt(2 / math.pi) / half)
    assert one_sidedness(baked, seen).item() == pytest.approx(expected, rel=0.01)
    even = (baked + baked.flip(-1)) / 2
    assert one_sidedness(even, seen) < 1e-3


def test_detail_that_differs_from_side_to_side_is_hardly_one_sided():
    strength, whole = 0.2, torch.ones(1, 1, 128, 128)
    row = torch.arange(128)
    checkers = 0.5 * (1 + strength * (-1.0) ** (row + row[:, None])).expand(1, 3, -1, -1)
    full = 255 * 0.5 * 2 * strength
    assert asymmetry(checkers, whole).item() == pytest.approx(full, rel=1e-3)
    assert one_sidedness(checkers, whole) < 0.01 * full
    # Of noise, a blur of σ texels leaves one part in 2 √π σ, and twice that at the rim at most.
    generator = torch.Generator().manual_seed(0)
    noise = 0.5 + 0.1 * torch.randn(1, 3, 128, 128, generator=generator)
    left = one_sidedness(noise, whole) / asymmetry(noise, whole)
    assert left < 2 / (2 * math.sqrt(math.pi) * 128 / 16)


def test_curve_by_hand():
    thresholds, share = cumulative_errors(np.array([1.0, 2.0, 3.0, np.nan]), limit=4)
    assert (thresholds[0], thresholds[-1]) == (0, 4)
    at = dict(zip(thresholds.round(6).tolist(), share.tolist()))
    # "A point at (4, 63) means 63 % of images have NME less than 4."
    assert [at[x] for x in (0, 1, 1.02, 2.02, 4)] == [0, 0, 25, 50, 75]
    with pytest.raises(ValueError, match="no image"):
        cumulative_errors(np.array([]), 1)


def test_area_under_the_curve():
    assert area_under_curve(np.zeros(5), 10) == 100
    assert area_under_curve(np.full(5, 20.0), 10) == 0
    assert area_under_curve(np.array([2.5, 7.5, np.nan, np.inf]), 10) == 25
    errors = np.random.default_rng(0).gamma(3, 1, 500)
    thresholds, share = cumulative_errors(errors, 8)
    assert area_under_curve(errors, 8) == pytest.approx(
        np.trapezoid(share, thresholds) / 8, abs=0.2
    )
    assert area_under_curve(errors + 1, 8) < area_under_curve(errors, 8)


def test_curves_as_csv_and_plot(tmp_path):
    curves = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, np.nan])}
    write_curves(tmp_path / "c.csv", curves, 4)
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["error", "a", "b"] and len(rows) == 202
    assert [float(value) for value in rows[-1]] == [4, 100, 50]
    pytest.importorskip("matplotlib")
    plot_curves(tmp_path / "c.png", curves, 4, "NME, %")
    plot_curves(tmp_path / "c.svg", curves, 4, "NME, %")
    assert (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"
    assert "svg" in (tmp_path / "c.svg").read_text()[:500]


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'cest\[eval\]'"):
        plot_curves(tmp_path / "c.png", {"a": np.ones(2)}, 4, "NME, %")
