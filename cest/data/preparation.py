"""A clip set made of footage: Parquet shards, in several processes, stopped and gone on with."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path

import cv2
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from cest.checkpoint import write_atomically
from cest.data.clip_making import (
    FEATURES,
    FaceFinder,
    PreparationError,
    PreparationSettings,
    Skipped,
    make_clips,
)
from cest.data.footage import Footage

ROW_GROUP_BYTES = 32 * 2**20
"""Encoded frames that are kept before they are written."""


@dataclass
class Tally:
    """What became of footage.

    Attributes:
        clips, frames: made of it.
        skipped_frames: not used, or not readable.
        unused: videos, folders or stills that gave no clip.
    """

    clips: int = 0
    frames: int = 0
    skipped_frames: int = 0
    unused: int = 0

    def add(self, other: "Tally") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Preparation:
    """A clip set in the making: shards of footage, each written whole or not at all.

    ``output`` takes ``train-00000.parquet``, …, ``preparation.json`` (what it is made from and
    how) and ``.progress/`` (what became of each shard; there is one where a shard is finished).

    Args:
        folder: the root of the footage.
        footage: what is in it.
        output: folder; made if need be. One that was begun is gone on with.
        settings: how.

    Raises:
        PreparationError: ``output`` was begun with other footage or settings.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: Path, footage: list[Footage], output: Path, settings: PreparationSettings
    ) -> None:
        self.folder, self.output, self.settings = folder, output, settings
        step = settings.items_per_shard
        self.shards = [footage[i : i + step] for i in range(0, len(footage), step)]
        self.progress = output / ".progress"
        self.progress.mkdir(parents=True, exist_ok=True)
        names = "\n".join(f"{item.kind} {item.name}" for item in footage)
        now = {
            **asdict(settings),
            "items": len(footage),
            "items_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }
        del now["device"]  # changes nothing
        self._agree_with(now)
        for torn in (*output.glob(".train-*"), *self.progress.glob(".*")):
            torn.unlink()

    def _agree_with(self, now: dict) -> None:
        path = self.output / "preparation.json"
        if not path.is_file():
            text = json.dumps(now, indent=1) + "\n"
            write_atomically(path, lambda temporary: temporary.write_text(text))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in now if now[name] != before.get(name)]
        if {"items", "items_sha256"} & set(changed):
            raise PreparationError(
                f"{self.output} was begun with other footage ({before.get('items')} items, now "
                f"{now['items']}): give another output, or the folder as it was."
            )
        if changed:
            raise PreparationError(
                f"{self.output} was begun with another {', '.join(changed)}: give those of its "
                "preparation.json, or another output."
            )

    def _record(self, index: int) -> Path:
        return self.progress / f"{index:05d}.json"

    def _task(self, index: int) -> tuple[list[Footage], Path, Path]:
        """The first arguments of make_shard."""
        shard = self.output / f"train-{index:05d}.parquet"
        return self.shards[index], shard, self._record(index)

    @property
    def pending(self) -> list[int]:
        """Numbers of the shards that are missing."""
        return [i for i in range(len(self.shards)) if not self._is_finished(i)]

    def _is_finished(self, index: int) -> bool:
        _, shard, record = self._task(index)
        if not record.is_file():
            return False
        # One without clips has no file; one that somebody removed is made again.
        return shard.is_file() or not json.loads(record.read_text("utf-8"))["tally"]["clips"]

    def run(self, workers: int = 1) -> Tally:
        """Makes the shards that are missing; returns what became of their footage.

        Args:
            workers: processes; 1 works in this one.

        Raises:
            LandmarkError, DetectorError: something that detection needs is missing.
            OSError: a shard could not be written.
            PreparationError: a worker process died.
        """
        total = Tally()
        pending = self.pending
        if not pending:
            return total
        finder = FaceFinder.load(self.folder, self.settings)  # says at once what is missing
        with tqdm(total=sum(len(self.shards[i]) for i in pending), unit="item") as bar:
            if workers == 1:
                results = ((i, make_shard(*self._task(i), finder, self.settings)) for i in pending)
            else:
                del finder
                results = self._in_processes(pending, workers)
            for index, tally in results:
                total.add(tally)
                bar.update(len(self.shards[index]))
                bar.set_postfix(clips=total.clips, frames=total.frames)
        return total

    def _in_processes(self, pending: list[int], workers: int) -> Iterator[tuple[int, Tally]]:
        pool = ProcessPoolExecutor(
            min(workers, len(pending)),
            multiprocessing.get_context("spawn"),
            _start_worker,
            (self.folder, self.settings),
        )
        with pool:
            # The footage that a worker needs goes along with each shard.
            futures = {pool.submit(_make_shard, *self._task(i)): i for i in pending}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                if isinstance(error, BrokenProcessPool):
                    raise PreparationError(
                        "a worker process died, perhaps for want of memory: the same command goes "
                        "on; give it fewer workers."
                    ) from error
                raise

    def finish(self) -> Tally:
        """Gathers what the finished shards left out in ``skipped.jsonl``; returns the sums."""
        total = Tally()

        def write(temporary: Path) -> None:
            with open(temporary, "w", encoding="utf-8") as file:
                for index in range(len(self.shards)):
                    record = json.loads(self._record(index).read_text(encoding="utf-8"))
                    total.add(Tally(**record["tally"]))
                    for line in record["skipped"]:
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")

        write_atomically(self.output / "skipped.jsonl", write)
        return total


def make_shard(
    footage: list[Footage],
    shard: Path,
    record: Path,
    finder: FaceFinder,
    settings: PreparationSettings,
) -> Tally:
    """Writes the clips of some footage as a Parquet file, if there are any, and then a record."""
    tally, skipped = Tally(), Skipped()

    def rows() -> Iterator[dict]:
        for item in footage:
            before = tally.clips
            for row in make_clips(item, finder, settings, skipped):
                tally.clips += 1
                tally.frames += len(row["frames"])
                yield row
            tally.unused += tally.clips == before

    remaining = rows()
    if first := next(remaining, None):
        write_atomically(shard, lambda path: write_rows(path, chain((first,), remaining)))
    tally.skipped_frames = sum(map(len, skipped.values()))
    lines = [
        {"file": file, "reason": reason, "frames": frames}
        for (file, reason), frames in skipped.items()
    ]
    text = json.dumps({"tally": vars(tally), "skipped": lines})
    write_atomically(record, lambda path: path.write_text(text, encoding="utf-8"))
    return tally


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """A Parquet file of rows of FEATURES; holds ROW_GROUP_BYTES of frames at a time."""
    waiting: list[dict] = []
    size = 0
    with pq.ParquetWriter(path, FEATURES.arrow_schema) as writer:
        for row in rows:
            waiting.append(row)
            size += sum(len(frame["bytes"]) for frame in row["frames"])
            if size >= ROW_GROUP_BYTES:
                writer.write_table(_table(waiting))
                waiting, size = [], 0
        if waiting:
            writer.write_table(_table(waiting))


def _table(rows: list[dict]) -> pa.Table:
    return datasets.Dataset.from_list(rows, features=FEATURES).data.table


# -- worker processes ----------------------------------------------------------------------------

_worker: tuple[FaceFinder, PreparationSettings] | None = None


def _start_worker(folder: Path, settings: PreparationSettings) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # die of it without a traceback
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker = FaceFinder.load(folder, settings), settings


def _die_with_parent() -> None:
    """A pool's processes outlive a parent that was killed, and would wait for ever."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _make_shard(footage: list[Footage], shard: Path, record: Path) -> Tally:
    return make_shard(footage, shard, record, *_worker)
