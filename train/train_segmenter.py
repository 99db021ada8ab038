"""Trains f_seg, what is face: ``accelerate launch train/train_segmenter.py DATA -o RUN``.

DATA are Parquet files, globs of them, folders or Hub ids, each an equal share of the batches; name
one twice to double its share. What a set's labels are is told from its columns:

- ``image`` and ``label``, a map of CelebAMask-HQ's 19 numbers, or a picture in FASSEG's colours
  with a ``yaw`` (``--columns label=mask`` where they have other names);
- clips with ``masks``, rendered or segmented before;
- clips without: what follows from their landmarks;
- the word ``synthetic``: rendered faces made on the fly, the first 200 of them held out.

Stop it whenever you like; the same command goes on from the last checkpoint.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

import checkpoints
from cest.data import load_clips, read_frame
from cest.data.clips import open_rows
from cest.data.face_labels import (
    FACE,
    OTHER,
    UNKNOWN,
    FassegLabels,
    from_classes,
    from_landmarks,
)
from cest.data.synthetic import SyntheticClips
from cest.face_model import load_face_model
from cest.segmentation import FaceSegmenter, FaceSegmenterConfig
from log import Log
from settings import record

SYNTHETIC = "synthetic"
HELD_OUT_SYNTHETIC = 200
LABELLING_SIDE = 320
"""Labelled pictures are brought down to this many pixels; no crop is trained on with more."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the run's folder")
    parser.add_argument("--columns", nargs="*", default=[], metavar="OURS=THEIRS")
    parser.add_argument(
        "--held-out",
        type=re.compile,
        metavar="REGEX",
        help="rows whose name (or clip_id) matches are not trained on, but measured at the end",
    )
    parser.add_argument("--image-size", type=int, default=FaceSegmenterConfig.image_size)
    parser.add_argument("--width", type=int, default=FaceSegmenterConfig.width)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    arguments = parser.parse_args()
    try:
        train(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"train_segmenter.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train_segmenter.py: stopped; the same command goes on.")


def train(settings: argparse.Namespace) -> None:
    """Runs, or goes on with, one training run; leaves ``output/model`` and iou.json."""
    accelerator = Accelerator()
    set_seed(settings.seed)
    for name in ("steps", "batch", "save_every"):
        if getattr(settings, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1.")
    columns = dict(entry.split("=", 1) for entry in settings.columns if "=" in entry)
    if len(columns) < len(settings.columns):
        raise ValueError("--columns takes OURS=THEIRS, such as label=mask.")
    sources = [LabelledFaces(name, columns) for name in settings.data]
    kept, held_out = zip(*(source.split(settings.held_out) for source in sources))
    config = FaceSegmenterConfig(settings.image_size, settings.width)
    model = FaceSegmenter(config).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: max(0, min(20 * (step + 1) / settings.steps, 1 - step / settings.steps)),
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)
    settings.output.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        pattern = settings.held_out.pattern if settings.held_out else ""
        values = vars(settings) | {"output": str(settings.output), "held_out": pattern}
        record(settings.output, values, changeable=("output", "steps", "workers", "save_every"))
    start, _ = checkpoints.resume(accelerator, settings.output / "checkpoints")
    loader = DataLoader(
        Draws(sources, settings.image_size),
        batch_sampler=Steps(kept, settings, start, accelerator.process_index),
        num_workers=settings.workers,
    )
    log = Log(settings.output, start, accelerator) if accelerator.is_main_process else None
    bar = tqdm(loader, initial=start, total=settings.steps, disable=not accelerator.is_main_process)
    model.train()
    for step, (image, label) in enumerate(bar, start=start + 1):
        image = image.to(accelerator.device, memory_format=torch.channels_last)
        value = loss(model(image), label.to(accelerator.device))
        if not torch.isfinite(value):
            raise ValueError(f"The loss is {value.item()} at step {step}: lower --learning-rate.")
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if log and step % 10 == 0:
            log.write("train", step, {"loss": value.item()})
            bar.set_postfix(loss=f"{value.item():.4f}")
        if step % settings.save_every == 0 or step == settings.steps:
            checkpoints.save(accelerator, settings.output / "checkpoints", step, keep=2)
    if log:
        bare = accelerator.unwrap_model(model)
        checkpoints.save_model(bare, settings.output / "model")
        figures = {
            source.name: intersection_over_union(bare, source, rows)
            for source, rows in zip(sources, held_out)
            if len(rows)
        }
        (settings.output / "iou.json").write_text(json.dumps(figures, indent=1) + "\n")
        print(json.dumps(figures, indent=1))
    accelerator.end_training()


def loss(probability: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy over the pixels whose label is known; both (B, 1, H, W)."""
    known = label != UNKNOWN
    entropy = F.binary_cross_entropy(
        probability, (label == FACE).to(probability.dtype), reduction="none"
    )
    return (entropy * known).sum() / known.sum().clamp_min(1)


class LabelledFaces:
    """A data set whose labels, of whatever form, become those of `cest.data.face_labels`.

    Raises:
        ValueError: nothing there, or columns of no known form.
    """

    def __init__(self, name: str, columns: dict[str, str]) -> None:
        self.name = name
        self.clips = name == SYNTHETIC
        if self.clips:
            self.rows = SyntheticClips(10**6, frames=1, size=192, truth=False)
            return
        try:
            rows = open_rows(name, streaming=False)
        except Exception as error:  # pyarrow, datasets, the Hub's client have their own
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise ValueError(
                f"No labelled faces could be read from {name!r} ({reason}): give Parquet files, "
                "a folder or a Hub id."
            ) from error
        self.clips = "frames" in rows.column_names
        if self.clips:
            self.rows = load_clips(name)
            return
        for ours, theirs in columns.items():
            if theirs in rows.column_names:
                rows = rows.rename_column(theirs, ours)
        if not {"image", "label"} <= set(rows.column_names):
            raise ValueError(
                f"{name!r} has the columns {', '.join(rows.column_names)}: labelled faces need "
                "image and label, or frames and landmarks; other names are mapped by --columns."
            )
        self.rows = rows
        self.from_colours = FassegLabels(load_face_model("open", level=0))

    def split(self, held_out: re.Pattern | None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the rows to train on, and of those whose name matches ``held_out``."""
        if self.name == SYNTHETIC:
            return np.arange(HELD_OUT_SYNTHETIC, len(self.rows)), np.arange(HELD_OUT_SYNTHETIC)
        column = "clip_id" if self.clips else "name"
        matches = np.zeros(len(self.rows), bool)
        if held_out is not None and column in self.rows.column_names:
            matches = np.array([bool(held_out.search(name)) for name in self.rows[column]])
        return np.flatnonzero(~matches), np.flatnonzero(matches)

    def read(self, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 sRGB and label (H, W); of a clip, some frame."""
        values = self.rows[row]
        if self.clips:
            index = int(rng.integers(len(values["frames"])))
            image, landmarks, mask = read_frame(values, index)
            return image, from_landmarks(image, landmarks) if mask is None else mask * FACE
        image = np.asarray(values["image"].convert("RGB"))
        label = np.asarray(values["label"])
        scale = min(1.0, LABELLING_SIDE / max(label.shape[:2]))
        size = (round(label.shape[1] * scale), round(label.shape[0] * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        label = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
        if label.ndim == 2:
            return image, from_classes(label)
        if "yaw" not in values:
            raise ValueError(f"{self.name!r} has labels in colours, but no yaw to read them by.")
        return image, self.from_colours(label[..., :3], values["yaw"])


class Steps(Sampler):
    """Yields what each batch takes, (source, row, seed): a function of seed and step alone."""

    def __init__(
        self, rows: list[np.ndarray], settings: argparse.Namespace, start: int, process: int
    ) -> None:
        if not all(map(len, rows)):
            raise ValueError("A set has no row left to train on: is --held-out too wide?")
        self.rows, self.batch, self.seed = rows, settings.batch, settings.seed
        self.start, self.stop, self.process = start, settings.steps, process

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for step in range(self.start, self.stop):
            rng = np.random.default_rng((self.seed, step, self.process))
            # Shares as even as they go; who gets what is left over changes from step to step.
            sources = (rng.permutation(self.batch) + step) % len(self.rows)
            yield [
                (int(k), int(rng.choice(self.rows[k])), int(rng.integers(2**63))) for k in sources
            ]


class Draws(Dataset):
    """Reads and augments what `Steps` asks for: image (3, S, S) in [0, 1], label (1, S, S)."""

    def __init__(self, sources: list[LabelledFaces], size: int) -> None:
        self.sources, self.size = sources, size

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        source, row, seed = key
        rng = np.random.default_rng(seed)
        image, label = self.sources[source].read(row, rng)
        image, label = cropped(image, label, self.size, rng)
        for cover in (glasses, occluder, occluder):
            if rng.random() < 0.25:
                cover(image, label, rng)
        return as_tensors(coloured(image, rng), label)


def as_tensors(image: np.ndarray, label: np.ndarray) -> tuple[Tensor, Tensor]:
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    return tensor, torch.from_numpy(label)[None]


CROP = 1.45
"""Side of a crop, of the longer side of the box of what is labelled face: as a clip's frames."""


def cropped(
    image: np.ndarray, label: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The face's square, (size, size, 3) and (size, size); turned, shifted and zoomed by ``rng``.

    The image goes on by its edge pixels where it ends, but that is not face.
    """
    rows, columns = np.nonzero(label == FACE)
    if not len(rows):
        rows, columns = (np.arange(side) for side in label.shape)
    low, high = (np.array([f(columns), f(rows)], float) for f in (np.min, np.max))
    side, centre, angle, mirror = CROP * (high - low).max(), (low + high) / 2, 0.0, 1
    if rng is not None:
        centre += side * rng.uniform(-0.1, 0.1, 2)
        side *= np.exp(rng.uniform(-0.3, 0.3))
        angle = np.radians(rng.normal(0, 15))
        mirror = rng.choice((-1, 1))
    scale = size / max(side, 1.0)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear[:, 0] *= mirror
    matrix = np.column_stack((linear, np.full(2, (size - 1) / 2) - linear @ centre))
    if scale < 0.7:  # the bilinear look-up alone would alias
        image = cv2.GaussianBlur(image, (0, 0), 0.35 / scale)
    return (
        cv2.warpAffine(image, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE),
        cv2.warpAffine(label, matrix, (size, size), flags=cv2.INTER_NEAREST, borderValue=OTHER),
    )


def occluder(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Covers a part: a blob, a bar or some fingers, flat or of the picture's own stuff."""
    size = len(image)
    shape = np.zeros((size, size), np.uint8)
    at = rng.uniform(0.1, 0.9, 2) * size
    if rng.random() < 0.5:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(5, 12)))
        radii = rng.uniform(0.04, 0.3) * size * rng.uniform(0.5, 1.2, len(angles))
        outline = at + radii[:, None] * np.column_stack((np.cos(angles), np.sin(angles)))
        cv2.fillPoly(shape, [outline.round().astype(np.int32)], 255)
    else:
        angle = rng.uniform(0, 2 * np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        thickness = max(1, round(size * np.exp(rng.uniform(np.log(0.01), np.log(0.1)))))
        for finger in range(rng.integers(1, 5)):
            first = at + 1.3 * finger * thickness * across
            bend = rng.normal(0, 0.1, 2) * size
            line = [first, first + 0.3 * size * along + bend, first + size * along]
            line = np.array(line).round().astype(np.int32)
            cv2.polylines(shape, [line], False, 255, thickness)
    if rng.random() < 0.5:
        stuff = np.clip(rng.uniform(0, 255, 3) + rng.normal(0, 12, image.shape), 0, 255)
        stuff = cv2.GaussianBlur(stuff, (0, 0), rng.uniform(0.5, 3))
    else:  # skin on skin has an edge and a shading of its own
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), rng.uniform(60, 300), 1.5)
        stuff = cv2.warpAffine(image, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
        stuff = np.clip(stuff * rng.uniform(0.6, 1.4) * rng.uniform(0.95, 1.05, 3), 0, 255)
    if rng.random() < 0.5:  # an occluder's shadow falls on the face
        moved = np.roll(shape, tuple(rng.integers(-6, 7, 2)), (0, 1))
        image[:] = image * (1 - rng.uniform(0.1, 0.5) * _soft(moved, 3))
    alpha = _soft(shape, rng.uniform(0.4, 1.0))
    image[:] = image + (stuff - image) * alpha
    label[alpha[..., 0] > 0.5] = OTHER


def glasses(image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a frame about where the eyes are; the lenses are clear, tinted or dark."""
    rows, columns = np.nonzero(label == FACE)
    if not len(rows):
        return
    width = float(np.ptp(columns))
    centre = np.array([columns.mean(), rows.min() + rng.uniform(0.35, 0.5) * np.ptp(rows)])
    angle = rng.normal(0, 8)
    along = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    radii = width * np.array([rng.uniform(0.13, 0.2), rng.uniform(0.09, 0.16)])
    frame, lenses = np.zeros_like(label), np.zeros_like(label)
    thickness = max(1, round(width * rng.uniform(0.005, 0.05)))
    ends = []
    for side in (-1, 1):
        middle = centre + side * rng.uniform(0.2, 0.25) * width * along
        box = (tuple(map(float, middle)), tuple(map(float, 2 * radii)), float(angle))
        cv2.ellipse(lenses, box, 255, -1)
        cv2.ellipse(frame, box, 255, thickness)
        ends += [middle + side * radii[0] * along, middle - side * radii[0] * along]
    ends = np.array(ends)
    temples = ends[[0, 2]] + np.array([[-0.4], [0.4]]) * width * along
    for first, second in ((ends[1], ends[3]), (ends[0], temples[0]), (ends[2], temples[1])):
        first, second = (tuple(int(v) for v in point.round()) for point in (first, second))
        cv2.line(frame, first, second, 255, thickness)
    opacity = rng.choice((0.0, 0.2, rng.uniform(0.7, 1.0)))
    tint = rng.choice((rng.uniform(0, 60), rng.uniform(0, 255))) + rng.normal(0, 10, 3)
    image[:] = np.clip(image + (tint - image) * opacity * _soft(lenses, 0.6), 0, 255)
    colour = rng.choice((rng.uniform(0, 70), rng.uniform(0, 255))) + rng.normal(0, 15, 3)
    image[:] = np.clip(image + (colour - image) * _soft(frame, 0.5), 0, 255)
    label[(frame > 0) | ((lenses > 0) & (opacity > 0.5))] = OTHER


def _soft(shape: np.ndarray, blur: float) -> np.ndarray:
    """(H, W) of 0 and 255 -> (H, W, 1) in [0, 1]."""
    return cv2.GaussianBlur(shape, (0, 0), blur)[..., None].astype(np.float32) / 255


def coloured(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, tint, contrast, a shadow, blur, noise and JPEG, some of each."""
    size = len(image)
    values = (image.astype(np.float32) / 255) ** np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.3:  # light from one side, soft or with an edge
        angle, y_x = rng.uniform(0, 2 * np.pi), np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
        ramp = y_x[0] * np.sin(angle) + y_x[1] * np.cos(angle) + rng.uniform(-0.4, 0.4)
        edge = 1 / (1 + np.exp(-ramp * np.exp(rng.uniform(0.5, 3))))
        values *= (1 - rng.uniform(0.2, 0.85) * edge[..., None]).astype(np.float32)
    values = (values - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.normal(0, 0.05)
    values *= np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    if rng.random() < 0.15:
        values[:] = values.mean(-1, keepdims=True)
    if rng.random() < 0.3:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.4, 2.0))
    if rng.random() < 0.3:
        values += rng.normal(0, rng.uniform(0.01, 0.06), values.shape)
    image = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 90))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    return image


@torch.no_grad()
def intersection_over_union(
    model: FaceSegmenter, source: LabelledFaces, rows: np.ndarray
) -> dict[str, float]:
    """Mean IoU of the face over ``rows``, unknown pixels left out; by yaw where that is known."""
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[float]] = defaultdict(list)
    for row in map(int, rows):
        picture, known = cropped(
            *source.read(row, np.random.default_rng(row)), model.config.image_size
        )
        image, label = as_tensors(picture, known)
        face = model(image[None].to(device))[0].cpu() > 0.5
        face, truth = face & (label != UNKNOWN), label == FACE
        value = ((face & truth).sum() / (face | truth).sum().clamp_min(1)).item()
        found["all"].append(value)
        if not source.clips and "yaw" in source.rows.column_names:
            found[f"yaw {abs(source.rows[row]['yaw'])}"].append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(found.items())}


if __name__ == "__main__":
    main()
