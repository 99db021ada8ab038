"""Checkpoints of a run: written whole or not at all, found again, thinned out."""

import json
import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from cest.checkpoint import PretrainedModel

PREFIX = "step_"


def save(
    accelerator: Accelerator, folder: Path, step: int, keep: int, position: dict | None = None
) -> None:
    """Saves weights (safetensors), optimiser and schedule as ``folder/step_00001234``.

    The folder appears under its name only when everything is in it and on the disk, so a kill
    at any moment leaves the last good one. Older ones beyond ``keep`` are removed after that.

    Args:
        accelerator: has prepared what is saved.
        folder: of the run's checkpoints.
        step: names it.
        keep: how many stay.
        position: of this process in its streams.

    Raises:
        OSError: it could not be written; the earlier ones are untouched.
    """
    final = folder / f"{PREFIX}{step:08d}"
    temporary = folder / f".{final.name}.partial"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(temporary))
        _stream_file(accelerator, temporary).write_text(
            json.dumps({"processes": accelerator.num_processes, "position": position or {}})
        )
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
    # torch says RuntimeError and safetensors its own where the disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"checkpoint {final} could not be written ({str(error).splitlines()[0]}): make room "
            "there and start again; it goes on from the one before."
        ) from error


def save_model(model: PretrainedModel, folder: Path) -> None:
    """Writes the folder that `from_pretrained` loads."""
    try:
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written ({error}): make room there.") from error


def existing(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def resume(accelerator: Accelerator, folder: Path) -> tuple[int, dict]:
    """Loads the newest checkpoint into what the accelerator has prepared.

    Returns:
        The step to go on with, 0 when there is no checkpoint, and this process's position in
        its streams, {} where nothing is streamed.

    Raises:
        ValueError: a checkpoint that is damaged or of another program; a streaming run resumed by
            another number of processes.
    """
    found = existing(folder)
    if not found:
        return 0, {}
    try:
        accelerator.load_state(str(found[-1]))
    # Whatever torch, safetensors and pickle say of a damaged file.
    except Exception as error:
        raise ValueError(
            f"{found[-1]} cannot be gone on from ({str(error).splitlines()[0]}): remove it to go "
            "on from the one before; or it was made by another version of this program."
        ) from error
    step = int(found[-1].name.removeprefix(PREFIX))
    record = _stream_file(accelerator, found[-1], process=0)
    streams = json.loads(record.read_text()) if record.is_file() else {"position": {}}
    if not streams["position"]:
        return step, {}
    if streams["processes"] != accelerator.num_processes:
        raise ValueError(
            f"{found[-1]} is of a streaming run by {streams['processes']} process(es), each with "
            f"a place of its own in the data; {accelerator.num_processes} cannot go on with it: "
            f"launch with --num_processes={streams['processes']}."
        )
    return step, json.loads(_stream_file(accelerator, found[-1]).read_text())["position"]


def _stream_file(accelerator: Accelerator, folder: Path, process: int | None = None) -> Path:
    process = accelerator.process_index if process is None else process
    return folder / f"streams_{process}.json"
