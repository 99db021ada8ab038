"""CEST: one photo in, a relightable, textured 3D face out.

from cest import Reconstructor
face, = Reconstructor.from_pretrained("model_card/cest").reconstruct("photo.jpg")
face.save("out")
"""

from cest.configuration import CheckpointError, FaceEstimatorConfig
from cest.face_model import FaceModel, load_face_model
from cest.modeling import FaceEstimator, FaceParameters
from cest.reconstruction import Reconstruction, Reconstructor

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "FaceEstimator",
    "FaceEstimatorConfig",
    "FaceModel",
    "FaceParameters",
    "Reconstruction",
    "Reconstructor",
    "__version__",
    "load_face_model",
]
