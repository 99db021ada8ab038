"""The paper's figures from photos and checkpoints of one's own.

Figs. 4, 10 and 11 are `comparison` without errors, over an ablation's checkpoints; Figs. 5 to 7 are
`comparison` with them, over methods; Fig. 8 is `lighting_transfer`; Fig. 9 is
`cest.evaluation.plots`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from cest import pictures
from cest.photo import read_photo
from cest.reconstruction import Reconstruction, Reconstructor
from cest.rendering import render

CELL, GAP, HEADING, MARGIN = 160, 4, 24, 110
"""Pixels: side of a picture, space between two, height of a heading, width of a row's name."""
CANONICAL = (-0.15, 0.0, 0.0, 0.0, 0.0, -0.15, 0.0)
"""The viewpoint of Fig. 8: upright, from the front, the face a little over half the picture."""


def comparison(
    photos: Sequence[Path], models: Mapping[str, Reconstructor], errors: bool = True
) -> Image.Image:
    """For each photo a row a model: overlay, texture, reflectance, geometry, light, and errors.

    Error maps are |I - Î| four times as strong, black, red, yellow, white; the number is its mean.

    Raises:
        PhotoError: a photo cannot be read or has no face.
    """
    rows = []
    for photo in photos:
        for name, result in _reconstructions(photo, models).items():
            panels = pictures.panels(result.image, result.parameters, result.estimator_face_model)
            cells = {title: _picture(panel[0]) for title, panel in panels.items()}
            if not errors:
                del cells["error"]
            else:
                _write(cells["error"], f"{result.photometric_error:.1f}")
            rows.append((name, cells))
    return table(rows)


def lighting_transfer(photos: Sequence[Path], model: Reconstructor) -> Image.Image:
    """Each face, from the front, under the light of every photo: a column a light.

    Raises:
        PhotoError: a photo cannot be read or has no face.
    """
    faces = [_reconstructions(photo, {"": model})[""] for photo in photos]
    donors = {f"light {i + 1}": _picture(face.image[0]) for i, face in enumerate(faces)}
    rows = [("", {"input": Image.new("RGB", (CELL, CELL), "white")} | donors)]
    for i, face in enumerate(faces):
        relit = {
            f"light {j + 1}": _canonical(face, donor.parameters.illumination)
            for j, donor in enumerate(faces)
        }
        rows.append((f"face {i + 1}", {"input": _picture(face.image[0])} | relit))
    return table(rows)


def table(rows: Sequence[tuple[str, Mapping[str, Image.Image]]]) -> Image.Image:
    """Pictures in rows with names; headings are the first row's."""
    names = list(rows[0][1])
    margin = MARGIN if any(name for name, _ in rows) else 0
    width = margin + len(names) * (CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, HEADING + len(rows) * (CELL + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, name in enumerate(names):
        x = margin + column * (CELL + GAP)
        pen.text((x + CELL / 2, HEADING / 2), name, fill="black", font=font, anchor="mm")
    for number, (name, cells) in enumerate(rows):
        y = HEADING + number * (CELL + GAP)
        pen.text((4, y + CELL / 2), name, fill="black", font=font, anchor="lm")
        for column, title in enumerate(names):
            cell = cells[title].resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (margin + column * (CELL + GAP), y))
    return sheet


def _reconstructions(photo: Path, models: Mapping[str, Reconstructor]) -> dict[str, Reconstruction]:
    """Of the largest face, all with the first model's crop, so that pixels correspond."""
    pixels = read_photo(photo)
    names = list(models)
    (first,) = models[names[0]].reconstruct(pixels)
    others = {name: models[name].reconstruct(pixels, crop=first.crop)[0] for name in names[1:]}
    return {names[0]: first} | others


def _canonical(face: Reconstruction, illumination: torch.Tensor) -> Image.Image:
    """The face from the front under another photo's light, at that light's own strength."""
    model, size = face.estimator_face_model, (2 * CELL, 2 * CELL)
    picture = render(
        model,
        model.vertices(face.parameters.shape_coefficients),
        torch.tensor([CANONICAL]),
        face.parameters.reflectance_map,
        illumination,
        size,
    )
    white = torch.ones_like(picture.image)
    return _picture(pictures.overlay(white, picture.image, picture.coverage)[0])


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(pictures.to_uint8(image).numpy())


def _write(picture: Image.Image, text: str) -> None:
    """In the corner, in place."""
    font = ImageFont.load_default(size=max(8, picture.height // 10))
    ImageDraw.Draw(picture).text((3, 1), text, fill="white", font=font)
