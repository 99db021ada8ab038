"""What `cest evaluate` does: a data set, a protocol and methods, to reports."""

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from scipy.io import loadmat

from cest.data import load_clips
from cest.detection import FaceDetector
from cest.evaluation.aflw2000 import YAW_GROUPS, by_yaw, evaluate_aflw2000, read_samples
from cest.evaluation.clip_sets import RELIGHT_STRENGTH, evaluate_clips
from cest.evaluation.dense import FACE_RADIUS
from cest.evaluation.measurements import Measurements
from cest.evaluation.mediapipe_mesh import MediaPipeMesh, ShapeMethod
from cest.evaluation.methods import BASELINES, Estimate, Method, Refined
from cest.evaluation.micc import PITCHES, YAWS, evaluate_micc, read_scans
from cest.evaluation.now import read_image_list, submit
from cest.evaluation.photos import PhotoMethod, evaluate_photos, photos_in
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


@dataclass(frozen=True)
class Run:
    """A call of `cest evaluate`.

    Attributes:
        source: data set: files or a Hub id, as the protocol has it.
        models: label -> estimator, on its device.
        weights: label -> where it came from; a folder's weights are hashed.
        frames: at most so many, or None.
        baselines: whether those that need no training stand beside.
        refine: steps of the test-time fit that each estimator is also tried with, 0 for none.
        basel: `01_MorphableModel.mat`, for the dense truth of AFLW2000-3D.
        mediapipe: `face_landmarker.task`, for MediaPipe's mesh on synthetic clips and AFLW2000-3D.
        detector: of faces, as `FaceDetector` takes it.
        output: folder for what a protocol writes itself (NoW), or None.
    """

    source: str
    models: Mapping[str, FaceEstimator]
    weights: Mapping[str, str] = field(default_factory=dict)
    frames: int | None = None
    baselines: bool = False
    refine: int = 0
    basel: Path | None = None
    mediapipe: Path | None = None
    detector: str | None = None
    output: Path | None = None

    @property
    def device(self):
        return next(next(iter(self.models.values())).parameters()).device

    def methods(self) -> dict[str, Method]:
        """On crops."""
        found: dict[str, Method] = {}
        for label, model in self.models.items():
            found[label] = Estimate(model.eval())
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
            reconstructor = Reconstructor(model, detector, self.device, label)
            found[label] = PhotoMethod(reconstructor)
            if self.refine:
                found[self.refined(label)] = PhotoMethod(reconstructor, self.refine)
        return found

    def shapes(self) -> dict[str, ShapeMethod]:
        """Those that give geometry alone."""
        if self.mediapipe is None:
            return {}
        return {"MediaPipe": MediaPipeMesh.load(str(self.mediapipe))}

    def refined(self, label: str) -> str:
        return f"{label} + {self.refine} steps"

    def report(
        self, measured: Measurements, protocol: Mapping[str, object], name: str = "", **extra
    ) -> Report:
        """A report on the run's data set, which goes by its last name only."""
        about = {}
        for label in measured.values:
            model = self.models.get(label.split(" + ")[0])
            about[label] = {} if model is None else model.config.to_dict()
            weights = Path(self.weights.get(label, "")) / "model.safetensors"
            if weights.is_file():
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
        rows = rows.select([k * len(rows) // wanted for k in range(wanted)])
    measured = evaluate_synthetic(
        run.methods(), rows, shapes=run.shapes(), device=run.device, progress=progress
    )
    protocol = {
        "name": "synthetic",
        "landmarks": LANDMARKS,
        "per-vertex": "Procrustes over the face's vertices, with and without scale; true "
        "correspondence; over the outer interocular distance",
        "dense": DENSE,
        "photometric": f"{PHOTOMETRIC}; pixels of the true mask and the rendering",
        "albedo": "mean |A - s Â| over the texels that the photo shows, 0-255, s matching means",
        "light": "angle between the nine harmonics; and between the first bands",
        "cross-relight": "albedo of the frame before, own light, true geometry, against the true "
        "rendering; one factor a clip",
        "skin tone": "typology angle of the true albedo",
        "baselines": "posed by, or fitted to, the true landmarks; light by least squares",
    }
    return {"": run.report(measured, protocol)}


def load_truth(source: str) -> datasets.Dataset:
    """Synthetic clips with all columns: a folder that `cest synthesize` wrote, or Parquet files.

    Raises:
        ValueError: there are none, or they say nothing about the truth.
    """
    pattern = str(Path(source) / "*.parquet") if Path(source).is_dir() else source
    files = sorted(glob.glob(pattern))
    if not files:
        raise ValueError(f"{source} has no Parquet files: make some with `cest synthesize`.")
    rows = datasets.load_dataset("parquet", data_files=files, split="train")
    for name in ("frames", "masks", "visibility"):
        if name in rows.column_names:
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    if "reflectance_map" not in rows.column_names:
        raise ValueError(f"{source} holds clips without their truth: make them with it.")
    return rows.cast_column("reflectance_map", datasets.Image(decode=False))


def on_photos(run: Run, progress: bool) -> dict[str, Report]:
    """A folder of photos, such as CelebA's."""
    measured, failures = evaluate_photos(
        run.photo_methods(), photos_in(Path(run.source)), run.frames, progress
    )
    protocol = {
        "name": "photos",
        "photometric": f"{PHOTOMETRIC}; pixels of the rendering",
        "photos": "by name, the largest face of each that the detector finds",
    }
    return {"": run.report(measured, protocol, failures=failures)}


def on_aflw2000(run: Run, progress: bool) -> dict[str, Report]:
    """AFLW2000-3D; a report for each set of annotations."""
    truth, sigma = None, None
    if run.basel is not None:
        truth, sigma = load_face_model(run.basel), basel_deviations(run.basel)
    samples = read_samples(Path(run.source))[: run.frames]
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
    """Of the Basel Face Model's coefficients and 3DDFA's expressions, in the files' unit."""
    identity = loadmat(path, variable_names=["shapeEV"])["shapeEV"].ravel().astype(float)
    for name in ("Model_Expression.mat", "Model_Exp.mat"):
        if (path.parent / name).is_file():
            expression = loadmat(path.parent / name, variable_names=["sigma_exp"])["sigma_exp"]
            return identity, expression.ravel().astype(float)
    raise ValueError(f"{path.parent} has no Model_Exp.mat beside {path.name}.")


def on_micc(run: Run, progress: bool) -> dict[str, Report]:
    """MICC Florence."""
    scans = read_scans(Path(run.source))
    if run.frames is not None:
        scans = dict(list(scans.items())[: max(1, run.frames // (len(YAWS) * len(PITCHES)))])
    measured, failures = evaluate_micc(run.photo_methods(), scans, progress=progress)
    protocol = {
        "name": "micc",
        "dense": DENSE,
        "pictures": f"renderings, unlit, yaw {YAWS}, pitch {PITCHES}",
        "nose and eyes of the scans": f"where {next(iter(run.models))} sees them from the front",
    }
    return {"": run.report(measured, protocol, failures=failures)}


def on_now(run: Run, progress: bool) -> dict[str, Report]:
    """NoW: writes a submission for each method into the output's folder; measures nothing."""
    if run.output is None:
        raise ValueError("NoW wants meshes: say where to, with -o DIR.")
    images = read_image_list(Path(run.source))[: run.frames]
    for label, method in run.photo_methods().items():
        submit(method, Path(run.source), images, run.output / label, progress)
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
    "mediapipe": ("synthetic", "aflw2000"),
    "basel": ("aflw2000",),
    "detector": ("photos", "aflw2000", "micc", "now"),
    "attach": ("clips", "synthetic", "photos", "aflw2000", "micc"),
}
"""Options of `cest evaluate` that not every protocol has a use for."""


def labels(models: Sequence[tuple[str, FaceEstimator]]) -> dict[str, FaceEstimator]:
    """(source, model) pairs by a short name: CEST or IEST, with the folder's where there are more.

    No path is in a label, so that reports say nothing about the machine.
    """
    named: dict[str, FaceEstimator] = {}
    for source, model in models:
        label = model.config.conditioning.upper()
        if label in named:
            label = f"{label} {Path(source).name}"
        number, unique = 2, label
        while unique in named:
            unique, number = f"{label} {number}", number + 1
        named[unique] = model
    return named
