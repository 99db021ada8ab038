"""The 3D morphable face model: data, evaluation, loading."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from cest.face_model.subdivision import subdivide, triangulate

OPEN_MODEL = Path(__file__).parent / "data" / "open.safetensors"
MAX_LEVEL = 2
UV_GRID = 2.0**-24  # u and 1 - u are both exact in float32 on this grid

MIRRORED_LANDMARKS = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *range(27, 31),
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46),
        *(39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),
        *range(59, 54, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
    ]
)
"""Landmark i of a mirrored face is landmark MIRRORED_LANDMARKS[i] of the face."""


@dataclass(frozen=True, eq=False)  # tensors have no one truth value: identity it is
class FaceModel:
    """A linear face model, vec S = mean + basis alpha (eq. 5).

    Lengths are decimetres in the face frame: +x to the right of a frontal image, +y up, +z to the
    viewer. Triangles are counter-clockwise seen from outside.

    name: "open", "bfm" or "gnm". mean (K, 3). basis (D, K, 3): displacement per standard deviation,
    the `n_identity` identity directions first. standard_deviations (D,): root mean square motion of
    a vertex along each direction, dm. triangles (F, 3). uv (K, 2) in [0, 1], v up. mirror (K,):
    each vertex's mirror image. landmarks (68,): vertices of the iBUG points, the image's left
    first. parts (K,): 0 skin, 1 eyeball, 2 lips, 3 inner mouth. actions: ARKit action name ->
    expression coefficients (n_expression,) at full strength. content_hash: sha256 of the model at
    level 0, the same at every level of detail.
    """

    name: str
    mean: Tensor
    basis: Tensor
    n_identity: int
    standard_deviations: Tensor
    triangles: Tensor
    uv: Tensor
    mirror: Tensor
    landmarks: Tensor
    parts: Tensor
    actions: dict[str, Tensor]
    content_hash: str

    @property
    def n_vertices(self) -> int:
        return len(self.mean)

    @property
    def n_coefficients(self) -> int:
        return len(self.basis)

    @property
    def n_expression(self) -> int:
        return self.n_coefficients - self.n_identity

    def vertices(self, coefficients: Tensor) -> Tensor:
        """Shape coefficients (B, D) in standard deviations -> vertices (B, K, 3), dm (eq. 5)."""
        return self.mean + (coefficients @ self.basis.flatten(1)).view(-1, *self.mean.shape)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> FaceModel:
        """Copy on `device`; `dtype` applies to the real-valued tensors only."""

        def move(value):
            if isinstance(value, dict):
                return {key: move(entry) for key, entry in value.items()}
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if value.is_floating_point() else None)

        fields = dataclasses.fields(self)
        return FaceModel(**{field.name: move(getattr(self, field.name)) for field in fields})


def content_hash(arrays: dict[str, np.ndarray]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of `arrays`, independent of their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def face_origin(mean: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Where in `mean` (K, 3) the origin (3,) of the face frame is.

    On the symmetry plane, in the middle of the landmarks' height, half-way in depth between the tip
    of the nose and the ends of the jaw before the ears.
    """
    points = mean[landmarks]
    across = (points[0, 0] + points[16, 0]) / 2
    height = (points[:, 1].min() + points[:, 1].max()) / 2
    return np.array([across, height, (points[30, 2] + points[[0, 16], 2].mean()) / 2])


def symmetric_uv(uv: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """`uv` (K, 2) rounded to float32 such that u of a vertex and of its mirror add up to 1."""
    result = np.round(uv / UV_GRID) * UV_GRID
    left = result[:, 0] < result[mirror, 0]
    result[mirror[left]] = result[left] * [-1, 1] + [1, 0]
    result[mirror == np.arange(len(uv)), 0] = 0.5
    return result.astype(np.float32)


def load_face_model(name_or_path: str | Path = "open", level: int = 0) -> FaceModel:
    """Load a face model.

    "open" is the one that comes with the package; its `level` of detail is 0 (2.5 k vertices), 1
    (10 k) or 2 (40 k). A path to a `.mat` file is read as the Basel Face Model 2009, one to a
    `.npz` file as GNM Head, one to a `.safetensors` file as what `cest face-model build` wrote.

    Raises FileNotFoundError or ValueError with what to do about it.
    """
    path = OPEN_MODEL if str(name_or_path) == "open" else Path(name_or_path)
    if path.suffix == ".safetensors":
        return _load_open(path, level)
    if level != 0:
        raise ValueError(f"{path.name} has one level of detail only: use level=0.")
    if path.suffix == ".mat":
        from cest.face_model.bfm import load_bfm

        return load_bfm(path)
    if path.suffix == ".npz":
        from cest.face_model.gnm import load_gnm

        return load_gnm(path)
    raise ValueError(
        f'"{name_or_path}" is no face model: say "open", or give a .safetensors file (built by '
        "`cest face-model build`), a .mat file (Basel Face Model 2009) or a .npz file (GNM)."
    )


def _load_open(path: Path, level: int) -> FaceModel:
    if level not in range(MAX_LEVEL + 1):
        raise ValueError(f"level must be 0, 1 or {MAX_LEVEL}, not {level!r}.")
    if not path.is_file():
        raise FileNotFoundError(f"No face model at {path}: build it with `cest face-model build`.")
    try:
        arrays = load_file(path)
        quads, mirror, parts = (
            arrays[key].astype(np.int64) for key in ("quads", "mirror", "parts")
        )
        shapes = np.concatenate([arrays["mean"][None], arrays["basis"]]).astype(np.float32)
        uv, action_names = arrays["uv"].astype(np.float64), bytes(arrays["action_names"]).decode()
        coefficients, landmarks = (
            arrays["actions"],
            arrays["landmarks"].astype(np.int64),
        )
        deviations, n_identity = arrays["standard_deviations"], int(arrays["n_identity"][0])
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{path} is not a complete face model ({error}): build it again with "
            "`cest face-model build`."
        ) from error

    smooth = None
    for _ in range(level):
        step = subdivide(quads, mirror)
        smooth = step.smooth if smooth is None else step.smooth @ smooth
        uv, parts = step.linear @ uv, parts[step.parents].min(1)
        quads, mirror = step.quads, step.mirror
    if smooth is not None:
        columns = shapes.transpose(1, 0, 2).reshape(shapes.shape[1], -1)
        columns = smooth.astype(np.float32) @ columns
        shapes = columns.reshape(len(columns), -1, 3).transpose(1, 0, 2)
    mean = shapes[0]
    mean = (mean + mean[mirror] * np.float32([-1, 1, 1])) / 2  # sums above round differently
    return FaceModel(
        name="open",
        mean=torch.from_numpy(mean.copy()),
        basis=torch.from_numpy(np.ascontiguousarray(shapes[1:])),
        n_identity=n_identity,
        standard_deviations=torch.from_numpy(deviations),
        triangles=torch.from_numpy(triangulate(quads, mirror, mean)),
        uv=torch.from_numpy(symmetric_uv(uv, mirror)),
        mirror=torch.from_numpy(mirror),
        landmarks=torch.from_numpy(landmarks),
        parts=torch.from_numpy(parts.astype(np.uint8)),
        actions=dict(zip(action_names.split(), torch.from_numpy(coefficients))),
        content_hash=content_hash(arrays),
    )
