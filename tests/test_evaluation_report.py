"""Reports, cards and figures: what is written says what was measured, on what and how."""

import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image

from cest.cli import main
from cest.configuration import FaceEstimatorConfig
from cest.data import load_clips
from cest.data.synthetic import SyntheticClips, write_shards
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation import evaluate, plots
from cest.evaluation import methods as methods_module
from cest.evaluation import protocols as protocols_module
from cest.evaluation.clip_sets import evaluate_clips
from cest.evaluation.figures import CELL, comparison, lighting_transfer
from cest.evaluation.groups import group_title
from cest.evaluation.measurements import Measurements, spread
from cest.evaluation.methods import Estimate
from cest.evaluation.protocols import labels
from cest.evaluation.report import Report, attach, commit
from cest.modeling import FaceEstimator
from cest.reconstruction import Reconstructor
from clip_factory import FEATURES, write_clips

PHOTO = Path(str(files("cest") / "assets" / "astronaut.jpg"))


@pytest.fixture(scope="module")
def model(face_model) -> FaceEstimator:
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    return FaceEstimator(config, face_model=face_model).eval()


@pytest.fixture
def checkpoint(model, tmp_path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def clips(face_model, tmp_path) -> Path:
    return write_clips(tmp_path / "clips.parquet", face_model, clips=2, frames=3)


def measured() -> Measurements:
    results = Measurements()
    for i in range(4):
        results.read(f"clip/{i}", {"bytes": bytes([i]), "path": None}, [[i, i]])
    results.groups["skin tone"] = ["1 light", "1 light", "5 dark", "5 dark"]
    results.add("a", "nme68", [1.0, 2.0, 3.0, float("nan")])
    results.add("a", "photometric", torch.tensor([10.0, 20.0, 30.0, 50.0]))
    results.add("b", "nme68", np.array([4.0, 4.0, 4.0, 4.0]))
    return results


def report(results: Measurements) -> Report:
    dataset = {"name": "made up", "sha256": results.sha256, "frames": 4}
    return Report(results, {"name": "clips", "choice": "this"}, dataset, {"a": {"width": 1}})


def test_measurements_by_hand():
    results = measured()
    summary = results.summary()["a"]
    assert summary["nme68"] == {
        "mean": 2.0, "median": 2.0, "percentile_90": pytest.approx(2.8), "count": 3,
    }  # fmt: skip
    groups = results.by_group("skin tone", "photometric")
    assert set(groups) == {"a"}
    assert {g: v["mean"] for g, v in groups["a"].items()} == {"1 light": 15, "5 dark": 40}
    assert np.isnan(results.mean("b", "photometric"))


def test_the_hash_is_of_everything_that_was_read():
    base = measured().sha256
    assert measured().sha256 == base
    mask = {"bytes": b"\x01", "path": None}
    hashes = set()
    for name, content, *known in (
        ("clip/0", b"\x00", [[0, 0]], mask),
        ("clip/x", b"\x00", [[0, 0]], mask),
        ("clip/0", b"\x09", [[0, 0]], mask),
        ("clip/0", b"\x00", [[9, 9]], mask),
        ("clip/0", b"\x00", [[0, 0]], mask | {"bytes": b"\x02"}),
        ("clip/0", b"\x00", [[0, 0]]),
    ):
        results = Measurements()
        results.read(name, {"bytes": content, "path": None}, *known)
        hashes.add(results.sha256)
    assert len(hashes) == 6


def test_a_short_look_is_evenly_spread():
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread("abc", None) == spread("abc", 7) == ["a", "b", "c"]


def test_titles_of_groups():
    assert [group_title(g) for g in ("1 light", "unknown", "[30, 60)")] == [
        "light", "unknown", "[30, 60)",
    ]  # fmt: skip


def test_a_report_says_it_all(tmp_path):
    pytest.importorskip("matplotlib")
    written = report(measured()).write(tmp_path / "out")
    names = {path.name for path in written}
    assert names == {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "report.md", "ced-nme68.csv", "ced-photometric.csv",
        "ced-nme68.png", "ced-photometric.png", "tone-photometric.png",
    }  # fmt: skip
    values = json.loads((tmp_path / "out" / "report.json").read_text())
    assert values["protocol"]["choice"] == "this"
    assert values["dataset"]["sha256"] == measured().sha256
    assert values["figures"]["a"]["nme68"]["mean"] == 2
    assert values["methods"]["a"] == {"width": 1}
    assert values["code"]["version"] and values["date"].endswith("Z")
    assert values["paper"]["dense NME, MICC, %"] == {"CEST": 3.14}
    # 1 - e / 10 over four images, one of which failed.
    assert values["area_under_ced"]["nme68"]["a"] == pytest.approx(100 * (0.9 + 0.8 + 0.7) / 4)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "|  | a | b |" in text and "| NME-68, % ↓ | 2.00 | 4.00 |" in text
    assert "| photometric, /255 ↓ | 27.50 | – |" in text
    assert "|  |  | light (2) | dark (2) | worst / best |" in text
    assert "| photometric, /255 ↓ | a | 15.00 | 40.00 | 2.67 |" in text
    assert "- choice: this" in text
    assert "Without an answer, and in no mean: a, NME-68, %: 1 of 4." in text


def test_a_report_can_be_written_twice(tmp_path):
    pytest.importorskip("matplotlib")
    once = report(measured())
    once.write(tmp_path)
    first = once.to_dict()
    once.write(tmp_path)
    assert json.dumps(first["figures"], allow_nan=False) == json.dumps(once.to_dict()["figures"])
    assert "photometric" not in once.measurements.values["b"]  # asking adds nothing


def test_without_matplotlib_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="cest\\[eval\\]"):
        report(measured()).write(tmp_path)
    assert {"report.json", "report.md", "ced-nme68.csv"} <= {p.name for p in tmp_path.iterdir()}


def test_the_commit_is_the_checkouts():
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert commit()["commit"] == head


def test_figures_go_on_the_card_and_into_eval_results(checkpoint):
    values = report(measured()).to_dict() | {"code": {"version": "1", "commit": "abc"}}
    before = ModelCard.load(checkpoint / "README.md").text
    files_written = attach(checkpoint, values, "a", "owner/faces")
    assert [path.name for path in files_written] == ["clips-made-up.yaml", "README.md"]
    entries = parse_eval_result_entries(yaml.safe_load(files_written[0].read_text()))
    assert {entry.task_id: entry.value for entry in entries} == {"nme68": 2.0, "photometric": 27.5}
    assert all(entry.dataset_id == "owner/faces" for entry in entries)
    assert values["dataset"]["sha256"] in entries[0].notes
    card = ModelCard.load(checkpoint / "README.md")
    assert card.text == before
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == {
        "nme68": 2.0, "photometric": 27.5,
    }  # fmt: skip
    attach(checkpoint, values, "a", "owner/faces")  # again: no double
    assert len(ModelCard.load(checkpoint / "README.md").data.eval_results) == 2
    FaceEstimator.from_pretrained(checkpoint)
    # Another protocol on the same data set, and another data set: beside the first.
    changed = {"code": values["code"] | {"modified": True}}
    other = values | {"protocol": {"name": "photos"}} | changed
    for dataset in ("owner/faces", "owner/others"):
        path, _ = attach(checkpoint, other, "a", dataset)
    notes = parse_eval_result_entries(yaml.safe_load(path.read_text()))[0].notes
    assert entries[0].notes.endswith("commit abc") and notes.endswith("commit abc, modified")
    found = ModelCard.load(checkpoint / "README.md").data.eval_results
    assert {(r.dataset_type, r.dataset_config) for r in found} == {
        ("owner/faces", "clips-made-up"),
        ("owner/faces", "photos-made-up"),
        ("owner/others", "photos-made-up"),
    }
    assert len(found) == 6 and files_written[0].is_file()
    with pytest.raises(ValueError, match="no method 'c'"):
        attach(checkpoint, values, "c", "owner/faces")


def test_a_run_over_clips(clips, model):
    results = evaluate_clips({"m": Estimate(model)}, load_clips(str(clips)), batch_size=4)
    assert len(results.frames) == 6
    assert len(results.values["m"]["nme68"]) == 6
    assert len(results.values["m"]["albedo_deviation"]) == 2
    assert len(results.values["m"]["across_photometric"]) == 6
    # Neither the batches' size nor what stands beside a method changes its figures.
    beside = {"x": Estimate(model), "m": Estimate(model)}
    again = evaluate_clips(beside, load_clips(str(clips)), batch_size=2)
    assert again.sha256 == results.sha256
    for figure in ("nme68", "photometric", "relit_reflectance"):
        np.testing.assert_allclose(
            again.values["m"][figure], results.values["m"][figure], rtol=1e-3, atol=1e-3
        )
    short = evaluate_clips({"m": Estimate(model)}, load_clips(str(clips)), max_frames=2)
    assert [name.split("/")[0] for name in short.frames] == ["clip0", "clip1"]


def test_the_light_is_the_same_whatever_stands_beside(clips, model, face_model):
    larger = FaceEstimator(FaceEstimatorConfig(image_size=128, width=0.125), face_model).eval()
    elsewhere = Estimate(model)
    elsewhere.face_model = replace(face_model, mean=face_model.mean + 0.3)  # another origin
    alone, *beside = (
        evaluate_clips(methods, load_clips(str(clips)), batch_size=2).values["m"]
        for methods in (
            {"m": Estimate(model)},
            {"larger": Estimate(larger), "m": Estimate(model)},
            {"elsewhere": elsewhere, "m": Estimate(model)},
        )
    )
    for found in beside:
        for figure in ("relit_reflectance", "relit_texture"):
            np.testing.assert_allclose(found[figure], alone[figure], rtol=1e-4)


@pytest.mark.parametrize(("landmarks", "says"), [(2, "2 landmarks"), (4, "4"), (None, "0")])
def test_a_clip_without_landmarks_for_every_frame_is_named(clips, model, landmarks, says):
    rows = load_clips(str(clips)).to_list()
    known = rows[1]["landmarks"]
    rows[1]["landmarks"] = None if landmarks is None else (2 * known)[:landmarks]
    frames = datasets.List(datasets.Image(decode=False))
    features = datasets.Features(FEATURES | {"frames": frames})
    damaged = datasets.Dataset.from_list(rows, features=features)
    with pytest.raises(ValueError, match=f"Clip clip1 has 3 frames, {says}"):
        evaluate_clips({"m": Estimate(model)}, damaged)


class Blind(Estimate):
    """Says the same of every picture."""

    def __call__(self, image, landmarks, mask):
        return super().__call__(torch.full_like(image, 0.5), landmarks, mask)


def test_pixels_outside_the_mask_do_not_count(clips, model):
    def measured(masked: bool, spoilt: bool) -> Measurements:
        rows = load_clips(str(clips)).to_list()
        mask = np.full((64, 64), 255, np.uint8)
        mask[:, :32] = 0 if masked else 255
        for row in rows:
            row["masks"] = [png(mask)] * len(row["frames"])
            for i, frame in enumerate(row["frames"]):
                picture = np.array(Image.open(io.BytesIO(frame["bytes"])))
                picture[:, :32] = 255 if spoilt else picture[:, :32]
                row["frames"][i] = png(picture)
        images = datasets.List(datasets.Image(decode=False))
        features = FEATURES | {"frames": images, "masks": images}
        rows = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        return evaluate_clips({"blind": Blind(model)}, rows)

    clean, spoilt, unmasked = measured(True, False), measured(True, True), measured(False, True)
    for figure in ("photometric", "shading_explained"):
        values = [results.values["blind"][figure] for results in (clean, spoilt, unmasked)]
        assert values[0] == values[1]
        assert not np.isclose(values[1], values[2]).any()
    assert clean.sha256 != spoilt.sha256 != unmasked.sha256


def png(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_figure_without_an_answer_is_left_out_of_the_means(clips, model):
    """A model that poses every face outside the picture."""
    away = FaceEstimator(model.config, model.face_model)
    with torch.no_grad():
        away.viewpoint_network[-1].bias[4] = 9
    figures = evaluate(away, load_clips(str(clips)))
    assert figures["nme68"] > 100 and figures["frames"] == 6
    assert "photometric" not in figures and "reflectance_one_sided" not in figures
    assert not any(math.isnan(value) for value in figures.values())
    assert {"photometric", "reflectance_one_sided"} < evaluate(model, load_clips(str(clips))).keys()


def test_evaluate_writes_reports_and_cards(clips, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods_module, "MEAN_ALBEDO_PEOPLE", 2)
    methods_module.mean_albedo.cache_clear()
    arguments = ["--model", str(checkpoint), "--device", "cpu", "-o", str(tmp_path / "out")]
    monkeypatch.chdir(checkpoint)  # whose weights are not the baselines'
    options = ["--baselines", "--detail", "--refine", "2", "--attach", "me/faces"]
    status = main(["evaluate", str(clips), *arguments, *options])
    assert status == 0
    shown = json.loads(capsys.readouterr().out)
    baselines = {"mean face", "landmark fit"}
    assert set(shown) == baselines | {str(checkpoint), "CEST as users get it", "CEST + 2 steps"}
    # Light and detail come closer to the photo, and leave pose and shape.
    plain, detailed = shown[str(checkpoint)], shown["CEST as users get it"]
    assert detailed["photometric"] < plain["photometric"]
    assert detailed["shading_explained"] > plain["shading_explained"]
    for figure in ("nme68", "texture_asymmetry", "coefficients"):
        assert detailed[figure] == pytest.approx(plain[figure], rel=1e-3)
    text = (tmp_path / "out" / "report.json").read_text()
    values = json.loads(text)
    assert values["figures"]["CEST"]["nme68"]["mean"] == shown[str(checkpoint)]["nme68"]
    weights = (checkpoint / "model.safetensors").read_bytes()
    for label in ("CEST", "CEST as users get it", "CEST + 2 steps"):
        found = values["methods"][label]["sha256_of_weights"]
        assert found == hashlib.sha256(weights).hexdigest()
    assert values["methods"]["mean face"] == values["methods"]["landmark fit"] == {}
    assert str(tmp_path) not in text  # nothing about the machine
    assert (checkpoint / ".eval_results" / "clips-clips-parquet.yaml").is_file()
    methods_module.mean_albedo.cache_clear()


def test_evaluate_synthetic_clips_from_a_folder(checkpoint, tmp_path, capsys):
    write_shards(SyntheticClips(2, 3, 2, 64), tmp_path / "made", progress=False)
    common = ["--model", str(checkpoint), "--device", "cpu", "--protocol", "synthetic"]
    assert main(["evaluate", str(tmp_path / "made"), *common]) == 0
    shown = json.loads(capsys.readouterr().out)[str(checkpoint)]
    assert shown["frames"] == 4 and shown["vertex"] > 0 and shown["dense"] > 0
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1, not")
    rows = datasets.Dataset.from_parquet(str(next((tmp_path / "made").glob("*.parquet"))))
    rows.select([]).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "nothing").mkdir()
    for source, says in (
        ("nothing", "has no Parquet files"),
        ("x.parquet", "has no Parquet files"),
        ("damaged.parquet", "damaged.parquet has no clips that can be read"),
        ("empty.parquet", "empty.parquet has no clips that can be read"),
    ):
        assert main(["evaluate", str(tmp_path / source), *common, "--frames", "2"]) == 1
        error = capsys.readouterr().err
        assert says in error.strip().splitlines()[-1] and "Traceback" not in error


def test_what_cannot_be_written_is_said_before_measuring(
    clips, checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(protocols_module.PROTOCOLS, "clips", None)  # not to be called
    (tmp_path / "file").write_text("")
    common = ["evaluate", str(clips), "--model", str(checkpoint), "--device", "cpu"]
    assert main([*common, "-o", str(tmp_path / "file")]) == 1
    (checkpoint / "README.md").unlink()
    assert main([*common, "--attach", "me/faces"]) == 1
    assert "has no README.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("protocol", "option"),
    [
        ("photos", ["--baselines"]),
        ("now", ["--detail"]),
        ("clips", ["--mediapipe", "x.task"]),
        ("synthetic", ["--basel", "x.mat"]),
        ("clips", ["--detector", "embedded"]),
        ("clips", ["--images", "list.txt"]),
        ("now", ["--attach", "me/faces"]),
    ],
)
def test_options_that_do_not_apply_are_refused(protocol, option, capsys):
    assert main(["evaluate", "data", "--protocol", protocol, *option]) == 1
    expected = f"{option[0]} does not apply to the protocol {protocol}, only to "
    assert capsys.readouterr().err.startswith(expected)


def test_evaluate_now_wants_a_folder(checkpoint, tmp_path, capsys):
    common = ["--model", str(checkpoint), "--protocol", "now", "--detector", "embedded"]
    assert main(["evaluate", str(tmp_path), *common]) == 1
    assert "with -o DIR" in capsys.readouterr().err


def test_labels_are_short_and_unique(model):
    assert list(labels([("a/first", model)])) == ["CEST"]
    named = labels([("first/model", model), ("b/second", model), ("c/second", model)])
    assert list(named) == ["CEST first", "CEST second", "CEST second 2"]


def test_pictures_of_the_paper(model, checkpoint, tmp_path, capsys):
    detector = FaceDetector(EMBEDDED)
    models = {name: Reconstructor(model, detector, "cpu", name) for name in ("one", "two")}
    with_errors = comparison([PHOTO], models)
    without = comparison([PHOTO], models, errors=False)
    assert with_errors.width - without.width == CELL + 4 and with_errors.height == without.height
    # The same model twice: the same row twice.
    pixels = np.asarray(with_errors)[:, 110:]
    np.testing.assert_array_equal(pixels[24 : 24 + CELL], pixels[28 + CELL : 28 + 2 * CELL])
    shutil.copy(PHOTO, tmp_path / "a.jpg")
    dark = np.asarray(Image.open(PHOTO)) // 3
    Image.fromarray(dark).save(tmp_path / "b.png")
    sheet = lighting_transfer([tmp_path / "a.jpg", tmp_path / "b.png"], models["one"])
    assert sheet.size == (110 + 3 * (CELL + 4) - 4, 24 + 3 * (CELL + 4) - 4)
    common = ["--model", str(checkpoint), "--device", "cpu", "--detector", "embedded"]
    for kind in ("ablation", "comparison", "lighting"):
        path = tmp_path / f"{kind}.png"
        assert main(["figure", kind, str(PHOTO), "-o", str(path), *common]) == 0
        assert path.is_file()
    for name in ("figure", "figure.pgn"):
        assert main(["figure", "comparison", str(PHOTO), "-o", str(tmp_path / name), *common]) == 1
        assert "does not say what to write: end it in .png" in capsys.readouterr().err
    assert main(["figure", "comparison", "none.jpg", "-o", str(path), *common]) == 1
    assert "none.jpg does not exist." in capsys.readouterr().err


def test_curves_of_several_runs(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    names = ("first", "second", "other/second")
    for name in names:
        report(measured()).write(tmp_path / name)
    csvs = [str(tmp_path / name / "ced-nme68.csv") for name in names]
    drawn, draw = [], plots._draw_curves
    monkeypatch.setattr(plots, "_draw_curves", lambda *a: (drawn.append(a[1]), draw(*a)))
    assert main(["figure", "curves", *csvs, "-o", str(tmp_path / "new" / "c.svg")]) == 0
    assert (tmp_path / "new" / "c.svg").read_text().count("legend") >= 1
    assert list(drawn[0]) == ["a", "b", "a (second)", "b (second)", "a (second 2)", "b (second 2)"]
    assert main(["figure", "curves", *csvs, "-o", str(tmp_path / "curves")]) == 1
    assert "end it in .png, .svg" in capsys.readouterr().err
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    assert main(["figure", "curves", str(tmp_path / "no.csv"), "-o", str(tmp_path / "d.png")]) == 1
    assert "is no curve" in capsys.readouterr().err
