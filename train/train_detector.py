"""Train the embedded face detector (cest/embedded_detector.py) on pasted faces.

    python train/train_detector.py --faces CLIPS... --backgrounds FOLDER -o WEIGHTS

The released weights: every second frame of the training clips and stills (`--frame-stride 2`), 21
backgrounds out of scikit-image's and scikit-learn's sample pictures, 6,000 steps; 18 minutes.

Every training image is made on the fly: a background, parts of faces too large to count, and up to
two faces pasted at a random size, roll, border and colour.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from cest.checkpoint import write_atomically
from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop, crop_from_landmarks, crop_image
from cest.data.clips import load_clips, read_frame
from cest.embedded_detector import REFERENCE_SIZE, STRIDE, DetectorNetwork, cell_centers

CANVAS = 128
CELLS = CANVAS // STRIDE
SMALLEST, LARGEST = 16.0, 56.0
"""Sizes in pixels of faces that must be found at one level (an octave is 20 to 40)."""


class Frame:
    """A face photograph with its upright landmark box."""

    def __init__(self, image: np.ndarray, landmarks: np.ndarray) -> None:
        self.image = image
        self.crop = crop_from_landmarks(landmarks)
        self.size = self.crop.size / LANDMARK_BOX_TO_CROP


class Frames(Sequence):
    """Every `stride`-th frame of clip sets; images are read when they are asked for.

    Raises:
        ValueError: there is none, or a set cannot be read (see `load_clips`).
    """

    def __init__(self, sources: list[str], stride: int) -> None:
        self.places = [
            (clips, row, index)
            for clips in map(load_clips, sources)
            for row, clip in enumerate(clips.select_columns("landmarks"))
            for index in range(len(clip["landmarks"]))
        ][stride - 1 :: stride]
        if not self.places:
            raise ValueError("There are no faces in the clips given.")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Frame:
        clips, row, index = self.places[number]
        return Frame(*read_frame(clips[row], index)[:2])


def warp(
    frame: Frame, center: np.ndarray, size: float, roll: float, mirrored: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw a frame so that its face has this centre, size (pixels) and additional roll.

    Returns the picture and its alpha (CANVAS, CANVAS), and the face's roll.
    """
    scale = size / frame.size
    image = frame.image
    for _ in range(min(max(math.floor(-math.log2(scale)), 0), 2)):
        image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    ratio = len(frame.image) / len(image)
    a = scale * ratio
    c, s = a * math.cos(roll), a * math.sin(roll)
    matrix = np.array([[c, s, 0], [-s, c, 0]])
    if mirrored:
        matrix[:, 0] *= -1
    middle = np.array([frame.crop.center_x, frame.crop.center_y]) / ratio
    matrix[:, 2] = center - matrix[:, :2] @ middle
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    picture = cv2.warpAffine(
        image, matrix, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    alpha = cv2.warpAffine(np.ones(image.shape[:2], np.float32), matrix, (CANVAS, CANVAS))
    own = -frame.crop.angle if mirrored else frame.crop.angle
    return picture, alpha, own + roll


def blob(center: np.ndarray, radius: float, feather: float) -> np.ndarray:
    """A soft disc (CANVAS, CANVAS) in [0, 1]."""
    y, x = np.mgrid[:CANVAS, :CANVAS] + 0.5
    distance = np.hypot(x - center[0], y - center[1])
    return np.clip((radius - distance) / feather + 0.5, 0, 1).astype(np.float32)


class Painter:
    """Makes training images and their targets."""

    def __init__(self, frames: Sequence[Frame], backgrounds: list[np.ndarray], seed: int) -> None:
        self.frames, self.backgrounds = frames, backgrounds
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)

    def background(self) -> np.ndarray:
        r = self.random
        kind = r.random()
        if kind < 0.65:
            image = r.choice(self.backgrounds)
            size = min(CANVAS * 2 ** r.uniform(-1, 2), min(image.shape[:2]))
            h, w = image.shape[:2]
            x, y = (r.uniform(size / 2, side - size / 2) for side in (w, h))
            angle = r.choice([0, 0, 0, math.pi / 2, math.pi, -math.pi / 2])
            return crop_image(image, SquareCrop(x, y, size, angle), CANVAS)
        frame = r.choice(self.frames)
        if kind < 0.85:  # an eye, a cheek, hair: parts of a face too large to be one
            size = r.uniform(100, 260)
            center = np.array([r.uniform(0, CANVAS), r.uniform(0, CANVAS)])
            return warp(frame, center, size, r.uniform(-0.5, 0.5), False)[0]
        noise = self.numpy.normal(size=(r.choice([2, 4, 8, 16]),) * 2 + (3,)) * r.uniform(5, 60)
        flat = np.clip(self.numpy.uniform(0, 255, 3) + noise, 0, 255).astype(np.uint8)
        return cv2.resize(flat, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """An image (CANVAS, CANVAS, 3) uint8 and its target (6, CELLS, CELLS).

        Target channels: 1 face, 0 none, -1 either; then as the network's outputs.
        """
        r = self.random
        canvas = self.background().astype(np.float32)
        target = np.zeros((6, CELLS, CELLS), np.float32)
        x, y = cell_centers(CELLS, CELLS)
        for _ in range(r.choice([0, 1, 1, 1, 2, 2])):
            size = math.exp(r.uniform(math.log(12), math.log(72)))
            center = np.array([r.uniform(-4, CANVAS + 4), r.uniform(-4, CANVAS + 4)])
            roll = r.gauss(0, 0.2) if r.random() < 0.6 else r.uniform(-1.3, 1.3)
            decoy = r.random() < 0.2
            if decoy:  # upside down, or a part of it scrambled below
                roll += math.pi if r.random() < 0.5 else 0
            picture, alpha, angle = warp(
                r.choice(self.frames), center, size, roll, r.random() < 0.5
            )
            border = r.random()
            if border < 0.35:
                alpha = np.minimum(alpha, blob(center, size * r.uniform(0.6, 0.9), size * 0.2))
            elif border < 0.6:
                alpha = np.ones_like(alpha)  # the frame and its replicated rim fill the canvas
                target[:] = 0
            if decoy and abs(roll) < 2:
                patch = max(int(size / 3), 3)
                cx, cy = (int(v) for v in center)
                view = picture[max(cy - patch, 0) : cy + patch, max(cx - patch, 0) : cx + patch]
                if view.size:
                    view[:] = (
                        view[::-1, ::-1].copy()
                        if r.random() < 0.5
                        else np.roll(view, view.shape[1] // 2, 1)
                    )
            canvas += (picture - canvas) * alpha[..., None]
            distance = np.hypot(x - center[0], y - center[1]) / size
            covered = distance < 0.6
            target[0][covered] = 0  # what lay below is hidden
            if decoy:
                target[0][distance < 0.35] = -1 if abs(roll) < 2 else 0
                continue
            target[0][distance < 0.4] = -1
            inside = 0 <= center[0] < CANVAS and 0 <= center[1] < CANVAS
            if SMALLEST < size < LARGEST and inside:
                near = distance < 0.14
                near |= distance == distance.min()
                target[0][near] = 1
                target[1] = np.where(near, (center[0] - x) / REFERENCE_SIZE, target[1])
                target[2] = np.where(near, (center[1] - y) / REFERENCE_SIZE, target[2])
                target[3][near] = math.log(size / REFERENCE_SIZE)
                target[4][near], target[5][near] = math.cos(angle), math.sin(angle)
            elif size > 1.3 * LARGEST or size < SMALLEST / 1.3:
                target[0][distance < 0.4] = 0
        return self.colour(canvas), target

    def colour(self, canvas: np.ndarray) -> np.ndarray:
        """Exposure, contrast, tint, grey, blur, noise and JPEG, some of each."""
        r = self.random
        canvas = 255 * np.clip(canvas / 255, 0, 1) ** math.exp(r.gauss(0, 0.3))
        canvas = (canvas - 128) * r.uniform(0.6, 1.25) + 128 + r.gauss(0, 12)
        canvas *= self.numpy.uniform(0.85, 1.15, 3)
        if r.random() < 0.2:
            canvas[:] = canvas.mean(-1, keepdims=True)
        if r.random() < 0.25:
            canvas = cv2.GaussianBlur(canvas, (0, 0), r.uniform(0.4, 1.3))
        if r.random() < 0.4:
            canvas += self.numpy.normal(0, r.uniform(1, 10), canvas.shape)
        canvas = np.clip(canvas, 0, 255).astype(np.uint8)
        if r.random() < 0.3:
            canvas = cv2.imdecode(
                cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, r.randint(30, 90)])[1], 1
            )
        return canvas


def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal cross-entropy of the face logit, L1 of the rest where there is a face."""
    logit, label = output[:, 0], target[:, 0]
    counts = label >= 0
    positive = label == 1
    probability = torch.sigmoid(logit)
    wrong = torch.where(positive, 1 - probability, probability)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logit, positive.float(), reduction="none"
    )
    faces = positive.sum().clamp_min(1)
    focal = (entropy * wrong**2 * counts).sum() / faces
    difference = (output[:, 1:] - target[:, 1:]).abs().sum(1)
    return focal + (difference * positive).sum() / faces


def check_writable(path: Path) -> None:
    """Before training what would fail after it; raises ValueError."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file for the weights.")
    try:
        TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}): name a file in a folder of yours."
        ) from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--faces",
        nargs="+",
        required=True,
        help="clip sets: Parquet files, globs of them, or Hub ids",
    )
    parser.add_argument(
        "--backgrounds", type=Path, required=True, help="folder of pictures without faces"
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--frame-stride", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        check_writable(arguments.output)
        frames = Frames(arguments.faces, arguments.frame_stride)
        backgrounds = [
            np.asarray(Image.open(path).convert("RGB"))
            for path in sorted(arguments.backgrounds.iterdir())
        ]
    except (OSError, ValueError) as error:
        sys.exit(f"train_detector.py: {error}")
    painter = Painter(frames, backgrounds, arguments.seed)
    network = DetectorNetwork()
    torch.nn.init.constant_(network.head.bias[:1], -4.0)
    optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, arguments.steps, pct_start=0.05)
    bar = tqdm(range(arguments.steps), mininterval=10)
    average = 0.0
    for step in bar:
        images, targets = zip(*(painter.sample() for _ in range(arguments.batch)))
        image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
        value = loss(network(image), torch.from_numpy(np.stack(targets)))
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        average += (value.item() - average) * max(0.01, 1 / (step + 1))
        bar.set_postfix(loss=f"{average:.3f}")
        if step % 1000 == 999 or step + 1 == arguments.steps:
            write_atomically(arguments.output, partial(save_file, network.state_dict()))


if __name__ == "__main__":
    main()
