"""Makes the folders of a release: weights, config, evaluation, picture and card.

    python model_card/release.py --cest runs/small-cest/model --iest runs/small-iest/model \
        --validation CLIPS --half

Evaluates both on the held-out clips and on synthetic clips of a fixed seed, and writes
model_card/cest and model_card/iest as they go to the Hub. All of it is made beside them first, and
takes their place when it is whole.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import ModelCard, ModelCardData, constants
from PIL import Image

# Before this folder, whose cest/ would pass for the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from push import DATASETS, REPOSITORIES

from cest.data import load_clips
from cest.data.synthetic import AppearanceRanges, SyntheticClips, write_shards
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation.contact_sheet import VIEW, first_frame, largest_face, panels
from cest.evaluation.figures import table
from cest.evaluation.groups import group_title
from cest.evaluation.measurements import FIGURES
from cest.evaluation.protocols import PROTOCOLS, Run
from cest.evaluation.report import attach
from cest.modeling import FaceEstimator
from cest.networks import count_parameters
from cest.reconstruction import Reconstructor

HERE = Path(__file__).resolve().parent
NAMES = ("cest", "iest")
METHODS = ("CEST", "IEST", "mean face")
"""Columns of the cards; evaluation.json has the other baseline, too."""
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}
SHOWN = [name for name in FIGURES if name != "converged"]
"""Figures of the methods; that one is of the measuring."""
SYNTHETIC_SEED, SYNTHETIC_CLIPS = 20261126, 250
PHOTO = HERE.parent / "cest" / "assets" / "astronaut.jpg"
PICTURE_SEED, PICTURE_LIGHTNESS = 1, (28.0, 52.0, 76.0)
"""Of the synthetic people in the picture; CIE L* of their skins."""


ROUNDING_TOLERANCE = 1.0
"""Units of the last digit shown, by which float16 weights may move a figure."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cest", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--iest", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--validation", required=True, help="held-out clips")
    parser.add_argument(
        "--clips", type=int, default=SYNTHETIC_CLIPS, help="synthetic ones (default: %(default)s)"
    )
    parser.add_argument(
        "--half", action="store_true", help="float16 weights, if no figure shows the difference"
    )
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="default: model_card")
    options = parser.parse_args(arguments)
    try:
        release(options)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"release.py: {where}{error.strerror or error}.")
    except ValueError as error:  # of a checkpoint, of clips, of the release itself
        sys.exit(f"release.py: {error}")


def release(options: argparse.Namespace) -> None:
    """Writes OUTPUT/cest and OUTPUT/iest."""
    originals = {name: checkpoint(getattr(options, name), name) for name in NAMES}
    texts = {
        name: (HERE / f"{name}.md").read_text(encoding="utf-8").strip()
        for name in ("training", "data")
    }
    load_clips(options.validation)  # what cannot be read is said now
    options.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".release-", dir=options.output) as made:
        made = Path(made)
        for name in NAMES:
            stored = FaceEstimator.from_pretrained(getattr(options, name))
            (stored.half() if options.half else stored).save_pretrained(made / name)
        models = {name: FaceEstimator.from_pretrained(made / name) for name in NAMES}
        sets = {"clips": options.validation, "synthetic": str(synthetic_clips(made, options.clips))}
        weights = {name.upper(): str(made / name) for name in NAMES}
        evaluation = evaluate(models, sets, weights, baselines=True)
        if options.half:
            evaluation["float16"] = rounding(evaluation, evaluate(originals, sets))
        sheet = picture(models)
        for name, model in models.items():
            write_card(made / name, model, evaluation, sheet, texts)
        put_in_place(made, options.output)


def checkpoint(folder: Path, name: str) -> FaceEstimator:
    """Loads what was given as --cest or --iest.

    Raises:
        ValueError: it is not that.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give --{name} a checkpoint's.")
    if not (folder / constants.CONFIG_NAME).is_file():
        inside = folder / "model"
        if (inside / constants.CONFIG_NAME).is_file():
            raise ValueError(f"{folder} is a training run: give its checkpoint, {inside}.")
    model = FaceEstimator.from_pretrained(folder)
    if (found := model.config.conditioning) != name:
        raise ValueError(
            f"{folder} is a checkpoint of {found.upper()}: give --{name} one of {name.upper()}."
        )
    return model


def synthetic_clips(folder: Path, count: int) -> Path:
    made = folder / f"synthetic-{SYNTHETIC_SEED}"
    write_shards(SyntheticClips(count, SYNTHETIC_SEED), made, sys.stderr.isatty())
    return made


def evaluate(
    models: Mapping[str, FaceEstimator],
    sets: Mapping[str, str],
    weights: Mapping[str, str] | None = None,
    baselines: bool = False,
) -> dict[str, dict]:
    """What `cest evaluate` reports: protocol -> `Report.to_dict()`.

    Args:
        models: by conditioning.
        sets: protocol -> data set.
        weights: label -> folder, for the hashes.
        baselines: whether they stand beside.
    """
    labelled = {name.upper(): model for name, model in models.items()}
    reports = {}
    for protocol, source in sets.items():
        run = Run(source, labelled, weights or {}, baselines=baselines)
        (report,) = PROTOCOLS[protocol](run, sys.stderr.isatty()).values()
        reports[protocol] = report.to_dict()
    return reports


def rounding(rounded: Mapping[str, dict], exact: Mapping[str, dict]) -> dict[str, object]:
    """The figure that float16 weights move most, in units of the last digit that is shown.

    Raises:
        ValueError: it moves by more than one.
    """
    changes = []
    for protocol, report in exact.items():
        for method in map(str.upper, NAMES):
            for name in SHOWN:
                before, after = (
                    found["figures"][method].get(name, {}).get("mean")
                    for found in (report, rounded[protocol])
                )
                if before != after:
                    moved = float("inf") if None in (before, after) else abs(after - before)
                    changes.append((moved * 10 ** FIGURES[name].digits, protocol, method, name))
    units, protocol, method, name = max(changes, default=(0.0, "", "", ""))
    if not units <= ROUNDING_TOLERANCE:
        raise ValueError(
            f"In float16, {method}'s {FIGURES[name].label} ({protocol}) moves by {units:.1f} units "
            "of its last digit: release without --half."
        )
    return {
        "largest_change": {"protocol": protocol, "method": method, "figure": name, "units": units},
        "tolerance": ROUNDING_TOLERANCE,
        "about": "means of all figures; units of the last digit that the card shows",
    }


@torch.no_grad()
def picture(models: Mapping[str, FaceEstimator]) -> Image.Image:
    """What both make of NASA's portrait and of synthetic people of three skin tones."""
    detector = FaceDetector(EMBEDDED)
    views = [largest_face(PHOTO, detector)]
    for number, lightness in enumerate(PICTURE_LIGHTNESS):
        appearance = AppearanceRanges(
            (lightness, lightness), yaw=25, glasses=0, medical_mask=0, hand=0, padded=0
        )
        people = SyntheticClips(number + 1, PICTURE_SEED, 1, VIEW, appearance, truth=False)
        views.append(first_frame(people[number]))
    reconstructors = {
        name.upper(): Reconstructor(model, detector, "cpu") for name, model in models.items()
    }
    rows = []
    for view in views:
        photo = Image.fromarray(view)
        for label, model in reconstructors.items():
            rows.append((label, {"photo": photo} | panels(view, model)))
            photo = Image.new("RGB", photo.size, "white")  # once a face
    return table(rows)


def write_card(
    folder: Path,
    model: FaceEstimator,
    evaluation: Mapping[str, dict],
    sheet: Image.Image,
    texts: Mapping[str, str],
) -> None:
    """All but weights and config, into the checkpoint's folder.

    Args:
        folder: with the weights.
        model: which they are.
        evaluation: as `evaluate` gives it, and "float16".
        sheet: the picture.
        texts: "training" and "data", paragraphs.
    """
    text = json.dumps(evaluation, indent=1, allow_nan=False) + "\n"
    (folder / "evaluation.json").write_text(text, encoding="utf-8")
    sheet.save(folder / "picture.jpg", quality=80, optimize=True)
    card(folder, model, evaluation, texts).save(folder / constants.REPOCARD_NAME)
    for protocol, dataset in DATASETS.items():
        attach(folder, evaluation[protocol], folder.name.upper(), f"OWNER/{dataset}")


def card(
    folder: Path, model: FaceEstimator, evaluation: Mapping[str, dict], texts: Mapping[str, str]
) -> ModelCard:
    """The card of one checkpoint, from model_card/template.md; arguments as of `write_card`."""
    config = model.config
    name = config.conditioning
    return ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="cest",
            pipeline_tag="image-to-3d",
            tags=["3d-face-reconstruction", "relighting", "self-supervised", name],
        ),
        template_path=str(HERE / "template.md"),
        name=name.upper(),
        config=config,
        parameters=f"{count_parameters(model) / 1e6:.1f} M",
        megabytes=f"{(folder / constants.SAFETENSORS_SINGLE_FILE).stat().st_size / 1e6:.1f}",
        repo_id=f"OWNER/{REPOSITORIES[name]}",
        figures={protocol: figures_table(evaluation[protocol]) for protocol in DATASETS},
        groups={protocol: group_tables(evaluation[protocol]) for protocol in DATASETS},
        clips=evaluation["clips"],
        synthetic=evaluation["synthetic"],
        float16=evaluation.get("float16"),
        labels={figure: about.label for figure, about in FIGURES.items()},
        face_model=model.face_model,
        **texts,
    )


def figures_table(report: Mapping) -> str:
    """Means, a row a figure: Markdown."""
    rows = [
        [f"{FIGURES[name].label}{ARROWS[FIGURES[name].better]}", *values]
        for name in SHOWN
        if any(values := [_mean(report["figures"][method].get(name), name) for method in METHODS])
    ]
    return _table(["", *METHODS], rows)


def group_tables(report: Mapping) -> dict[str, str]:
    """Grouping -> means by group, a row a figure and method, and worst over best: Markdown."""
    tables = {}
    for grouping, figures in report["by_group"].items():
        rows = []
        for name, methods in figures.items():
            for method in METHODS:
                groups = methods[method]
                means = [group["mean"] for group in groups.values() if group["count"]]
                ratio = FIGURES[name].better == "lower" and means and max(means) / min(means)
                rows.append(
                    [
                        f"{FIGURES[name].label}{ARROWS[FIGURES[name].better]}",
                        method,
                        *(_mean(group, name) for group in groups.values()),
                        f"{ratio:.2f}" if ratio else "",
                    ]
                )
        counts = [f"{group_title(group)} ({values['count']})" for group, values in groups.items()]
        tables[grouping] = _table(["", "", *counts, "worst / best"], rows)
    return tables


def _mean(summary: Mapping | None, name: str) -> str:
    return f"{summary['mean']:z.{FIGURES[name].digits}f}" if summary and summary["count"] else ""


def _table(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in (heading, ["---"] * len(heading), *rows)
    )


def put_in_place(made: Path, output: Path) -> None:
    """Moves both folders of `made` to `output`; those that are there come back if that fails."""
    old = made / "old"
    old.mkdir()
    try:
        for name in NAMES:
            if (output / name).exists():
                (output / name).rename(old / name)
            (made / name).rename(output / name)
    except BaseException:
        for name in NAMES:
            if not (made / name).exists() and (output / name).exists():
                (output / name).rename(made / name)
            if (old / name).exists():
                (old / name).rename(output / name)
        raise


if __name__ == "__main__":
    main()
