"""The chain of estimation as a drawing: v → S → R → ℓ, and what each estimate was given.

An SVG whose text and lines take the page's own colour, so that it is at home in a light and in a
dark page. An arc from one picture to another says: this was given to that.
"""

import base64
import html
import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cest import pictures
from cest.cropping import crop_image
from cest.geometry import canonical_crop
from cest.geometry.viewpoint import rotation_matrix
from cest.reconstruction import Reconstruction
from cest.rendering import TexelMap

NODE, INPUT, STEP, TOP = 132, 46, 196, 96
"""Units of the drawing: side of an estimate's picture, of an input's; distance of two nodes; height
of the arcs above them."""
PIXELS = 2
"""Pixels of a picture to a unit of the drawing."""
AXIS_COLOURS = ("#e53935", "#2e9e4f", "#3f6fe0")

ESTIMATES = (
    ("v", "viewpoint"),
    ("S", "shape"),
    ("R", "reflectance"),
    ("ℓ", "light"),
)
GIVEN = {
    # estimate -> the nodes that it was conditioned on, 0 being the photo
    "cest": {1: (0,), 2: (0, 1), 3: (0, 1, 2), 4: (0, 1, 2, 3)},
    "iest": {1: (0,), 2: (0,), 3: (0,), 4: (0,)},
}
SAW = {
    # estimate -> the pictures that its network was shown (eq. 4)
    "cest": {1: ("I",), 2: ("I∘v",), 3: ("T",), 4: ("I", "T", "R")},
    "iest": {1: ("I",), 2: ("I",), 3: ("I",), 4: ("I",)},
}
MEANING = {
    "I": "the photo",
    "I∘v": "the photo, brought upright by the viewpoint",
    "T": "the photo's colours, unwrapped by viewpoint and shape",
    "R": "the reflectance",
}


def draw_chain(face: Reconstruction) -> str:
    """One model's chain for one face, as an SVG element."""
    shown = _pictures(face)
    given, saw = GIVEN[face.conditioning], SAW[face.conditioning]
    width, height = 4 * STEP + NODE, TOP + NODE + 26 + INPUT + 24
    title = f"{face.conditioning.upper()}: how viewpoint, shape, reflectance and light follow"
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="inherit" fill="currentColor">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker></defs>'
    ]
    for node, sources in given.items():
        parts += [_arc(source, node) for source in sources]
    for node, (symbol, name) in enumerate((("I", "photo"), *ESTIMATES)):
        x = node * STEP
        parts.append(_picture(shown[symbol], x, TOP, NODE, name))
        parts.append(
            f'<text x="{x + NODE / 2}" y="{TOP + NODE + 19}" text-anchor="middle" font-size="15">'
            f'<tspan font-style="italic" font-weight="600">{symbol}</tspan> {name}</text>'
        )
        if node == 0:
            parts.append(
                f'<text x="{x + NODE / 2}" y="{TOP + NODE + 26 + INPUT / 2 + 4}" '
                'text-anchor="middle" font-size="12" opacity="0.7">its network saw:</text>'
            )
            continue
        inputs = saw[node]
        left = x + NODE / 2 - (len(inputs) * (INPUT + 4) - 4) / 2
        for number, name_of_input in enumerate(inputs):
            at = left + number * (INPUT + 4)
            top = TOP + NODE + 30
            parts.append(_picture(shown[name_of_input], at, top, INPUT, MEANING[name_of_input]))
            parts.append(
                f'<text x="{at + INPUT / 2}" y="{top + INPUT + 14}" text-anchor="middle" '
                f'font-size="12" font-style="italic" opacity="0.8">{name_of_input}</text>'
            )
    return "".join(parts) + "</svg>"


def _arc(source: int, target: int) -> str:
    """Neighbours are joined by a straight arrow, others by an arc, the higher the further."""
    style = 'fill="none" stroke="currentColor" stroke-width="1.6" opacity="0.75"'
    if target == source + 1:
        y = TOP + NODE / 2
        path = f"M{source * STEP + NODE + 4},{y} H{target * STEP - 5}"
    else:
        start = source * STEP + NODE / 2 + 14
        # Arcs that end in one node end side by side.
        end = target * STEP + NODE / 2 - 14 + 10 * (source - target + 3)
        rise = TOP * (target - source) / 4 * 1.28
        path = f"M{start},{TOP - 3} C{start},{TOP - rise} {end},{TOP - rise} {end},{TOP - 4}"
    return f'<path d="{path}" {style} marker-end="url(#arrow)"/>'


def _picture(picture: Image.Image, x: float, y: float, side: float, title: str) -> str:
    buffer = io.BytesIO()
    pixels = round(side * PIXELS)
    picture.resize((pixels, pixels), Image.Resampling.LANCZOS).save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{x}" y="{y}" width="{side}" height="{side}" '
        f'href="data:image/webp;base64,{data}"><title>{html.escape(title)}</title></image>'
    )


def _pictures(face: Reconstruction) -> dict[str, Image.Image]:
    """The chain's pictures by symbol, all of the crop the estimator saw."""
    side = NODE * PIXELS
    parameters = face.parameters
    photo = crop_image(face.photo, face.crop, side)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    # Roll is the crop's own, so the light is shown in the crop's axes, too.
    ball = torch.cat(pictures.light_sphere(parameters.illumination[0], side))
    # Of the texture plane only what belongs to the face is shown.
    model, size = face.estimator_face_model, parameters.reflectance_map.shape[-1]
    layout = TexelMap.build(model.uv, model.triangles, size)
    skin = layout.to_map(torch.ones(1, len(layout.texels), 1))[0]
    return {
        "I": Image.fromarray(photo),
        "v": _with_axes(Image.fromarray(photo), parameters.viewpoint[0]),
        "I∘v": _as_image(canonical_crop(image, parameters.viewpoint)[0]),
        "S": Image.fromarray(crop_image(np.asarray(face.geometry()), face.crop, side)),
        "T": _as_image(torch.cat((parameters.illuminated_texture[0], skin))),
        "R": _as_image(torch.cat((parameters.reflectance_map[0], skin))),
        "ℓ": _as_image(ball),
    }


def _with_axes(photo: Image.Image, viewpoint: Tensor) -> Image.Image:
    """The head's axes where they were found: x red, y green, z, out of the face, blue."""
    side = photo.width
    x, y = viewpoint[4:6].tolist()
    axes = viewpoint[0].exp() * rotation_matrix(viewpoint[1:4])
    draw = ImageDraw.Draw(photo)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x + 1) * side / 2, (1 - y) * side / 2

    # The farthest first, so that nearer ones lie over it.
    for axis in axes[2].argsort().tolist():
        tip = at(x + float(axes[0, axis]), y + float(axes[1, axis]))
        draw.line((at(x, y), tip), fill="white", width=9)
        draw.line((at(x, y), tip), fill=AXIS_COLOURS[axis], width=5)
    return photo


def _as_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(pictures.to_uint8(picture).numpy())
