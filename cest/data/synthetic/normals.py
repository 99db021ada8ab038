"""Vertex normals of one mesh over and over: the sum over adjacent triangles as a sparse matrix."""

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor


class VertexNormals:
    """`cest.rendering.vertex_normals` for fixed triangles: without gradient, but faster.

    Args:
        triangles: (F, 3), counter-clockwise from outside.
        count: K, of the vertices.
    """

    def __init__(self, triangles: Tensor, count: int) -> None:
        self._corners = np.ascontiguousarray(triangles.numpy().T)
        columns = np.tile(np.arange(len(triangles)), 3)
        ones = np.ones(len(columns), np.float32)
        self._around = csr_array(
            (ones, (self._corners.ravel(), columns)), shape=(count, len(triangles))
        )

    def __call__(self, vertices: Tensor) -> Tensor:
        """(B, K, 3) float32 vertices -> (B, K, 3) unit normals."""
        # One axis at a time, the batch innermost: everything is read in order.
        axes = vertices.permute(2, 1, 0).contiguous().numpy()
        a, b, c = ([axis[corner] for axis in axes] for corner in self._corners)
        u, v = ([end - start for end, start in zip(ends, a)] for ends in (b, c))
        normals = np.stack(
            [self._around @ (u[i - 2] * v[i - 1] - u[i - 1] * v[i - 2]) for i in range(3)]
        )
        length = np.sqrt((normals * normals).sum(0))
        return torch.from_numpy(normals / np.maximum(length, 1e-12)).permute(2, 1, 0)


def unit(vectors: Tensor) -> Tensor:
    """(P, 3) -> (P, 3) of length 1, a view of rows of x, y and z: shading reads one at a time."""
    rows = vectors.T.contiguous()
    return (rows / (rows * rows).sum(0).sqrt().clamp(min=1e-12)).T
