"""Reading clips and drawing training batches from them.

A row is a **clip**: ``clip_id``, ``frames`` (encoded images), ``landmarks`` (68 × 2 a frame,
pixel-edge coordinates); a still is a clip of one frame. Batch k is a function of (seed, k) alone,
so a run resumes exactly by starting at its next k.
"""

import glob
import io
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from cest.data.augmentation import Relighter, Similarity
from cest.data.face_region import face_region
from cest.geometry import from_pixels

COLUMNS = ("clip_id", "frames", "landmarks")


@dataclass(frozen=True)
class Recipe:
    """How a training batch is drawn and augmented.

    Attributes:
        clips: clips a batch, ``frames`` frames each.
        frames: frames of a clip; one that has fewer repeats some.
        stills: stills a batch, two differently augmented copies of each.
        degrees, scale, shift: of `augmentation.Similarity`.
        relight: `Relighter`'s strength; 0 for none.
        relit: fraction of the frames that are relit.
    """

    clips: int = 32
    frames: int = 4
    stills: int = 0
    degrees: float = 20.0
    scale: float = 0.12
    shift: float = 0.05
    relight: float = 0.0
    relit: float = 0.5

    @property
    def batch_size(self) -> int:
        return self.clips * self.frames + 2 * self.stills


def load_clips(source: str) -> datasets.Dataset:
    """Opens a clip set: a Parquet file, a glob of them, or a Hub id (its split "train").

    Raises:
        ValueError: nothing there, or a column is missing.
    """
    try:
        if source.endswith(".parquet"):
            files = sorted(glob.glob(source)) or [source]
            rows = datasets.load_dataset("parquet", data_files=files, split="train")
        else:
            rows = datasets.load_dataset(source, split="train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No clips could be read from {source!r} ({error}): give Parquet files or a Hub id."
        ) from error
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise ValueError(f"{source!r} lacks the column(s) {', '.join(missing)} of a clip set.")
    # Frames stay encoded until one is chosen: a clip may have many.
    return rows.cast_column("frames", datasets.List(datasets.Image(decode=False)))


def read_frame(row: dict, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's frame: image (H, H, 3) uint8 and landmarks (68, 2), pixel-edge coordinates.

    Raises:
        ValueError: a frame that cannot be read or is not square, named by its clip.
    """
    where = f"frame {index} of clip {row['clip_id']}"
    try:
        with Image.open(io.BytesIO(row["frames"][index]["bytes"])) as file:
            image = np.asarray(file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{where} is not a readable image ({error}).") from error
    if image.shape[0] != image.shape[1]:
        raise ValueError(
            f"{where} is {image.shape[1]} × {image.shape[0]}: frames must be square crops, 1.6 to "
            "1.7 times the landmarks' box."
        )
    return image, np.asarray(row["landmarks"][index], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """Frames grouped by clip.

    Attributes:
        image: (B, 3, S, S) sRGB in [0, 1].
        mask: (B, 1, S, S) face pixels, 1 or 0.
        landmarks: (B, 68, 2) image frame.
        clip: (B,) which clip each frame is of, numbers within the batch.
    """

    image: Tensor
    mask: Tensor
    landmarks: Tensor
    clip: Tensor

    def to(self, device: torch.device) -> "FrameBatch":
        moved = (value.to(device, non_blocking=True) for value in vars(self).values())
        return FrameBatch(*moved)

    @classmethod
    def stack(cls, draws: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]]) -> "FrameBatch":
        """From (image, mask, landmarks in pixels) tuples, a list of them a clip."""
        frames = [frame for draw in draws for frame in draw]
        images, masks, landmarks = (np.stack(part) for part in zip(*frames))
        size = images.shape[1]
        return cls(
            image=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255,
            mask=torch.from_numpy(masks)[:, None].float(),
            landmarks=from_pixels(torch.from_numpy(landmarks), size, size),
            clip=torch.repeat_interleave(
                torch.arange(len(draws)), torch.tensor([len(draw) for draw in draws])
            ),
        )


class StepSampler(Sampler):
    """Yields, for step k = start, start + 1, …, what each batch takes: a function of (seed, k).

    Of several processes each draws batches of its own; ``process`` is its number.

    An element is (source, row, seed): "clips" or "stills", the row, and the seed of what is
    random in reading it.
    """

    def __init__(
        self,
        recipe: Recipe,
        n_clips: int,
        n_stills: int,
        seed: int,
        start: int,
        stop: int,
        process: int = 0,
    ) -> None:
        if recipe.clips and not n_clips:
            raise ValueError("The recipe takes clips, but no clip was given.")
        if recipe.stills and not n_stills:
            raise ValueError("The recipe takes stills, but no still was given.")
        self.recipe, self.counts = recipe, {"clips": n_clips, "stills": n_stills}
        self.seed, self.start, self.stop, self.process = seed, start, stop, process

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[str, int, int]]]:
        for step in range(self.start, self.stop):
            rng = np.random.default_rng((self.seed, step, self.process))
            batch = []
            for source, number in (("clips", self.recipe.clips), ("stills", self.recipe.stills)):
                count = self.counts[source]
                rows = rng.choice(count, number, replace=number > count) if number else ()
                batch += [(source, int(row), int(rng.integers(2**63))) for row in rows]
            yield batch


class ClipDraws(Dataset):
    """Reads and augments what StepSampler asks for; an item is a clip's list of frames."""

    def __init__(
        self,
        clips: datasets.Dataset | None,
        stills: datasets.Dataset | None,
        recipe: Recipe,
        size: int,
        relighter: Relighter | None = None,
    ) -> None:
        if recipe.relight and relighter is None:
            raise ValueError("The recipe relights: give a Relighter.")
        self.sources = {"clips": clips, "stills": stills}
        self.recipe, self.size, self.relighter = recipe, size, relighter

    def __getitem__(
        self, key: tuple[str, int, int]
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        source, index, seed = key
        rng = np.random.default_rng(seed)
        row = self.sources[source][index]
        available = len(row["frames"])
        wanted = self.recipe.frames if source == "clips" else 2
        chosen = rng.choice(available, wanted, replace=wanted > available)
        # A clip is mirrored whole or not at all: its frames share one reflectance.
        mirrored = bool(rng.integers(2))
        return [self._augmented(*read_frame(row, int(i)), mirrored, rng) for i in chosen]

    def _augmented(
        self, image: np.ndarray, landmarks: np.ndarray, mirrored: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        recipe = self.recipe
        warp = Similarity.random(
            rng, len(image), self.size, recipe.degrees, recipe.scale, recipe.shift, mirrored
        )
        landmarks = warp.landmarks(landmarks, image.shape[1])
        image = warp.image(image, self.size)
        mask = face_region(image, landmarks)
        if rng.random() < recipe.relit * bool(recipe.relight):
            image = self.relighter(image, landmarks, rng, recipe.relight)
        return image, mask, landmarks
