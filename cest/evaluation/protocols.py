"""What `cest evaluate` does: a data set, a protocol and methods, to reports."""

import glob
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from scipy.io import loadmat

from cest.data import load_clips
from cest.detection import FaceDetector
from cest.evaluation.aflw2000 import by_yaw, evaluate_aflw2000, read_samples
from cest.evaluation.clip_sets import RELIGHT_STRENGTH, evaluate_clips
from cest.evaluation.dense import FACE_RADIUS
from cest.evaluation.groups import YAW_GROUPS
from cest.evaluation.measurements import Measurements, spread
from cest.evaluation.mediapipe_mesh import MediaPipeMesh
from cest.evaluation.methods import (
    BASELINES,
    Detailed,
    Estimate,
    Method,
    PhotoMethod,
    Refined,
    ShapeMethod,
)
from cest.evaluation.micc import PITCHES, YAWS, evaluate_micc, read_scans
from cest.evaluation.now import read_image_list, submit
from cest.evaluation.photos import evaluate_photos, photos_in
from cest.evaluation.report import Report, file_hash
from cest.evaluation.synthetic_truth import evaluate_synthetic
from cest.face_model import load_face_model
from cest.modeling import FaceEstimator
from cest.reconstruction import Reconstructor

LANDMARKS = "over sqrt(w h) of the true landmarks' box; 68 iBUG points, or the inner 51"
PHOTOMETRIC = "mean |I - Î| of RGB 0-255 at the estimator's size, own reflectance"
DENSE = (
    f"rigid ICP (point to plane) with and without scale, from the truth's vertices within "
    f"{100 * FACE_RADIUS:.0f} mm of the nose to the nearest point of the surface, over the outer "
    "interocular distance in 3D"
)
LOW_PASSED = {
    "shading": "R² of the estimated shading, scaled, against the photo's luminance, both blurred "
    "by 1/16 of the side; not below -1",
    "lit from one side": "mean |A - mirrored A|, 0-255, of the albedo blurred by 1/16 of the "
    "side, over texels visible on both sides",
}


@dataclass(frozen=True)
class Run:
    """A call of `cest evaluate`.

    Attributes:
        source: data set: files or a Hub id, as the protocol has it.
        models: label -> estimator, on its device.
        weights: label -> where it came from; a folder's weights are hashed.
        frames: at most so many, or None.
        baselines: whether those that need no training stand beside.
        detail: whether each estimator is also tried with its light settled and the photo's detail.
        refine: steps of the test-time fit that each estimator is also tried with, 0 for none.
        basel: `01_MorphableModel.mat`, for the dense truth of AFLW2000-3D.
        mediapipe: `face_landmarker.task`, for MediaPipe's mesh on synthetic clips and AFLW2000-3D.
        detector: of faces, as `FaceDetector` takes it.
        images: file that lists NoW's images, None for the one that the data set has.
        output: folder for what a protocol writes itself (NoW), or None.
    """

    source: str
    models: Mapping[str, FaceEstimator]
    weights: Mapping[str, str] = field(default_factory=dict)
    frames: int | None = None
    baselines: bool = False
    detail: bool = False
    refine: int = 0
    basel: Path | None = None
    mediapipe: Path | None = None
    detector: str | None = None
    images: Path | None = None
    output: Path | None = None

    @property
    def device(self):
        return next(next(iter(self.models.values())).parameters()).device

    def methods(self) -> dict[str, Method]:
        """On crops."""
        found: dict[str, Method] = {}
        for label, model in self.models.items():
            found[label] = Estimate(model.eval())
            if self.detail:
                found[self.for_users(label)] = Detailed(model)
            if self.refine:
                found[self.refined(label)] = Refined(model, self.refine)
        first = next(iter(self.models.values()))
        if self.baselines:
            for name, make in BASELINES.items():
                found[name] = make(first.face_model, first.config.image_size)
        return found

    def photo_methods(self) -> dict[str, PhotoMethod]:
        """On whole photos."""
        detector = FaceDetector(self.detector)
        found = {}
        for label, model in self.models.items():
            reconstructor = Reconstructor(model, detector, self.device, label, detail=False)
            found[label] = PhotoMethod(reconstructor)
            if self.refine:
                found[self.refined(label)] = PhotoMethod(reconstructor, self.refine)
        return found

    def shapes(self) -> dict[str, ShapeMethod]:
        """Those that give geometry alone."""
        if self.mediapipe is None:
            return {}
        return {"MediaPipe": MediaPipeMesh.load(str(self.mediapipe))}

    def for_users(self, label: str) -> str:
        return f"{label} as users get it"

    def refined(self, label: str) -> str:
        return f"{label} + {self.refine} steps"

    def estimator(self, label: str) -> str | None:
        """The label of the estimator that a method starts from; None for one without."""
        for name in self.models:
            if label in (name, self.for_users(name), self.refined(name)):
                return name
        return None

    def report(
        self, measured: Measurements, protocol: Mapping[str, object], name: str = "", **extra
    ) -> Report:
        """A report on the run's data set, which goes by its last name only."""
        about = {}
        for label in measured.values:
            estimator = self.estimator(label)
            model, folder = self.models.get(estimator), self.weights.get(estimator)
            about[label] = {} if model is None else model.config.to_dict()
            if folder and (weights := Path(folder) / "model.safetensors").is_file():
                about[label]["sha256_of_weights"] = file_hash(weights)
        dataset = {
            "name": name or Path(self.source).name,
            "sha256": measured.sha256,
            "frames": len(measured.frames),
        }
        return Report(measured, protocol, dataset, about, extra)


def on_clips(run: Run, progress: bool) -> dict[str, Report]:
    """A clip set with landmarks."""
    clips = load_clips(run.source)
    measured = evaluate_clips(
        run.methods(), clips, max_frames=run.frames, device=run.device, progress=progress
    )
    masks = "the set's own" if "masks" in clips.column_names else "hull of the landmarks, by colour"
    protocol = {
        "name": "clips",
        "landmarks": LANDMARKS,
        "photometric": f"{PHOTOMETRIC}; pixels of mask and rendering",
        "mask": masks,
        **LOW_PASSED,
        "relighting": f"strength {RELIGHT_STRENGTH}, the same lights for all methods",
        "skin tone": "typology angle of the photo's median colour: light and camera included",
        "baselines": "posed by, or fitted to, the reference landmarks; light by least squares",
    }
    return {"": run.report(measured, protocol)}


def on_synthetic(run: Run, progress: bool) -> dict[str, Report]:
    """Clips of `cest synthesize`, with their truth."""
    rows = load_truth(run.source)
    if run.frames is not None:
        wanted = min(len(rows), max(1, run.frames // len(rows[0]["frames"])))
        rows = rows.select(spread(range(len(rows)), wanted))
    return {"": synthetic_report(run, rows, progress)}


def synthetic_report(run: Run, rows: Sequence[Mapping], progress: bool) -> Report:
    """On rows of SyntheticClips, wherever they are."""
    measured = evaluate_synthetic(
        run.methods(), rows, shapes=run.shapes(), device=run.device, progress=progress
    )
    protocol = {
        "name": "synthetic",
        "landmarks": f"{LANDMARKS}; true ones at each method's level of detail",
        "per-vertex": "Procrustes over the face's vertices, with and without scale; true "
        "correspondence; over the outer interocular distance",
        "dense": DENSE,
        "photometric": f"{PHOTOMETRIC}; pixels of the true mask and the rendering",
        **LOW_PASSED,
        "albedo": "mean |A - s Â| over the texels that the photo shows, 0-255, s matching means",
        "light": "angle between the nine harmonics; and between the first bands",
        "cross-relight": "albedo of the frame before, own light, true geometry, against the true "
        "rendering; one factor a clip",
        "skin tone": "typology angle of the true albedo",
        "baselines": "posed by, or fitted to, the true landmarks; light by least squares",
    }
    return run.report(measured, protocol)


def load_truth(source: str) -> datasets.Dataset:
    """Synthetic clips with all columns: a folder that `cest synthesize` wrote, or Parquet files.

    Raises:
        ValueError: there are none, or they say nothing about the truth.
    """
    pattern = str(Path(source) / "*.parquet") if Path(source).is_dir() else source
    files = sorted(glob.glob(pattern))
    if not files:
        raise ValueError(f"{source} has no Parquet files: make some with `cest synthesize`.")
    try:
        rows = datasets.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:  # pyarrow, datasets and the disk have their own
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            f"{source} has no clips that can be read ({reason}): make some with `cest synthesize`."
        ) from error
    for name in ("frames", "masks", "visibility"):
        if name in rows.column_names:
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    if "reflectance_map" not in rows.column_names:
        raise ValueError(f"{source} holds clips without their truth: make them with it.")
    return rows.cast_column("reflectance_map", datasets.Image(decode=False))


def on_photos(run: Run, progress: bool) -> dict[str, Report]:
    """A folder of photos, such as CelebA's."""
    photos = spread(photos_in(Path(run.source)), run.frames)
    measured, failures = evaluate_photos(run.photo_methods(), photos, progress)
    protocol = {
        "name": "photos",
        "photometric": f"{PHOTOMETRIC}; pixels of the rendering",
        **LOW_PASSED,
        "photos": f"{len(photos)}, the largest face of each that the detector finds",
    }
    return {"": run.report(measured, protocol, failures=failures)}


def on_aflw2000(run: Run, progress: bool) -> dict[str, Report]:
    """AFLW2000-3D; a report for each set of annotations."""
    truth, sigma = None, None
    if run.basel is not None:
        truth, sigma = load_face_model(run.basel), basel_deviations(run.basel)
    samples = spread(read_samples(Path(run.source)), run.frames)
    measured = evaluate_aflw2000(run.photo_methods(), samples, run.shapes(), truth, sigma, progress)
    protocol = {
        "name": "aflw2000",
        "landmarks": f"{LANDMARKS}; mean of the yaw bins {', '.join(YAW_GROUPS)}, beyond 90 in the "
        "last, where all three have images",
        "crop": "upright square of 1.65 times the original landmarks' box",
        "dense": DENSE if truth is not None else "not taken: needs the Basel Face Model",
    }
    return {
        name: run.report(
            found, protocol | {"annotations": name}, f"AFLW2000-3D, {name}", by_yaw=by_yaw(found)
        )
        for name, found in measured.items()
    }


def basel_deviations(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the Basel Face Model's coefficients and 3DDFA's expressions, in the files' unit.

    Raises:
        ValueError: a file is missing or damaged.
    """
    names = ("Model_Expression.mat", "Model_Exp.mat")
    expressions = [path.parent / name for name in names if (path.parent / name).is_file()]
    if not expressions:
        raise ValueError(f"{path.parent} has no Model_Exp.mat beside {path.name}.")
    found = []
    for file, name in ((path, "shapeEV"), (expressions[0], "sigma_exp")):
        try:
            found.append(loadmat(file, variable_names=[name])[name].ravel().astype(float))
        except Exception as error:  # scipy says in many ways that a file is damaged
            raise ValueError(f"{file} has no {name} that can be read ({error}).") from error
    return found[0], found[1]


def on_micc(run: Run, progress: bool) -> dict[str, Report]:
    """MICC Florence."""
    scans = read_scans(Path(run.source))
    if run.frames is not None:
        wanted = max(1, run.frames // (len(YAWS) * len(PITCHES)))
        scans = dict(spread(list(scans.items()), wanted))
    measured, failures = evaluate_micc(run.photo_methods(), scans, progress=progress)
    protocol = {
        "name": "micc",
        "dense": DENSE,
        "pictures": f"renderings, unlit, yaw {YAWS}, pitch {PITCHES}",
        "nose and eyes of the scans": f"where {next(iter(run.models))} sees them from the front",
    }
    return {"": run.report(measured, protocol, failures=failures)}


def on_now(run: Run, progress: bool) -> dict[str, Report]:
    """NoW: writes a submission for each method into the output's folder; measures nothing.

    Images without a face are said on stderr.
    """
    if run.output is None:
        raise ValueError("NoW wants meshes: say where to, with -o DIR.")
    images = spread(read_image_list(Path(run.source), run.images), run.frames)
    for label, method in run.photo_methods().items():
        missed = submit(method, Path(run.source), images, run.output / label, progress)
        for image in missed:
            print(f"{label}, {image}: no face was found, the middle was taken.", file=sys.stderr)
    return {}


PROTOCOLS: dict[str, Callable[[Run, bool], dict[str, Report]]] = {
    "clips": on_clips,
    "synthetic": on_synthetic,
    "photos": on_photos,
    "aflw2000": on_aflw2000,
    "micc": on_micc,
    "now": on_now,
}


APPLIES_TO = {
    "baselines": ("clips", "synthetic"),
    "detail": ("clips", "synthetic"),
    "mediapipe": ("synthetic", "aflw2000"),
    "basel": ("aflw2000",),
    "detector": ("photos", "aflw2000", "micc", "now"),
    "images": ("now",),
    "attach": ("clips", "synthetic", "photos", "aflw2000", "micc"),
}
"""Options of `cest evaluate` that not every protocol has a use for."""


def labels(models: Sequence[tuple[str, FaceEstimator]]) -> dict[str, FaceEstimator]:
    """(source, model) pairs by a short name: CEST or IEST, with the run's where there are more.

    No path is in a label, so that reports say nothing about the machine.
    """
    kinds = Counter(model.config.conditioning for _, model in models)
    named: dict[str, FaceEstimator] = {}
    for source, model in models:
        kind, folder = model.config.conditioning, Path(source)
        # A training run's weights lie in RUN/model.
        run = (folder.name == "model" and folder.parent.name) or folder.name
        label = kind.upper() if kinds[kind] == 1 else f"{kind.upper()} {run}"
        numbered = (f"{label} {number}" for number in itertools.count(2))
        found = itertools.chain((label,), numbered)
        named[next(one for one in found if one not in named)] = model
    return named
