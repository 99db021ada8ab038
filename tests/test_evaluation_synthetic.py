"""Truth substituted for one factor at a time: no error of that factor, the others' as before."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cest.configuration import FaceEstimatorConfig
from cest.data import Frame, FrameBatch, read_frame
from cest.data.augmentation import Similarity
from cest.data.synthetic import AppearanceRanges, SyntheticClips
from cest.evaluation import methods as methods_module
from cest.evaluation.groups import TONE_GROUPS, yaw_group, yaw_of
from cest.evaluation.measurements import FIGURES
from cest.evaluation.methods import (
    Estimate,
    Refined,
    fit_landmarks,
    fit_light,
    landmark_fit,
    mean_face,
)
from cest.evaluation.metrics import photometric_error_255
from cest.evaluation.synthetic_truth import Truth, compare, evaluate_synthetic
from cest.geometry import ambient_illumination, project, rotate
from cest.modeling import FaceEstimator, FaceParameters
from cest.refinement import FACTORS, face_parameters
from cest.rendering import TexelMap, shade_surface, unwrap, vertex_normals

SIZE = 64


@pytest.fixture(scope="module")
def clips() -> SyntheticClips:
    return SyntheticClips(3, 11, 2, SIZE, AppearanceRanges.lambertian(yaw=40.0))


@pytest.fixture(scope="module")
def model(face_model) -> FaceEstimator:
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=SIZE, width=0.125)
    return FaceEstimator(config, face_model=face_model).eval()


@pytest.fixture(scope="module")
def case(clips, model):
    """A clip's batch, what the untrained model says of it, and the truth."""
    row = clips[0]
    frames = [
        Frame.prepare(*read_frame(row, i), Similarity.resize(SIZE, SIZE), SIZE) for i in range(2)
    ]
    batch = FrameBatch.stack([frames]).to("cpu")
    with torch.no_grad():
        estimate = model(batch.image)
    return batch, estimate, Truth.of(row, model.face_model, SIZE, "cpu")


def substitute(model, image, estimate, **factors: torch.Tensor) -> FaceParameters:
    """The estimate with other values for some of its factors, and what follows from them."""
    chosen = {name: getattr(estimate, name) for name in FACTORS} | factors
    return face_parameters(model.face_model, model.texel_map, image, **chosen)


# What a factor decides by itself.
ZERO = {
    "viewpoint": {"pose": 1e-3},
    "shape_coefficients": {"vertex": 1e-3, "vertex_scaled": 1e-3},
    "illumination": {"light_angle": 1e-3, "direction_angle": 1e-3},
    "reflectance_map": {"albedo": 1e-4, "albedo_relative": 1e-4, "albedo_deviation": 1e-4},
}


@pytest.mark.parametrize("factor", ZERO)
def test_a_true_factor_has_no_error_and_the_others_keep_theirs(case, model, factor):
    batch, estimate, truth = case
    before = compare(model.face_model, batch, estimate, truth)
    if factor == "reflectance_map":
        right = with_albedo(estimate, truth.reflectance_map)
    else:
        right = substitute(model, batch.image, estimate, **{factor: getattr(truth, factor)})
    after = compare(model.face_model, batch, right, truth)
    for figure, limit in ZERO[factor].items():
        assert after[figure].max() < limit
        if figure != "albedo_deviation":
            assert before[figure].min() > 1
    for other in ZERO.keys() - {factor}:
        for figure in ZERO[other]:
            if figure != "albedo_deviation":
                torch.testing.assert_close(after[figure], before[figure])


def with_albedo(estimate: FaceParameters, albedo: torch.Tensor) -> FaceParameters:
    """Another albedo, at its own size, so that nothing is lost by resizing."""
    size = albedo.shape[-1]
    larger = torch.nn.functional.interpolate(estimate.texture_visibility, (size, size))
    return replace(estimate, reflectance_map=albedo, texture_visibility=larger)


def test_the_whole_truth_has_no_error(case, model):
    """But for the camera, which the photometric error sees and nothing else does."""
    batch, estimate, truth = case
    given = {name: getattr(truth, name) for name in FACTORS if name != "reflectance_map"}
    right = with_albedo(substitute(model, batch.image, estimate, **given), truth.reflectance_map)
    figures = compare(model.face_model, batch, right, truth)
    assert figures["nme68"].max() < 1e-3
    assert figures["vertex"].max() < 1e-3 and figures["light_angle"].max() < 1e-3
    assert figures["cross_relight"].max() < 1e-3
    assert figures["albedo"].max() < 1e-3
    wrong = compare(model.face_model, batch, estimate, truth)
    for figure in ("nme68", "vertex", "albedo", "light_angle", "cross_relight", "photometric"):
        assert figures[figure].mean() < 0.6 * wrong[figure].mean(), figure


def test_pixels_outside_the_mask_do_not_count(case, model):
    batch, estimate, truth = case
    mask = batch.mask.clone()
    mask[..., : SIZE // 2] = 0
    image, rendering = batch.image.clone(), truth.rendering.clone()
    image[..., : SIZE // 2], rendering[..., : SIZE // 2] = 1, 0

    def figures(image, rendering, mask):
        changed = replace(batch, image=image, mask=mask), replace(truth, rendering=rendering)
        return compare(model.face_model, changed[0], estimate, changed[1])

    clean = figures(batch.image, truth.rendering, mask)
    spoilt = figures(image, rendering, mask)
    unmasked = figures(image, rendering, torch.ones_like(mask))
    for figure in ("photometric", "shading_explained", "cross_relight"):
        torch.testing.assert_close(spoilt[figure], clean[figure])
        assert (unmasked[figure] != clean[figure]).all(), figure


def test_texels_behind_a_thing_are_not_visible(model):
    """What the frames' masks leave out of the face, the truth leaves out of the map."""
    row = SyntheticClips(1, 5, 2, SIZE, AppearanceRanges.lambertian(medical_mask=1.0))[0]
    truth = Truth.of(row, model.face_model, SIZE, "cpu")
    masks = np.stack([read_frame(row, i)[2] for i in range(2)])
    masks = torch.from_numpy(masks)[:, None].float()
    texels = TexelMap.build(model.face_model.uv, model.face_model.triangles, 256)
    normals = vertex_normals(truth.vertices, model.face_model.triangles)
    shown, in_sight = unwrap(
        masks,
        project(truth.vertices, truth.viewpoint),
        rotate(normals, truth.viewpoint),
        truth.surface.fragments,
        texels,
    )
    behind = (in_sight > 0) & (shown == 0)
    assert behind.sum() > 0.1 * in_sight.sum()
    # But for the rim, where pixels are larger than texels and one level's outline is not another's.
    assert truth.visibility[behind].mean() < 0.02
    assert truth.visibility[shown == 1].mean() > 0.95


def test_every_figure_of_a_run(clips, model, face_model, monkeypatch):
    monkeypatch.setattr(methods_module, "MEAN_ALBEDO_PEOPLE", 2)
    methods = {
        "model": Estimate(model),
        "mean": mean_face(face_model, SIZE),
        "fit": landmark_fit(face_model, SIZE),
    }
    blind = {"blind": lambda photo, box: None}
    results = evaluate_synthetic(methods, clips, dense_frames=2, shapes=blind)
    assert np.isnan(results.values["blind"]["nme68"]).sum() == 6
    assert len(results.frames) == len(set(results.frames)) == 6
    assert set(results.groups["skin tone"]) <= set(TONE_GROUPS)
    assert len(results.groups["yaw"]) == 6
    for name in methods:
        for figure, values in results.values[name].items():
            per = {"albedo_deviation": 3, "dense": 2, "dense_scaled": 2, "converged": 2}
            assert len(values) == per.get(figure, 6)
            assert figure in FIGURES
    # Given the landmarks, a fit has the pose; the untrained model has not.
    means = {name: results.mean(name, "nme51") for name in methods}
    assert means["fit"] < means["mean"] < means["model"]
    assert results.mean("fit", "dense") < 5
    again = evaluate_synthetic({"model": methods["model"]}, clips, dense_frames=0)
    assert again.sha256 == results.sha256
    assert again.values["model"]["albedo"] == results.values["model"]["albedo"]
    # The hash is of the truth, too.
    for name in ("illumination", "viewpoint", "shape_coefficients", "landmarks"):
        row = clips[0] | {name: np.asarray(clips[0][name]) + 1e-3}
        other = evaluate_synthetic({"model": methods["model"]}, [row, clips[1], clips[2]], 0)
        assert other.sha256 != results.sha256, name


def test_clips_without_truth_or_partner_are_refused(model):
    methods = {"model": Estimate(model)}
    with pytest.raises(ValueError, match="with their truth"):
        evaluate_synthetic(methods, SyntheticClips(1, 0, 2, SIZE, truth=False))
    with pytest.raises(ValueError, match="two or more"):
        evaluate_synthetic(methods, SyntheticClips(1, 0, 1, SIZE))
    with pytest.raises(ValueError, match="no synthetic clip"):
        evaluate_synthetic(methods, [])


def test_another_face_model_has_no_truth(model, face_model, clips):
    class Foreign(Estimate):
        def __init__(self) -> None:
            super().__init__(model)
            self.face_model = replace(face_model, name="bfm")

    with pytest.raises(ValueError, match="the face model bfm, but synthetic clips"):
        evaluate_synthetic({"Foreign": Foreign()}, clips)


def test_the_fit_does_not_see_the_datas_mask(case, model):
    batch, _, _ = case
    fit = Refined(model, 2)
    found = [fit(batch.image, batch.landmarks, mask) for mask in (batch.mask, 0 * batch.mask)]
    torch.testing.assert_close(found[0].reflectance_map, found[1].reflectance_map)
    torch.testing.assert_close(found[0].illumination, found[1].illumination)


def test_a_face_outside_the_picture_is_no_answer(case, model):
    batch, estimate, truth = case
    viewpoint = estimate.viewpoint + torch.tensor([0, 0, 0, 0, 9.0, 0, 0])
    away = substitute(model, batch.image, estimate, viewpoint=viewpoint)
    figures = compare(model.face_model, batch, away, truth)
    for figure in ("photometric", "reflectance_asymmetry", "albedo_deviation"):
        assert figures[figure].isnan().all(), figure
    assert figures["vertex"].isfinite().all() and figures["nme68"].min() > 100


def test_landmark_fit_recovers_pose_and_shape_of_a_known_face(face_model):
    generator = torch.Generator().manual_seed(0)
    coefficients = 0.7 * torch.randn(1, face_model.n_coefficients, generator=generator)
    viewpoint = torch.tensor([[-0.3, 0.1, 0.4, -0.2, 0.1, -0.05, 0.0]])
    projected = project(face_model.vertices(coefficients), viewpoint)
    landmarks = projected[0, face_model.landmarks, :2]

    def distance(fit_shape):
        found = fit_landmarks(face_model, landmarks, fit_shape)
        found_viewpoint, found_coefficients = (value[None].float() for value in found)
        again = project(face_model.vertices(found_coefficients), found_viewpoint)
        apart = (again[0, face_model.landmarks, :2] - landmarks).norm(dim=-1).mean()
        return apart.item(), found_viewpoint

    fitted, pose = distance(True)
    posed, _ = distance(False)
    assert fitted < 0.01 < posed
    # Three rotations of a tenth of a radian would be off by 0.17.
    assert (pose[0, :6] - viewpoint[0, :6]).abs().max() < 0.1


@pytest.mark.parametrize(("degrees", "group"), [(-10, 0), (29, 0), (-31, 1), (75, 2), (120, 2)])
def test_yaw_groups(degrees, group):
    bins = ("[0, 30)", "[30, 60)", "[60, 90)")
    viewpoint = [0, 0, math.radians(degrees), 0, 0, 0, 0]
    assert yaw_of(viewpoint) == pytest.approx(degrees)
    assert yaw_group(yaw_of(viewpoint)) == bins[group]


def test_light_fit_finds_the_light_of_a_rendering(case, model, monkeypatch):
    monkeypatch.setattr(methods_module, "LIGHT_RIDGE", 1e-6)
    batch, estimate, truth = case
    posed = substitute(
        model,
        batch.image,
        estimate,
        **{name: getattr(truth, name) for name in FACTORS},
    )
    shown = truth.rendering.clamp(0, 1)
    found = fit_light(truth.rendering, posed, torch.ones_like(batch.mask))
    rendered, _ = shade_surface(posed.surface, posed.reflectance_map, found)
    assert photometric_error_255(shown, rendered, posed.surface.coverage).max() < 1
    flat = ambient_illumination(0.8).expand(2, -1)
    rendered, _ = shade_surface(posed.surface, posed.reflectance_map, flat)
    assert photometric_error_255(shown, rendered, posed.surface.coverage).min() > 3
