"""The 3D morphable face model: mean shape, basis, triangles, UVs, mirror map, landmarks."""

from cest.face_model.model import MIRRORED_LANDMARKS, FaceModel, load_face_model

__all__ = ["MIRRORED_LANDMARKS", "FaceModel", "load_face_model"]
