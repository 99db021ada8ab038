"""Checkpoints of a run: written whole or not at all, found again, thinned out."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
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
    if accelerator.is_main_process:
        for leftover in (*folder.glob(".*.partial"), *folder.glob(".*.old")):
            shutil.rmtree(leftover, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    with _one_sentence(final, temporary):
        accelerator.save_state(str(temporary))
        _stream_file(accelerator, temporary).write_text(
            json.dumps({"processes": accelerator.num_processes, "position": position or {}})
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with _one_sentence(final, temporary):
            for path in (*temporary.rglob("*"), temporary):
                _to_disk(path)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            _to_disk(folder)
        for old in existing(folder)[:-keep]:
            # Half of a checkpoint must not go by the name of a whole one.
            gone = old.rename(folder / f".{old.name}.old")
            shutil.rmtree(gone, ignore_errors=True)
    accelerator.wait_for_everyone()


@contextmanager
def _one_sentence(final: Path, temporary: Path) -> Iterator[None]:
    try:
        yield
    # torch says RuntimeError and safetensors its own where the disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"checkpoint {final} could not be written ({_first_line(error)}): make room there and "
            "start again; it goes on from the one before."
        ) from error


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def save_model(model: PretrainedModel, folder: Path) -> None:
    """Writes the folder that `from_pretrained` loads."""
    for leftover in folder.glob(".model.safetensors.*"):  # of a kill in mid-save
        leftover.unlink(missing_ok=True)
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
    step = int(found[-1].name.removeprefix(PREFIX)) if found else 0
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise ValueError(
            f"The processes see different checkpoints in {folder} (of steps {steps}): give an "
            "output on a disk that all of them share."
        )
    if not found:
        return 0, {}
    try:
        accelerator.load_state(str(found[-1]))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        raise OSError(f"{found[-1]} cannot be read now ({error}): start again.") from error
    # Whatever torch, safetensors and pickle say of a damaged file.
    except Exception as error:
        raise ValueError(
            f"{found[-1]} is damaged, or was made by another version of this program "
            f"({_first_line(error)}): use that version, or remove it to go on from the one before."
        ) from error
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
