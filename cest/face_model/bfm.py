"""The Basel Face Model 2009 with the 3DDFA expression basis, from files the user has licensed.

One folder holds, under the names they are distributed with:

- `01_MorphableModel.mat` (Basel Face Model 2009): shapeMU, shapePC, shapeEV;
- `model_info.mat` (3DDFA, Face Profiling): trimIndex, tri, keypoints;
- `Model_Expression.mat` or `Model_Exp.mat` (3DDFA, HPEN): mu_exp, w_exp, sigma_exp, on the trimmed
  vertices;
- `BFM_UV.mat` (3DMMasSTN; optional): UV, in [0, 1] and symmetric about u = 1/2, v up or down.
  Without it the face is unrolled around a cylinder.

Their unit is the micrometre, their axes are ours. Indices count from 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from cest.face_model.foreign import check_shape, face_model
from cest.face_model.model import FaceModel

MICROMETRES_PER_DECIMETRE = 1e5
EXPRESSION_FILES = ("Model_Expression.mat", "Model_Exp.mat")
N_IDENTITY, N_EXPRESSION = 199, 29


def load_bfm(path: Path | str) -> FaceModel:
    """Load `01_MorphableModel.mat` at `path` and its companions beside it.

    Raises FileNotFoundError for a missing file, ValueError for an unreadable or misshapen one.
    """
    path = Path(path)
    shape = _read(path, "shapeMU", "shapePC", "shapeEV")
    info = _read(path.parent / "model_info.mat", "trimIndex", "tri", "keypoints")
    expression_path = next(
        (path.parent / name for name in EXPRESSION_FILES if (path.parent / name).is_file()),
        path.parent / EXPRESSION_FILES[0],
    )
    expression = _read(expression_path, "mu_exp", "w_exp", "sigma_exp")

    kept = info["trimIndex"].ravel().astype(np.int64) - 1
    full = shape["shapeMU"].size // 3
    check_shape(path, "shapePC", shape["shapePC"], (3 * full, None))
    if len(kept) == 0 or kept.min() < 0 or kept.max() >= full:
        raise ValueError(
            f"{path.parent / 'model_info.mat'}: trimIndex does not fit the {full} vertices of "
            f"{path.name}."
        )
    check_shape(expression_path, "w_exp", expression["w_exp"], (3 * len(kept), None))

    rows = (3 * kept[:, None] + np.arange(3)).ravel()
    mean = shape["shapeMU"].ravel()[rows] + expression["mu_exp"].ravel()
    identity = shape["shapePC"][rows, :N_IDENTITY] * shape["shapeEV"].ravel()[:N_IDENTITY]
    moving = expression["w_exp"][:, :N_EXPRESSION] * expression["sigma_exp"].ravel()[:N_EXPRESSION]
    basis = np.concatenate([identity, moving], 1).T.reshape(-1, len(kept), 3)

    triangles = info["tri"] if info["tri"].shape[1] == 3 else info["tri"].T
    landmarks = info["keypoints"].ravel().astype(np.int64) - 1
    for key, index in (("tri", triangles - 1), ("keypoints", landmarks)):
        if index.min() < 0 or index.max() >= len(kept):
            raise ValueError(
                f"{path.parent / 'model_info.mat'}: {key} names vertices that do not exist."
            )
    if len(landmarks) != 68:
        raise ValueError(
            f"{path.parent / 'model_info.mat'}: {len(landmarks)} keypoints, expected 68."
        )
    return face_model(
        "bfm",
        mean.reshape(-1, 3) / MICROMETRES_PER_DECIMETRE,
        basis / MICROMETRES_PER_DECIMETRE,
        identity.shape[1],
        triangles.astype(np.int64) - 1,
        landmarks,
        _uv(path.parent / "BFM_UV.mat", full, kept),
    )


def _uv(path: Path, full: int, kept: np.ndarray) -> np.ndarray | None:
    if not path.is_file():
        return None
    uv = _read(path, "UV")["UV"]
    check_shape(path, "UV", uv, (full, 2))
    return uv[kept]


def _read(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """Arrays `keys` (float64) of the Matlab file at `path`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the Basel Face Model needs {path.name} beside the other files of "
            "the licensed download (see cest.face_model.bfm)."
        )
    try:
        content = loadmat(path)
    except (ValueError, TypeError, NotImplementedError, MatReadError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable Matlab file ({error}).") from error
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: is it the right file?")
    return {key: np.asarray(content[key], dtype=np.float64) for key in keys}
