"""Synthetic clips as Parquet files in the clip schema."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import datasets
from pyarrow import parquet
from tqdm import tqdm

from cest.checkpoint import write_atomically
from cest.data.synthetic.clip import SyntheticClips

CLIPS_A_SHARD = 256
ROW_GROUP = 16  # clips: what a reader has to hold at least
SETTINGS = "synthetic.json"

_NUMBERS = datasets.List(datasets.List(datasets.Value("float32")))
FEATURES = {
    "clip_id": datasets.Value("string"),
    "video_id": datasets.Value("string"),
    "frames": datasets.List(datasets.Image()),
    "landmarks": datasets.List(datasets.Array2D(shape=(68, 2), dtype="float32")),
    "masks": datasets.List(datasets.Image()),
}
TRUTH = {
    "viewpoint": _NUMBERS,
    "shape_coefficients": _NUMBERS,
    "illumination": _NUMBERS,
    "reflectance_map": datasets.Image(),
    "visibility": datasets.List(datasets.Image()),
}
"""Columns of a row; the second ones are there if the truth was asked for."""


def write_shards(clips: SyntheticClips, folder: Path, progress: bool = True) -> list[Path]:
    """Writes ``clips`` to ``folder``, `CLIPS_A_SHARD` a file; files that are there are kept.

    A call that was stopped is gone on with by calling again: a shard is either whole or not there.

    Raises:
        ValueError: the folder holds clips of other settings.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(clips, folder / SETTINGS)
    features = datasets.Features(FEATURES | (TRUTH if clips.truth else {}))
    starts = range(0, len(clips), CLIPS_A_SHARD)
    shards = [folder / f"clips-{k:05d}-of-{len(starts):05d}.parquet" for k in range(len(starts))]
    bar = tqdm(total=len(clips), unit="clip", disable=not progress)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for start, shard in zip(starts, shards):
            numbers = range(start, min(start + CLIPS_A_SHARD, len(clips)))
            if shard.exists():
                bar.update(len(numbers))
                continue
            rows = []
            for row in pool.map(clips.__getitem__, numbers):
                rows.append({name: row[name] for name in features})
                bar.update()
            table = datasets.Dataset.from_list(rows, features=features).data.table
            # Not `to_parquet`, which draws a bar of its own into ours; the schema's metadata is
            # what tells a reader the features.
            table = table.replace_schema_metadata(features.arrow_schema.metadata)
            write_atomically(shard, partial(parquet.write_table, table, row_group_size=ROW_GROUP))
    return shards


def _check_settings(clips: SyntheticClips, path: Path) -> None:
    settings = {
        name: getattr(clips, name) for name in ("length", "seed", "frames", "size", "truth")
    } | {"appearance": asdict(clips.appearance)}
    text = json.dumps(settings, indent=1) + "\n"
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): give another folder.") from error
    if found != json.loads(text):  # JSON has no tuples
        raise ValueError(
            f"{path.parent} holds synthetic clips made with other settings ({SETTINGS} says "
            "which): give those, or another folder."
        )
