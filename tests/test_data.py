import numpy as np
import pytest
import torch

from cest.data import ClipDraws, FrameBatch, Recipe, StepSampler, load_clips, read_frame
from cest.data.augmentation import Relighter, Similarity, fit_weak_perspective
from cest.data.face_region import face_region
from cest.evaluation.validation import evaluate, prepared
from cest.face_model import MIRRORED_LANDMARKS
from clip_factory import write_clips


@pytest.fixture(scope="module")
def clip_set(face_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder / "clips.parquet", face_model, clips=4, frames=3)
    write_clips(folder / "stills.parquet", face_model, clips=5, frames=1, seed=1)
    return folder


@pytest.fixture(scope="module")
def draws(clip_set, face_model):
    recipe = Recipe(clips=2, frames=2, stills=2, relight=0.3)
    clips, stills = (load_clips(str(clip_set / f"{n}.parquet")) for n in ("clips", "stills"))
    return ClipDraws(clips, stills, recipe, 64, Relighter(face_model))


def sampler(draws, start, stop, seed=0):
    return StepSampler(draws.recipe, 4, 5, seed, start, stop)


def test_batches_are_grouped_and_of_the_promised_shape(draws):
    keys = next(iter(sampler(draws, 0, 1)))
    batch = FrameBatch.stack([draws[key] for key in keys])
    assert batch.image.shape == (8, 3, 64, 64) and batch.mask.shape == (8, 1, 64, 64)
    assert batch.clip.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.image.min() >= 0 and batch.image.max() <= 1
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.landmarks.abs().max() < 1.5


def test_a_batch_depends_on_seed_and_step_alone(draws):
    whole = list(sampler(draws, 0, 6))
    assert list(sampler(draws, 4, 6)) == whole[4:]
    assert list(sampler(draws, 0, 6, seed=1)) != whole
    a, b = (FrameBatch.stack([draws[key] for key in whole[5]]) for _ in range(2))
    assert torch.equal(a.image, b.image) and torch.equal(a.landmarks, b.landmarks)


def test_missing_column_and_missing_file_are_one_sentence(tmp_path, clip_set):
    rows = load_clips(str(clip_set / "stills.parquet")).remove_columns("landmarks")
    rows.to_parquet(str(tmp_path / "bad.parquet"))
    with pytest.raises(ValueError, match="landmarks"):
        load_clips(str(tmp_path / "bad.parquet"))
    with pytest.raises(ValueError, match="No clips could be read"):
        load_clips(str(tmp_path / "absent.parquet"))


@pytest.mark.parametrize("mirrored", [False, True])
def test_augmentation_moves_image_and_landmarks_together(mirrored):
    rng = np.random.default_rng(0)
    image = np.zeros((256, 256, 3), np.uint8)
    points = rng.uniform(90, 166, (68, 2)).astype(np.float32)
    warp = Similarity.random(rng, 256, 128, 20, 0.1, 0.05, mirrored)
    # One white blob at landmark i; after the warp its centre of mass is where landmark i went.
    i = 36
    yy, xx = np.mgrid[:256, :256] + 0.5
    image[...] = (
        255 * np.exp(-((xx - points[i, 0]) ** 2 + (yy - points[i, 1]) ** 2) / 72)[..., None]
    )
    warped = warp.image(image, 128)[..., 0].astype(float)
    yy, xx = np.mgrid[:128, :128] + 0.5
    centre = np.array([(warped * xx).sum(), (warped * yy).sum()]) / warped.sum()
    moved = warp.landmarks(points, 256)
    index = i if not mirrored else int(np.flatnonzero(i == MIRRORED_LANDMARKS)[0])
    # Rounding to bytes moves a centre of mass by well under a tenth of a pixel.
    np.testing.assert_allclose(centre, moved[index], atol=0.1)


def test_landmark_mirror_is_an_involution(face_model):
    assert (MIRRORED_LANDMARKS[MIRRORED_LANDMARKS] == np.arange(68)).all()
    ids = face_model.landmarks
    assert torch.equal(face_model.mirror[ids], ids[torch.from_numpy(MIRRORED_LANDMARKS)])


def test_weak_perspective_fit_recovers_a_pose():
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(1)
    points = rng.normal(size=(51, 3))
    rotation = Rotation.from_rotvec([0.2, -0.5, 0.1]).as_matrix()
    target = 0.7 * (points @ rotation.T)[:, :2] + (0.1, -0.2)
    scale, found, shift = fit_weak_perspective(points, target)
    np.testing.assert_allclose(found, rotation, atol=1e-9)
    np.testing.assert_allclose((scale, *shift), (0.7, 0.1, -0.2), atol=1e-9)


def test_relighting_changes_light_only(clip_set, face_model):
    """The ratio of a relit to the original image is one smooth grey factor a pixel."""
    image, landmarks = read_frame(load_clips(str(clip_set / "stills.parquet"))[0], 0)
    relit = Relighter(face_model)(image, landmarks, np.random.default_rng(0), 0.4)
    before, after = image.astype(float), relit.astype(float)
    usable = (before.min(-1) > 40) & (after.max(-1) < 250)
    ratio = (after / before.clip(1))[usable]
    # Both are whole numbers: a ratio of values over 40 is known to 1 / 40 of itself.
    spread = np.ptp(ratio, axis=-1) / ratio.mean(-1)
    assert (spread < 2 / 40).all()
    assert ratio.std() > 0.05


def test_face_region_leaves_hair_out():
    rng = np.random.default_rng(0)
    image = np.full((128, 128, 3), (200, 150, 120), np.float64)
    landmarks = np.zeros((68, 2), np.float32)
    turn = np.linspace(np.pi, 0, 17)
    landmarks[:17] = 64 + 40 * np.column_stack((np.cos(turn), np.sin(turn))) + (0, -2)
    landmarks[17:22] = np.column_stack((np.linspace(32, 56, 5), np.full(5, 48)))
    landmarks[22:27] = np.column_stack((np.linspace(72, 96, 5), np.full(5, 48)))
    landmarks[27:31] = np.column_stack((np.full(4, 64), np.linspace(52, 68, 4)))
    landmarks[31:36] = np.column_stack((np.linspace(58, 70, 5), np.full(5, 72)))
    landmarks[36:42] = (46, 54)
    landmarks[42:48] = (82, 54)
    landmarks[48:] = (64, 86)
    image[:40] = (40, 30, 25)  # a fringe
    image += rng.normal(0, 3, image.shape)
    region = face_region(image.clip(0, 255).astype(np.uint8), landmarks)
    assert region[:36].mean() < 0.01
    assert region[45:90, 45:85].mean() > 0.95
    assert region[120:].sum() == 0


def test_evaluation_counts_every_frame_once(clip_set, tiny_model):
    figures = evaluate(tiny_model, load_clips(str(clip_set / "clips.parquet")), batch_size=5)
    assert figures["frames"] == 12
    assert all(np.isfinite(value) for value in figures.values())
    assert not tiny_model.training


def test_prepared_frame_is_the_whole_frame_resized(clip_set):
    image, landmarks = read_frame(load_clips(str(clip_set / "stills.parquet"))[0], 0)
    same, _, points = prepared(image, landmarks, 64)
    assert np.array_equal(same, image)
    np.testing.assert_allclose(points, landmarks)
    _, _, half = prepared(image, landmarks, 32)
    np.testing.assert_allclose(half, landmarks / 2)
