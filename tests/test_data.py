import io
import json
import shutil
import threading
from collections import Counter
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from cest.data import Batches, Frame, FrameBatch, Recipe, StreamedClips, load_clips, read_frame
from cest.data.augmentation import Relighter, Similarity, fit_weak_perspective
from cest.data.synthetic import SyntheticClips
from cest.evaluation import evaluate
from cest.face_model import MIRRORED_LANDMARKS
from cest.face_region import face_region
from clip_factory import write_clips


@pytest.fixture(scope="module")
def clip_set(face_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder / "clips.parquet", face_model, clips=4, frames=3)
    write_clips(folder / "stills.parquet", face_model, clips=5, frames=1, seed=1)
    return folder


RECIPE = Recipe(clips=2, frames=2, stills=2, relight=0.3)


@pytest.fixture(scope="module")
def batches(clip_set, face_model):
    """Batches of 64 pixels over the clip set; the arguments are those of Batches."""
    sources = {name: load_clips(str(clip_set / f"{name}.parquet")) for name in ("clips", "stills")}
    relighter = Relighter(face_model)

    def build(recipe=RECIPE, sources=sources, **arguments):
        return [batch for batch, _ in Batches(sources, recipe, 64, relighter, **arguments)]

    return build


def same(a: FrameBatch, b: FrameBatch) -> bool:
    """Neither has truth: these sets are none of rendered clips."""
    names = [name for name in vars(a) if name != "truth"]
    assert a.truth is b.truth is None
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def joined(parts: list[FrameBatch], name: str) -> torch.Tensor:
    """A field over several parts, those of clips first, as a whole batch has them."""
    groups = [getattr(part, name)[part.clip == clip] for clip in (0, 1) for part in parts]
    return torch.cat(groups)


def test_batches_are_grouped_and_of_the_promised_shape(batches):
    (raw,) = batches(stop=1)
    assert raw.image.dtype == raw.mask.dtype == torch.uint8
    batch = raw.to(torch.device("cpu"))
    assert batch.image.shape == (8, 3, 64, 64) and batch.mask.shape == (8, 1, 64, 64)
    assert batch.clip.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.partner.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert batch.image.min() >= 0 and 0.5 < batch.image.max() <= 1
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0}
    assert batch.landmarks.abs().max() < 1.5
    assert len(batch.relit) == len(batch.pose) == len(batch.light) == len(batch.exposure)


def test_a_batch_depends_on_seed_and_step_alone(batches):
    whole = batches(stop=6)
    assert len(whole) == 6
    for batch, again in zip(whole[4:], batches(start=4, stop=6, threads=3), strict=True):
        assert same(batch, again)
    assert not same(whole[0], whole[1])
    assert not same(whole[0], batches(stop=1, seed=1)[0])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_shares_of_a_batch_make_up_the_batch(batches, accumulation):
    """Two processes, or two accumulated parts, draw what one process draws at once."""
    whole = batches(stop=3)
    processes = 2 // accumulation
    shares = [
        batches(stop=3, process=p, processes=processes, accumulation=accumulation)
        for p in range(processes)
    ]
    for step, batch in enumerate(whole):
        parts = [
            share[accumulation * step + part] for share in shares for part in range(accumulation)
        ]
        for name in ("image", "mask", "landmarks"):
            assert torch.equal(joined(parts, name), getattr(batch, name))


def test_a_batch_that_cannot_be_shared_is_refused(batches):
    with pytest.raises(ValueError, match="multiple of 3"):
        batches(stop=1, processes=3)
    with pytest.raises(ValueError, match="takes clips, but none"):
        batches(stop=1, sources={})


def test_video_pairing_draws_from_the_whole_video(batches, clip_set):
    """Two clips of three frames are one video here: six frames of it exist, four are drawn."""
    rows = load_clips(str(clip_set / "clips.parquet"))
    recipe = Recipe(clips=1, frames=6, pairing="video", degrees=0, scale=0, shift=0)
    (batch,) = batches(recipe, {"clips": rows}, stop=1)
    drawn = {image.numpy().tobytes() for image in batch.image}
    videos = {}
    for row in rows:
        for i in range(3):
            for flip in (1, -1):
                image = torch.from_numpy(read_frame(row, i)[0].copy()).permute(2, 0, 1)
                key = image.flip(-1) if flip < 0 else image
                videos.setdefault((row["video_id"], flip), set()).add(key.numpy().tobytes())
    assert len(drawn) == 6 and any(drawn == frames for frames in videos.values())
    with pytest.raises(ValueError, match="video_id"):
        batches(recipe, {"clips": rows.remove_columns("video_id")}, stop=1)


def test_a_lonely_frame_is_refused_where_two_are_needed(batches, clip_set):
    stills = load_clips(str(clip_set / "stills.parquet"))
    with pytest.raises(ValueError, match=r"Clip clip\d has 1 frame"):
        batches(Recipe(clips=2, frames=2), {"clips": stills}, stop=1, least=2)


def test_consistency_of_one_drawn_frame_is_refused(batches):
    with pytest.raises(ValueError, match=r"recipe\.frames is 1"):
        batches(Recipe(clips=2, frames=1), stop=1, least=2)


def test_a_short_clip_gives_each_frame_as_often_as_another(batches, clip_set):
    """Three frames drawn as six: every one twice."""
    sources = {"clips": load_clips(str(clip_set / "clips.parquet"))}
    recipe = Recipe(clips=1, frames=6, degrees=0, scale=0, shift=0)
    for batch in batches(recipe, sources, stop=3):
        counts = Counter(image.numpy().tobytes() for image in batch.image)
        assert sorted(counts.values()) == [2, 2, 2]


def test_masks_that_are_not_needed_are_not_made(batches):
    (batch,) = batches(stop=1, masks=False)
    (with_masks,) = batches(stop=1)
    assert not batch.mask.any() and torch.equal(batch.image, with_masks.image)


def test_leaving_the_loop_early_stops_the_readers(batches, clip_set, face_model):
    sources = {"clips": load_clips(str(clip_set / "clips.parquet"))}
    before = threading.active_count()
    iterator = iter(Batches(sources, Recipe(clips=2, frames=2), 64, stop=1000, threads=2))
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    assert threading.active_count() == before


def test_what_is_no_clip_set_is_one_sentence(tmp_path, clip_set):
    rows = load_clips(str(clip_set / "stills.parquet")).remove_columns("landmarks")
    rows.to_parquet(str(tmp_path / "bad.parquet"))
    damaged = (clip_set / "stills.parquet").read_bytes()[:-100]
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    for name, complaint in (
        ("bad", "lacks the column.s. landmarks"),
        ("absent", "No clips could be read"),
        ("damaged", "No clips could be read"),
    ):
        for streaming in (False, True):
            with pytest.raises(ValueError, match=complaint):
                rows = load_clips(str(tmp_path / f"{name}.parquet"), streaming=streaming)
                StreamedClips(rows).take(1)
    with pytest.raises(ValueError, match="has no column 'points'"):
        load_clips(str(clip_set / "stills.parquet"), {"landmarks": "points"})


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_handed_on_as_they_are_stored(tmp_path, clip_set, streaming):
    """Decoding and encoding them again would cost time, and a JPEG its quality."""
    rows = datasets.Dataset.from_parquet(str(clip_set / "clips.parquet"))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, format="JPEG", quality=37)
    column = [[{"bytes": buffer.getvalue(), "path": None}]] * len(rows)
    kind = datasets.List(datasets.Image())
    rows = rows.remove_columns("frames").add_column("pictures", column, feature=kind)
    rows.to_parquet(str(tmp_path / "jpeg.parquet"))
    read = load_clips(str(tmp_path / "jpeg.parquet"), {"frames": "pictures"}, streaming)
    taken = StreamedClips(read).take(4) if streaming else list(read)
    assert [row["frames"][0]["bytes"] for row in taken] == [buffer.getvalue()] * 4


def test_columns_of_other_names_are_mapped(tmp_path, clip_set):
    path = str(tmp_path / "foreign.parquet")
    datasets.Dataset.from_parquet(str(clip_set / "stills.parquet")).rename_columns(
        {"landmarks": "lm68", "frames": "pictures"}
    ).to_parquet(path)
    with pytest.raises(ValueError, match="lacks the column"):
        load_clips(path)
    rows = load_clips(path, {"landmarks": "lm68", "frames": "pictures"})
    ours = load_clips(str(clip_set / "stills.parquet"))
    assert np.array_equal(read_frame(rows[0], 0)[0], read_frame(ours[0], 0)[0])


def test_folders_of_parquet_and_of_images(tmp_path, clip_set):
    ours = load_clips(str(clip_set / "clips.parquet"))
    (tmp_path / "parquet" / "deep").mkdir(parents=True)
    shutil.copy(clip_set / "clips.parquet", tmp_path / "parquet" / "deep" / "x.parquet")
    folder = tmp_path / "images"
    folder.mkdir()
    with open(folder / "metadata.jsonl", "w") as metadata:
        for row in ours:
            names = [f"{row['clip_id']}_{i}.png" for i in range(3)]
            for name, frame in zip(names, row["frames"]):
                (folder / name).write_bytes(frame["bytes"])
            line = {"clip_id": row["clip_id"], "frames_file_names": names}
            metadata.write(json.dumps(line | {"landmarks": row["landmarks"]}) + "\n")
    with pytest.raises(ValueError, match="cannot be streamed in parts"):
        load_clips(str(folder), streaming=True)
    for source, streaming in ((tmp_path / "parquet", False), (tmp_path / "parquet", True),
                              (folder, False)):  # fmt: skip
        rows = {row["clip_id"]: row for row in load_clips(str(source), streaming=streaming)}
        assert len(rows) == 4
        for row in ours:
            for i in range(3):
                for found, expected in zip(read_frame(rows[row["clip_id"]], i), read_frame(row, i)):
                    assert np.array_equal(found, expected)


def test_frames_that_cannot_be_used_are_named(clip_set):
    row = load_clips(str(clip_set / "stills.parquet"))[0]
    for change, complaint in (
        ({"frames": [{"bytes": b"no image", "path": None}]}, "not a readable image"),
        ({"landmarks": [np.full((68, 2), 200.0)]}, "landmark far outside its 64"),
        ({"landmarks": [np.full((68, 2), np.nan)]}, "landmark far outside"),
        ({"landmarks": [np.zeros((5, 2))]}, "not .68, 2."),
        ({"masks": [{"bytes": b"no image", "path": None}]}, "mask of frame 0"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            read_frame(row | change, 0)
        assert "clip0" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"frames": []}, "0 frames, 1 landmarks"),
        ({"landmarks": None}, "1 frames, 0 landmarks"),
        ({"masks": [{}, {}]}, "1 frames, 1 landmarks, 2 masks"),
        ({"landmarks": [[[1, 2], [3]]]}, "no 68 points"),
    ],
)
def test_rows_that_cannot_be_used_are_named(batches, clip_set, change, complaint):
    row = load_clips(str(clip_set / "stills.parquet"))[0]
    with pytest.raises(ValueError, match=complaint) as caught:
        batches(Recipe(clips=1, frames=1), {"clips": [row | change]}, stop=1)
    assert "clip0" in str(caught.value)


def test_masks_of_the_set_are_used_and_warped_with_the_frame(clip_set):
    row = load_clips(str(clip_set / "stills.parquet"))[0]
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    buffer = io.BytesIO()
    Image.fromarray(half).save(buffer, format="PNG")
    image, landmarks, mask = read_frame(row | {"masks": [{"bytes": buffer.getvalue()}]}, 0)
    warp = Similarity.random(np.random.default_rng(0), 64, 64, 0, 0, 0, mirrored=True)
    frame = Frame.prepare(image, landmarks, mask, warp, 64)
    assert frame.mask[:, :32].all() and not frame.mask[:, 32:].any()


@pytest.fixture(scope="module")
def many(face_model, tmp_path_factory):
    """Twelve clips in three files of two row groups each."""
    folder = tmp_path_factory.mktemp("many")
    rows = datasets.Dataset.from_parquet(
        str(write_clips(folder / "all.parquet", face_model, clips=12, frames=2, size=32))
    )
    for i in range(3):
        part = rows.select(range(4 * i, 4 * i + 4))
        part.to_parquet(str(folder / f"part-{i}.parquet"), batch_size=2)
    return str(folder / "part-*.parquet")


def stream(many, **arguments):
    return StreamedClips(load_clips(many, streaming=True), **arguments)


def ids(rows):
    return [row["clip_id"] for row in rows]


def test_a_stream_gives_every_row_once_an_epoch_shuffled(many):
    taken = ids(stream(many).take(36))
    everything = sorted({f"clip{i}" for i in range(12)})
    epochs = [taken[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != everything
    assert ids(stream(many, seed=1).take(12)) != epochs[0]


def test_a_stream_is_shared_among_processes(many):
    shares = [ids(stream(many, process=p, processes=2).take(6)) for p in (0, 1)]
    assert sorted(shares[0] + shares[1]) == sorted(f"clip{i}" for i in range(12))
    with pytest.raises(ValueError, match=r"6 row group.s. for 7 processes"):
        stream(many, processes=7)


@pytest.mark.parametrize("taken", [0, 1, 5, 11, 12, 13, 30])
def test_a_stream_goes_on_exactly(many, taken):
    first = stream(many)
    first.take(taken)
    position = json.loads(json.dumps(first.position))
    assert ids(stream(many, position=position).take(15)) == ids(first.take(15))


def test_a_place_in_another_stream_is_refused(many):
    with pytest.raises(ValueError, match="had 5 row groups and this has 6"):
        stream(many, position={"epoch": 0, "window": 0, "row": 0, "groups": 5})


def test_streamed_batches_go_on_exactly(many):
    def run(start, position=None):
        sources = {"clips": stream(many, position=position)}
        return list(Batches(sources, Recipe(clips=4, frames=2), 64, start=start, stop=8))

    whole = run(0)
    _, position = whole[4]
    for (batch, _), (again, _) in zip(whole[5:], run(5, position["clips"]), strict=True):
        assert same(batch, again)


def test_a_streamed_set_is_not_paired_by_video(many):
    with pytest.raises(ValueError, match="cannot be paired by video"):
        Batches({"clips": stream(many)}, Recipe(clips=1, pairing="video"), 64, stop=1)


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
    image, landmarks, _ = read_frame(load_clips(str(clip_set / "stills.parquet"))[0], 0)
    relighter = Relighter(face_model)
    frame = Frame.prepare(image, landmarks, None, Similarity.resize(64, 64), 64)
    lights = [relighter.draw(landmarks, 64, np.random.default_rng(seed), 0.4) for seed in (0, 1)]
    frames = [frame, *(replace(frame, relighting=light) for light in lights)]
    before = FrameBatch.stack([frames]).to(torch.device("cpu"))
    assert before.relit.tolist() == [1, 2]
    after = before.lit(relighter)
    assert torch.equal(after.image[0], before.image[0])
    assert not torch.equal(after.image[1], after.image[2])
    for i in (1, 2):
        usable = (before.image[i].amin(0) > 0.1) & (after.image[i].amax(0) < 0.98)
        ratio = (after.image[i] / before.image[i].clamp(min=0.01))[:, usable]
        # One product in float32, over one rounded quotient.
        spread = (ratio.amax(0) - ratio.amin(0)) / ratio.mean(0)
        assert spread.max() < 1e-5
        assert ratio.std() > 0.05
    # Every pixel of the face model's own posed surface: no more than 1 in 100 is clipped.
    assert (after.image[1] >= 1).float().mean() < 0.02


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
    image, landmarks, _ = read_frame(load_clips(str(clip_set / "stills.parquet"))[0], 0)
    same = Frame.prepare(image, landmarks, None, Similarity.resize(64, 64), 64)
    assert np.array_equal(same.image, image)
    np.testing.assert_allclose(same.landmarks, landmarks)
    half = Frame.prepare(image, landmarks, None, Similarity.resize(64, 32), 32)
    np.testing.assert_allclose(half.landmarks, landmarks / 2)


def test_rendered_clips_are_drawn_beside_real_ones(batches, clip_set):
    sources = {"clips": load_clips(str(clip_set / "clips.parquet"))}
    sources["synthetic"] = SyntheticClips(1000, frames=2, size=64, truth=False)
    (batch,) = batches(Recipe(clips=1, frames=2, synthetic=2), sources, stop=1, threads=2)
    assert batch.clip.tolist() == [0, 0, 1, 1, 2, 2]
    assert len({image.numpy().tobytes() for image in batch.image}) == 6
    assert batch.mask[2:].float().mean() > 0.05
