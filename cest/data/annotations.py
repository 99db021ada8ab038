"""68 iBUG landmarks that come with images: 300W-LP, AFLW2000-3D, iBUG's .pts, or a table.

Points are (68, 2) in pixel-edge coordinates: x right, y down, the first pixel's centre (0.5, 0.5).
"""

import csv
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from cest.landmarks import LandmarkError

TABLE = "landmarks.csv"


class Annotations:
    """Landmarks of images, looked for in this order:

    - ``landmarks.csv`` in the folder: a row an image, its path relative to the folder and
      x0, y0, …, x67, y67 in pixel-edge coordinates; a heading is skipped;
    - ``NAME.pts`` beside ``NAME.jpg``, iBUG's format (1-based pixel centres);
    - ``landmarks/SUBSET/NAME_pts.mat`` of 300W-LP;
    - ``NAME.mat`` beside it, of AFLW2000-3D or 300W-LP (MATLAB's 1-based pixel centres).

    Of a .mat with several sets the projected 3D landmarks are taken, as the face model's are.

    Args:
        folder: the root of the images.

    Raises:
        LandmarkError: landmarks.csv is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        table = folder / TABLE
        self.table = _read_table(table) if table.is_file() else {}

    def __call__(self, image: Path) -> np.ndarray | None:
        """(68, 2) pixel-edge coordinates; None where nothing is beside the image.

        Raises:
            LandmarkError: something is, but it cannot be used.
        """
        inside = image.relative_to(self.folder)
        if (row := self.table.get(inside.as_posix())) is not None:
            return row
        if (pts := image.with_suffix(".pts")).is_file():
            return _checked(_read_pts(pts), pts)
        of_300w_lp = self.folder / "landmarks" / inside.parent / f"{image.stem}_pts.mat"
        for mat in (of_300w_lp, image.with_suffix(".mat")):
            if mat.is_file():
                return _checked(_read_mat(mat), mat)
        return None


def _read_table(path: Path) -> dict[str, np.ndarray]:
    rows = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                try:
                    points = np.array(row[1:], np.float32)
                except ValueError:
                    if number == 1:
                        continue
                    raise LandmarkError(f"{path}, line {number}: not numbers.") from None
                where = f"{path}, line {number}"
                if points.size != 136:
                    raise LandmarkError(f"{where}: {points.size} numbers after the name, not 136.")
                rows[row[0]] = _checked(points.reshape(68, 2), where)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LandmarkError(f"{path} is not readable as CSV ({error}).") from error
    return rows


def _read_pts(path: Path) -> np.ndarray:
    """iBUG's text format: ``{``, a point a line, ``}``."""
    try:
        body = path.read_text(encoding="ascii").split("{")[1].split("}")[0]
        return np.array(body.split(), float).reshape(-1, 2) - 0.5
    except (IndexError, ValueError) as error:
        raise LandmarkError(f"{path} is not in iBUG's .pts format ({error}).") from error


MAT_KEYS = ("pt3d_68", "pts_3d", "pt2d", "pts_2d")
"""AFLW2000-3D's, 300W-LP's landmarks/, then what both have; the first that holds 68 points."""


def _read_mat(path: Path) -> np.ndarray:
    try:
        content = loadmat(path, variable_names=MAT_KEYS)
    # scipy's parser says in many ways that a file is damaged or of version 7.3.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise LandmarkError(f"{path} cannot be read as a .mat file ({error}).") from error
    for points in (content[key] for key in MAT_KEYS if key in content):
        if points.ndim == 2 and points.shape[0] in (2, 3) and points.shape[1] == 68:
            points = points.T
        if points.ndim == 2 and points.shape[0] == 68 and points.shape[1] in (2, 3):
            return points[:, :2].astype(float) - 0.5
    raise LandmarkError(f"{path} has no 68 landmarks as {', '.join(MAT_KEYS)}.")


def _checked(points: np.ndarray, where: Path | str) -> np.ndarray:
    if points.shape != (68, 2):
        raise LandmarkError(f"{where} has {len(points)} landmarks, not 68.")
    if not np.isfinite(points).all() or np.ptp(points, axis=0).min() <= 0:
        raise LandmarkError(f"{where} has landmarks that are no face: not finite, or in one line.")
    return points
