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
sys.path.insert(0, str(ROOT / "train"))

import train_detector  # noqa: E402


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


@pytest.fixture
def data(face_model, tmp_path) -> list[str]:
    """Of the script: three clips of two frames, and a background."""
    clips = write_clips(tmp_path / "clips.parquet", face_model, clips=3, frames=2, size=128)
    (tmp_path / "backgrounds").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (200, 150, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "backgrounds" / "noise.png")
    return ["--faces", str(clips), "--backgrounds", str(tmp_path / "backgrounds")]


def train(*arguments: str) -> subprocess.CompletedProcess:
    script = str(ROOT / "train" / "train_detector.py")
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=300
    )


def test_the_script_trains_and_saves(data, tmp_path):
    (tmp_path / "out").mkdir()
    weights = tmp_path / "out" / "w.safetensors"
    done = train(*data, "-o", str(weights), "--steps", "3", "--batch", "4")
    assert done.returncode == 0, done.stderr
    assert list(weights.parent.iterdir()) == [weights]  # no temporary file stays
    network = DetectorNetwork()
    before = network.head.weight.clone()
    network.load_state_dict(load_file(weights))
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert (network.head.weight != before).any()


def test_what_cannot_be_done_is_one_sentence_before_training(data, tmp_path, monkeypatch):
    def fails(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train_detector.py", *arguments])
        with pytest.raises(SystemExit) as stopped:
            train_detector.main()
        return str(stopped.value)

    monkeypatch.setattr(train_detector, "Painter", None)  # not to be called
    nowhere = str(tmp_path / "absent" / "w.safetensors")
    assert fails(*data, "-o", nowhere).startswith(f"train_detector.py: {nowhere} cannot be written")
    assert f"{tmp_path} is a folder" in fails(*data, "-o", str(tmp_path))
    output = ["-o", str(tmp_path / "w.safetensors")]
    assert "no faces in the clips" in fails(*data, *output, "--frame-stride", "7")
    assert "absent" in fails(*data[:-1], str(tmp_path / "absent"), *output)


def test_frames_are_read_when_they_are_asked_for(data, monkeypatch):
    """Every second one, none before; and none is kept."""
    read = []
    original = train_detector.read_frame

    def counted(row: dict, index: int) -> tuple:
        read.append((row["clip_id"], index))
        return original(row, index)

    monkeypatch.setattr(train_detector, "read_frame", counted)
    frames = train_detector.Frames([data[1]], stride=2)
    assert len(frames) == 3 and not read
    assert frames[1].image.shape == (128, 128, 3)
    assert frames[1] is not frames[1]
    assert read == [("clip1", 1)] * 3


def test_targets_are_one_label_and_the_networks_other_outputs(data):
    frames = train_detector.Frames([data[1]], stride=1)
    painter = train_detector.Painter(frames, [np.zeros((64, 64, 3), np.uint8)], seed=0)
    for _ in range(20):
        image, target = painter.sample()
        if (target[0] == 1).any():
            break
    output = DetectorNetwork()(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    assert target.shape == output.shape[1:]
    # An output that says what the target says: no error is left but the logit's.
    right = torch.from_numpy(target)[None].clone()
    right[:, 0] = 50 * (2 * (right[:, 0] == 1) - 1)
    assert train_detector.loss(right, torch.from_numpy(target)[None]) < 1e-6
    face = (target[0] == 1).nonzero()
    angle = torch.from_numpy(target[4:][:, face[0], face[1]])
    torch.testing.assert_close(angle.norm(dim=0), torch.ones(angle.shape[1]))
