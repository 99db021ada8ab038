"""A small face detector that ships with the package, for when YuNet cannot be had.

A fully convolutional network of 0.1 M parameters looks for faces of about 18 to 54 pixels; larger
ones are found on smaller copies of the photo. A photo of more than 2048 pixels a side is itself
looked at as a copy of that size, and its faces have to be larger in proportion. At every eighth
pixel it says whether a face is centred there, and where the centre, how large and how rolled that
face is. "Face" is the box of its 68 landmarks, turned upright: the very square the estimators are
fed with, so no further calibration is needed.

Coordinates are pixel-edge: the middle of the top left pixel is (0.5, 0.5), y runs down.
"""

import math
from importlib.resources import files
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

STRIDE = 8
"""Pixels from one cell of the network's output to the next."""
REFERENCE_SIZE = 32.0
"""Face size, in pixels, that the outputs are relative to: the middle of what the network sees."""
LARGEST_SIDE = 2048
"""Pixels: larger photos are scaled down to this, or time and memory would know no bounds."""
WEIGHTS = "face_detector.safetensors"


class Candidates(NamedTuple):
    """N upright face boxes: `centers` (N, 2) and `sizes` (N,) in pixels, `rolls` (N,) in radians,
    counter-clockwise as the picture is seen, `scores` (N,) in [0, 1]. A face is found several
    times over."""

    centers: np.ndarray
    sizes: np.ndarray
    rolls: np.ndarray
    scores: np.ndarray


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.normalisation(self.convolution(x)))


class DetectorNetwork(nn.Module):
    """(B, 3, H, W) sRGB in [0, 1] -> (B, 6, H / 8, W / 8).

    Channels: face logit; centre x and y from the cell's middle (x right, y down) and log size,
    all relative to `REFERENCE_SIZE`; cosine and sine of the roll (not normalised).
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 48), blocks: int = 4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            layers += [
                nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        layers += [_Residual(channels) for _ in range(blocks)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, 6, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image * 4 - 2))


def cell_centers(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, columns) and y (rows, 1) of the middles of the output's cells, in pixels."""
    return (
        (np.arange(columns, dtype=np.float32)[None] + 0.5) * STRIDE,
        (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * STRIDE,
    )


class EmbeddedDetector:
    """Finds faces with the weights in `cest/assets`."""

    def __init__(self, network: DetectorNetwork | None = None, threshold: float = 0.8) -> None:
        if network is None:
            network = DetectorNetwork()
            network.load_state_dict(load((files("cest") / "assets" / WEIGHTS).read_bytes()))
        self.network = network.eval()
        self.threshold = threshold

    @torch.inference_mode()
    def detect(self, photo: np.ndarray) -> Candidates:
        """(H, W, 3) uint8 sRGB -> what looks like a face, at every scale."""
        found: list[Candidates] = []
        height, width = photo.shape[:2]
        scale = min(1.0, LARGEST_SIDE / max(height, width))
        while max(height, width) * scale >= REFERENCE_SIZE:
            size = (max(round(width * scale), 1), max(round(height * scale), 1))
            level = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            found.append(self._detect_level(level, (width / size[0], height / size[1])))
            scale /= 2
        if not found:
            return Candidates(*(np.zeros(shape, np.float32) for shape in ((0, 2), 0, 0, 0)))
        return Candidates(*(np.concatenate(parts) for parts in zip(*found)))

    def _detect_level(self, level: np.ndarray, scale: tuple[float, float]) -> Candidates:
        # A rim of replicated pixels lets faces be found that touch the border of the photo, and
        # makes both sides multiples of the stride.
        rim = int(REFERENCE_SIZE)
        bottom, right = (rim + -side % STRIDE for side in level.shape[:2])
        padded = cv2.copyMakeBorder(level, rim, bottom, rim, right, cv2.BORDER_REPLICATE)
        image = torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255
        logit, dx, dy, log_size, cosine, sine = self.network(image)[0].numpy()
        score = 1 / (1 + np.exp(-logit))
        hit = score > self.threshold
        x, y = (np.broadcast_to(axis, score.shape)[hit] for axis in cell_centers(*score.shape))
        centers = np.stack([x + dx[hit] * REFERENCE_SIZE, y + dy[hit] * REFERENCE_SIZE], -1) - rim
        return Candidates(
            centers * np.asarray(scale, np.float32),
            REFERENCE_SIZE * np.exp(log_size[hit]) * math.sqrt(scale[0] * scale[1]),
            np.arctan2(sine[hit], cosine[hit]),
            score[hit],
        )
