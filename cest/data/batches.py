"""Training batches: drawn from clip sets, decoded ahead of the step by threads.

Batch k of a run is a function of (seed, k) alone, whatever the number of processes, threads and
accumulated parts it is made in: each of them takes its share of the same clips. A run therefore
resumes exactly by starting at its next k. Streamed sets, which cannot be read at any place, keep
a position besides (`cest.data.streams`).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from queue import Queue

import cv2
import numpy as np
import torch
from torch import Tensor

from cest.data.augmentation import Relighter, Relighting, Similarity
from cest.data.clips import count_frames, read_frame, read_reflectance
from cest.data.streams import StreamedClips
from cest.face_region import face_region
from cest.geometry import from_pixels
from cest.known_factors import KnownFactors
from cest.lighting import mirror_light, roll_light
from cest.objective import choose_partners

# Batches that wait, decoded, for the step.
AHEAD = 3
PAIRINGS = ("clip", "video")


@dataclass(frozen=True)
class Recipe:
    """How a training batch is drawn and augmented; over all processes together.

    Attributes:
        clips: clips a batch, ``frames`` frames each.
        frames: frames of a clip; one that has fewer repeats some.
        stills: stills a batch, two differently augmented copies of each.
        synthetic: rendered clips a batch (`cest.data.synthetic`), ``frames`` frames each.
        pairing: "clip", or "video": the frames that share a reflectance come from anywhere in
            a video (Fig. 11), which needs the column video_id.
        degrees, scale, shift: of `augmentation.Similarity`.
        relight: `Relighter`'s strength; 0 for none.
        relit: fraction of the frames that are relit.
    """

    clips: int = 32
    frames: int = 4
    stills: int = 0
    synthetic: int = 0
    pairing: str = "clip"
    degrees: float = 20.0
    scale: float = 0.12
    shift: float = 0.05
    relight: float = 0.0
    relit: float = 0.5

    def __post_init__(self) -> None:
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing is {self.pairing!r}; it must be one of {PAIRINGS}.")
        if self.frames < 1 or min(self.clips, self.stills, self.synthetic) < 0:
            raise ValueError("A recipe counts frames from 1, and clips and stills from 0.")
        if not self.batch_size:
            raise ValueError("The recipe's batches have no frame: give clips or stills.")

    @property
    def batch_size(self) -> int:
        return (self.clips + self.synthetic) * self.frames + 2 * self.stills


@dataclass(frozen=True, eq=False)
class FrameTruth:
    """Of one augmented frame: `KnownFactors`, unstacked; reflectance_map (S, S, 3) uint8."""

    shape_coefficients: np.ndarray
    mirrored: bool
    reflectance_map: np.ndarray
    illumination: Tensor

    @classmethod
    def of(
        cls, row: Mapping, index: int, reflectance: np.ndarray, warp: Similarity, size: int
    ) -> "FrameTruth":
        """A row of `SyntheticClips` with truth, as ``warp`` moves its frame ``index``."""
        light = torch.as_tensor(np.asarray(row["illumination"][index], np.float32))
        if warp.mirrored:
            light, reflectance = mirror_light(light), reflectance[:, ::-1]
        return cls(
            np.asarray(row["shape_coefficients"][index], np.float32),
            warp.mirrored,
            cv2.resize(reflectance, (size, size), interpolation=cv2.INTER_AREA),
            roll_light(light, warp.angle),
        )


@dataclass(frozen=True, eq=False)
class Frame:
    """One augmented frame: image (S, S, 3) and mask (S, S) uint8, landmarks (68, 2) pixels."""

    image: np.ndarray
    mask: np.ndarray
    landmarks: np.ndarray
    relighting: Relighting | None = None
    truth: FrameTruth | None = None

    @classmethod
    def prepare(
        cls, image: np.ndarray, landmarks: np.ndarray, mask: np.ndarray | None, warp: Similarity,
        size: int, masks: bool = True,
    ) -> "Frame":  # fmt: skip
        """What `read_frame` returns, warped; a mask where the set has none (`face_region`).

        With ``masks`` false the mask, which takes longer than all else, is left empty.
        """
        landmarks = warp.landmarks(landmarks, image.shape[1])
        image = warp.image(image, size)
        if not masks:
            mask = np.zeros((size, size), np.uint8)
        elif mask is None:
            mask = face_region(image, landmarks)
        else:
            mask = (warp.image(255 * mask, size) > 127).astype(np.uint8)
        return cls(image, mask, landmarks)


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """Frames grouped by clip.

    Attributes:
        image: (B, 3, S, S) sRGB in [0, 1]; bytes until it is brought `to` a device.
        mask: (B, 1, S, S) face pixels, 1 or 0; likewise.
        landmarks: (B, 68, 2) image frame.
        clip: (B,) which clip each frame is of, 0, 1, … within the batch, in order.
        partner: (B,) another frame of the same clip (eq. 8), itself where there is none.
        relit: (R,) the frames that are to be relit; `pose` (R, 3, 4), `light` (R, 9) and
            `exposure` (R,) say how (`augmentation.Relighting`).
        truth: of the rendered frames; None where none is told.
    """

    image: Tensor
    mask: Tensor
    landmarks: Tensor
    clip: Tensor
    partner: Tensor
    relit: Tensor
    pose: Tensor
    light: Tensor
    exposure: Tensor
    truth: KnownFactors | None = None

    @classmethod
    def stack(
        cls, groups: Sequence[Sequence[Frame]], partners: Sequence[np.ndarray] | None = None
    ) -> "FrameBatch":
        """From lists of a clip's frames; ``partners`` count within the clip (default itself)."""
        frames = [frame for group in groups for frame in group]
        sizes = torch.tensor([len(group) for group in groups])
        starts = sizes.cumsum(0) - sizes
        if partners is None:
            partners = [np.arange(len(group)) for group in groups]
        images = torch.from_numpy(np.stack([frame.image for frame in frames]))
        points = torch.from_numpy(np.stack([frame.landmarks for frame in frames]))
        size = images.shape[1]
        relit = [i for i, frame in enumerate(frames) if frame.relighting is not None]
        lights = [frames[i].relighting for i in relit]
        return cls(
            image=images.permute(0, 3, 1, 2).contiguous(),
            mask=torch.from_numpy(np.stack([frame.mask for frame in frames]))[:, None],
            landmarks=from_pixels(points, size, size),
            clip=torch.repeat_interleave(torch.arange(len(groups)), sizes),
            partner=torch.cat([s + torch.from_numpy(p) for s, p in zip(starts, partners)]),
            relit=torch.tensor(relit, dtype=torch.int64),
            pose=torch.tensor(np.array([l.pose for l in lights])).view(-1, 3, 4),
            light=torch.tensor(np.array([l.light for l in lights])).view(-1, 9),
            exposure=torch.tensor([l.exposure for l in lights]),
            truth=_stacked_truth(frames),
        )

    def to(self, device: torch.device) -> "FrameBatch":
        """Brings bytes to the device and makes them floats there."""
        moved = {name: value.to(device, non_blocking=True) for name, value in self._parts()}
        return FrameBatch(
            **moved | {"image": moved["image"].float() / 255, "mask": moved["mask"].float()}
        )

    def lit(self, relighter: Relighter | None) -> "FrameBatch":
        """With the light that was drawn for some of the frames."""
        if not len(self.relit):
            return self
        relit = relighter(self.image[self.relit], self.pose, self.light, self.exposure)
        return replace(self, image=self.image.index_copy(0, self.relit, relit))

    def pinned(self) -> "FrameBatch":
        return FrameBatch(**{name: value.pin_memory() for name, value in self._parts()})

    def _parts(self) -> list[tuple[str, Tensor | KnownFactors]]:
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, value) for name, value in parts if value is not None]


def _stacked_truth(frames: Sequence[Frame]) -> KnownFactors | None:
    known = [i for i, frame in enumerate(frames) if frame.truth is not None]
    if not known:
        return None
    truths = [frames[i].truth for i in known]
    maps = torch.from_numpy(np.stack([truth.reflectance_map for truth in truths]))
    return KnownFactors(
        frame=torch.tensor(known),
        shape_coefficients=torch.from_numpy(np.stack([t.shape_coefficients for t in truths])),
        mirrored=torch.tensor([truth.mirrored for truth in truths]),
        reflectance_map=maps.permute(0, 3, 1, 2).contiguous(),
        illumination=torch.stack([truth.illumination for truth in truths]),
    )


class Batches:
    """Iterates over (batch, position): this process's parts of batches start, start + 1, ….

    ``position`` is what `StreamedClips` needs to go on behind that batch, {} without streams.

    Args:
        sources: "clips", "stills" and "synthetic", each rows by number or a StreamedClips; as the
            recipe needs.
        recipe: of a whole batch.
        size: side of the frames.
        relighter: if the recipe relights.
        seed: of everything random.
        start, stop: whole batches.
        process, processes: which share is this process's.
        accumulation: parts that each process takes its share in, one after the other.
        threads: that read and augment.
        pin: to pinned memory, for a copy to a GPU that does not wait.
        masks: whether masks are needed; they are empty if not.
        least: frames that a clip must have, and that must be drawn of one.

    Raises:
        ValueError: a source that the recipe needs is missing or empty, or a batch cannot be
            shared equally.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[dict] | StreamedClips],
        recipe: Recipe,
        size: int,
        relighter: Relighter | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        stop: int,
        process: int = 0,
        processes: int = 1,
        accumulation: int = 1,
        threads: int = 1,
        pin: bool = False,
        masks: bool = True,
        least: int = 1,
    ) -> None:
        self.takes = [
            (name, number, frames)
            for name, number, frames in (
                ("clips", recipe.clips, recipe.frames),
                ("stills", recipe.stills, 2),
                ("synthetic", recipe.synthetic, recipe.frames),
            )
            if number
        ]
        self.shares = processes * accumulation
        for name, number, _ in self.takes:
            if name not in sources:
                raise ValueError(f"The recipe takes {name}, but none were given.")
            if number % self.shares:
                raise ValueError(
                    f"recipe.{name} is {number}, which {processes} process(es) in {accumulation} "
                    f"accumulated part(s) cannot share equally: make it a multiple of "
                    f"{self.shares}."
                )
        if recipe.frames < least:
            raise ValueError(
                f"recipe.frames is {recipe.frames}, but consistency alone needs {least} of a clip."
            )
        if recipe.relight and relighter is None:
            raise ValueError("The recipe relights: give a Relighter.")
        self.groups = {
            name: None
            if isinstance(source, StreamedClips)
            else _groups(source, recipe.pairing if name == "clips" else "clip")
            for name, source in sources.items()
        }
        if recipe.pairing == "video" and isinstance(sources.get("clips"), StreamedClips):
            raise ValueError(
                "A streamed set cannot be paired by video, whose clips lie anywhere in it: turn "
                "streaming off, or pair by clip."
            )
        self.sources, self.recipe, self.size, self.relighter = sources, recipe, size, relighter
        self.seed, self.start, self.stop = seed, start, stop
        self.process, self.processes, self.accumulation = process, processes, accumulation
        self.threads, self.pin, self.masks, self.least = threads, pin, masks, least

    def __iter__(self) -> Iterator[tuple[FrameBatch, dict]]:
        queue: Queue = Queue(AHEAD)
        stopped = threading.Event()
        reader = threading.Thread(target=self._read_ahead, args=(queue, stopped), daemon=True)
        reader.start()
        try:
            while (item := queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            while reader.is_alive():  # it may be waiting for room
                while not queue.empty():
                    queue.get_nowait()
                reader.join(0.05)

    def _read_ahead(self, queue: Queue, stopped: threading.Event) -> None:
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                for items, position in self._plans():
                    if stopped.is_set():
                        return
                    read = list(pool.map(self._read, items))
                    batch = FrameBatch.stack(*zip(*read))
                    queue.put((batch.pinned() if self.pin else batch, position))
            queue.put(None)
        except BaseException as error:  # handed to whoever waits for the batch
            queue.put(error)

    def _plans(self) -> Iterator[tuple[list[tuple], dict]]:
        """What each part is read from: (name, rows or numbers of rows, frames, seed) a clip."""
        for step in range(self.start, self.stop):
            for part in range(self.accumulation):
                share = part * self.processes + self.process
                items = []
                for kind, (name, number, frames) in enumerate(self.takes):
                    rng = np.random.default_rng((self.seed, step, kind))
                    each = number // self.shares
                    mine = slice(share * each, (share + 1) * each)
                    source, groups = self.sources[name], self.groups[name]
                    if groups is None:
                        chosen = [[row] for row in source.take(each)]
                    else:
                        picks = rng.choice(len(groups), number, replace=number > len(groups))
                        chosen = [groups[pick] for pick in picks[mine]]
                    seeds = rng.integers(2**63, size=number)[mine]
                    items += [(name, c, frames, seed) for c, seed in zip(chosen, seeds)]
                yield items, self._position()

    def _position(self) -> dict:
        return {
            name: source.position
            for name, source in self.sources.items()
            if isinstance(source, StreamedClips)
        }

    def _read(self, item: tuple) -> tuple[list[Frame], np.ndarray]:
        """One clip's augmented frames, and the partner of each."""
        name, rows, wanted, seed = item
        rng = np.random.default_rng(seed)
        if self.groups[name] is not None:
            rows = [self.sources[name][int(number)] for number in rows]
        frames = [(row, i) for row in rows for i in range(count_frames(row))]
        if len(frames) < self.least:
            raise ValueError(
                f"Clip {rows[0]['clip_id']} has {len(frames)} frame(s), but consistency alone "
                f"needs {self.least}: leave it out, or give it as a still under both constraints."
            )
        # Of a clip that is too short each frame comes as often as another, or once more.
        chosen = rng.permutation(np.resize(rng.permutation(len(frames)), wanted))
        # A clip is mirrored whole or not at all: its frames share one reflectance.
        mirrored = bool(rng.integers(2))
        # Decoded once for all frames of a rendered clip.
        reflectance = read_reflectance(rows[0]) if "reflectance_map" in rows[0] else None
        group = [self._augmented(*frames[int(i)], mirrored, reflectance, rng) for i in chosen]
        return group, choose_partners(len(group), rng)

    def _augmented(
        self,
        row: Mapping,
        index: int,
        mirrored: bool,
        reflectance: np.ndarray | None,
        rng: np.random.Generator,
    ) -> Frame:
        recipe = self.recipe
        image, landmarks, mask = read_frame(row, index)
        warp = Similarity.random(
            rng, len(image), self.size, recipe.degrees, recipe.scale, recipe.shift, mirrored
        )
        frame = Frame.prepare(image, landmarks, mask, warp, self.size, self.masks)
        if reflectance is not None:  # its light is known, and stays as it is
            return replace(frame, truth=FrameTruth.of(row, index, reflectance, warp, self.size))
        if rng.random() < recipe.relit * bool(recipe.relight):
            relighting = self.relighter.draw(frame.landmarks, self.size, rng, recipe.relight)
            frame = replace(frame, relighting=relighting)
        return frame


def _groups(rows: Sequence[dict], pairing: str) -> Sequence[Sequence[int]]:
    """Numbers of the rows whose frames may be drawn together."""
    if not len(rows):
        raise ValueError("A clip set is empty: there is nothing to train on.")
    if pairing == "clip":
        return _Singles(len(rows))
    if "video_id" not in rows.column_names:
        raise ValueError("Pairing by video needs clips with the column video_id.")
    videos: dict[str | int, list[int]] = {}
    for number, video in enumerate(rows["video_id"]):
        videos.setdefault(number if video is None else video, []).append(number)
    return list(videos.values())


class _Singles(Sequence):
    """[0], [1], … without holding a million lists."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> list[int]:
        return [number]
