"""What surrounds the face: skull, ears, neck and shoulders that follow the face model.

The face model ends at hairline, ears and chin. Its vertices are also vertices of this head; what
lies between and behind them moves by the harmonic extension of their motion, so that a wide face
has a wide skull and an open jaw pulls the throat.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from scipy.sparse import coo_array, csc_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

from cest.data.synthetic.hair import around_skull
from cest.data.synthetic.normals import VertexNormals
from cest.face_model import FaceModel

HEAD = Path(__file__).parent / "head.safetensors"
OVERLAP = 2  # rings of the face's skin that the head repeats, so that no gap opens
INSET = 0.025  # dm that they lie under it
FIXED = -2.0  # dm: shoulders below this do not follow the face


class Head:
    """The surroundings of a face.

    Attributes:
        template: (H, 3) float32, positions around the mean face, face frame, dm.
        triangles: (F, 3) of the skin outside the face, overlapping its rim.
        all_triangles: (G, 3) of the whole head, face included: where hair may grow.
        normals, all_normals: of meshes with these triangles.
        around_skull: (H, 3) where the template's vertices are, as hair sees it.
    """

    def __init__(self, face_model: FaceModel) -> None:
        if face_model.name != "open":
            raise ValueError(
                f"Synthetic clips need the open face model, not {face_model.name!r}: the head "
                "around the face was built for it."
            )
        arrays = load_file(HEAD)
        positions = arrays["positions"].astype(np.float64)
        quads = arrays["quads"].astype(np.int64)
        own, theirs = arrays["face"].astype(np.int64).T
        count = len(positions)

        edges = np.concatenate([quads[:, [i, (i + 1) % 4]] for i in range(4)])
        ones = np.ones(len(edges))
        adjacency = coo_array((ones, edges.T), shape=(count, count)).tocsr()
        adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64)
        is_face = np.zeros(count, bool)
        is_face[own] = True
        free = np.flatnonzero(~is_face & (positions[:, 1] > FIXED))
        outline = own[np.isin(own, edges[~is_face[edges[:, 1]], 0])]
        laplacian = csc_array(diags_array(adjacency.sum(1)) - adjacency)
        right = -laplacian[free][:, outline].toarray()
        self._extension = torch.from_numpy(
            splu(csc_array(laplacian[free][:, free])).solve(right).astype(np.float32)
        )
        order = np.full(count, -1)
        order[own] = theirs
        self._free, self._own, self._theirs, self._outline = (
            torch.from_numpy(array) for array in (free, own, theirs, outline)
        )
        self._outline_theirs = torch.from_numpy(order[outline])

        depth = np.where(is_face, OVERLAP + 1, 0)
        for ring in range(1, OVERLAP + 1):
            near = (adjacency @ (depth == ring - 1)) > 0
            depth[near & (depth > ring)] = ring
        around = quads[(depth[quads] <= OVERLAP).all(1)]
        self.triangles = torch.from_numpy(_halved(around))
        self.all_triangles = torch.from_numpy(_halved(quads))
        self.normals = VertexNormals(self.triangles, count)
        self.all_normals = VertexNormals(self.all_triangles, count)

        self._rest = torch.from_numpy(positions.astype(np.float32))
        # The overlap goes under the face; its first ring is the rim itself.
        normals = _normals(positions, quads)
        inset = np.where(is_face & (depth > 0), -INSET * depth / OVERLAP, 0)[:, None] * normals
        self._inset = torch.from_numpy(inset.astype(np.float32))
        self._start = self._rest + self._inset
        self.template = self.around(face_model.mean[None])[0]
        self.around_skull = around_skull(self.template)

    def around(self, vertices: Tensor) -> Tensor:
        """Positions (B, H, 3) around faces with vertices (B, K, 3), face frame, dm."""
        moved = vertices[:, self._outline_theirs] - self._rest[self._outline]
        head = self._start.repeat(len(vertices), 1, 1)
        head[:, self._own] = vertices[:, self._theirs] + self._inset[self._own]
        together = moved.transpose(0, 1).flatten(1)  # one product for all of the batch
        extended = (self._extension @ together).unflatten(1, (len(vertices), 3))
        head[:, self._free] += extended.transpose(0, 1)
        return head


def _halved(quads: np.ndarray) -> np.ndarray:
    return np.concatenate((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))


def _normals(points: np.ndarray, quads: np.ndarray) -> np.ndarray:
    a, b, c, d = (points[quads[:, i]] for i in range(4))
    area = np.cross(c - a, d - b)
    normals = np.zeros_like(points)
    for corner in range(4):
        np.add.at(normals, quads[:, corner], area)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
