"""Dozens of faces at a glance: what each model makes of every one, and its face relit."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cest import pictures
from cest.cropping import SquareCrop, crop_image
from cest.data import load_clips, read_frame
from cest.detection import FaceDetector
from cest.evaluation.figures import CELL, table
from cest.evaluation.measurements import spread
from cest.lighting import named_light
from cest.photo import PHOTO_SUFFIXES, PhotoError, read_photo
from cest.reconstruction import Reconstructor

logger = logging.getLogger(__name__)

VIEW = 2 * CELL
"""Pixels: side of the square that a face is looked at in; cells are drawn from twice their size."""


def contact_sheet(
    faces: Mapping[str, np.ndarray], models: Mapping[str, Reconstructor]
) -> Image.Image:
    """A row a face: the photo, then each model's overlay, albedo, geometry and relit faces.

    Args:
        faces: name -> (S, S, 3) uint8 sRGB, a crop as estimators take it.
        models: label -> reconstructor.
    """
    rows = []
    for name, view in faces.items():
        cells = {"photo": Image.fromarray(view)}
        for label, model in models.items():
            found = panels(view, model)
            del found["light"]
            cells |= {f"{label} {title}": picture for title, picture in found.items()}
        rows.append((name, cells))
    return table(rows)


def panels(view: np.ndarray, model: Reconstructor) -> dict[str, Image.Image]:
    """What a model makes of a face (S, S, 3): title -> picture."""
    side = len(view)
    (face,) = model.reconstruct(view, crop=SquareCrop(side / 2, side / 2, side))
    ball, coverage = pictures.light_sphere(face.illumination, VIEW)
    albedo = face.parameters.reflectance_map[0]
    shown = torch.zeros(albedo.shape[-2:])
    shown.view(-1)[model.model.texel_map.texels.cpu()] = 1  # the others belong to no triangle
    return {
        "overlay": face.overlay(),
        "albedo": _on_white(albedo, shown),
        "geometry": replace(face, photo=np.full_like(view, 255)).geometry(),
        "lit from left": face.relight(named_light("left") * face.exposure),
        "lit from right": face.relight(named_light("right") * face.exposure),
        "light": _on_white(ball, coverage),
    }


def faces_in(source: str, count: int, detector: FaceDetector) -> dict[str, np.ndarray]:
    """Up to `count` faces, evenly spread: the largest of photos, or first frames of clips.

    Args:
        source: a folder of photos, or a clip set as `load_clips` takes it.
        count: at least 1.
        detector: of the faces in photos.

    Returns:
        Name -> (VIEW, VIEW, 3) uint8 sRGB. Photos without a face are left out with a warning.

    Raises:
        ValueError: there is no face; or clips that cannot be read.
    """
    folder, faces = Path(source), {}
    photos = sorted(folder.iterdir()) if folder.is_dir() else []
    if photos := [path for path in photos if path.suffix.lower() in PHOTO_SUFFIXES]:
        for path in spread(photos, count):
            try:
                faces[path.name] = largest_face(path, detector)
            except PhotoError as error:
                logger.warning("%s: %s", path.name, error)
    else:
        clips = load_clips(source)
        for number in spread(range(len(clips)), count):
            faces[str(number)] = first_frame(clips[number])
    if not faces:
        raise ValueError(f"{source} shows no face: give a folder of photos, or clips.")
    return faces


def largest_face(photo: Path, detector: FaceDetector) -> np.ndarray:
    """Of a photo, (VIEW, VIEW, 3) uint8 sRGB, as estimators take it.

    Raises:
        PhotoError: it cannot be read, or has no face.
    """
    pixels = read_photo(photo)
    found = detector.detect(pixels)
    if not found:
        raise PhotoError("no face was found.")
    return crop_image(pixels, found[0].crop, VIEW)


def first_frame(clip: dict) -> np.ndarray:
    """Of a clip, (VIEW, VIEW, 3) uint8 sRGB; raises ValueError if it cannot be read."""
    image = read_frame(clip, 0)[0]
    side = len(image)
    return crop_image(image, SquareCrop(side / 2, side / 2, side), VIEW)


def _on_white(picture: torch.Tensor, coverage: torch.Tensor) -> Image.Image:
    return Image.fromarray(pictures.to_uint8(picture * coverage + (1 - coverage)).numpy())
