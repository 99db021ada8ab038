"""Makes the folders of a release: weights, config, evaluation, picture and card.

    python model_card/release.py --cest runs/small-cest/model --iest runs/small-iest/model \
        --validation CLIPS --about model_card --half

Evaluates both on the held-out clips and on synthetic clips of a fixed seed, and writes
model_card/cest and model_card/iest as they go to the Hub. All of it is made beside them first, and
takes their place when it is whole.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import ModelCard, ModelCardData, constants
from PIL import Image

# Before this folder, whose cest/ would pass for the package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from push import DATASETS, REPOSITORIES

from cest.data import load_clips
from cest.data.clips import ClipSet
from cest.data.synthetic import AppearanceRanges, SyntheticClips
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation import evaluate
from cest.evaluation.contact_sheet import VIEW, first_frame, largest_face, panels
from cest.evaluation.figures import table
from cest.evaluation.measurements import FIGURES
from cest.evaluation.protocols import Run, on_clips, synthetic_report
from cest.evaluation.report import attach, figures_table, group_tables
from cest.modeling import FaceEstimator
from cest.networks import count_parameters
from cest.reconstruction import Reconstructor

HERE = Path(__file__).resolve().parent
NAMES = ("cest", "iest")
SYNTHETIC_SEED, SYNTHETIC_CLIPS = 20261126, 250
PARTS = ("training", "data")
"""Of the card that are written by hand: what --about has as Markdown."""
PHOTO = HERE.parent / "cest" / "assets" / "astronaut.jpg"
PICTURE_SEED, PICTURE_LIGHTNESS = 1, (28.0, 52.0, 76.0)
"""Of the synthetic people in the picture; CIE L* of their skins."""
ROUNDING_FRAMES, ROUNDING_TOLERANCE = 128, 1.0
"""Held-out frames on which float16 weights are compared, and units of the last digit shown by
which they may move a figure."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in NAMES:
        parser.add_argument(f"--{name}", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--validation", required=True, help="held-out clips")
    parser.add_argument(
        "--about",
        type=Path,
        required=True,
        help="folder with training.md and data.md: how the two were trained, and on what",
    )
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
    """Writes OUTPUT/cest and OUTPUT/iest. What may be refused is tried before the long part."""
    # OSErrors name the file.
    about = {part: (options.about / f"{part}.md").read_text("utf-8").strip() for part in PARTS}
    originals = {name: checkpoint(getattr(options, name), name) for name in NAMES}
    held_out = load_clips(options.validation)
    rendered = SyntheticClips(options.clips, SYNTHETIC_SEED)
    options.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".release-", dir=options.output) as made:
        made = Path(made)
        for name, model in originals.items():
            (deepcopy(model).half() if options.half else model).save_pretrained(made / name)
        models = {name: FaceEstimator.from_pretrained(made / name) for name in NAMES}
        float16 = rounding(originals, models, held_out) if options.half else None
        sheet = picture(models)
        sources = {name.upper(): str(made / name) for name in NAMES}
        labelled = {name.upper(): model for name, model in models.items()}
        runs = {
            # Rendered skin has no detail that is finer than what models see of it.
            protocol: Run(source, labelled, sources, baselines=True, detail=detail)
            for protocol, source, detail in (
                ("clips", options.validation, True),
                ("synthetic", f"synthetic-{SYNTHETIC_SEED}", False),
            )
        }
        progress = sys.stderr.isatty()
        evaluation = {
            "clips": on_clips(runs["clips"], progress)[""].to_dict(),
            "synthetic": synthetic_report(runs["synthetic"], rendered, progress).to_dict(),
            "float16": float16,
        }
        for name, model in models.items():
            sheet.save(made / name / "picture.jpg", quality=80, optimize=True)
            describe(made / name, model, evaluation, about)
        put_in_place(made, options.output)


def checkpoint(source: str, name: str) -> FaceEstimator:
    """Loads what was given as --cest or --iest.

    Raises:
        ValueError: it is not that.
    """
    model = FaceEstimator.from_pretrained(source)
    if (found := model.config.conditioning) != name:
        raise ValueError(
            f"{source} is a checkpoint of {found.upper()}: give --{name} one of {name.upper()}."
        )
    return model


def rounding(
    exact: Mapping[str, FaceEstimator], rounded: Mapping[str, FaceEstimator], clips: ClipSet
) -> dict[str, object]:
    """The mean over some held-out frames that float16 weights move most.

    Raises:
        ValueError: it moves by more than ROUNDING_TOLERANCE units of its last digit.
    """
    moved = {}
    for name in NAMES:
        before, after = (
            evaluate(m[name], clips, max_frames=ROUNDING_FRAMES) for m in (exact, rounded)
        )
        for figure, about in FIGURES.items():
            if figure in before or figure in after:
                change = abs(before.get(figure, math.inf) - after.get(figure, math.inf))
                moved[f"{name.upper()}, {about.label}"] = change * 10**about.digits
    figure = max(moved, key=moved.get)
    if moved[figure] > ROUNDING_TOLERANCE:
        raise ValueError(
            f"In float16, {figure!r} moves by {moved[figure]:.1f} units of its last digit: release "
            "without --half."
        )
    return {"frames": before["frames"], "figure": figure, "units": moved[figure]}


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
        name.upper(): Reconstructor(model, detector, "cpu", detail=False)
        for name, model in models.items()
    }
    rows = []
    for view in views:
        photo = Image.fromarray(view)
        for label, model in reconstructors.items():
            rows.append((label, {"photo": photo} | panels(view, model)))
            photo = Image.new("RGB", photo.size, "white")  # once a face
    return table(rows)


def describe(
    folder: Path, model: FaceEstimator, evaluation: Mapping[str, dict], about: Mapping[str, str]
) -> None:
    """Writes evaluation.json, the card (from template.md) and its results beside the weights."""
    text = json.dumps(evaluation, indent=1, allow_nan=False) + "\n"
    (folder / "evaluation.json").write_text(text, encoding="utf-8")
    config = model.config
    name = config.conditioning
    card = ModelCard.from_template(
        ModelCardData(
            license="apache-2.0",
            library_name="cest",
            pipeline_tag="image-to-3d",
            tags=["3d-face-reconstruction", "relighting", "self-supervised", name],
        ),
        template_path=str(HERE / "template.md"),
        name=name.upper(),
        config=config,
        face_model=model.face_model,
        parameters=f"{count_parameters(model) / 1e6:.1f} M",
        megabytes=f"{(folder / constants.SAFETENSORS_SINGLE_FILE).stat().st_size / 1e6:.1f}",
        repo_id=f"OWNER/{REPOSITORIES[name]}",
        figures={protocol: figures_table(evaluation[protocol]) for protocol in DATASETS},
        groups={protocol: group_tables(evaluation[protocol]) for protocol in DATASETS},
        **evaluation,
        **about,
    )
    card.save(folder / constants.REPOCARD_NAME)
    for protocol, dataset in DATASETS.items():
        attach(folder, evaluation[protocol], name.upper(), f"OWNER/{dataset}")


def put_in_place(made: Path, output: Path) -> None:
    """Moves both folders of `made` to `output`; those that are there come back if that fails."""
    old = made / "old"
    old.mkdir()
    with ExitStack() as undo:

        def move(source: Path, target: Path) -> None:
            undo.callback(lambda: source.exists() or target.rename(source))
            source.rename(target)

        for name in NAMES:
            if (output / name).exists():
                move(output / name, old / name)
            move(made / name, output / name)
        undo.pop_all()


if __name__ == "__main__":
    main()
