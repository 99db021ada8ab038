"""A face model's expressions, as the stage's script is given them."""

import base64
from typing import Any

import numpy as np

from cest.export import METRES_PER_UNIT
from cest.face_model import FaceModel


def expression_basis(face_model: FaceModel) -> dict[str, Any]:
    """Expression directions in metres, as 16-bit integers.

    components: how many; data: base64 of little-endian int16 (components, K, 3); scale: metres to
    one of them; actions: name -> its coefficients.
    """
    basis = face_model.basis[face_model.n_identity :].numpy() * METRES_PER_UNIT
    scale = float(np.abs(basis).max()) / np.iinfo(np.int16).max
    data = np.round(basis / scale).astype("<i2").tobytes()
    return {
        "components": len(basis),
        "data": base64.b64encode(data).decode(),
        "scale": scale,
        "actions": {name: weights.tolist() for name, weights in face_model.actions.items()},
    }
