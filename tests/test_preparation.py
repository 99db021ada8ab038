import glob
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

import cest
from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop
from cest.data import load_clips, preparation, read_frame
from cest.data.clip_making import (
    FaceFinder,
    PreparationError,
    PreparationSettings,
    Skipped,
    Unusable,
    crop_frame,
    make_clips,
    overlap,
)
from cest.data.footage import SourceFrame, find_footage, images_in, read_frames
from cest.data.preparation import Preparation, write_rows
from cest.detection import DetectedFace
from cest.photo import read_photo
from hub import HubStandIn

SCRIPT = Path(__file__).parent.parent / "train" / "prepare_clips.py"
sys.path.insert(0, str(SCRIPT.parent))

from prepare_clips import card  # noqa: E402

ASTRONAUT = read_photo(Path(cest.__file__).parent / "assets" / "astronaut.jpg")
FACE = np.random.default_rng(0).uniform(0, 1, (68, 2))
FACE = (FACE - FACE.min(0)) / np.ptp(FACE, axis=0)
"""Points that fill the unit square."""
SETTINGS = PreparationSettings(source="tests", license="cc0-1.0", landmarks="known")


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )


def annotate(folder: Path, landmarks: dict[str, np.ndarray]) -> None:
    """Writes landmarks.csv."""
    lines = [
        ",".join((name, *map(repr, points.ravel().tolist()))) for name, points in landmarks.items()
    ]
    (folder / "landmarks.csv").write_text("\n".join(lines) + "\n")


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    assert video.isOpened()
    for frame in frames:
        video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    video.release()


def frames_folder(
    folder: Path, places: list[tuple[float, float] | None], shades: list[int] | None = None
) -> None:
    """A VoxCeleb folder of frames: a face of 80 pixels at each place; None for no landmarks."""
    utterance = folder / "id00001" / "video" / "00001"
    utterance.mkdir(parents=True)
    landmarks = {}
    for number, place in enumerate(places):
        shade = shades[number] if shades else 120
        Image.new("RGB", (320, 240), (shade, 90, 60)).save(utterance / f"{number}.png")
        if place:
            landmarks[f"id00001/video/00001/{number}.png"] = 80 * FACE + place
    annotate(folder, landmarks)


def clips_of(folder: Path, **changes) -> tuple[list[dict], Skipped]:
    """Rows of the only footage in a folder with known landmarks."""
    settings = PreparationSettings(source="tests", landmarks="known", **changes)
    (item,) = find_footage(folder)[1]
    skipped = Skipped()
    finder = FaceFinder.load(folder, settings)
    return list(make_clips(item, finder, settings, skipped)), skipped


MANY = """
import os, sys
import prepare_clips
for line in sys.stdin:
    sys.argv = ["prepare_clips.py", *line.split()]
    if "--without-token" in sys.argv:
        sys.argv.remove("--without-token")
        os.environ["HF_TOKEN"] = ""
    try:
        prepare_clips.main()
        print("END")
    except SystemExit as end:
        print("END", end)
"""


def endings(lines: list[str], **variables: str) -> list[str]:
    """What the command says last, a line of arguments each; one process for all."""
    result = subprocess.run(
        [sys.executable, "-c", MANY],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=SCRIPT.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )
    ends = [line for line in result.stdout.splitlines() if line.startswith("END")]
    assert len(ends) == len(lines), result.stderr
    return ends


# -- what is in a folder -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "layout", "expected"),
    [
        (
            ["id10001/aBc/00001.mp4", "id10001/aBc/00002.mp4", "id10002/x/00001.avi", "stray.mp4"],
            "voxceleb",
            [
                ("id10001/aBc/00001.mp4", "id10001/aBc", "id10001", "video"),
                ("id10001/aBc/00002.mp4", "id10001/aBc", "id10001", "video"),
                ("id10002/x/00001.avi", "id10002/x", "id10002", "video"),
            ],
        ),
        (
            ["dev/id10001/aBc/00001/0000025.jpg", "dev/id10001/aBc/00001/0000050.jpg"],
            "voxceleb",
            [("dev/id10001/aBc/00001", "id10001/aBc", "id10001", "frames")],
        ),
        (
            ["talk.mp4", "more/talk.webm", "loose.png", "anna/1.jpg", "anna/2.jpg", ".x/3.jpg"],
            "plain",
            [
                ("anna", "anna", None, "album"),
                ("loose.png", "loose.png", None, "still"),
                ("more/talk.webm", "more/talk.webm", None, "video"),
                ("talk.mp4", "talk.mp4", None, "video"),
            ],
        ),
        (
            ["AFW/AFW_7_1_0.jpg", "AFW/AFW_7_1_0.mat", "AFW/AFW_7_1_1.jpg", "landmarks/AFW/a.mat"],
            "annotated",
            [
                ("AFW/AFW_7_1_0.jpg", "AFW/AFW_7_1", None, "still"),
                ("AFW/AFW_7_1_1.jpg", "AFW/AFW_7_1", None, "still"),
            ],
        ),
        (
            ["helen/10.jpg", "helen/10.pts"],
            "annotated",
            [("helen/10.jpg", "helen/10.jpg", None, "still")],
        ),
    ],
)
def test_layouts_are_told_apart(tmp_path, files, layout, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, footage = find_footage(tmp_path)
    assert found == layout
    assert [(f.name, f.video_id, f.person, f.kind) for f in footage] == expected


def test_a_chosen_layout_is_taken(tmp_path):
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "1.jpg").touch()
    assert [f.kind for f in find_footage(tmp_path)[1]] == ["album"]
    assert [f.kind for f in find_footage(tmp_path, "stills")[1]] == ["still"]
    with pytest.raises(ValueError, match="layout 'voxceleb' knows"):
        find_footage(tmp_path, "voxceleb")


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("10.jpg", "9.jpg", "1.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["1.jpg", "9.jpg", "10.jpg"]


def test_every_kth_frame_of_a_video(tmp_path):
    shades = [np.full((64, 96, 3), 10 * k, np.uint8) for k in range(23)]
    write_video(tmp_path / "video.mp4", shades)
    (item,) = find_footage(tmp_path)[1]
    frames = list(read_frames(item))
    assert [frame.number for frame in frames] == [0, 5, 10, 15, 20]
    # The codec is not lossless, but two frames of these are 50 apart.
    found = np.array([frame.image.mean() for frame in frames])
    np.testing.assert_allclose(found, 50 * np.arange(5), atol=8)
    assert len(list(read_frames(item, every=1))) == 23


def test_a_video_that_was_cut_short_gives_what_is_left_and_says_so(tmp_path):
    path = tmp_path / "video.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (96, 64))
    for k in range(60):
        video.write(np.full((64, 96, 3), 4 * k, np.uint8))
    video.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (item,) = find_footage(tmp_path)[1]
    *frames, last = read_frames(item, every=1)
    assert 10 < len(frames) < 50 and all(frame.image is not None for frame in frames)
    assert last.image is None and f"ends after {len(frames)} of 60 frames" in last.problem


def test_one_frame_is_in_memory_at_a_time(tmp_path):
    write_video(tmp_path / "video.mp4", [np.zeros((64, 96, 3), np.uint8)] * 60)
    (item,) = find_footage(tmp_path)[1]
    seen = weakref.WeakSet()
    alive = []
    for frame in read_frames(item, every=1):
        seen.add(frame)
        alive.append(len(seen))
    assert len(alive) == 60 and max(alive) <= 2


# -- crops ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "corner", "width", "height"),
    [
        ((400, 600), (200, 120), 160, 130),
        ((400, 600), (10, 5), 90, 130),
        ((90, 90), (5, 5), 80, 80),
    ],
)
def test_landmarks_land_where_they_should(shape, corner, width, height):
    """A blob at landmark 30 of the photo is at landmark 30 of the crop."""
    points = FACE * (width, height) + corner
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = points[30]
    grey = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (width / 25) ** 2))
    picture, landmarks = crop_frame(np.uint8(np.repeat(grey[..., None], 3, axis=2)), points)
    assert picture.shape == (256, 256, 3) and landmarks.dtype == np.float32
    # By the definition of the crop: centred on the box, 1.65 times its longer side.
    side = 1.65 * max(width, height)
    expected = (points - np.array(corner) - (width / 2, height / 2)) * 256 / side + 128
    np.testing.assert_allclose(landmarks, expected, atol=1e-3)
    rows, columns = np.mgrid[:256, :256] + 0.5
    weight = picture[..., 0].astype(float)
    centre = np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()
    # Bytes and bilinear look-up; a tenth of the coarser picture's pixel.
    np.testing.assert_allclose(centre, landmarks[30], atol=0.1 * max(1, 256 / side))


def test_outside_the_photo_its_edge_goes_on():
    photo = np.zeros((80, 80, 3), np.uint8)
    photo[:, :40] = (200, 100, 50)
    picture, _ = crop_frame(photo, 78 * FACE + 1)
    assert (picture[:, 10] == (200, 100, 50)).all() and (picture[:, -10] == 0).all()


# -- clips ---------------------------------------------------------------------------------------


def test_long_stretches_become_clips_of_so_many_frames(tmp_path):
    frames_folder(tmp_path, [(100 + k, 80) for k in range(11)])
    rows, skipped = clips_of(tmp_path, frames_per_clip=4)
    assert [row["clip_id"].rsplit(":")[-1] for row in rows] == ["000000", "000004", "000008"]
    assert [len(row["frames"]) for row in rows] == [4, 4, 3]
    assert {row["video_id"] for row in rows} == {"id00001/video"}
    assert {row["person"] for row in rows} == {"id00001"} and not skipped


def test_a_clip_ends_where_the_face_jumps_or_is_lost_or_the_shot_changes(tmp_path):
    places = [(100, 80)] * 3 + [(180, 80)] * 3 + [None] + [(180, 80)] * 5
    frames_folder(tmp_path, places, shades=[120] * 9 + [20] * 3)
    rows, skipped = clips_of(tmp_path)
    starts = [int(row["clip_id"].rsplit(":")[-1]) for row in rows]
    assert starts == [0, 3, 7, 9]
    assert [len(row["frames"]) for row in rows] == [3, 3, 2, 3]
    assert skipped == {("id00001/video/00001", "no landmarks come with it"): [6]}


def test_a_face_that_moves_is_followed(tmp_path):
    # 0.3 of its side a frame is an overlap of 0.54.
    frames_folder(tmp_path, [(24 * k, 80) for k in range(9)])
    assert len(clips_of(tmp_path)[0]) == 1
    assert overlap((0, 0, 10, 10), (3, 0, 13, 10)) == pytest.approx(7 / 13)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0


def test_an_album_is_one_clip_wherever_the_face_is(tmp_path):
    places = {"1.png": (100, 80), "2.png": (10, 90), "3.png": (200, 20)}
    (tmp_path / "anna").mkdir()
    for shade, name in zip((20, 120, 220), places):
        Image.new("RGB", (320, 240), (shade, 90, 60)).save(tmp_path / "anna" / name)
    annotate(tmp_path, {f"anna/{name}": 80 * FACE + place for name, place in places.items()})
    (row,), _ = clips_of(tmp_path)
    assert row["clip_id"] == "anna:000000" and len(row["frames"]) == 3


def test_a_small_face_is_left_out(tmp_path):
    frames_folder(tmp_path, [(100, 80)])
    rows, skipped = clips_of(tmp_path, smallest_face=81)
    assert not rows
    ((_, reason),) = skipped
    assert reason == "its face is smaller than 81 pixels"


class Squares:
    """A face detector, and landmarks, for photos in which the faces are white squares."""

    def detect(self, image):
        _, _, boxes, _ = cv2.connectedComponentsWithStats(np.uint8(image[..., 0] > 128))
        faces = []
        for x, y, width, height, _ in boxes[1:]:
            crop = SquareCrop(
                x + width / 2, y + height / 2, max(width, height) * LANDMARK_BOX_TO_CROP
            )
            faces.append(DetectedFace((x, y, x + width, y + height), 1.0, crop))
        return sorted(faces, key=lambda face: -face.crop.size)

    def __call__(self, image, box):
        return FACE * (box[2] - box[0]) + box[:2]


def test_the_face_that_was_largest_is_followed_until_it_is_lost(tmp_path):
    """One on the left stays; one on the right grows beyond it; then the left one goes."""
    frames = []
    for k in range(12):
        frame = np.zeros((240, 400, 3), np.uint8)
        if k < 8:
            frame[60:140, 40 + k : 120 + k] = 255
        side = 50 + 10 * k
        frame[60 : 60 + side, 220 : 220 + side] = 255
        frames.append(frame)
    write_video(tmp_path / "two.mp4", frames)
    (item,) = find_footage(tmp_path)[1]
    settings = PreparationSettings(source="tests", every=1, smallest_face=30)
    finder = FaceFinder(None, Squares(), Squares(), settings.smallest_face)
    found = []

    def noted(frame, previous):
        found.append(finder(frame, previous))
        return found[-1]

    rows = list(make_clips(item, noted, settings, Skipped()))
    assert [len(row["frames"]) for row in rows] == [8, 4]
    lefts = [points[:, 0].min() for points in found]
    # The codec and the search's own picture blur edges by a pixel or two.
    np.testing.assert_allclose(lefts, [*range(40, 48), *[220] * 4], atol=2)
    widths = [np.ptp(points[:, 0]) for points in found]
    np.testing.assert_allclose(widths, [80] * 8 + [130, 140, 150, 160], atol=3)


def test_landmarks_off_the_face_are_not_believed():
    image = np.zeros((200, 200, 3), np.uint8)
    image[50:130, 50:130] = 255
    frame = SourceFrame(0, Path("x"), image)
    finder = FaceFinder(None, Squares(), lambda *_: FACE * 80 + 120, 1)
    with pytest.raises(Unusable, match="not where the face is"):
        finder(frame, None)
    finder = FaceFinder(None, Squares(), lambda *_: None, 1)
    with pytest.raises(Unusable, match="no landmarks were found"):
        finder(frame, None)


def test_a_detector_that_fails_on_one_frame_does_not_stop_the_others(tmp_path):
    frames_folder(tmp_path, [(100, 80)] * 5)
    (item,) = find_footage(tmp_path)[1]
    finder = FaceFinder.load(tmp_path, SETTINGS)

    def moody(frame, previous):
        if frame.number == 2:
            raise RuntimeError("out of sorts\nand more")
        return finder(frame, previous)

    skipped = Skipped()
    rows = list(make_clips(item, moody, SETTINGS, skipped))
    assert [len(row["frames"]) for row in rows] == [2, 2]
    assert skipped == {("id00001/video/00001", "RuntimeError: out of sorts"): [2]}


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def from_video(tmp_path_factory):
    """The astronaut moving about, a damaged video and one without a face; detected for real."""
    folder = tmp_path_factory.mktemp("videos")
    moved = [np.roll(ASTRONAUT, 4 * k, axis=1)[:360] for k in range(12)]
    write_video(folder / "id00001" / "nasa" / "00001.mp4", moved)
    (folder / "id00001" / "nasa" / "00002.mp4").write_bytes(b"no video" * 500)
    write_video(folder / "id00002" / "sky" / "00001.mp4", [np.full_like(moved[0], 90)] * 6)
    output = folder / "clips"
    options = ["--detector", "embedded", "--workers", 2, "--source", "NASA"]
    result = run(folder, "-o", output, "--license", "cc0-1.0", *options)
    assert result.returncode == 0, result.stderr
    return output, result


def test_a_video_becomes_a_clip_set(from_video):
    output, result = from_video
    assert "layout voxceleb, 3 × video" in result.stdout
    assert "1 clips, 3 frames" in result.stdout
    assert "skipped 3 frames; 2 of 3 inputs gave no clip" in result.stdout
    (row,) = datasets.load_dataset(
        "parquet", data_files=str(output / "train-*.parquet"), split="train"
    )
    assert row["clip_id"] == "id00001/nasa/00001.mp4:000000"
    assert (row["video_id"], row["person"]) == ("id00001/nasa", "id00001")
    assert (row["source"], row["license"]) == ("NASA", "cc0-1.0")
    assert [frame.size for frame in row["frames"]] == [(256, 256)] * 3
    landmarks = np.array(row["landmarks"])
    # The face is the same in all; the estimator sees it through different pixels and the codec.
    assert np.ptp(landmarks, axis=0).max() < 6
    box = np.ptp(landmarks, axis=1)
    np.testing.assert_allclose(box.max(-1), 256 / 1.65, rtol=1e-4)
    middle = (landmarks.min(1) + landmarks.max(1)) / 2
    np.testing.assert_allclose(middle, 128, atol=1e-3)


def test_what_was_skipped_is_listed_with_the_reason(from_video):
    lines = map(json.loads, (from_video[0] / "skipped.jsonl").read_text().splitlines())
    assert {line["file"]: (line["reason"], line["frames"]) for line in lines} == {
        "id00001/nasa/00002.mp4": ("it cannot be read as a video", [0]),
        "id00002/sky/00001.mp4": ("no face was found", [0, 5]),
    }


def test_the_set_is_what_training_reads(from_video):
    rows = load_clips(str(from_video[0]))
    image, landmarks = read_frame(next(iter(rows)), 1)[:2]
    assert image.shape == (256, 256, 3) and np.shape(landmarks) == (68, 2)


def annotated_stills(folder: Path, number: int) -> Path:
    """AFLW2000-3D's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for k in range(number):
        noise = cv2.resize(rng.integers(0, 256, (20, 20, 3), np.uint8), (200, 200))
        Image.fromarray(noise).save(folder / f"image{k:05d}.jpg")
        points = np.vstack(((100 * FACE + 50 + k).T, np.zeros(68)))
        savemat(folder / f"image{k:05d}.mat", {"pt3d_68": points})
    return folder


def test_a_killed_run_goes_on_and_leaves_nobody_behind(tmp_path):
    """kill -9 in the middle: shards that are there are kept, the rest is as if it had not been."""
    stills = annotated_stills(tmp_path / "stills", 120)
    options = ("--items-per-shard", "4", "--smallest-face", "50", "--source", "s")
    process = subprocess.Popen(
        command(stills, "-o", tmp_path / "killed", *options, "--workers", "2"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.time() + 60
    while not glob.glob(f"{tmp_path}/killed/.progress/*.json") and time.time() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)  # the parent alone
    process.wait()
    while time.time() < deadline:
        try:
            os.killpg(process.pid, 0)
            time.sleep(0.02)
        except ProcessLookupError:
            break
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the workers outlived their parent")
    done = {path: path.stat() for path in (tmp_path / "killed" / ".progress").glob("*.json")}
    assert 0 < len(done) < 30, "the kill came too late to mean anything"

    def prepared(output):
        settings = PreparationSettings(
            source="s", landmarks="known", smallest_face=50, items_per_shard=4
        )
        whole = Preparation(stills, find_footage(stills)[1], tmp_path / output, settings)
        made = whole.run()
        assert whole.finish().clips == 120 and not whole.pending
        assert made.clips == 120 - 4 * len(done) * (output == "killed")
        return {path.name: path.read_bytes() for path in (tmp_path / output).glob("train-*")}

    assert prepared("killed") == prepared("whole")
    assert all(path.stat().st_mtime_ns == before.st_mtime_ns for path, before in done.items())
    assert not [path for path in (tmp_path / "killed").glob(".train-*")]


def test_a_begun_set_is_not_mixed_with_another(tmp_path):
    stills = annotated_stills(tmp_path / "stills", 3)
    footage = find_footage(stills)[1]
    Preparation(stills, footage, tmp_path / "out", SETTINGS)
    other = PreparationSettings(source="tests", license="mit", landmarks="known", every=3)
    with pytest.raises(PreparationError, match="another license, every"):
        Preparation(stills, footage, tmp_path / "out", other)
    with pytest.raises(PreparationError, match=r"other footage \(3 items, now 2\)"):
        Preparation(stills, footage[:2], tmp_path / "out", SETTINGS)


def test_shards_are_written_a_row_group_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "ROW_GROUP_BYTES", 3000)

    class Row(dict):
        """A dictionary that weak references can be had of."""

        __hash__ = object.__hash__

    alive, most = weakref.WeakSet(), 0

    def rows():
        nonlocal most
        for k in range(50):
            row = Row(
                clip_id=str(k),
                video_id="v",
                person=None,
                source="s",
                license="l",
                frames=[{"bytes": bytes(1000), "path": None}],
                landmarks=[FACE.astype(np.float32)],
            )
            alive.add(row)
            most = max(most, len(alive))
            yield row

    write_rows(tmp_path / "rows.parquet", rows())
    assert most <= 4  # a group of three, and one in the making
    file = pq.ParquetFile(tmp_path / "rows.parquet")
    assert file.metadata.num_rows == 50 and file.metadata.num_row_groups == 17


def test_a_shard_without_a_clip_has_no_file(tmp_path):
    stills = annotated_stills(tmp_path / "stills", 4)
    (stills / "image00001.mat").unlink()
    (stills / "image00003.jpg").write_bytes(b"\xff\xd8 cut short")
    settings = PreparationSettings(source="s", landmarks="known", items_per_shard=1)
    made = Preparation(stills, find_footage(stills)[1], tmp_path / "out", settings)
    made.run()
    assert vars(made.finish()) == {"clips": 2, "frames": 2, "skipped_frames": 2, "unused": 2}
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert shards == ["train-00000.parquet", "train-00002.parquet"]
    lines = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert ["no landmarks" in lines[0], "image00003.jpg" in lines[1]] == [True, True]
    ids = load_clips(str(tmp_path / "out"))["clip_id"]
    assert list(ids) == ["image00000.jpg", "image00002.jpg"]
    assert made.pending == []
    (tmp_path / "out" / shards[1]).unlink()
    assert made.pending == [2]


def test_what_cannot_be_done_is_one_sentence(tmp_path):
    empty, stills = tmp_path / "empty", annotated_stills(tmp_path / "stills", 1)
    empty.mkdir()
    (tmp_path / "file").touch()
    stopped = {
        f"{tmp_path / 'absent'} -o {tmp_path / 'a'}": "is not a folder",
        f"{empty} -o {tmp_path / 'a'}": "no videos or images",
        f"{stills} -o {tmp_path / 'file' / 'x'}": "Not a directory",
        f"{stills} -o {tmp_path / 'a'} --every 0": "every is 0",
        f"{stills} -o {tmp_path / 'a'} --workers 0": "--workers is 0",
        f"{stills} -o {tmp_path / 'a'} --push-to-hub nobody": "'nobody' is no repository",
        f"{stills} -o {tmp_path / 'b'} --landmarks mediapipe --workers 1": "face_landmarker.task",
        f"{stills} -o {tmp_path / 'c'} --landmarks cest --detector {stills}": "is not a file",
        f"{stills} -o {tmp_path / 'd'} --smallest-face 200 --workers 1": "nothing could be used",
    }
    for end, expected in zip(endings(list(stopped)), stopped.values()):
        assert end.startswith("END prepare_clips.py: ") and expected in end


def test_the_card_says_where_the_landmarks_are_from_and_under_what_licence():
    total = preparation.Tally(clips=1200, frames=5000)
    text = card(PreparationSettings(source="My videos", license="Free of charge"), total, "a/faces")
    assert "1,200 clips" in text and "nothing new about landmarks" in text
    assert "license: other" in text and "license_name: Free of charge" in text
    assert "path: train-*.parquet" in text and "{" not in text


# -- the Hub -------------------------------------------------------------------------------------

LOAD = """
import datasets, sys
rows = datasets.load_dataset(sys.argv[1], split="train")
print(sorted(rows["clip_id"]), rows[0]["frames"][0].size, len(rows[0]["landmarks"][0]))
streamed = datasets.load_dataset(sys.argv[1], split="train", streaming=True)
print([row["clip_id"] for row in streamed])
"""


def test_a_set_goes_to_the_hub_and_back(tmp_path):
    stills = annotated_stills(tmp_path / "stills", 3)
    output = tmp_path / "clips"
    arguments = [stills, "-o", output, "--items-per-shard", 2, "--workers", 1]
    arguments += ["--push-to-hub", "tester/faces", "--license", "cc0-1.0"]
    with HubStandIn(tmp_path / "hub") as hub:
        hub.create("tester/faces", "dataset", private=True)
        hub.put("tester/faces", "train-00009.parquet", b"of an earlier set", kind="dataset")
        pushed = run(*arguments, **hub.environment())
        assert pushed.returncode == 0, pushed.stderr
        files = hub.files("tester/faces", "dataset")
        assert set(files) == {
            *(".gitattributes", "README.md", "train-00000.parquet", "train-00001.parquet")
        }
        assert files["train-00001.parquet"] == (output / "train-00001.parquet").read_bytes()
        assert b"license: cc0-1.0" in files["README.md"] and b"tester/faces" in files["README.md"]
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, "tester/faces"],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | hub.environment(),
        )
        ids = [f"image{k:05d}.jpg" for k in range(3)]
        assert loaded.stdout.splitlines() == [f"{ids} (256, 256) 68", str(ids)], loaded.stderr
        assert not hub.unknown


def test_a_new_repository_is_private_and_a_public_one_is_not_filled_by_chance(tmp_path):
    stills = annotated_stills(tmp_path / "stills", 1)
    to = f"{stills} -o {tmp_path / 'out'} --workers 1 --push-to-hub"
    with HubStandIn(tmp_path / "hub") as hub:
        hub.create("tester/known", "dataset", private=False)
        refused, private, public, chosen, denied = endings(
            [
                f"{to} tester/known",
                f"{to} tester/faces",
                f"{to} tester/open --public",
                f"{to} tester/known --public",
                f"{to} tester/other -o {tmp_path / 'other'} --without-token",
            ],
            **hub.environment(),
        )
        assert "tester/known is public: give --public" in refused
        assert [private, public, chosen] == ["END"] * 3
        repositories = {name: r.private for (_, name), r in hub.repositories.items()}
        assert repositories == {"tester/known": False, "tester/faces": True, "tester/open": False}
        assert "train-00000.parquet" in hub.files("tester/known", "dataset")
        assert denied.startswith("END prepare_clips.py: tester/other cannot be pushed to (")
        assert "hf auth login" in denied
        assert not (tmp_path / "other").exists()  # said before any work
