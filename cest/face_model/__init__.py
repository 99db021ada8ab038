"""The 3D morphable face model: mean shape, basis, triangles, UVs, mirror map, landmarks."""

from cest.face_model.model import FaceModel, load_face_model

__all__ = ["FaceModel", "load_face_model"]
