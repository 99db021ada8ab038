"""Google's GNM Head (Apache-2.0), cropped to the face.

`gnm_head.npz` (Hub: google/gnm-v3) and, beside it, `head_sparse_68.txt` from GNM's repository: one
row a landmark, three times a vertex index and its weight. Units are metres, axes are ours. The rest
pose is used; joints and pose correctives are not.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from cest.face_model.foreign import check_shape, face_model
from cest.face_model.model import FaceModel

DECIMETRES_PER_METRE = 10.0
LANDMARK_FILE = "head_sparse_68.txt"
KEYS = ("template_vertex_positions", "vertex_identity_basis", "expression_basis", "triangles")
BEHIND, BELOW, ABOVE = 0.1, 0.25, 0.7  # dm kept beyond the jaw's ends, the chin and the brows


def load_gnm(path: Path | str) -> FaceModel:
    """Load GNM from the npz file at `path`, with its landmark file beside it.

    Raises FileNotFoundError for a missing file, ValueError for an unreadable or misshapen one.
    """
    path = Path(path)
    arrays = _read(path)
    mean = arrays["template_vertex_positions"].astype(np.float64) * DECIMETRES_PER_METRE
    check_shape(path, KEYS[0], mean, (None, 3))
    n = len(mean)
    for key in KEYS[1:3]:
        check_shape(path, key, arrays[key], (None, n, 3))
    check_shape(path, "triangles", arrays["triangles"], (None, 3))
    triangles = arrays["triangles"].astype(np.int64)
    if triangles.min() < 0 or triangles.max() >= n:
        raise ValueError(f"{path}: triangles name vertices that do not exist.")
    landmarks = _landmarks(path.parent / LANDMARK_FILE, mean)

    points = mean[landmarks]
    inside = (
        (mean[:, 2] > points[:17, 2].min() - BEHIND)
        & (mean[:, 1] > points[8, 1] - BELOW)
        & (mean[:, 1] < points[17:27, 1].max() + ABOVE)
    )
    triangles = triangles[inside[triangles].all(1)]
    kept, triangles = np.unique(triangles, return_inverse=True)
    index = np.full(n, -1)
    index[kept] = np.arange(len(kept))
    if (index[landmarks] < 0).any():
        raise ValueError(f"{path}: the landmarks of {LANDMARK_FILE} are not on its face.")
    basis = np.concatenate([arrays[key][:, kept] for key in KEYS[1:3]]).astype(np.float64)
    return face_model(
        "gnm",
        mean[kept],
        basis * DECIMETRES_PER_METRE,
        len(arrays["vertex_identity_basis"]),
        triangles.reshape(-1, 3),
        index[landmarks],
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: download gnm_head.npz from the Hub repository google/gnm-v3."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise ValueError(f"it has no {', '.join(missing)}")
            return {key: file[key] for key in KEYS}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a GNM Head file ({error}).") from error


def _landmarks(path: Path, mean: np.ndarray) -> np.ndarray:
    """The heaviest vertex (68,) of each landmark in `path`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it is gnm/shape/data/landmarks/{LANDMARK_FILE} in the GitHub "
            "repository google/GNM."
        )
    try:
        table = np.loadtxt(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a landmark table ({error}).") from error
    check_shape(path, "the table", table, (68, 6))
    index, weight = table[:, ::2].astype(np.int64), table[:, 1::2]
    if index.min() < 0 or index.max() >= len(mean):
        raise ValueError(f"{path} names vertices that do not exist.")
    landmarks = index[np.arange(68), weight.argmax(1)]
    # Five jaw points of the published file are in reverse order: sort the jaw around the face,
    # from the image's left over the chin to its right.
    jaw = mean[landmarks[:17]]
    centre = mean[landmarks[17:]].mean(0)
    from_below = np.arctan2(jaw[:, 0] - centre[0], centre[1] - jaw[:, 1])
    return np.concatenate([landmarks[:17][np.argsort(from_below, kind="stable")], landmarks[17:]])
