"""release.py makes whole folders: weights, evaluation, picture and a card that says the same."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from safetensors.torch import load_file, save_file

import cest.evaluation.methods as methods_module
from cest.configuration import FaceEstimatorConfig
from cest.cropping import SquareCrop
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation.contact_sheet import VIEW, contact_sheet, faces_in
from cest.evaluation.figures import CELL, GAP, HEADING, MARGIN
from cest.evaluation.measurements import FIGURES
from cest.modeling import FaceEstimator
from cest.reconstruction import Reconstructor
from clip_factory import write_clips

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "model_card"))

import release as release_module  # noqa: E402
from release import NAMES, PARTS, main, put_in_place, rounding  # noqa: E402


@pytest.fixture(scope="module")
def runs(face_model, tmp_path_factory) -> Path:
    """Two training runs, "cest" and "iest", each with its model/."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name in NAMES:
        config = FaceEstimatorConfig(conditioning=name, image_size=64, width=0.25)
        FaceEstimator(config, face_model=face_model).save_pretrained(folder / name / "model")
    return folder


@pytest.fixture(scope="module")
def arguments(runs, face_model) -> list[str]:
    clips = write_clips(runs / "held-out.parquet", face_model, clips=2, frames=2, size=64)
    models = [item for name in NAMES for item in (f"--{name}", str(runs / name / "model"))]
    about = runs / "about"
    about.mkdir()
    for part in PARTS:
        (about / f"{part}.md").write_text(f"What the owner says of the {part}.\n")
    return [*models, "--validation", str(clips), "--clips", "2", "--about", str(about)]


@pytest.fixture(scope="module")
def released(arguments, tmp_path_factory) -> Path:
    """What the command wrote, float16."""
    output = tmp_path_factory.mktemp("model_card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods_module, "MEAN_ALBEDO_PEOPLE", 2)
        # Random weights are not held to the accuracy of trained ones.
        patch.setattr(release_module, "ROUNDING_TOLERANCE", 1e9)
        methods_module.mean_albedo.cache_clear()
        main([*arguments, "--half", "-o", str(output)])
        methods_module.mean_albedo.cache_clear()
    return output


def tables(card: str) -> list[list[list[str]]]:
    """The Markdown tables of a card: table, row, cell; headings included."""
    found = re.findall(r"(?:^\|.*\|\n)+", card, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in found
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_release_is_whole(released, runs, name):
    assert {path.name for path in released.iterdir()} == set(NAMES)  # nothing temporary
    folder = released / name
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {
        *("README.md", "config.json", "evaluation.json", "model.safetensors", "picture.jpg"),
        ".eval_results/clips-held-out-parquet.yaml",
        ".eval_results/synthetic-synthetic-20261126.yaml",
    }
    original = load_file(runs / name / "model" / "model.safetensors")
    stored = load_file(folder / "model.safetensors")
    loaded = FaceEstimator.from_pretrained(folder)
    assert loaded.config == FaceEstimator.from_pretrained(runs / name / "model").config
    assert stored.keys() == original.keys()
    for key, value in loaded.state_dict().items():
        if original[key].is_floating_point():
            assert stored[key].dtype == torch.float16 and value.dtype == torch.float32
        assert torch.equal(value, original[key].half().to(value.dtype))


def shown(summary: dict | None, figure: str) -> str:
    digits = FIGURES[figure].digits
    return f"{summary['mean']:z.{digits}f}" if summary and summary["count"] else "–"


def title(figure: str) -> str:
    return FIGURES[figure].label + {"lower": " ↓", "higher": " ↑", "": ""}[FIGURES[figure].better]


def figure_rows(methods: dict) -> list[list[str]]:
    measured = [figure for figure in FIGURES if any(figure in found for found in methods.values())]
    assert len(measured) > 8
    return [
        [title(figure), *(shown(found.get(figure), figure) for found in methods.values())]
        for figure in measured
    ]


def group_rows(figure: str, methods: dict) -> list[list[str]]:
    rows = []
    for method, groups in methods.items():
        means = [group["mean"] for group in groups.values() if group["count"]]
        ratio = f"{max(means) / min(means):.2f}" if FIGURES[figure].better == "lower" else ""
        values = [shown(group, figure) for group in groups.values()]
        rows.append([title(figure), method, *values, ratio])
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_was_measured(released, name):
    """Every number of its tables is evaluation.json's, which names the weights beside it."""
    folder = released / name
    text = (folder / "evaluation.json").read_text()
    evaluation = json.loads(text, parse_constant=pytest.fail)  # no NaN
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    card = ModelCard.load(folder / "README.md")
    assert f"# {name.upper()}\n" in card.text and "{{" not in card.text
    assert all(f"What the owner says of the {part}." in card.text for part in PARTS)
    found = tables(card.text)
    for protocol in ("clips", "synthetic"):
        report = evaluation[protocol]
        methods = report["figures"]
        plain = ["CEST", "IEST", "mean face", "landmark fit"]
        detailed = ["CEST", "CEST as users get it", "IEST", "IEST as users get it"]
        detailed += ["mean face", "landmark fit"]
        assert list(methods) == (detailed if protocol == "clips" else plain)
        assert report["methods"][name.upper()]["sha256_of_weights"] == weights
        assert [["", *methods], ["---"] * (1 + len(methods)), *figure_rows(methods)] in found
        for groups in report["by_group"].values():
            rows = [row for figure, by in groups.items() for row in group_rows(figure, by)]
            assert rows in [table[2:] for table in found]
    assert {"skin tone"} == evaluation["clips"]["by_group"].keys()
    assert {"skin tone", "yaw"} == evaluation["synthetic"]["by_group"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_hub_can_read_card_and_results(released, name):
    """What its validation looks at: metadata, model-index, the results' form; and the links."""
    folder = released / name
    card = ModelCard.load(folder / "README.md")
    data = card.data
    said = {"license": "apache-2.0", "library_name": "cest", "pipeline_tag": "image-to-3d"}
    assert data.to_dict().items() >= said.items()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for protocol, dataset in (("clips", "cest-validation"), ("synthetic", "cest-synthetic")):
        expected = {
            figure: values["mean"]
            for figure, values in evaluation[protocol]["figures"][name.upper()].items()
            if values["count"] and FIGURES[figure].better
        }
        listed = [r for r in data.eval_results if r.dataset_type == f"OWNER/{dataset}"]
        assert {r.metric_type: r.metric_value for r in listed} == expected
        (path,) = (folder / ".eval_results").glob(f"{protocol}-*.yaml")
        entries = parse_eval_result_entries(yaml.safe_load(path.read_text()))
        assert {entry.task_id: entry.value for entry in entries} == expected
    assert yaml.safe_load(data.to_yaml()) == data.to_dict()
    links = re.findall(r"]\((?!https?:|#)([^)]+)\)", card.text)
    assert links == ["picture.jpg"]
    assert (folder / "picture.jpg").stat().st_size <= 250_000
    with Image.open(folder / "picture.jpg") as picture:
        assert picture.format == "JPEG"
    for heading in ("Use", "Intended use", "Training data and terms", "Limits and biases"):
        assert f"\n## {heading}\n" in card.text


def test_rounding_that_shows_is_refused(monkeypatch):
    # NME is shown with two digits: 0.004 is within one unit of the last, 0.02 is not.
    means = {"exact": {"nme68": 2.0}, "close": {"nme68": 2.004}, "far": {"nme68": 2.02}, "no": {}}
    monkeypatch.setattr(
        release_module, "evaluate", lambda model, clips, max_frames: means[model] | {"frames": 9}
    )

    def moved(iest: str) -> dict:
        exact = dict.fromkeys(NAMES, "exact")
        return rounding(exact, exact | {"iest": iest}, None)

    found = moved("close")
    assert found == {"frames": 9, "figure": "IEST, NME-68, %", "units": pytest.approx(0.4)}
    assert moved("exact")["units"] == 0
    with pytest.raises(ValueError, match=r"'IEST, NME-68, %' moves by 2\.0 .* without --half"):
        moved("far")
    with pytest.raises(ValueError, match=r"moves by inf"):
        moved("no")


def test_what_cannot_be_released_is_one_sentence(arguments, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(release_module, "on_clips", None)  # not to be called
    cest, iest = (str(runs / name / "model") for name in NAMES)

    def fails(**changed: str) -> str:
        given = dict(zip(arguments[::2], arguments[1::2])) | {"-o": str(tmp_path / "out")}
        given |= {f"--{name}": value for name, value in changed.items()}
        with pytest.raises(SystemExit) as stopped:
            main([item for pair in given.items() for item in pair])
        sentence = str(stopped.value)
        assert sentence.startswith("release.py: ") and "\n" not in sentence
        return sentence

    assert "absent is neither a folder nor a Hub id" in fails(cest=str(runs / "absent"))
    assert "has no config.json: give a folder" in fails(cest=str(runs / "cest"))
    assert "training.md: No such file or directory." in fails(about=str(tmp_path))
    assert "is a checkpoint of IEST: give --cest one of CEST." in fails(cest=iest)
    assert "is a checkpoint of CEST: give --iest one of IEST." in fails(iest=cest)
    damaged = tmp_path / "damaged"
    FaceEstimator.from_pretrained(cest).save_pretrained(damaged)
    save_file({"a": torch.zeros(1)}, damaged / "model.safetensors")
    assert "does not fit its config.json" in fails(cest=str(damaged))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    given = [*arguments, "-o", str(tmp_path / "file")]
    with pytest.raises(SystemExit, match=r"release\.py: .*file: File exists\."):
        main(given)


def test_clips_that_cannot_be_read_are_one_sentence(arguments, tmp_path):
    given = dict(zip(arguments[::2], arguments[1::2])) | {"--validation": "absent.parquet"}
    given |= {"-o": str(tmp_path)}
    with pytest.raises(SystemExit, match=r"release\.py: No clips .* 'absent\.parquet'"):
        main([item for pair in given.items() for item in pair])
    assert not any(tmp_path.iterdir())


def test_a_release_that_breaks_off_leaves_the_old_one(arguments, tmp_path, monkeypatch):
    """Whether it is stopped while measuring or between the two folders' taking their place."""
    for name in NAMES:
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "README.md").write_text(f"old {name}")

    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(release_module, "on_clips", stopped)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "-o", str(tmp_path / "out")])
    (tmp_path / "made" / "cest").mkdir(parents=True)  # and no iest: its renaming fails
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "made", tmp_path / "out")
    for name in NAMES:
        files = list((tmp_path / "out" / name).iterdir())
        assert [path.read_text() for path in files] == [f"old {name}"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(NAMES)


def test_a_sheet_has_a_row_a_face_and_the_models_side_by_side(arguments, tiny_model, tmp_path):
    clips = arguments[arguments.index("--validation") + 1]
    detector = FaceDetector(EMBEDDED)
    faces = faces_in(clips, 24, detector)
    assert list(faces) == ["0", "1"] and faces["1"].shape == (VIEW, VIEW, 3)
    assert list(faces_in(clips, 1, detector)) == ["0"]
    model = Reconstructor(tiny_model, detector, "cpu")
    sheet = contact_sheet(faces, {"a": model, "b": model})
    assert sheet.size == (MARGIN + 11 * (CELL + GAP) - GAP, HEADING + 2 * (CELL + GAP) - GAP)
    cells = [
        np.asarray(sheet)[HEADING : HEADING + CELL, x : x + CELL].astype(int)
        for x in range(MARGIN, sheet.width, CELL + GAP)
    ]
    # The same model twice: the same pictures twice; the photo first, relit from either side.
    for a, b in zip(cells[1:6], cells[6:]):
        np.testing.assert_array_equal(a, b)
    first = Image.fromarray(faces["0"]).resize((CELL, CELL), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(cells[0], np.asarray(first))
    (face,) = model.reconstruct(faces["0"], crop=SquareCrop(CELL, CELL, VIEW))
    drawn = face.vertices_photo[:, 0] / 2
    left, right = (int(drawn.min() + share * np.ptp(drawn)) for share in (0.2, 0.8))
    brighter = (cells[4] - cells[5]).mean((0, 2))  # lit from left less lit from right
    assert brighter[left - 5 : left + 5].mean() > 0 > brighter[right - 5 : right + 5].mean()


def test_photos_without_a_face_are_left_out_of_a_sheet(tmp_path, caplog):
    detector = FaceDetector(EMBEDDED)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="shows no face"):
        faces_in(str(tmp_path), 24, detector)
    shutil.copy(release_module.PHOTO, tmp_path / "b.jpg")
    assert list(faces_in(str(tmp_path), 24, detector)) == ["b.jpg"]
    assert "a.png: no face was found." in caplog.text
