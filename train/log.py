"""What a run leaves to look at: metrics.jsonl, pictures, and a tracker's records."""

import json
import time
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from cest.checkpoint import write_atomically
from cest.data import FrameBatch
from cest.modeling import FaceEstimator
from cest.pictures import grid, panels, to_uint8


class Log:
    """Of one run; for the main process alone.

    Args:
        output: the run's folder.
        start: the step it goes on from; later records are going to be written again.
        accelerator: whose trackers are written to, too.
    """

    def __init__(self, output: Path, start: int, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.pictures = output / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.path = output / "metrics.jsonl"
        # A kill can also leave half a last line.
        text = self.path.read_text() if self.path.exists() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= start)
        write_atomically(self.path, lambda path: path.write_text(kept))

    def looked(self, step: int) -> bool:
        """Whether the validation set has been looked at after a step."""
        records = map(json.loads, self.path.read_text().splitlines())
        return any(one["kind"] == "validation" and one["step"] == step for one in records)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        record = {"kind": kind, "step": step, "time": round(time.time(), 1), **values}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        self.accelerator.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, step: int, batch: FrameBatch, model: FaceEstimator) -> None:
        """Strips of eight frames of a batch, as the model in evaluation mode sees them."""
        image = batch.image[:: max(1, len(batch.image) // 8)]
        training = model.training
        model.eval()
        with torch.no_grad():
            estimate = model(image)
        model.train(training)
        picture = to_uint8(grid(panels(image, estimate, model.face_model)))
        Image.fromarray(picture.cpu().numpy()).save(self.pictures / f"{step:08d}.jpg", quality=88)


def start_tracker(accelerator: Accelerator, name: str, settings: dict) -> None:
    """Starts the tracker that the run was given, if its package is there."""
    if not name:
        return
    if not accelerator.log_with:
        warnings.warn(
            f"{name} is not installed: the run's figures go to metrics.jsonl alone "
            f"(pip install {name}).",
            stacklevel=2,
        )
        return
    flat = {key: value if isinstance(value, int | float | str) else json.dumps(value)
            for key, value in settings.items()}  # fmt: skip
    accelerator.init_trackers("cest", config=flat)
