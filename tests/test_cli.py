"""The command line: results of many photos side by side, one clear sentence for what fails."""

import errno
import io
import json
import os
import shutil
import sys
from importlib.resources import files
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from cest import cli
from cest.cli import main
from cest.configuration import FaceEstimatorConfig
from cest.face_model import load_face_model
from cest.face_model.model import OPEN_MODEL
from cest.modeling import FaceEstimator
from cest.reconstruction import RESULT_FILES, Reconstructor
from cest.released import released_checkpoint
from cest.video import open_clip, write_video
from clip_factory import FEATURES, write_clips

PHOTO = Path(str(files("cest") / "assets" / "astronaut.jpg"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """Two tiny untrained checkpoints: folders cest and iest."""
    folder = tmp_path_factory.mktemp("models")
    for conditioning in ("cest", "iest"):
        torch.manual_seed(0)
        config = FaceEstimatorConfig(conditioning=conditioning, image_size=64, width=0.125)
        FaceEstimator(config).save_pretrained(folder / conditioning)
    return [str(folder / "cest"), str(folder / "iest")]


@pytest.fixture
def run(models, tmp_path, capsys):
    """Runs `cest ...` with a tiny model; gives status, stdout and stderr."""

    def call(command: str, *arguments: object, model: list[str] | None = None):
        given = [
            command,
            *(part for source in model or models[:1] for part in ("--model", source)),
            "-o",
            str(tmp_path / "out"),
            "--device",
            "cpu",
            "--detector",
            "embedded",
            *map(str, arguments),
        ]
        try:
            status = cli.main(given)
        except SystemExit as stop:
            status = stop.code
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def found(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_reconstruct_with_two_models(run, models, tmp_path):
    status, out, err = run("reconstruct", PHOTO, model=models)
    assert (status, err) == (0, "")
    expected = [f"astronaut/{m}/{name}" for m in ("cest", "iest") for name in RESULT_FILES]
    assert found(tmp_path / "out") == sorted(expected)
    assert out.count("photometric error") == 2
    albedo = Image.open(tmp_path / "out" / "astronaut" / "cest" / "albedo.png")
    assert albedo.size == (512, 512)
    status, out, err = run("reconstruct", PHOTO, "--no-detail", model=models)
    assert (status, err) == (0, "")
    albedo = Image.open(tmp_path / "out" / "astronaut" / "cest" / "albedo.png")
    assert albedo.size == (64, 64)  # the estimator's own


def test_a_bad_photo_does_not_stop_the_others(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(PHOTO, folder / "good.jpg")
    (folder / "a.jpg").write_bytes(b"")
    (folder / "b.png").write_text("text")
    (folder / "c.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    Image.new("RGB", (200, 200), "grey").save(folder / "d.png")
    (folder / "notes.txt").write_text("not looked at")
    status, _, err = run("reconstruct", folder)
    assert status == 1
    assert "4 of 5 failed:" in err
    for name in ("a.jpg", "b.png", "c.jpg", "d.png"):
        (line,) = [line for line in err.splitlines() if str(folder / name) in line]
        assert line.endswith(".")
    assert "Traceback" not in err
    assert found(tmp_path / "out") == sorted(f"good/cest/{name}" for name in RESULT_FILES)


def test_photos_of_one_stem_do_not_overwrite_each_other(run, tmp_path):
    """Neither within a run nor in a later one; the same photo takes its own place again."""
    picture = Image.open(PHOTO)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    picture.save(tmp_path / "one" / "p.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "two" / "p.jpg")
    assert run("reconstruct", tmp_path / "one", tmp_path / "two")[0] == 0
    folders = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert folders == ["p", "p-2"]
    before = (tmp_path / "out" / "p" / "cest" / "parameters.json").read_text()
    assert run("reconstruct", tmp_path / "two" / "p.jpg")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == folders
    assert (tmp_path / "out" / "p" / "cest" / "parameters.json").read_text() == before


def test_all_faces(run, tmp_path):
    face = np.asarray(Image.open(PHOTO))[:240, 80:380]
    Image.fromarray(np.concatenate([face, face[:, ::-1]], 1)).save(tmp_path / "two.png")
    assert run("reconstruct", tmp_path / "two.png", "--face", "all")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out" / "two").iterdir()) == [
        "cest-face0",
        "cest-face1",
    ]
    status, _, err = run("reconstruct", tmp_path / "two.png", "--face", 5)
    assert status == 1
    assert "There is no face 5: the photo has 2" in err


def test_relight(run, tmp_path):
    light = tmp_path / "mine.json"
    light.write_text(json.dumps([3.0, 0, 0, 1, 0, 0, 0, 0, 0]))
    status, _, err = run(
        "relight",
        PHOTO,
        "--light",
        "left",
        "--light",
        "right",
        "--light-direction",
        0,
        1,
        1,
        "--sh",
        light,
        "--light-from",
        PHOTO,
    )
    assert (status, err) == (0, "")
    names = ["left", "right", "direction", "sh-mine", "from-astronaut"]
    folder = tmp_path / "out" / "astronaut" / "cest"
    assert found(folder) == sorted(
        ["lights.json", "relit.png", *(f"relit-{name}.png" for name in names)]
    )
    assert list(json.loads((folder / "lights.json").read_text())["lights"]) == names
    left, right = (
        np.asarray(Image.open(folder / f"relit-{name}.png")).astype(int)
        for name in ("left", "right")
    )
    photo = np.asarray(Image.open(PHOTO)).astype(int)
    assert left.shape == photo.shape
    columns = np.where((left != photo).any(-1))[1]
    middle = int(columns.mean())
    difference = (left - right).mean(-1)
    assert difference[:, :middle].sum() > 0 > difference[:, middle:].sum()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("relight", PHOTO), "Give a light"),
        (("relight", PHOTO, "--light-direction", 0, 0, 0), "not all 0"),
        (("relight", PHOTO, "--sh", "none.json"), "none.json cannot be read as a light"),
        (("relight", PHOTO, "--light-from", "none.jpg"), "none.jpg does not exist."),
        (("reconstruct", "none.jpg"), "none.jpg does not exist."),
        (("reconstruct", PHOTO, "--device", "toaster"), "The device 'toaster' is not there"),
        (("reconstruct", PHOTO, "--detector", "none.onnx"), "none.onnx is not a file"),
        (("reconstruct", PHOTO, "--face-model", "none.safetensors"), "No face model at none"),
        (("reconstruct", PHOTO, "--face-model", PHOTO), "is no face model"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, arguments, says):
    status, _, err = run(*arguments)
    assert status == 1
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("reconstruct", PHOTO, "--bogus"), "unrecognized arguments: --bogus"),
        (("reconstruct", PHOTO, "--face", "some"), "'some' is neither all"),
        (("relight", PHOTO, "--light", "moon"), "invalid choice: 'moon'"),
    ],
)
def test_what_argparse_refuses(run, arguments, says):
    status, _, err = run(*arguments)
    assert status == 2
    assert says in err


def test_a_model_that_is_none(run, tmp_path):
    status, _, err = run("reconstruct", PHOTO, model=[str(tmp_path)])
    assert status == 1
    assert len(err.strip().splitlines()) == 1


def test_an_empty_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = run("reconstruct", tmp_path / "empty")
    assert status == 1
    assert "has no pictures in it" in err
    assert len(err.strip().splitlines()) == 1


def test_an_empty_folder_does_not_stop_the_others(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = run("reconstruct", tmp_path / "empty", PHOTO)
    assert status == 1
    assert "1 of 2 failed:" in err
    assert f"{tmp_path / 'empty'} has no pictures in it." in err
    assert (tmp_path / "out" / "astronaut" / "cest" / "face.glb").is_file()


def only_the_astronaut_is_there(outcome, tmp_path, bad: Path) -> None:
    """Of two inputs one failed, in one sentence, and the other's results were written."""
    status, _, err = outcome
    assert status == 1
    assert "1 of 2 failed:" in err
    (line,) = [line for line in err.splitlines() if str(bad) in line]
    assert line.endswith(".") and "Traceback" not in err
    assert (tmp_path / "out" / "astronaut" / "cest" / "face.glb").is_file()


def test_a_folder_that_may_not_be_entered_does_not_stop_the_others(run, tmp_path, monkeypatch):
    """Root may enter any: here the system's answer is made up."""
    bad, original = tmp_path / "closed" / "a.jpg", Path.is_dir

    def is_dir(path: Path) -> bool:
        if path == bad:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    outcome = run("reconstruct", bad, PHOTO)
    only_the_astronaut_is_there(outcome, tmp_path, bad)
    says = f"{bad} cannot be looked up (Permission denied); check its name, links and permissions."
    assert says in outcome[2].splitlines()


def test_a_name_that_is_too_long_does_not_stop_the_others(run, tmp_path):
    bad = tmp_path / f"{'a' * 300}.jpg"
    only_the_astronaut_is_there(run("reconstruct", bad, PHOTO), tmp_path, bad)


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_to_itself_does_not_stop_the_others(run, tmp_path, inside):
    folder = tmp_path / "in"
    folder.mkdir()
    bad = folder / "a.jpg"
    bad.symlink_to(bad)
    shutil.copy(PHOTO, folder / "astronaut.jpg")
    given = [folder] if inside else [bad, folder / "astronaut.jpg"]
    only_the_astronaut_is_there(run("reconstruct", *given), tmp_path, bad)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_name_that_cannot_be_printed_is_escaped(run, tmp_path, monkeypatch):
    photo = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    shutil.copy(PHOTO, photo)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    status, _, err = run("reconstruct", photo)
    assert (status, err) == (0, "")
    terminal.flush()
    assert b"caf\\udce9.jpg: " in terminal.buffer.getvalue()
    assert (tmp_path / "out" / photo.stem / "cest" / "face.glb").is_file()


def test_where_nothing_can_be_said_about_encoding(run, monkeypatch):
    """A notebook's output, say, is no file."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert run("reconstruct", PHOTO)[0] == 0
    assert "photometric error" in sys.stdout.getvalue()


@pytest.mark.parametrize("name", ["...jpg", "..jpg", "....jpg"])
def test_no_name_leads_out_of_the_output(run, tmp_path, name):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(PHOTO, folder / name)
    assert run("reconstruct", folder / name)[0] == 0
    expected = [f"in/{name}", *(f"out/photo/cest/{file}" for file in RESULT_FILES)]
    assert found(tmp_path) == sorted(expected)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (cv2.error("bad\nworse"), "error: bad"),
        (RuntimeError("out of memory"), "RuntimeError: out of memory"),
        (MemoryError(), "MemoryError"),
        (ValueError("odd"), "ValueError: odd"),
    ],
)
def test_whatever_goes_wrong_with_a_photo_the_next_one_gets_its_turn(
    run, tmp_path, monkeypatch, caplog, error, line
):
    shutil.copy(PHOTO, tmp_path / "second.jpg")
    Image.open(PHOTO).resize((300, 300)).save(tmp_path / "first.png")
    original = Reconstructor.reconstruct

    def reconstruct(self, photo, *arguments, **options):
        if len(photo) == 300:
            raise error
        return original(self, photo, *arguments, **options)

    monkeypatch.setattr(Reconstructor, "reconstruct", reconstruct)
    with caplog.at_level("DEBUG", logger="cest.cli"):
        status, _, err = run("reconstruct", tmp_path / "first.png", tmp_path / "second.jpg")
    assert status == 1
    assert f"{tmp_path / 'first.png'}: {line}" in err.splitlines()
    assert (tmp_path / "out" / "second" / "cest" / "face.glb").is_file()
    assert any(record.exc_info and record.exc_info[1] is error for record in caplog.records)


def test_a_checkpoint_of_another_face_model(run, face_model, models, tmp_path):
    """An own build, told from the package's by its hash, has to be named."""
    arrays = load_file(OPEN_MODEL)
    arrays["mean"] = arrays["mean"] * np.float32(1.01)
    own = tmp_path / "own.safetensors"
    save_file(arrays, own)
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    FaceEstimator(config, load_face_model(own)).save_pretrained(tmp_path / "model")
    given = dict(model=[str(tmp_path / "model")])
    status, _, err = run("reconstruct", PHOTO, **given)
    assert status == 1 and len(err.strip().splitlines()) == 1
    assert run("reconstruct", PHOTO, "--face-model", own, **given)[0] == 0
    record = tmp_path / "out" / "astronaut" / "cest" / "parameters.json"
    said = json.loads(record.read_text())["model"]["face_model_hash"]
    assert said == load_face_model(own).content_hash != face_model.content_hash
    status, _, err = run("relight", PHOTO, "--light", "top", "--face-model", own, model=models[:1])
    assert status == 1 and len(err.strip().splitlines()) == 1


def test_an_output_that_is_a_file(run, tmp_path):
    (tmp_path / "out").write_text("in the way")
    status, _, err = run("reconstruct", PHOTO)
    assert status == 1
    assert err.strip() == f"{tmp_path / 'out'}: File exists."


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(run, tmp_path):
    """Writing the mesh fails as on a full disk; the sentence says so."""
    folder = tmp_path / "out" / "astronaut" / "cest"
    folder.mkdir(parents=True)
    (folder / "face.glb").symlink_to("/dev/full")
    status, _, err = run("reconstruct", PHOTO)
    assert status == 1
    assert "No space left on device." in err
    assert len(err.strip().splitlines()) == 1


def test_released_models_are_the_default(monkeypatch, models, tmp_path, capsys):
    monkeypatch.setattr("cest.released.CHECKOUT", Path(models[0]).parent)
    arguments = ["reconstruct", str(PHOTO), "-o", str(tmp_path), "--detector", "embedded"]
    assert cli.main(arguments) == 0
    assert sorted(p.name for p in (tmp_path / "astronaut").iterdir()) == ["cest", "iest"]
    monkeypatch.setattr("cest.released.CHECKOUT", tmp_path / "nowhere")
    assert cli.main(arguments) == 1
    assert "There are no released CEST weights here" in capsys.readouterr().err


def test_evaluate_prints_figures_of_every_model(tiny_model, face_model, tmp_path, capsys):
    clips = write_clips(tmp_path / "clips.parquet", face_model, clips=1, frames=3)
    tiny_model.save_pretrained(tmp_path / "model")
    assert main(["evaluate", str(clips), "--model", str(tmp_path / "model")]) == 0
    figures = json.loads(capsys.readouterr().out)[str(tmp_path / "model")]
    assert figures["frames"] == 3 and figures["nme68"] > 0
    one = ["--frames", "1", "--device", "cpu"]
    assert main(["evaluate", str(clips), "--model", str(tmp_path / "model"), *one]) == 0
    assert json.loads(capsys.readouterr().out)[str(tmp_path / "model")]["frames"] == 1
    empty = tmp_path / "empty.parquet"
    datasets.Dataset.from_dict({n: [] for n in FEATURES}, features=FEATURES).to_parquet(empty)
    for refused, says in (
        ([str(clips), "--frames", "0"], "--frames 0 leaves nothing"),
        ([str(empty)], "No clips could be read"),
        ([str(clips), "--device", "toaster"], "The device 'toaster' is not there"),
    ):
        assert main(["evaluate", *refused, "--model", str(tmp_path / "model")]) == 1
        # Above it are the progress bars of the data-set library.
        error = capsys.readouterr().err
        assert says in error.strip().splitlines()[-1] and "Traceback" not in error
    assert main(["evaluate", str(tmp_path / "no.parquet"), "--model", str(tmp_path / "model")]) == 1
    assert "No clips could be read" in capsys.readouterr().err


def test_video_draws_a_clip_and_tells_of_every_frame(models, tmp_path, capsys):
    pytest.importorskip("av")
    with Image.open(PHOTO) as photo:
        whole = np.asarray(photo.convert("RGB").resize((256, 256)))
    frames = [whole, np.zeros_like(whole), whole]
    for _ in write_video(tmp_path / "a.mp4", [f for f in frames for _ in range(9)], 25.0):
        pass
    (tmp_path / "b.mp4").write_bytes(b"no video")
    clips = [str(tmp_path / name) for name in ("a.mp4", "b.mp4", "absent.mp4")]
    given = ["-o", str(tmp_path / "out"), "--device", "cpu", "--detector", "embedded"]
    # The released one: an untrained model loses the face.
    assert main(["video", *clips, *given, "--model", released_checkpoint("cest")]) == 1
    printed = capsys.readouterr()
    folder = tmp_path / "out" / "a" / "cest"
    assert printed.out == f"a.mp4: {folder} (a face in 18 of 27 frames)\n"
    assert printed.err.splitlines() == [
        "2 of 3 failed:",
        f"{clips[1]} is not a video that can be read; give an MP4 or WebM file.",
        f"{clips[2]} does not exist.",
    ]
    assert {*RESULT_FILES, "clip.mp4", "frames.jsonl"} == {path.name for path in folder.iterdir()}
    drawn = open_clip(folder / "clip.mp4", long_side=10_000)
    assert drawn.size == (3 * 256, 256 + 24) and len(list(drawn)) == 27
    records = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in records] == list(range(27))
    assert [record["face"] is None for record in records] == 9 * [False] + 9 * [True] + 9 * [False]
    one, other = records[0]["face"], records[-1]["face"]
    # The same picture, encoded twice: to a pixel of 256, and two degrees.
    np.testing.assert_allclose(one["landmarks_68"], other["landmarks_68"], atol=1)
    assert one["head_angles"] == pytest.approx(other["head_angles"], abs=2)
    assert "about" not in one["crop"]


def test_video_options_that_make_no_sense(models, tmp_path, capsys):
    given = ["video", "a.mp4", "-o", str(tmp_path), "--model", models[0]]
    for wrong in (["--seconds", "0"], ["--size", "8"]):
        assert main([*given, *wrong]) == 1
        assert "--seconds has to be more than 0, and --size 16 or more." in capsys.readouterr().err


@pytest.fixture
def evaluate(models, face_model, tmp_path, capsys):
    """Runs `cest evaluate CLIPS -o DIR` with a tiny model; gives status, stdout and stderr."""

    def call(output: Path, *arguments: str):
        clips = write_clips(tmp_path / "clips.parquet", face_model, clips=1, frames=1)
        given = ["evaluate", str(clips), "--model", models[0], "-o", str(output), *arguments]
        status = main(given)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    evaluate, tmp_path, monkeypatch
):
    def fail(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    monkeypatch.setattr("cest.cli.TemporaryFile", fail, raising=False)
    status, out, err = evaluate(tmp_path)
    assert (status, out) == (1, "")
    says = f"Nothing can be written to {tmp_path} (Read-only file system): give a folder of yours"
    assert err.strip().splitlines()[-1] == f"{says} by -o."
    (tmp_path / "file").touch()
    status, out, err = evaluate(tmp_path / "file")
    assert (status, out) == (1, "")
    assert "(File exists): give a folder" in err.strip().splitlines()[-1]


def test_a_folder_that_can_be_written_is_left_as_it_was(evaluate, tmp_path):
    output = tmp_path / "made" / "here"
    assert evaluate(output)[0] == 0
    written = found(output)
    assert "report.json" in written
    assert {Path(name).suffix for name in written} <= {".json", ".md", ".csv", ".png"}


def test_means_are_printed_even_if_the_disk_is_full_by_then(
    evaluate, models, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cest.evaluation.report.write_text", fail)
    status, out, err = evaluate(tmp_path / "out")
    assert status == 1
    assert json.loads(out)[models[0]]["frames"] == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"The report could not be written to {tmp_path / 'out'} (No space left")
    assert last.endswith(".") and "Traceback" not in err


def test_means_are_printed_even_if_a_card_cannot_be_written(
    evaluate, models, tmp_path, monkeypatch
):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    card = Path(models[0]) / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    monkeypatch.setattr("cest.evaluation.report.attach", fail)
    status, out, err = evaluate(tmp_path / "out", "--attach", "owner/clips")
    card.unlink()
    assert status == 1
    assert json.loads(out)[models[0]]["frames"] == 1
    assert "report.json" in found(tmp_path / "out")
    says = f"The card in {models[0]} could not be written (Permission denied): keep the means"
    assert err.strip().splitlines()[-1].startswith(says)
