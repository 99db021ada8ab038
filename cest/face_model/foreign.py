"""What face models from elsewhere lack: our frame, a UV layout, a mirror map, an outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cest.face_model.model import FaceModel, content_hash, face_origin, symmetric_uv

Array = NDArray[np.float64]
UV_MARGIN = 0.01
MOST_FLIPPED = 0.03  # share of a given UV map that may be turned over, in folds


def nearest_mirror(points: Array) -> NDArray[np.int64]:
    """Mirror map (K,) of nearly symmetric `points` (K, 3) about x = 0, by nearest neighbours.

    Only mutual nearest neighbours are paired, the others are their own image: an involution always.
    """
    partner = cKDTree(points).query(points * [-1.0, 1.0, 1.0])[1]
    own = np.arange(len(points))
    return np.where(partner[partner] == own, partner, own)


def cylindrical_uv(points: Array) -> Array:
    """Unroll `points` (K, 3) around a vertical axis in the middle of the head: uv (K, 2).

    The axis stands at the depth of the rearmost point; around lids, lips and nostrils, where the
    surface folds back, a few triangles overlap.
    """
    angle = np.arctan2(points[:, 0], points[:, 2] - points[:, 2].min() + 1e-6)
    low, high = points[:, 1].min(), points[:, 1].max()
    across = angle / (2 * np.abs(angle).max())  # -1/2 .. 1/2, zero on the midline
    upwards = (points[:, 1] - low) / (high - low) - 0.5
    return 0.5 + (1 - 2 * UV_MARGIN) * np.stack([across, upwards], 1)


def upright_uv(
    name: str, uv: Array, triangles: NDArray[np.int64], mirror: NDArray[np.int64]
) -> NDArray[np.float32]:
    """A given map `uv` (K, 2) with v up and mirror symmetry, float32.

    Vertices without a mirror image, other than those of the midline, stay where they are.
    Raises ValueError if it is not in [0, 1] or does not fit `triangles` (F, 3).
    """
    if not ((uv >= 0) & (uv <= 1)).all():  # also when one is NaN
        raise ValueError(f"{name}: the UV coordinates must be between 0 and 1.")
    if (uv_areas(uv, triangles) < 0).mean() > 0.5:  # v counted from the top
        uv = np.stack([uv[:, 0], 1 - uv[:, 1]], 1)
    result = symmetric_uv(uv, mirror)
    alone = (mirror == np.arange(len(uv))) & (np.abs(uv[:, 0] - 0.5) > UV_MARGIN)
    result[alone] = uv[alone]
    flipped = (uv_areas(result, triangles) <= 0).mean()
    lopsided = (~alone & (result[mirror, 0] != 1 - result[:, 0])).mean()  # both had the same u
    if max(flipped, lopsided) > MOST_FLIPPED:
        raise ValueError(
            f"{name}: the UV coordinates turn triangles over once made symmetric about u = 1/2: "
            "are they those of this mesh, with the nose upright in the middle?"
        )
    return result


def uv_areas(uv: Array, triangles: NDArray[np.int64]) -> Array:
    """Twice the area (F,) of each triangle in the map, negative if it is clockwise there."""
    a, b, c = (uv[triangles[:, i]].astype(np.float64) for i in range(3))
    (x1, y1), (x2, y2) = (b - a).T, (c - a).T
    return x1 * y2 - y1 * x2


def outward(triangles: NDArray[np.int64], points: Array) -> NDArray[np.int64]:
    """`triangles` (F, 3), turned around if they are clockwise seen from outside."""
    a, b, c = (points[triangles[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    away = (a + b + c) / 3 - points.mean(0)
    return triangles if (normal * away).sum() > 0 else triangles[:, ::-1]


def face_model(
    name: str,
    mean: Array,
    basis: Array,
    n_identity: int,
    triangles: NDArray[np.int64],
    landmarks: NDArray[np.int64],
    uv: Array | None = None,
    parts: NDArray[np.uint8] | None = None,
) -> FaceModel:
    """Put a model together that comes in decimetres, y up, z to the viewer.

    mean (K, 3); basis (D, K, 3) per standard deviation, identity first; triangles (F, 3);
    landmarks (68,). Moves the origin to ours and fills in what is missing.
    """
    mean = mean - face_origin(mean, landmarks)
    mirror = nearest_mirror(mean)
    triangles = outward(triangles, mean)
    if uv is None:
        uv = symmetric_uv(cylindrical_uv(mean), mirror)
    else:
        uv = upright_uv(name, uv, triangles, mirror)
    arrays = {
        "mean": mean.astype(np.float32),
        "basis": basis.astype(np.float32),
        "standard_deviations": np.sqrt((basis**2).sum(2).mean(1)).astype(np.float32),
        "triangles": np.ascontiguousarray(triangles).astype(np.int64),
        "uv": uv,
        "mirror": mirror.astype(np.int64),
        "landmarks": landmarks.astype(np.int64),
        "parts": np.zeros(len(mean), dtype=np.uint8) if parts is None else parts,
    }
    return FaceModel(
        name=name,
        n_identity=n_identity,
        actions={},
        content_hash=content_hash(arrays | {"n_identity": np.array([n_identity])}),
        **{key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()},
    )


def check_shape(path: Path, key: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `array` has `shape` (None: any length)."""
    fits = array.ndim == len(shape) and all(w in (None, n) for n, w in zip(array.shape, shape))
    if not fits:
        wanted = " x ".join("any" if w is None else str(w) for w in shape)
        raise ValueError(f"{path}: {key} has shape {array.shape}, expected {wanted}.")
