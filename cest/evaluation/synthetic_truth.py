"""Methods on synthetic clips, the only place where shape, albedo and light are known.

Truth is compared as it is in front of the camera: the camera's colour cast, tone curve and noise,
shadows and highlights are part of what a method has to cope with.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cest.data import Frame, FrameBatch, read_frame
from cest.data.augmentation import Similarity
from cest.evaluation.dense import Shape, errors_from_model, vertex_error
from cest.evaluation.disentanglement import (
    albedo_deviation,
    albedo_error,
    albedo_level,
    albedo_similarity,
    cross_relight_error,
    direction_angle,
    light_angle,
)
from cest.evaluation.groups import tone_group, yaw_group, yaw_of
from cest.evaluation.measurements import Measurements
from cest.evaluation.methods import Method, ShapeMethod
from cest.evaluation.metrics import (
    asymmetry,
    normalised_mean_error,
    one_sidedness,
    photometric_error_255,
    shading_explained,
)
from cest.face_model import FaceModel
from cest.geometry import project, rotate
from cest.modeling import FaceParameters
from cest.rendering import Surface, rasterize_surface, shade_surface, vertex_normals

COLUMNS = ("viewpoint", "shape_coefficients", "illumination", "reflectance_map", "visibility")
"""What a row has to say of the truth."""


@dataclass(frozen=True, eq=False)
class Truth:
    """Of the n frames of one clip, in the conventions of FaceParameters.

    Attributes:
        viewpoint, shape_coefficients, illumination: (n, 7), (n, D), (n, 9).
        reflectance_map: (n, 3, T, T), the same for all frames.
        visibility: (n, 1, T, T), 1 for texels that the photo shows.
        vertices: (n, K, 3) of the method's face model.
        landmarks: (n, 68, 2) image frame, of the same: its level of detail moves them by half a
            per cent, which is no error of the method.
        surface: rasterised at the images' size.
        rendering: (n, 3, S, S): albedo times shading, nothing else.
    """

    viewpoint: Tensor
    shape_coefficients: Tensor
    illumination: Tensor
    reflectance_map: Tensor
    visibility: Tensor
    vertices: Tensor
    landmarks: Tensor
    surface: Surface
    rendering: Tensor

    @classmethod
    def of(cls, row: Mapping, face_model: FaceModel, size: int, device: torch.device) -> "Truth":
        """From a row of `cest.data.synthetic.SyntheticClips`."""
        viewpoint, coefficients, illumination = (
            torch.tensor(np.asarray(row[name], np.float32), device=device)
            for name in ("viewpoint", "shape_coefficients", "illumination")
        )
        albedo = torch.from_numpy(decoded(row["reflectance_map"]).copy())
        seen = torch.from_numpy(np.stack([decoded(v, "L") for v in row["visibility"]]))
        albedo = albedo.permute(2, 0, 1)[None].float().to(device) / 255
        albedo = albedo.expand(len(viewpoint), -1, -1, -1)
        vertices = face_model.vertices(coefficients)
        normals = rotate(vertex_normals(vertices, face_model.triangles), viewpoint)
        projected = project(vertices, viewpoint)
        surface = rasterize_surface(
            projected, normals, face_model.triangles, face_model.uv, (size, size)
        )
        return cls(
            viewpoint=viewpoint,
            shape_coefficients=coefficients,
            illumination=illumination,
            reflectance_map=albedo,
            visibility=(seen[:, None] > 127).float().to(device),
            vertices=vertices,
            landmarks=projected[:, face_model.landmarks, :2],
            surface=surface,
            rendering=shade_surface(surface, albedo, illumination)[0],
        )


def decoded(encoded: Mapping, mode: str = "RGB") -> np.ndarray:
    """An encoded picture {"bytes": ...} -> (H, W, 3) or (H, W) uint8."""
    with Image.open(io.BytesIO(encoded["bytes"])) as file:
        return np.asarray(file.convert(mode))


def evaluate_synthetic(
    methods: Mapping[str, Method],
    clips: Sequence[Mapping],
    dense_frames: int = 100,
    shapes: Mapping[str, ShapeMethod] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Measurements:
    """Measures methods against the truth; memory does not grow with the clips.

    Args:
        methods: by name, all with the open face model; landmarks that they are given are true at
            its level of detail.
        clips: rows of SyntheticClips, of two frames or more each.
        dense_frames: of so many, the first frames of clips evenly spread, the dense NME is taken
            too (ICP takes a third of a second a frame).
        shapes: methods that give geometry alone; they get NME (against the clips' own landmarks),
            "dense_scaled" and "converged".
        device: where the methods' models are.
        progress: whether to draw a bar.

    Returns:
        For each frame "nme68", "nme51", "pose" (NME-68 of the true shape in the estimated
        viewpoint), "vertex" and "vertex_scaled" (true per-vertex error, %), "photometric" and
        "shading_explained" (against the photo), "albedo", "albedo_relative" (% of the true albedo's
        mean), "albedo_bias" (signed, without rescaling), "albedo_similarity", "light_angle",
        "direction_angle", "cross_relight", "reflectance_one_sided", "reflectance_asymmetry"; for
        each clip "albedo_deviation"; for some frames "dense", "dense_scaled" and "converged".
        Groups: "skin tone", of the true albedo; "yaw", of the true viewpoint.

    Raises:
        ValueError: there is no clip, or one without truth or with a single frame; or a method has
            another face model.
    """
    if not len(clips):
        raise ValueError("There is no synthetic clip: nothing to evaluate.")
    for name, method in methods.items():
        if method.face_model.name != "open":
            raise ValueError(
                f"{name} has the face model {method.face_model.name}, but synthetic clips know "
                "the truth of the open one only: give checkpoints of that."
            )
    results = Measurements()
    dense = set(np.linspace(0, len(clips) - 1, min(dense_frames, len(clips))).round().astype(int))
    for number in tqdm(range(len(clips)), unit="clip", disable=not progress):
        row = clips[number]
        if missing := [name for name in COLUMNS if row.get(name) is None]:
            raise ValueError(
                f"Clip {row.get('clip_id')} lacks {', '.join(missing)}: make synthetic clips with "
                "their truth."
            )
        read = [read_frame(row, i) for i in range(len(row["frames"]))]
        if len(read) < 2:
            raise ValueError(
                f"Clip {row['clip_id']} has one frame: light and albedo are told apart over two "
                "or more."
            )
        for i, encoded in enumerate(row["frames"]):
            by_frame = ("landmarks", "masks", "visibility", *COLUMNS[:3])
            known = (row[name][i] for name in by_frame if row.get(name) is not None)
            results.read(f"{row['clip_id']}/{i}", encoded, *known, row["reflectance_map"])
        albedo = decoded(row["reflectance_map"])
        seen = np.max([decoded(v, "L") for v in row["visibility"]], axis=0)
        results.groups["skin tone"] += [tone_group(albedo, seen)] * len(read)
        results.groups["yaw"] += [yaw_group(yaw_of(v)) for v in row["viewpoint"]]
        cache: dict[tuple, tuple[FrameBatch, Truth]] = {}
        for name, method in methods.items():
            key = (method.size, method.face_model.content_hash, method.face_model.n_vertices)
            if key not in cache:
                frames = [
                    Frame.prepare(*f, Similarity.resize(len(f[0]), method.size), method.size)
                    for f in read
                ]
                batch = FrameBatch.stack([frames]).to(device)
                cache[key] = batch, Truth.of(row, method.face_model, method.size, device)
            batch, truth = cache[key]
            estimate = method(batch.image, truth.landmarks, batch.mask)
            for figure, values in compare(method.face_model, batch, estimate, truth).items():
                results.add(name, figure, values)
            if number in dense:
                shape = Shape.of(method.face_model, estimate.vertices[0])
                for figure, value in _dense(shape, method.face_model, truth).items():
                    results.add(name, figure, [value])
        for name, method in (shapes or {}).items():
            found = [method(image, _box(landmarks)) for image, landmarks, _ in read]
            for figure, inner in (("nme68", False), ("nme51", True)):
                pairs = zip(found, (landmarks for _, landmarks, _ in read))
                results.add(name, figure, [_nme(shape, true, inner) for shape, true in pairs])
            if number in dense:
                first = next(iter(methods.values()))
                truth = Truth.of(row, first.face_model, first.size, device)
                for figure, value in _dense(found[0], first.face_model, truth, False).items():
                    results.add(name, figure, [value])
    return results


@torch.no_grad()
def compare(
    face_model: FaceModel, batch: FrameBatch, estimate: FaceParameters, truth: Truth
) -> dict[str, Tensor]:
    """Figures of one clip's frames (n,), and "albedo_deviation" (1,)."""
    ids = face_model.landmarks
    points = estimate.projected[:, ids, :2]
    rendered, shading = shade_surface(
        estimate.surface, estimate.reflectance_map, estimate.illumination
    )
    visible, region = estimate.texture_visibility, batch.mask * estimate.surface.coverage
    posed = project(truth.vertices, estimate.viewpoint)[:, ids, :2]
    pairs = list(zip(estimate.vertices.double().cpu().numpy(), truth.vertices.cpu().numpy()))
    vertex = {
        name: torch.tensor([vertex_error(*pair, face_model, scale) for pair in pairs])
        for name, scale in (("vertex", False), ("vertex_scaled", True))
    }
    albedos = estimate.reflectance_map, truth.reflectance_map, truth.visibility
    error, level = albedo_error(*albedos), albedo_level(truth.reflectance_map, truth.visibility)
    return vertex | {
        "nme68": normalised_mean_error(points, truth.landmarks),
        "nme51": normalised_mean_error(points, truth.landmarks, inner=True),
        "pose": normalised_mean_error(posed, truth.landmarks),
        "photometric": photometric_error_255(batch.image, rendered, region),
        "shading_explained": shading_explained(batch.image, shading, region),
        "albedo": error,
        "albedo_relative": 100 * error / level.clamp(min=1),
        "albedo_bias": albedo_level(estimate.reflectance_map, truth.visibility) - level,
        "albedo_similarity": albedo_similarity(*albedos),
        "light_angle": light_angle(estimate.illumination, truth.illumination),
        "direction_angle": direction_angle(estimate.illumination, truth.illumination),
        "cross_relight": cross_relight_error(
            estimate.reflectance_map,
            estimate.illumination,
            truth.surface,
            truth.rendering,
            batch.mask,
        ),
        "reflectance_one_sided": one_sidedness(estimate.reflectance_map, visible),
        "reflectance_asymmetry": asymmetry(estimate.reflectance_map, visible),
        "albedo_deviation": albedo_deviation(estimate.reflectance_map, visible)[None],
    }


def _dense(
    shape: Shape | None, face_model: FaceModel, truth: Truth, metric: bool = True
) -> dict[str, float]:
    """Of the clip's first frame."""
    return errors_from_model(shape, face_model, truth.vertices[0].double().cpu().numpy(), metric)


def _box(landmarks: np.ndarray) -> tuple[float, float, float, float]:
    return (*landmarks.min(0).tolist(), *landmarks.max(0).tolist())


def _nme(shape: Shape | None, true: np.ndarray, inner: bool) -> float:
    if shape is None:
        return float("nan")
    points = torch.from_numpy(shape.landmarks_photo)[None]
    return float(normalised_mean_error(points, torch.from_numpy(true)[None], inner))
