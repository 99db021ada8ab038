"""Clips of synthetic faces with everything known about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.data.synthetic import occluders
from cest.data.synthetic.backgrounds import random_background
from cest.data.synthetic.camera import Camera
from cest.data.synthetic.chart import FaceChart
from cest.data.synthetic.face import Shine, paint_face
from cest.data.synthetic.hair import Hair
from cest.data.synthetic.head import Head
from cest.data.synthetic.light import Light, SelfShadow
from cest.data.synthetic.normals import VertexNormals
from cest.data.synthetic.skin import Complexion, SkinPainter
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


@dataclass(frozen=True)
class AppearanceRanges:
    """How varied synthetic faces are, and how often they break the model's assumptions.

    Attributes:
        skin_lightness: CIE L* of the skin's ground, drawn evenly between these.
        identity: standard deviation of the identity's coefficients.
        expression: strength of the strongest expressions, 1 = as the face model's statistics.
        yaw: degrees to either side.
        self_shadow: share of clips in which the head shadows itself, which the model ignores.
        highlights: share of clips with wet eyes and lips and a shining skin; likewise.
        glasses, medical_mask, hand: shares of clips with these.
        hair: share of clips with hair (some of these are bald all the same).
        padded: share of clips whose photo ends inside the crop.
    """

    skin_lightness: tuple[float, float] = (24.0, 80.0)
    identity: float = 0.8
    expression: float = 0.9
    yaw: float = 90.0
    self_shadow: float = 0.7
    highlights: float = 0.7
    glasses: float = 0.15
    medical_mask: float = 0.04
    hand: float = 0.06
    hair: float = 1.0
    padded: float = 0.15

    def __post_init__(self) -> None:
        low, high = self.skin_lightness
        if not 15 <= low <= high <= 85:
            raise ValueError(
                f"skin_lightness {self.skin_lightness} is no range of CIE L* between 15 and 85."
            )
        if not 0 <= self.yaw <= 90:
            raise ValueError(f"yaw {self.yaw} is not between 0 and 90 degrees.")
        if self.identity < 0 or self.expression < 0:
            raise ValueError("identity and expression cannot be negative.")
        for name in (
            "self_shadow", "highlights", "glasses", "medical_mask", "hand", "hair", "padded",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share between 0 and 1.")

    @classmethod
    def lambertian(cls, **changes) -> "AppearanceRanges":
        """Faces that keep the model's assumptions: neither shadows nor highlights."""
        return cls(**{"self_shadow": 0.0, "highlights": 0.0} | changes)


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


class SyntheticClips(Sequence):
    """``length`` clips; ``clips[i]`` is a function of (seed, i) alone and safe to call in threads.

    Args:
        length: how many.
        seed: other seeds give other people.
        frames: frames a clip.
        size: side of the frames, pixels.
        appearance: what is drawn from what.
        truth: whether rows have the columns that say what is true.

    A row has ``clip_id``, ``video_id``, ``frames``, ``landmarks`` (frames, 68, 2) in pixels and
    ``masks`` (PNG, 255 on the face: its skin, eyes and mouth, as far as the face model goes and
    nothing stands before it). The truth: ``viewpoint``, ``shape_coefficients``, ``illumination`` in
    the conventions of `FaceParameters`, for the frame as it is; ``reflectance_map``, one PNG a
    clip; ``visibility``, PNGs in the UV plane.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        frames: int = 4,
        size: int = 256,
        appearance: AppearanceRanges | None = None,
        truth: bool = True,
    ) -> None:
        for name, value, least in (
            ("length", length, 0), ("seed", seed, 0), ("frames", frames, 1), ("size", size, 32),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}.")
        self.length, self.seed, self.frames, self.size = length, seed, frames, size
        self.appearance = appearance or AppearanceRanges()
        self.truth = truth
        self.face_model = load_face_model("open", LEVEL)
        self._painter = SkinPainter(FaceChart.build(self.face_model, TEXTURE_SIZE))
        self._texels = TexelMap.build(self.face_model.uv, self.face_model.triangles, TEXTURE_SIZE)
        self._head = Head(self.face_model)
        self._shadow = SelfShadow(self.face_model, self._head.template, self._head.triangles)
        parts = self.face_model.parts
        self._wetness = torch.where(parts == EYEBALL, 0.8, torch.where(parts == LIPS, 0.25, 0.0))
        self._wetness = self._wetness[:, None]
        self._normals = VertexNormals(self.face_model.triangles, self.face_model.n_vertices)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        index = range(self.length)[index]
        scene = self.scene(index)
        rng = np.random.default_rng((self.seed, index, 1))
        camera = Camera.random(rng)
        name = f"synthetic-{self.seed}-{index}"
        row = {
            "clip_id": name,
            "video_id": name,
            "frames": [_encoded(camera.photograph(picture, rng)) for picture in scene.picture],
            "landmarks": list(scene.landmarks),
            "masks": [_png(mask) for mask in scene.mask],
        }
        if self.truth:
            row |= {
                "viewpoint": scene.viewpoint.numpy(),
                "shape_coefficients": scene.shape_coefficients.numpy(),
                "illumination": scene.illumination.numpy(),
                "reflectance_map": _png(scene.reflectance[..., ::-1]),
                "visibility": [_png(visible) for visible in scene.visibility],
            }
        return row

    @torch.no_grad()
    def scene(self, index: int) -> Scene:
        """Clip ``index`` as it is in front of the camera."""
        streams = np.random.default_rng((self.seed, index, 0)).spawn(8)
        looks, move, lamps, back, things, paint, style, edges = streams
        ranges, model = self.appearance, self.face_model
        masculine = looks.random() < 0.5
        person = Complexion.random(looks, ranges.skin_lightness, masculine)
        albedo = self._painter.paint(person, paint)
        reflectance = (albedo * 255 + 0.5).astype(np.uint8)

        coefficients = random_coefficients(
            model, move, self.frames, ranges.identity, ranges.expression
        )
        vertices = model.vertices(coefficients)
        rotations = random_rotations(move, self.frames, ranges.yaw)
        viewpoint = framed_viewpoints(model, vertices, rotations, move)
        light = Light.random(lamps, self.frames, _exposure(person, lamps))

        projected = project(vertices, viewpoint)
        normals = rotate(self._normals(vertices), viewpoint)
        arriving = self._shadow.arriving(light.illumination, rotation_matrix(rotations))
        uv, wetness = (t.expand(self.frames, -1, -1) for t in (model.uv, self._wetness))
        carried = torch.cat((uv, normals, arriving[:, : model.n_vertices, None], wetness), -1)
        fragments = rasterize(projected, model.triangles, (self.size, self.size))
        coverage = fragments.pix_to_face >= 0
        faces, shadings = paint_face(
            interpolate(fragments, model.triangles, carried),
            coverage,
            torch.from_numpy(reflectance).permute(2, 0, 1)[None].float() / 255,
            light,
            shadowed=things.random() < ranges.self_shadow,
            shine=Shine.random(looks) if things.random() < ranges.highlights else None,
        )

        heads = self._head.around(vertices)
        around = heads, viewpoint, light, arriving[:, model.n_vertices :]
        depth = fragments.depth
        head, solid = paint_head(self._head, *around, depth, person, Clothes.random(style))
        layers = [head]
        hair = Hair.random(style, person.hair, masculine, person.age)
        if hair is not None and style.random() < ranges.hair:
            layers.append(paint_hair(hair, self._head, *around, solid))
        worn, glasses = self._worn(things, person)
        landmarks, rims = occluders.points(model, vertices, viewpoint, glasses, self.size)
        if worn:
            views = [
                occluders.View.of(*parts)
                for parts in zip(landmarks, rims, depth.numpy(), faces, shadings)
            ]
            layers += [[thing.layer(view) for view in views] for thing in worn]

        picture = _backgrounds(back, self.frames, self.size)
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
            if self.truth
            else None,
        )

    def _worn(
        self, rng: np.random.Generator, person: Complexion
    ) -> tuple[list[occluders.Occluder], occluders.Glasses | None]:
        """What is before the face, the innermost first; the glasses among it, if any."""
        ranges = self.appearance
        glasses = occluders.Glasses(rng) if rng.random() < ranges.glasses else None
        mask = occluders.MedicalMask(rng) if rng.random() < ranges.medical_mask else None
        hand = occluders.Hand(rng, person.colour()) if rng.random() < ranges.hand else None
        return [thing for thing in (mask, glasses, hand) if thing is not None], glasses

    def _visibility(
        self, projected: Tensor, normals: Tensor, fragments: Fragments, seen: Array
    ) -> Array:
        picture = torch.from_numpy(seen).float().unsqueeze(1)
        texture, _ = unwrap(picture, projected, normals, fragments, self._texels)
        return (texture[:, 0].numpy() > 0.5).astype(np.uint8) * 255


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


def _encoded(content: bytes) -> dict:
    return {"bytes": content, "path": None}


def _png(pixels: Array) -> dict:
    """(H, W) or (H, W, 3) uint8, BGR."""
    return _encoded(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
