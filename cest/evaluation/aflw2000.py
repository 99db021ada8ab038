"""AFLW2000-3D: NME-68 by yaw, for both sets of annotations, and the paper's dense NME.

Layout, as distributed: ``NAME.jpg`` (450 x 450) beside ``NAME.mat`` with `pt3d_68` (3, 68) in
MATLAB's pixels, `Pose_Para` (1, 7: pitch, yaw, roll in radians, …), `Shape_Para` (199, 1) and
`Exp_Para` (29, 1) of the Basel Face Model. The re-annotation (Bulat and Tzimiropoulos 2017) is read
as 3DDFA passes it on: ``AFLW2000-3D-Reannotated.pts68.npy`` (N, 2 or 3, 68), in the order of the
images' names. Written after the code that others read these files with, and tested on files made
in that layout: the originals, which must be asked for, were not at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from tqdm import tqdm

from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop
from cest.detection import DetectedFace
from cest.evaluation.dense import Shape, errors_from_model
from cest.evaluation.groups import YAW_GROUPS, yaw_group
from cest.evaluation.measurements import Measurements
from cest.evaluation.methods import PhotoMethod, ShapeMethod
from cest.evaluation.metrics import normalised_mean_error
from cest.face_model import FaceModel
from cest.photo import read_photo

REANNOTATED = "AFLW2000-3D-Reannotated.pts68.npy"


@dataclass(frozen=True, eq=False)
class Sample:
    """One image's annotations.

    Attributes:
        image: its file.
        landmarks: set ("original", "re-annotated") -> (68, 2) pixel-edge coordinates.
        yaw: degrees.
        shape, expression: `Shape_Para` and `Exp_Para`, or None.
    """

    image: Path
    landmarks: Mapping[str, np.ndarray]
    yaw: float
    shape: np.ndarray | None
    expression: np.ndarray | None


def read_samples(folder: Path) -> list[Sample]:
    """The images of a folder that have a .mat beside them, by name.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    files = sorted(p for p in Path(folder).glob("*.jpg") if p.with_suffix(".mat").is_file())
    if not files:
        raise ValueError(f"{folder} has no NAME.jpg with a NAME.mat beside it: is it AFLW2000-3D?")
    again = _reannotated(Path(folder) / REANNOTATED, len(files))
    return [_sample(path, None if again is None else again[i]) for i, path in enumerate(files)]


def _reannotated(path: Path, count: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    points = np.load(path, allow_pickle=False)
    if points.ndim != 3 or points.shape[0] != count or points.shape[2] != 68:
        raise ValueError(
            f"{path} holds {points.shape}, not ({count}, 2, 68): one set of landmarks an image."
        )
    return points[:, :2].transpose(0, 2, 1) - 0.5


def _sample(image: Path, again: np.ndarray | None) -> Sample:
    path = image.with_suffix(".mat")
    try:
        content = loadmat(path)
        original = content["pt3d_68"][:2].T.astype(float) - 0.5
        yaw = float(np.degrees(content["Pose_Para"].ravel()[1]))
    except Exception as error:  # scipy says in many ways that a file is damaged
        raise ValueError(f"{path} is no annotation of AFLW2000-3D ({error}).") from error
    if original.shape != (68, 2) or not np.isfinite(original).all():
        raise ValueError(f"{path}: pt3d_68 is not 68 points.")
    sets = {"original": original}
    if again is not None:
        sets["re-annotated"] = again
    coefficients = [
        content[name].ravel().astype(float) if name in content else None
        for name in ("Shape_Para", "Exp_Para")
    ]
    return Sample(image, sets, yaw, *coefficients)


def evaluate_aflw2000(
    methods: Mapping[str, PhotoMethod],
    samples: Sequence[Sample],
    shapes: Mapping[str, ShapeMethod] | None = None,
    truth_model: FaceModel | None = None,
    sigma: tuple[np.ndarray, np.ndarray] | None = None,
    progress: bool = False,
) -> dict[str, Measurements]:
    """NME-68 on both annotation sets; dense NME where the Basel Face Model is given.

    The crop is the upright square about the original landmarks' box, for everybody.

    Args:
        methods: by name.
        samples: from read_samples.
        shapes: methods that give geometry alone, to stand in the same table.
        truth_model: the Basel Face Model 2009 with 3DDFA's expressions, which the shapes are of.
        sigma: standard deviations of its identity and expression coefficients as the files have
            them (`shapeEV`, `sigma_exp`).
        progress: whether to draw a bar.

    Returns:
        By annotation set: "nme68" for each image (and with a truth model `errors_from_model`).
        Groups: "yaw".

    Raises:
        ValueError: with a truth model, an image's .mat says nothing of the shape.
    """
    for sample in samples if truth_model is not None else ():
        if sample.shape is None or sample.expression is None:
            raise ValueError(
                f"{sample.image.with_suffix('.mat')} lacks Shape_Para or Exp_Para, the dense "
                "truth: leave that image out, or do without --basel."
            )
    sets = list(samples[0].landmarks)
    results = {name: Measurements() for name in sets}
    for sample in tqdm(samples, unit="image", disable=not progress):
        photo, (box, face) = read_photo(sample.image), _face(sample.landmarks["original"])
        found = {name: method(photo, [face]) for name, method in methods.items()}
        seen = {name: method(photo, box) for name, method in (shapes or {}).items()}
        coefficients = [c for c in (sample.shape, sample.expression) if c is not None]
        for annotation, truth in sample.landmarks.items():
            results[annotation].read(sample.image.stem, sample.image, truth, *coefficients)
            results[annotation].groups["yaw"].append(yaw_group(sample.yaw))
            for name, answer in (found | seen).items():
                error = float("nan") if answer is None else _nme(answer.landmarks_photo, truth)
                results[annotation].add(name, "nme68", [error])
        if truth_model is not None:
            true = basel_vertices(truth_model, sigma, sample)
            answers = {name: Shape.of(r.face_model, r.vertices[0]) for name, r in found.items()}
            for name, shape in (answers | seen).items():
                errors = errors_from_model(shape, truth_model, true, metric=name in found)
                for figure, value in errors.items():
                    results["original"].add(name, figure, [value])
    return results


def by_yaw(measured: Measurements) -> dict[str, dict[str, float]]:
    """method -> yaw group -> mean NME-68; and "mean" of the three, whatever their sizes.

    Images in which a method found nothing are left out. Where that leaves a bin empty there is no
    "mean", and a method that found nothing is left out.
    """
    table = {}
    for method, groups in measured.by_group("yaw", "nme68").items():
        means = {group: values["mean"] for group, values in groups.items() if values["count"]}
        if len(means) == len(YAW_GROUPS):
            means["mean"] = float(np.mean(list(means.values())))
        if means:
            table[method] = means
    return table


def basel_vertices(
    model: FaceModel, sigma: tuple[np.ndarray, np.ndarray], sample: Sample
) -> np.ndarray:
    """The annotated shape (K, 3), decimetres, from coefficients in the files' own unit."""
    alpha = np.concatenate(
        [
            values[: len(deviations)] / deviations
            for values, deviations in zip((sample.shape, sample.expression), sigma)
        ]
    )
    return model.vertices(torch.from_numpy(alpha[None]).float())[0].double().numpy()


def _face(landmarks: np.ndarray) -> tuple[tuple[float, float, float, float], DetectedFace]:
    (left, top), (right, bottom) = landmarks.min(0), landmarks.max(0)
    size = max(right - left, bottom - top) * LANDMARK_BOX_TO_CROP
    crop = SquareCrop((left + right) / 2, (top + bottom) / 2, float(size))
    box = (float(left), float(top), float(right), float(bottom))
    return box, DetectedFace(box, 1.0, crop)


def _nme(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(normalised_mean_error(*(torch.from_numpy(p)[None] for p in (estimate, truth))))
