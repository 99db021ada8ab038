"""A person before a background: everything about a clip but the camera."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.data.synthetic import occluders
from cest.data.synthetic.appearance import AppearanceRanges
from cest.data.synthetic.backgrounds import random_background
from cest.data.synthetic.chart import FaceChart
from cest.data.synthetic.complexion import Complexion
from cest.data.synthetic.face import Shine, paint_face
from cest.data.synthetic.hair import Hair
from cest.data.synthetic.head import Head
from cest.data.synthetic.light import Light, SelfShadow
from cest.data.synthetic.normals import VertexNormals
from cest.data.synthetic.skin import SkinPainter
from cest.data.synthetic.surroundings import Clothes, paint_hair, paint_head
from cest.data.synthetic.tracks import (
    framed_viewpoints,
    random_coefficients,
    random_rotations,
)
from cest.face_model import load_face_model
from cest.face_model.crop import EYEBALL, LIPS
from cest.geometry import project, rotate, rotation_matrix
from cest.rendering import Fragments, TexelMap, interpolate, rasterize, unwrap

Array = np.ndarray

TEXTURE_SIZE = 256
LEVEL = 1  # of detail of the face model: outlines are smooth


@dataclass(frozen=True, eq=False)
class Scene:
    """A clip before the camera sees it. n frames of S x S pixels.

    Attributes:
        picture: (n, S, S, 3) float32 sRGB in [0, 1].
        mask: (n, S, S) uint8, 255 where the face is seen.
        landmarks: (n, 68, 2) float32, pixel-edge.
        viewpoint: (n, 7), shape_coefficients: (n, D), illumination: (n, 9), as `FaceParameters`.
        reflectance: (T, T, 3) uint8 sRGB.
        visibility: (n, T, T) uint8, 255 for texels that are seen; None if not asked for.
    """

    picture: Array
    mask: Array
    landmarks: Array
    viewpoint: Tensor
    shape_coefficients: Tensor
    illumination: Tensor
    reflectance: Array
    visibility: Array | None


class Studio:
    """What all scenes share, computed once; nothing in it changes, so threads may share it, too."""

    def __init__(self) -> None:
        model = self.face_model = load_face_model("open", LEVEL)
        self.painter = SkinPainter(FaceChart.build(model, TEXTURE_SIZE))
        self.texels = TexelMap.build(model.uv, model.triangles, TEXTURE_SIZE)
        self.head = Head(model)
        self.shadow = SelfShadow(model, self.head.template, self.head.triangles)
        wet = torch.where(model.parts == EYEBALL, 0.8, torch.where(model.parts == LIPS, 0.25, 0.0))
        self.wetness = wet[:, None]
        self.normals = VertexNormals(model.triangles, model.n_vertices)

    @torch.no_grad()
    def scene(
        self,
        rng: np.random.Generator,
        frames: int,
        size: int,
        ranges: AppearanceRanges,
        visibility: bool = True,
    ) -> Scene:
        """A person in ``frames`` frames of ``size`` pixels; `rng` decides, and `ranges`."""
        # A stream each, so that what is drawn for one thing leaves the others as they are.
        looks, move, lamps, back, things, paint, style, edges = rng.spawn(8)
        model = self.face_model
        masculine = looks.random() < 0.5
        person = Complexion.random(looks, ranges.skin_lightness, masculine)
        albedo = self.painter.paint(person, paint)
        reflectance = (albedo * 255 + 0.5).astype(np.uint8)

        coefficients = random_coefficients(model, move, frames, ranges.identity, ranges.expression)
        vertices = model.vertices(coefficients)
        rotations = random_rotations(move, frames, ranges.yaw)
        viewpoint = framed_viewpoints(model, vertices, rotations, move)
        light = Light.random(lamps, frames, _exposure(person, lamps))

        projected = project(vertices, viewpoint)
        normals = rotate(self.normals(vertices), viewpoint)
        arriving = self.shadow.arriving(light.illumination, rotation_matrix(rotations))
        uv, wetness = (t.expand(frames, -1, -1) for t in (model.uv, self.wetness))
        carried = torch.cat((uv, normals, arriving[:, : model.n_vertices, None], wetness), -1)
        fragments = rasterize(projected, model.triangles, (size, size))
        coverage = fragments.pix_to_face >= 0
        faces, shadings = paint_face(
            interpolate(fragments, model.triangles, carried),
            coverage,
            torch.from_numpy(reflectance).permute(2, 0, 1)[None].float() / 255,
            light,
            shadowed=things.random() < ranges.self_shadow,
            shine=Shine.random(looks) if things.random() < ranges.highlights else None,
        )

        heads = self.head.around(vertices)
        around = heads, viewpoint, light, arriving[:, model.n_vertices :]
        depth = fragments.depth
        head, solid = paint_head(self.head, *around, depth, person, Clothes.random(style))
        layers = [head]
        hair = Hair.random(style, person.hair, masculine, person.age)
        if hair is not None and style.random() < ranges.hair:
            layers.append(paint_hair(hair, self.head, *around, solid))
        worn, glasses = _worn(things, ranges, person)
        landmarks, rims = occluders.points(model, vertices, viewpoint, glasses, size)
        if worn:
            views = [
                occluders.View.of(*parts)
                for parts in zip(landmarks, rims, depth.numpy(), faces, shadings)
            ]
            layers += [[thing.layer(view) for view in views] for thing in worn]

        picture = _backgrounds(back, frames, size)
        seen = coverage.numpy().copy()
        for frame, face in enumerate(faces):
            picture[frame].reshape(-1, 3)[face.pixels] = face.colour
            for layer in layers:
                layer[frame].lay_over(picture[frame], seen[frame])
        np.clip(picture, 0, 1, out=picture)
        if edges.random() < ranges.padded:
            _pad(picture, seen, edges)
        return Scene(
            picture=picture,
            mask=seen.astype(np.uint8) * 255,
            landmarks=landmarks,
            viewpoint=viewpoint,
            shape_coefficients=coefficients,
            illumination=light.illumination,
            reflectance=reflectance,
            visibility=self._visibility(projected, normals, fragments, seen)
            if visibility
            else None,
        )

    def _visibility(
        self, projected: Tensor, normals: Tensor, fragments: Fragments, seen: Array
    ) -> Array:
        picture = torch.from_numpy(seen).float().unsqueeze(1)
        texture, _ = unwrap(picture, projected, normals, fragments, self.texels)
        return (texture[:, 0].numpy() > 0.5).astype(np.uint8) * 255


@cache
def studio() -> Studio:
    """The one of this process; about two seconds when it is first asked for."""
    return Studio()


def _worn(
    rng: np.random.Generator, ranges: AppearanceRanges, person: Complexion
) -> tuple[list[occluders.Occluder], occluders.Glasses | None]:
    """What is before the face, the innermost first; the glasses among it, if any."""
    glasses = occluders.Glasses(rng) if rng.random() < ranges.glasses else None
    mask = occluders.MedicalMask(rng) if rng.random() < ranges.medical_mask else None
    hand = occluders.Hand(rng, person.colour()) if rng.random() < ranges.hand else None
    return [thing for thing in (mask, glasses, hand) if thing is not None], glasses


def _exposure(person: Complexion, rng: np.random.Generator) -> float:
    """Mean shading: a camera makes dark skin brighter, but not as bright as fair skin."""
    value = float(person.colour().mean())
    return float(np.clip((0.66 / value) ** 0.4 * np.exp(rng.normal(0, 0.15)), 0.4, 0.98 / value))


def _backgrounds(rng: np.random.Generator, frames: int, size: int) -> Array:
    """(frames, S, S, 3): one background that drifts behind the head."""
    large = size + size // 4
    whole = random_background(rng, large)
    start, step = rng.uniform(0.3, 0.7, 2), rng.normal(0, 0.06, 2)
    room = large - size
    places = np.clip(start + step * np.arange(frames)[:, None], 0, 1) * room
    return np.stack([whole[y : y + size, x : x + size] for y, x in places.astype(int)])


def _pad(picture: Array, seen: Array, rng: np.random.Generator) -> None:
    """The photo ends inside the crop: its edge is repeated, as crops of photos do; in place."""
    size = picture.shape[1]
    left, top, right, bottom = (rng.uniform(0, 0.2, 4) * (rng.random(4) < 0.6) * size).astype(int)
    for frame in range(len(picture)):
        inner = picture[frame, top : size - bottom, left : size - right]
        picture[frame] = cv2.copyMakeBorder(inner, top, bottom, left, right, cv2.BORDER_REPLICATE)
    inside = np.zeros(seen.shape[1:], bool)
    inside[top : size - bottom, left : size - right] = True
    seen &= inside
