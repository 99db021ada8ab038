"""f_seg: its network, what data sets' labels become, its training and the masks it adds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cest.configuration import CheckpointError
from cest.cropping import crop_image
from cest.data import load_clips, read_frame
from cest.data.face_labels import (
    CELEBAMASK_CLASSES,
    FACE,
    OTHER,
    UNKNOWN,
    FassegLabels,
    from_classes,
    from_landmarks,
)
from cest.detection import FaceDetector
from cest.networks import count_parameters
from cest.segmentation import FaceSegmenter, FaceSegmenterConfig
from clip_factory import write_clips

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "model_card" / "segmenter"
sys.path.insert(0, str(ROOT / "train"))

import add_masks  # noqa: E402
import train_segmenter  # noqa: E402
from train_segmenter import LabelledFaces, cropped, glasses, loss, occluder  # noqa: E402


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return FaceSegmenter(FaceSegmenterConfig(image_size=32, width=2)).eval()


# -- the network -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 50, 100])
def test_a_probability_for_every_pixel(tiny, size):
    probability = tiny(torch.rand(2, 3, size, size))
    assert probability.shape == (2, 1, size, size) and probability.dtype == torch.float32
    assert probability.min() > 0 and probability.max() < 1


@pytest.mark.parametrize("shape", [(1, 3, 64, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(tiny, shape):
    with pytest.raises(ValueError, match="square crops"):
        tiny(torch.rand(*shape))


def test_a_large_crop_is_looked_at_as_a_small_one(tiny):
    """Twice the pixels, the same picture: the same answer, but for the blur of two resizings."""
    small = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        (32, 32),
        mode="bilinear",
    )
    large = torch.nn.functional.interpolate(small, (64, 64), mode="bilinear")
    answer = torch.nn.functional.interpolate(tiny(small), (64, 64), mode="bilinear")
    torch.testing.assert_close(tiny(large), answer, atol=0.02, rtol=0)


@pytest.mark.parametrize("side", [20, 32, 75])
def test_a_mask_has_the_size_of_its_crop(tiny, side):
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    mask = tiny.segment(image)
    assert mask.shape == (side, side) and mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    assert np.array_equal(mask, tiny.segment(image))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3))]
)
def test_what_is_no_square_crop_of_bytes_is_refused(tiny, image):
    with pytest.raises(ValueError, match=r"takes (a crop|square crops)"):
        tiny.segment(image)


def test_save_and_load_give_the_same_masks_and_nothing_less_is_loaded(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = FaceSegmenter.from_pretrained(tmp_path)
    image = torch.rand(1, 3, 64, 64)
    assert not again.training and torch.equal(again(image), tiny(image))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["output.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(output\.bias\)"):
        FaceSegmenter.from_pretrained(tmp_path)


@pytest.mark.parametrize("values", [{"image_size": 100}, {"width": 0}])
def test_impossible_configs_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        FaceSegmenterConfig(**values)


def test_the_released_segmenter_is_small_and_finds_a_face():
    model = FaceSegmenter.from_pretrained(RELEASED)
    assert count_parameters(model) <= 2e6
    assert (RELEASED / "model.safetensors").stat().st_size <= 5e6
    photo = np.asarray(Image.open(ROOT / "cest" / "assets" / "astronaut.jpg").convert("RGB"))
    (face,) = FaceDetector("embedded").detect(photo)
    mask = model.segment(crop_image(photo, face.crop, 128)) > 0
    # The crop is 1.65 boxes of the landmarks wide, so nose and cheeks are in its middle, and a
    # face with its forehead, about 0.8 by 1.3 boxes less the corners, is a third of it.
    assert mask[54:74, 54:74].mean() > 0.95
    assert 0.2 < mask.mean() < 0.45
    rim = np.concatenate((mask[:6].ravel(), mask[-6:].ravel(), mask[:, :6].ravel()))
    assert rim.mean() < 0.05


# -- labels ----------------------------------------------------------------------------------


def test_celebamask_classes_are_what_the_renderer_covers():
    assert len(CELEBAMASK_CLASSES) == 19
    label = from_classes(np.arange(19, dtype=np.uint8)[None])[0]
    assert np.flatnonzero(label == FACE).tolist() == [1, 2, 4, 5, 6, 7, 10, 11, 12]
    assert (label[[0, 3, 8, 9, 13, 14, 15, 16, 17, 18]] == OTHER).all()


def test_numbers_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match="up to 19"):
        from_classes(np.full((2, 2), 19, np.uint8))


SKIN, HAIR, NOTHING, NOSE, MOUTH, EYES = (
    *((255, 255, 0), (127, 0, 0), (255, 0, 0)),
    *((0, 255, 255), (0, 255, 0), (0, 0, 255)),
)


def head(shift: int = 0) -> np.ndarray:
    """A head in FASSEG's colours, 260 pixels high; ``shift`` moves the features sideways."""
    picture = np.full((260, 220, 3), NOTHING, np.uint8)
    cv2.rectangle(picture, (75, 180), (145, 259), SKIN, -1)  # neck
    cv2.ellipse(picture, (110, 110), (85, 100), 0, 0, 360, HAIR, -1)
    cv2.ellipse(picture, (110, 130), (62, 85), 0, 0, 360, SKIN, -1)
    cv2.rectangle(picture, (40, 40), (180, 80), HAIR, -1)  # fringe
    for side in (-1, 1):
        cv2.ellipse(picture, (110 + shift + 26 * side, 116), (11, 5), 0, 0, 360, EYES, -1)
        cv2.ellipse(picture, (110 + shift + 26 * side, 101), (12, 2), 0, 0, 360, HAIR, -1)  # brow
    cv2.ellipse(picture, (110 + shift, 143), (11, 12), 0, 0, 360, NOSE, -1)
    cv2.ellipse(picture, (110 + shift, 172), (20, 6), 0, 0, 360, MOUTH, -1)
    return picture


def test_fasseg_colours_become_face_without_neck(face_model):
    label = FassegLabels(face_model)(head(), 0)
    for x, y in ((84, 116), (136, 116), (110, 143), (110, 172), (84, 101), (80, 150), (110, 190)):
        assert label[y, x] == FACE, (x, y)  # eyes, nose, mouth, a brow, a cheek, the chin
    for x, y in ((5, 5), (110, 60), (30, 110), (110, 255), (80, 250)):
        assert label[y, x] == OTHER, (x, y)  # background, fringe, hair, the neck
    assert (label == UNKNOWN).any()


def test_a_mirrored_head_has_the_mirrored_label(face_model):
    labels = FassegLabels(face_model)
    picture = head(shift=-18)
    left, right = labels(picture, 30), labels(np.ascontiguousarray(picture[:, ::-1]), -30)
    # The eyes of the mean face are mirror images, the sampling of its outline is not quite.
    assert (left == right[:, ::-1]).mean() > 0.98


def test_a_label_without_eyes_is_refused(face_model):
    with pytest.raises(ValueError, match="eyes, nose or mouth"):
        FassegLabels(face_model)(np.full((50, 50, 3), NOTHING, np.uint8), 0)


def test_landmarks_tell_the_middle_of_the_face_and_what_is_beside_it(face_model, tmp_path):
    clips = load_clips(str(write_clips(tmp_path / "c.parquet", face_model, 1, 1, size=128)))
    image, landmarks, _ = read_frame(clips[0], 0)
    image = np.full_like(image, 120)  # one colour: nothing is hair
    label = from_landmarks(image, landmarks)
    x, y = landmarks[30].astype(int)
    assert label[y, x] == FACE
    assert (label[[0, -1]][:, [0, -1]] == OTHER).all()


# -- training --------------------------------------------------------------------------------


def test_unknown_pixels_do_not_count():
    label = torch.tensor([[FACE, UNKNOWN, OTHER]], dtype=torch.uint8).view(1, 1, 1, 3)
    probability = torch.tensor([0.9, 0.5, 0.2]).view(1, 1, 1, 3)
    expected = -(np.log(0.9) + np.log(0.8)) / 2
    assert loss(probability, label).item() == pytest.approx(expected, rel=1e-6)
    probability[..., 1] = 0.001
    assert loss(probability, label).item() == pytest.approx(expected, rel=1e-6)


def test_a_crop_moves_image_and_label_together():
    """Where the red disc is, and nowhere else, is the label's face, within a rim of its edge."""
    image, label = np.zeros((200, 150, 3), np.uint8), np.zeros((200, 150), np.uint8)
    cv2.circle(image, (60, 120), 30, (255, 0, 0), -1)
    cv2.circle(label, (60, 120), 30, FACE, -1)
    for seed in range(5):
        picture, moved = cropped(image, label, 96, np.random.default_rng(seed))
        seen = picture[..., 0] > 127
        assert seen.any() and (seen != (moved == FACE)).mean() < 0.02


@pytest.mark.parametrize("cover", [occluder, glasses])
def test_what_covers_a_face_is_not_called_face(cover):
    """Covers draw in place; the label changes from face to other, and only there."""
    changed = 0
    for seed in range(10):
        image = np.full((96, 96, 3), 150, np.uint8)
        label = np.zeros((96, 96), np.uint8)
        cv2.ellipse(label, (48, 48), (30, 40), 0, 0, 360, FACE, -1)
        before = label.copy()
        cover(image, label, np.random.default_rng(seed))
        covered = label != before
        assert (label[covered] == OTHER).all()
        changed += covered.sum()
    assert changed > 0


def write_labelled(path: Path, rows: int) -> Path:
    """Skin-coloured ellipses on noise, with maps of CelebAMask-HQ's numbers."""
    rng = np.random.default_rng(0)
    entries = []
    for row in range(rows):
        image = rng.integers(0, 120, (48, 48, 3), np.uint8)
        label = np.zeros((48, 48), np.uint8)
        where = (tuple(map(int, rng.integers(18, 30, 2))), tuple(map(int, rng.integers(9, 14, 2))))
        cv2.ellipse(image, *where, 0, 0, 360, (230, 180, 150), -1)
        cv2.ellipse(label, *where, 0, 0, 360, 1, -1)
        pictures = {"image": Image.fromarray(image), "map": Image.fromarray(label)}
        entries.append({"name": f"row{row}", **pictures})
    kinds = {"name": datasets.Value("string"), "image": datasets.Image(), "map": datasets.Image()}
    datasets.Dataset.from_list(entries, datasets.Features(kinds)).to_parquet(str(path))
    return path


def launch(*arguments: object) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu"]
    script = ROOT / "train" / "train_segmenter.py"
    return subprocess.run(
        [*launcher, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_run_learns_and_goes_on_where_it_was(tmp_path, monkeypatch):
    data = write_labelled(tmp_path / "faces.parquet", 24)
    run = tmp_path / "run"
    arguments = [data, "-o", run, "--columns", "label=map", "--held-out", "row[0-3]$"]
    arguments += ["--image-size", 64, "--width", 4, "--batch", 8, "--save-every", 20]
    arguments += ["--learning-rate", 0.01]
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments), "--steps", "40"])
    train_segmenter.main()
    first = FaceSegmenter.from_pretrained(run / "model")
    done = launch(*arguments, "--steps", 60)
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [10, 20, 30, 40, 50, 60]
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    # Bright ellipses on dark noise: who learns at all finds most of them.
    assert json.loads((run / "iou.json").read_text())[str(data)]["all"] > 0.7
    monkeypatch.setattr(sys, "argv", ["", *map(str, arguments), "--width", "2"])
    with pytest.raises(SystemExit, match="a run with another"):
        train_segmenter.main()
    last = FaceSegmenter.from_pretrained(run / "model")
    assert (last.output.weight != first.output.weight).any()
    assert sorted(path.name for path in (run / "checkpoints").iterdir())[-1] == "step_00000060"


def test_bad_data_ends_the_command_with_a_sentence(tmp_path, monkeypatch):
    data = write_labelled(tmp_path / "faces.parquet", 2)
    monkeypatch.setattr(sys, "argv", ["train_segmenter.py", str(data), "-o", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"^train_segmenter.py: .* mapped by --columns"):
        train_segmenter.main()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--columns", "label"], "OURS=THEIRS"),
        (["--columns", "label=map", "--held-out", "."], "no row left"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--columns", "label=map", "--image-size", "50"], "multiple of 32"),
    ],
)
def test_bad_arguments_end_the_command_with_a_sentence(tmp_path, monkeypatch, extra, message):
    data = write_labelled(tmp_path / "faces.parquet", 2)
    arguments = ["train_segmenter.py", str(data), "-o", str(tmp_path / "run"), *extra]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match=f"^train_segmenter.py: .*{message}"):
        train_segmenter.main()


def test_labels_in_colours_need_a_yaw(tmp_path):
    picture = Image.fromarray(head())
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = datasets.Dataset.from_list([{"image": picture, "label": picture}], kinds)
    rows.to_parquet(str(tmp_path / "faces.parquet"))
    faces = LabelledFaces(str(tmp_path / "faces.parquet"), {})
    with pytest.raises(ValueError, match="no yaw"):
        faces.read(0, np.random.default_rng(0))


def test_rendered_faces_are_labelled_and_some_are_held_out():
    faces = LabelledFaces("synthetic", {})
    kept, held_out = faces.split(None)
    assert len(held_out) == 200 and not set(held_out) & set(kept[:1000])
    image, label = faces.read(0, np.random.default_rng(0))
    assert image.shape == (*label.shape, 3)
    # A crop is about 1.65 times as wide as its face, so face and the rest share it.
    assert set(np.unique(label)) == {FACE, OTHER} and 0.05 < (label == FACE).mean() < 0.6


def test_an_absent_set_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="No labelled faces could be read"):
        LabelledFaces(str(tmp_path / "absent.parquet"), {})


# -- adding masks ----------------------------------------------------------------------------


@pytest.fixture
def clips(face_model, tmp_path):
    return write_clips(tmp_path / "clips.parquet", face_model, clips=5, frames=2)


@pytest.fixture
def weights(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "segmenter")
    return str(tmp_path / "segmenter")


def test_masks_are_added_to_every_frame_and_columns_stay(clips, weights, tiny, tmp_path):
    rows = datasets.load_dataset("parquet", data_files=str(clips), split="train")
    rows.add_column("license", ["CC0"] * 5).to_parquet(str(clips))
    add_masks.add_masks(str(clips), tmp_path / "out", weights, shard_rows=2)
    made = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert made["license"] == ["CC0"] * 5 and len(made) == 5
    again = load_clips(str(tmp_path / "out"))
    for before, after in zip(load_clips(str(clips)), again):
        assert before["frames"] == after["frames"] and before["clip_id"] == after["clip_id"]
        for index in range(2):
            image, _, mask = read_frame(after, index)
            assert np.array_equal(mask > 0, tiny.segment(image) > 0)


def test_shards_that_are_there_are_not_made_again(clips, weights, tmp_path):
    out = tmp_path / "out"
    add_masks.add_masks(str(clips), out, weights, shard_rows=2)
    names = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in out.glob("*.parquet")) == names
    before = (out / names[0]).stat().st_mtime_ns
    (out / names[1]).unlink()
    add_masks.add_masks(str(clips), out, weights, shard_rows=2)
    assert (out / names[0]).stat().st_mtime_ns == before
    assert len(load_clips(str(out))) == 5


def test_an_output_holds_the_masks_of_one_segmenter(clips, weights, tiny, tmp_path):
    add_masks.add_masks(str(clips), tmp_path / "out", weights, shard_rows=2)
    with torch.no_grad():
        tiny.output.bias += 1
    tiny.save_pretrained(weights)
    with pytest.raises(ValueError, match="another output"):
        add_masks.add_masks(str(clips), tmp_path / "out", weights, shard_rows=2)


def test_a_set_with_masks_and_bad_arguments_are_refused(clips, weights, tmp_path):
    add_masks.add_masks(str(clips), tmp_path / "out", weights, shard_rows=5)
    with pytest.raises(ValueError, match="has masks"):
        add_masks.add_masks(str(tmp_path / "out"), tmp_path / "again", weights, shard_rows=5)
    with pytest.raises(ValueError, match="shard-rows"):
        add_masks.add_masks(str(clips), tmp_path / "again", weights, shard_rows=0)
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        add_masks.add_masks(str(clips), tmp_path / "again", str(tmp_path / "absent"), shard_rows=5)
    assert not (tmp_path / "again").exists()


def test_a_damaged_frame_is_named_and_what_is_made_stays(clips, weights, tmp_path):
    rows = datasets.load_dataset("parquet", data_files=str(clips), split="train")
    rows = rows.cast_column("frames", datasets.List(datasets.Image(decode=False))).to_list()
    rows[3]["frames"][1]["bytes"] = b"not an image"
    kinds = datasets.load_dataset("parquet", data_files=str(clips), split="train").features
    datasets.Dataset.from_list(rows, kinds).to_parquet(str(clips))
    with pytest.raises(ValueError, match="frame 1 of clip clip3"):
        add_masks.add_masks(str(clips), tmp_path / "out", weights, shard_rows=2)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == [
        "train-00000-of-00003.parquet"
    ]


def test_the_command_ends_with_a_sentence(tmp_path, monkeypatch):
    absent = str(tmp_path / "absent.parquet")
    monkeypatch.setattr(sys, "argv", ["add_masks.py", absent, "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^add_masks.py: No clips could be read"):
        add_masks.main()
