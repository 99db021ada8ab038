"""The clip schema: opening clip sets and reading their frames.

A row is a **clip**: ``clip_id``, ``frames`` (encoded images), ``landmarks`` (68 × 2 a frame,
pixel-edge coordinates), and if known ``masks`` (encoded images, one a frame, above 127 on the
face) and ``video_id``; a still is a clip of one frame.
"""

import glob
import io
import os
from collections.abc import Mapping

import datasets
import numpy as np
from PIL import Image

COLUMNS = ("clip_id", "frames", "landmarks")
OPTIONAL_COLUMNS = ("masks", "video_id")
# Landmarks may leave the crop (a jaw in profile), but not by more than this share of its side.
LANDMARK_MARGIN = 0.5

ClipSet = datasets.Dataset | datasets.IterableDataset


def load_clips(
    source: str, columns: Mapping[str, str] | None = None, streaming: bool = False
) -> ClipSet:
    """Opens a clip set; its images stay encoded until they are read.

    Args:
        source: a Parquet file, a glob of them (local or ``hf://``), a folder of Parquet files, a
            folder of images with a metadata file (see `datasets.ImageFolder`; a
            ``frames_file_names`` field lists a clip's images), or a Hub id, of which the split
            "train" is taken.
        columns: what the set calls our columns, {ours: theirs}.
        streaming: read on as needed instead of copying the set into the cache on disk.

    Raises:
        ValueError: nothing there, unreadable, or a column is missing.
    """
    if streaming and os.path.isdir(source) and not _parquet_files(source):
        raise ValueError(
            f"{source!r} is a folder of images, which cannot be streamed in parts: write it as "
            "Parquet, or turn streaming off."
        )
    try:
        rows = open_rows(source, streaming)
    except Exception as error:  # pyarrow, datasets, the Hub's client and the disk have their own
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise ValueError(
            f"No clips could be read from {source!r} ({reason}): give Parquet files, a folder "
            "or a Hub id."
        ) from error
    # Before anything else: a stream's other operations would decode and encode every image.
    for name in rows.column_names:
        if rows.features[name] == datasets.List(datasets.Image()):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    for ours, theirs in (columns or {}).items():
        if ours not in COLUMNS + OPTIONAL_COLUMNS:
            known = ", ".join(COLUMNS + OPTIONAL_COLUMNS)
            raise ValueError(f"columns maps {ours!r}, which is none of a clip set's: {known}.")
        if theirs not in rows.column_names:
            raise ValueError(f"{source!r} has no column {theirs!r} to take as {ours!r}.")
        rows = rows.rename_column(theirs, ours)
    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise ValueError(
            f"{source!r} lacks the column(s) {', '.join(missing)} of a clip set: if they have "
            "other names there, map them by columns."
        )
    known = [name for name in (*COLUMNS, *OPTIONAL_COLUMNS) if name in rows.column_names]
    return rows.select_columns(known)


def open_rows(source: str, streaming: bool) -> ClipSet:
    if os.path.isdir(source):
        files = _parquet_files(source)
        if not files:
            return datasets.load_dataset(
                "imagefolder", data_dir=source, split="train", streaming=streaming
            )
    elif source.endswith(".parquet"):
        files = sorted(glob.glob(source, recursive=True)) or [source]
    else:
        return _resolved(datasets.load_dataset(source, split="train", streaming=streaming))
    return _resolved(
        datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    )


def _parquet_files(folder: str) -> list[str]:
    return sorted(glob.glob(os.path.join(folder, "**", "*.parquet"), recursive=True))


def _resolved(rows: ClipSet) -> ClipSet:
    """A stream learns its columns from its first rows, unless its files' headers say them."""
    return rows if rows.column_names is not None else rows._resolve_features()


def count_frames(row: dict) -> int:
    """Of a clip.

    Raises:
        ValueError: it has none, or landmarks or masks for another number.
    """
    counts = {
        name: len(row[name]) if row[name] is not None else 0
        for name in ("frames", "landmarks", "masks")
        if name in row
    }
    if len(set(counts.values())) > 1 or not counts["frames"]:
        numbers = ", ".join(f"{number} {name}" for name, number in counts.items())
        raise ValueError(
            f"Clip {row['clip_id']} has {numbers}: a clip needs at least one frame, and landmarks "
            "and masks for every one; leave it out."
        )
    return counts["frames"]


def read_frame(row: dict, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A row's frame.

    Returns:
        Image (H, H, 3) uint8, landmarks (68, 2) in pixel-edge coordinates, and the mask (H, H)
        uint8, 1 on the face, or None where the set has no masks.

    Raises:
        ValueError: an image that cannot be read or is not square, a mask of another size,
            landmarks that are not 68 points in or near the frame; named by the clip.
    """
    where = f"frame {index} of clip {row['clip_id']}"
    image = _decoded(row["frames"][index], "RGB", where)
    if image.shape[0] != image.shape[1]:
        raise ValueError(
            f"{where} is {image.shape[1]} × {image.shape[0]}: frames must be square crops, 1.6 to "
            "1.7 times the landmarks' box."
        )
    try:
        landmarks = np.asarray(row["landmarks"][index], dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} has landmarks that are no 68 points ({error}).") from error
    size, margin = len(image), LANDMARK_MARGIN * len(image)
    if landmarks.shape != (68, 2):
        raise ValueError(f"{where} has landmarks of shape {landmarks.shape}, not (68, 2).")
    if not ((landmarks > -margin) & (landmarks < size + margin)).all():  # nor NaN
        raise ValueError(
            f"{where} has a landmark far outside its {size} × {size} pixels: landmarks are pixels "
            "of the frame itself; prepare the set again or leave this clip out."
        )
    mask = None
    if row.get("masks"):
        mask = (_decoded(row["masks"][index], "L", f"the mask of {where}") > 127).astype(np.uint8)
        if mask.shape != image.shape[:2]:
            raise ValueError(f"The mask of {where} has another size than the frame.")
    return image, landmarks, mask


def read_reflectance(row: dict) -> np.ndarray:
    """The true reflectance map (T, T, 3) uint8 of a rendered clip's row."""
    return _decoded(row["reflectance_map"], "RGB", f"the reflectance of clip {row['clip_id']}")


def _decoded(encoded: dict, mode: str, where: str) -> np.ndarray:
    try:
        source = encoded["path"] if encoded["bytes"] is None else io.BytesIO(encoded["bytes"])
        with Image.open(source) as file:
            return np.asarray(file.convert(mode))
    except (OSError, ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"{where} is not a readable image ({error}).") from error
