"""MICC Florence 2D/3D: the paper's dense NME on pictures rendered from scans.

Layout, as distributed: ``subject_01/Model/frontal1/obj/*.obj`` with its texture (or ``frontal2``),
millimetres, +y up, the face towards +z. As VRN (Jackson et al. 2017) and the paper do, each scan is
rendered in several poses and reconstructed from the pictures. Their list of vertices and landmarks
is not public; what stands in for it here: the face is what lies within 95 mm of the tip of the
nose, and nose and outer eye corners are where the first method sees them in a frontal picture,
lifted onto the scan. Written after the code that others read these files with, and tested on files
made in that layout: the originals, which must be asked for, were not at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from cest.evaluation.dense import (
    FACE_RADIUS,
    NOSE_TIP,
    Shape,
    interocular_distance,
    shape_errors,
    within_radius,
)
from cest.evaluation.measurements import Measurements
from cest.evaluation.methods import PhotoMethod
from cest.reconstruction import NoFaceError, Reconstruction
from cest.rendering import interpolate, rasterize, wrap

DECIMETRES_PER_UNIT = 0.01
PITCHES, YAWS = (-15, 20, 25), (-80, -40, 0, 40, 80)
"""Degrees, the paper's (§4.4); the picture's right and up are positive."""
PICTURE_SIZE = 512
SCAN_SHARE = 0.9
"""Of the picture's side that the scan's longest side spans."""
MOST_POINTS = 20_000
"""Of a scan's face, evenly thinned; the paper takes 19,618."""
BACKGROUND = 0.5


@dataclass(frozen=True, eq=False)
class Scan:
    """A textured scan, decimetres.

    Attributes:
        vertices: (K, 3). triangles: (F, 3).
        colours: (K, 3) in [0, 1], or None where there is a texture.
        uv, texture: (K, 2) and (1, 3, h, w) in [0, 1], or None.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    colours: np.ndarray | None
    uv: np.ndarray | None
    texture: torch.Tensor | None

    @classmethod
    def load(cls, path: Path) -> "Scan":
        """An .obj with its texture, or any mesh with vertex colours.

        Raises:
            ValueError: it is no mesh, or has no colours: a picture cannot be made of it.
        """
        try:
            mesh = trimesh.load(path, process=False, force="mesh")
        except Exception as error:  # trimesh says in many ways that a file is damaged
            raise ValueError(f"{path} cannot be read as a mesh ({error}).") from error
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            raise ValueError(f"{path} holds no triangles.")
        vertices = np.asarray(mesh.vertices, float) * DECIMETRES_PER_UNIT
        picture = getattr(getattr(mesh.visual, "material", None), "image", None)
        if picture is not None and getattr(mesh.visual, "uv", None) is not None:
            pixels = np.asarray(picture.convert("RGB"))
            texture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
            return cls(vertices, np.asarray(mesh.faces), None, np.asarray(mesh.visual.uv), texture)
        if mesh.visual.kind == "vertex":
            colours = np.asarray(mesh.visual.vertex_colors)[:, :3] / 255
            return cls(vertices, np.asarray(mesh.faces), colours, None, None)
        raise ValueError(f"{path} has neither a texture nor colours: it cannot be made a picture.")


@dataclass(frozen=True, eq=False)
class View:
    """A scan as one picture shows it.

    Attributes:
        picture: (S, S, 3) uint8.
        rotation: (3, 3) from the scan's axes to the picture's.
        centre: (3,) of the scan, decimetres. scale: image frame per decimetre.
        depth: (S, S) in the image frame, -inf where there is nothing.
    """

    picture: np.ndarray
    rotation: np.ndarray
    centre: np.ndarray
    scale: float
    depth: np.ndarray

    @classmethod
    def of(cls, scan: Scan, yaw: float, pitch: float, size: int = PICTURE_SIZE) -> "View":
        """The scan turned about its middle and seen from far away, unlit."""
        rotation = Rotation.from_euler("xy", (-pitch, yaw), degrees=True).as_matrix()
        low, high = scan.vertices.min(0), scan.vertices.max(0)
        centre, scale = (low + high) / 2, 2 * SCAN_SHARE / float((high - low).max())
        placed = torch.from_numpy(scale * (scan.vertices - centre) @ rotation.T)[None]
        triangles = torch.from_numpy(scan.triangles)
        fragments = rasterize(placed, triangles, (size, size))
        known = scan.uv if scan.colours is None else scan.colours
        values = interpolate(fragments, triangles, torch.from_numpy(known)[None].double()).float()
        if scan.colours is None:
            values = wrap(scan.texture, values).permute(0, 2, 3, 1)
        covered = (fragments.pix_to_face >= 0)[..., None]
        shown = torch.where(covered, values, torch.full_like(values, BACKGROUND))[0]
        picture = (shown.clamp(0, 1) * 255).round().byte().numpy()
        return cls(picture, rotation, centre, scale, fragments.depth[0].numpy())

    def to_scan(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) image frame -> the scan's own coordinates."""
        return points / self.scale @ self.rotation + self.centre

    def lifted(self, pixels: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of the picture -> the points (N, 3) of the scan that are seen there.

        Beside the scan the nearest seen point answers.
        """
        size = len(self.depth)
        rows, columns = np.nonzero(np.isfinite(self.depth))
        offset = (np.stack((columns, rows), 1) + 0.5)[None] - pixels[:, None]
        nearest = (offset**2).sum(-1).argmin(1)
        row, column = rows[nearest], columns[nearest]
        x, y = (2 * column + 1) / size - 1, 1 - (2 * row + 1) / size
        return self.to_scan(np.stack((x, y, self.depth[row, column]), 1))

    def placed(self, result: Reconstruction) -> np.ndarray:
        """Vertices (K, 3) of a reconstruction of this picture, where they lie about the scan.

        A picture does not say how far away a face is: it is moved along the line of sight until
        half of it lies before the scan's surface.
        """
        size = len(self.depth)
        points = result.vertices_photo * (2 / size, -2 / size, 2 / size) + (-1, 1, 0)
        column, row = np.clip(result.vertices_photo[:, :2].astype(int), 0, size - 1).T
        away = self.depth[row, column] - points[:, 2]
        seen = np.isfinite(away)
        if seen.any():
            points[:, 2] += np.median(away[seen])
        return self.to_scan(points)


def read_scans(folder: Path) -> dict[str, Path]:
    """Subject -> its frontal scan's .obj.

    Raises:
        ValueError: there is none.
    """
    scans = {}
    for subject in sorted(Path(folder).glob("subject_*")):
        for pose in ("frontal1", "frontal2"):
            found = sorted((subject / "Model" / pose / "obj").glob("*.obj"))
            if found:
                scans[subject.name] = found[0]
                break
    if not scans:
        raise ValueError(f"{folder} has no subject_*/Model/frontal1/obj/*.obj: is it MICC's?")
    return scans


def evaluate_micc(
    methods: Mapping[str, PhotoMethod],
    scans: Mapping[str, Path],
    yaws: Sequence[float] = YAWS,
    pitches: Sequence[float] = PITCHES,
    progress: bool = False,
) -> tuple[Measurements, list[str]]:
    """Dense NME of shapes reconstructed from renderings of scans.

    Args:
        methods: by name; the first one says where nose and eyes of the scans are.
        scans: from read_scans.
        yaws, pitches: degrees, every pair of them a picture.
        progress: whether to draw a bar.

    Returns:
        For each picture `shape_errors`; NaN where no face was found. And one sentence for every
        failure.

    Raises:
        ValueError: no scan can be used.
    """
    results, failures = Measurements(), []
    detector = next(iter(methods.values())).reconstructor.detector
    for subject, path in tqdm(scans.items(), unit="scan", disable=not progress):
        try:
            scan = Scan.load(path)
            frontal = View.of(scan, 0, 0)
            first = next(iter(methods.values()))
            seen = first(frontal.picture, detector.detect(frontal.picture))
        except NoFaceError:
            failures.append(f"{subject}: no face was found in the frontal picture.")
            continue
        except ValueError as error:
            failures.append(f"{subject}: {error}")
            continue
        landmarks = frontal.lifted(seen.landmarks_photo)
        face = within_radius(scan.vertices, landmarks[NOSE_TIP], FACE_RADIUS)
        face = face[:: -(-len(face) // MOST_POINTS)]
        for yaw in yaws:
            for pitch in pitches:
                view = View.of(scan, yaw, pitch)
                results.read(f"{subject}/{yaw:+}/{pitch:+}", view.picture.tobytes(), face)
                faces = detector.detect(view.picture)
                for name, method in methods.items():
                    result = method(view.picture, faces) if faces else None
                    for figure, value in _errors(result, view, face, landmarks).items():
                        results.add(name, figure, [value])
                if not faces:
                    failures.append(f"{subject}, yaw {yaw}, pitch {pitch}: no face was found.")
    if not results.frames:
        raise ValueError(f"None of {len(scans)} scan(s) can be used. {failures[0]}")
    return results, failures


def _errors(
    result: Reconstruction | None, view: View, face: np.ndarray, landmarks: np.ndarray
) -> dict[str, float]:
    interocular = interocular_distance(landmarks)
    if result is None:
        return shape_errors(None, (landmarks, landmarks), face, interocular)
    shape = Shape.of(result.face_model, result.vertices[0])
    return shape_errors(shape, (shape.vertices, view.placed(result)), face, interocular)
