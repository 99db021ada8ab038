"""Where in the UV plane is what: lips, brows, lids, eyes, beard. Constant for a face model."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import distance_transform_edt

from cest.data.synthetic.noise import smoothstep
from cest.face_model import FaceModel
from cest.face_model.crop import EYEBALL, INNER_MOUTH, LIPS
from cest.rendering import TexelMap

Array = np.ndarray
Window = tuple[slice, slice]

BROW_REACH = 0.12  # dm over and under them
LID_REACH = 0.16  # dm around the eyes that count as lids


@dataclass(frozen=True)
class Brow:
    """Curved coordinates of one eyebrow.

    Attributes:
        along: (S, S) 0 at the inner end, 1 at the tail, beyond them outside [0, 1].
        above: (S, S) dm over the brow's line, negative under it.
        window: rows and columns around it.
    """

    along: Array
    above: Array
    window: Window


@dataclass(frozen=True)
class Eye:
    """Directions on one eyeball and distance to its lids.

    Attributes:
        ball: (S, S) 1 on the eyeball.
        right, up: (S, S) direction cosines of the eyeball's normal, 0 at the straight gaze.
        lid: (S, S) dm outwards from the lids' edge, negative on their linings.
        upper: (S, S) 1 at the upper lid, 0 at the lower, smooth.
        window: rows and columns around the lids.
    """

    ball: Array
    right: Array
    up: Array
    lid: Array
    upper: Array
    window: Window

    def around_lids(self, *pictures: Array) -> tuple[Array, ...]:
        """Views of (S, S, ...) arrays, the window's part of each."""
        return tuple(picture[self.window] for picture in pictures)


@dataclass(frozen=True)
class FaceChart:
    """The mean face, drawn into a texture of side S; first row at v = 1.

    Attributes:
        position: (S, S, 3) of the mean face, face frame, dm; continued beyond the face.
        lips, mouth: (S, S) 1 on the vermilion and inside the mouth, with soft edges.
        mouth_window: rows and columns of the latter.
        lip_height: (S, S) dm over the line where the lips meet.
        brows, eyes: the image's left one first.
        scale: texels per dm of the face's middle.
    """

    size: int
    position: Array
    lips: Array
    mouth: Array
    mouth_window: Window
    lip_height: Array
    brows: tuple[Brow, Brow]
    eyes: tuple[Eye, Eye]
    scale: float

    @classmethod
    def build(cls, model: FaceModel, size: int) -> "FaceChart":
        texels = TexelMap.build(model.uv, model.triangles, size)
        on = texels.to_map(texels.on_texels(model.mean[None]))[0].permute(1, 2, 0).numpy()
        covered = np.zeros(size * size, bool)
        covered[texels.texels.numpy()] = True
        nearest = distance_transform_edt(
            ~covered.reshape(size, size), return_distances=False, return_indices=True
        )
        position = on[tuple(nearest)]
        part = texels.to_map((model.parts[texels.vertices].min(1).values).float()[None, :, None])[
            0, 0
        ].numpy()[tuple(nearest)]

        points = model.uv[model.landmarks].numpy() * (size, -size) + (0, size)  # pixel edges
        mean = model.mean[model.landmarks].numpy()
        inner = np.linalg.norm(mean[42] - mean[39])
        scale = float(np.linalg.norm(points[42] - points[39]) / inner)
        grid = np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), -1)

        mouth = _soft(part == INNER_MOUTH)
        middle = (mean[62, 1] + mean[66, 1]) / 2
        return cls(
            size=size,
            position=position.astype(np.float32),
            lips=_soft(part == LIPS),
            mouth=mouth,
            mouth_window=_window(mouth > 0),
            lip_height=(position[..., 1] - middle).astype(np.float32),
            brows=tuple(
                _brow(points[order], grid, scale) for order in ([21, 20, 19, 18, 17], range(22, 27))
            ),
            eyes=tuple(
                _eye(points[first : first + 6], mean[first : first + 6], position,
                     part == EYEBALL, side, scale)
                for first, side in ((36, -1), (42, 1))
            ),
            scale=scale,
        )  # fmt: skip

    def blob(self, x: float, y: float, width: float, height: float, mirrored: bool = True) -> Array:
        """(S, S): a soft spot of the mean face around (x, y) dm; on both sides if mirrored."""
        across = np.abs(self.position[..., 0]) if mirrored else self.position[..., 0]
        distance = ((across - x) / width) ** 2 + ((self.position[..., 1] - y) / height) ** 2
        front = smoothstep(-0.55, -0.3, self.position[..., 2])
        return np.exp(-0.5 * distance) * front

    def crease(self, points: list[tuple[float, float]], width: float) -> Array:
        """(S, S): a soft line through points (x, y) dm on both sides of the mean face."""
        cells = np.abs(self.position[..., 0]), self.position[..., 1]
        distance = np.full(cells[0].shape, np.inf, np.float32)
        for (x0, y0), (x1, y1) in pairwise(points):
            dx, dy = x1 - x0, y1 - y0
            t = ((cells[0] - x0) * dx + (cells[1] - y0) * dy) / (dx * dx + dy * dy)
            t = np.clip(t, 0, 1)
            distance = np.minimum(
                distance, np.hypot(cells[0] - x0 - t * dx, cells[1] - y0 - t * dy)
            )
        return np.exp(-0.5 * (distance / width) ** 2)


def _soft(mask: Array) -> Array:
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8 * len(mask) / 256)


def _window(where: Array) -> Window:
    """The rows and columns that hold all of ``where`` (S, S) bool."""
    held = (np.flatnonzero(where.any(axis)) for axis in (1, 0))
    return tuple(slice(int(line[0]), int(line[-1]) + 1) for line in held)


def _brow(points: Array, grid: Array, scale: float) -> Brow:
    """points (5, 2) pixels, inner end first."""
    curve = CubicSpline(np.linspace(0, 1, 5), points)
    t = np.linspace(-0.1, 1.15, 126)
    line = curve(np.clip(t, 0, 1)) + np.where(t < 0, t, np.maximum(t - 1, 0))[:, None] * curve(
        np.clip(t, 0, 1), 1
    )
    tangent = curve(np.clip(t, 0, 1), 1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    offset = grid[:, :, None, :] - line[::5]
    nearest = (offset**2).sum(-1).argmin(-1) * 5
    offset = grid - line[nearest]
    # One step of Newton between the samples of the line.
    slide = (offset * tangent[nearest]).sum(-1) / np.linalg.norm(curve(0.5, 1))
    normal = np.stack((tangent[:, 1], -tangent[:, 0]), -1)
    normal *= -np.sign(normal[:, 1:])  # pixels' y points down
    above = (offset * normal[nearest]).sum(-1) / scale
    along = t[nearest] + slide
    near = (np.abs(above) < BROW_REACH) & (along > -0.2) & (along < 1.3)
    return Brow(along.astype(np.float32), above.astype(np.float32), _window(near))


def _eye(
    points: Array, mean: Array, position: Array, is_ball: Array, side: int, scale: float
) -> Eye:
    size = len(position)
    ball = is_ball & (position[..., 0] * side > 0)
    cloud = position[ball]
    # The sphere through the eyeball: |p|^2 = 2 c.p + (r^2 - |c|^2).
    solution, *_ = np.linalg.lstsq(
        np.column_stack((2 * cloud, np.ones(len(cloud)))), (cloud**2).sum(1), rcond=None
    )
    direction = position - solution[:3]
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)

    closed = np.concatenate((points, points[:1]))
    curve = CubicSpline(np.arange(7), closed, bc_type="periodic")(np.linspace(0, 6, 200))
    polygon = np.zeros((4 * size, 4 * size), np.uint8)
    cv2.fillPoly(polygon, [np.round(4 * curve).astype(np.int32)], 1)
    distance = distance_transform_edt(polygon == 0) - distance_transform_edt(polygon)
    lid = cv2.resize(distance, (size, size), interpolation=cv2.INTER_AREA) / (4 * scale)

    x, y = position[..., 0], position[..., 1]
    inner, outer = (mean[3], mean[0]) if side < 0 else (mean[0], mean[3])
    chord = outer[1] + (x - outer[0]) / (inner[0] - outer[0]) * (inner[1] - outer[1])
    upper = smoothstep(-0.02, 0.03, y - chord)
    values = (ball, direction[..., 0], direction[..., 1], lid, upper)
    return Eye(*(np.asarray(value, np.float32) for value in values), _window(lid < LID_REACH))
