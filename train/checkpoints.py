"""Checkpoints of a run: written whole or not at all, found again, thinned out."""

import os
import shutil
from pathlib import Path

from accelerate import Accelerator

PREFIX = "step_"


def save(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Saves weights (safetensors), optimiser and schedule as ``folder/step_00001234``.

    The folder appears under its name only when everything is in it and on the disk, so a kill
    at any moment leaves the last good one. Older ones beyond ``keep`` are removed after that.
    """
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".{final.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for file in (path for path in temporary.rglob("*") if path.is_file()):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in existing(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def existing(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def resume(accelerator: Accelerator, folder: Path) -> int:
    """Loads the newest checkpoint into what the accelerator has prepared.

    Returns:
        The step to go on with; 0 when there is no checkpoint.
    """
    found = existing(folder)
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    return int(found[-1].name.removeprefix(PREFIX))
