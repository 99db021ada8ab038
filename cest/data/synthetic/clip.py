"""Clips of synthetic faces in the clip schema."""

from collections.abc import Sequence

import cv2
import numpy as np

from cest.data.synthetic.appearance import AppearanceRanges
from cest.data.synthetic.camera import Camera
from cest.data.synthetic.scene import Scene, studio
from cest.face_model import FaceModel

Array = np.ndarray


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
    clip; ``visibility``, PNGs in the UV plane, 255 for the texels that are seen. It is true of the
    scene, before the camera has changed its colours.

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
        studio()  # now, not in the first reader's time

    @property
    def face_model(self) -> FaceModel:
        """The model whose parameters the truth is."""
        return studio().face_model

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        index = range(self.length)[index]
        scene = self.scene(index)
        rng = np.random.default_rng((self.seed, index, 1))
        name = f"synthetic-{self.seed}-{index}"
        row = {
            "clip_id": name,
            "video_id": name,
            "frames": self._frames(scene, rng),
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

    def scene(self, index: int) -> Scene:
        """Clip ``index`` as it is before the camera."""
        rng = np.random.default_rng((self.seed, index, 0))
        return studio().scene(rng, self.frames, self.size, self.appearance, visibility=self.truth)

    def _frames(self, scene: Scene, rng: np.random.Generator) -> list[dict]:
        if rng.random() >= self.appearance.camera:
            return [_png(np.uint8(picture[..., ::-1] * 255 + 0.5)) for picture in scene.picture]
        camera = Camera.random(rng)
        return [_encoded(camera.photograph(picture, rng)) for picture in scene.picture]


def _encoded(content: bytes) -> dict:
    return {"bytes": content, "path": None}


def _png(pixels: Array) -> dict:
    """(H, W) or (H, W, 3) uint8, BGR."""
    return _encoded(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
