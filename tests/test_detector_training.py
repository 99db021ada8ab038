"""Training the embedded detector: the targets mean what they say, and the script saves weights."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cest.embedded_detector import REFERENCE_SIZE, DetectorNetwork, EmbeddedDetector, cell_centers
from clip_factory import write_clips

ROOT = Path(__file__).resolve().parent.parent


class Ideal(DetectorNetwork):
    """Answers as trained: one face at (50, 70), 30 pixels, rolled by half a radian."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows, columns = image.shape[-2] // 8, image.shape[-1] // 8
        out = torch.zeros(1, 6, rows, columns)
        out[:, 0] = -9
        if image.shape[-1] != 192:  # the level of a 128 pixel photo and its rim
            return out
        x, y = cell_centers(rows, columns)
        row, column = 12, 10  # of the cell around (82, 102), the rim included
        out[0, :, row, column] = torch.tensor(
            [
                9.0,
                (82 - x[0, column]) / REFERENCE_SIZE,
                (102 - y[row, 0]) / REFERENCE_SIZE,
                math.log(30 / REFERENCE_SIZE),
                2 * math.cos(0.5),
                2 * math.sin(0.5),
            ]
        )
        return out


@pytest.mark.parametrize("scale", [1, 2])
def test_outputs_are_read_as_they_are_meant(scale):
    """On a photo twice the size, found on its half, the same face is twice as large."""
    found = EmbeddedDetector(Ideal()).detect(np.zeros((128 * scale, 128 * scale, 3), np.uint8))
    np.testing.assert_allclose(found.centers, [[50 * scale, 70 * scale]], atol=1e-4)
    np.testing.assert_allclose(found.sizes, [30 * scale], rtol=1e-6)
    np.testing.assert_allclose(found.rolls, [0.5], atol=1e-6)


def test_the_script_trains_and_saves(face_model, tmp_path):
    clips = write_clips(tmp_path / "clips.parquet", face_model, clips=3, frames=2, size=128)
    (tmp_path / "backgrounds").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (200, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "backgrounds" / "noise.png")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train" / "train_detector.py"),
            "--faces",
            str(clips),
            "--backgrounds",
            str(tmp_path / "backgrounds"),
            "-o",
            str(tmp_path / "w.safetensors"),
            "--steps",
            "3",
            "--batch",
            "4",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    network = DetectorNetwork()
    before = network.head.weight.clone()
    network.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert (network.head.weight != before).any()
