"""Adds masks to a clip set: ``python train/add_masks.py CLIPS -o FOLDER``.

Every frame is segmented once, instead of in every epoch of a training. CLIPS is a Parquet file, a
glob of them, a folder or a Hub id; FOLDER gets Parquet shards with all its columns and ``masks``, a
PNG a frame, 255 on the face. A shard appears when it is whole, and the same command goes on from
the last one.
"""

import argparse
import hashlib
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import datasets
import torch
from PIL import Image
from tqdm import tqdm

from cest.checkpoint import write_atomically
from cest.data.clips import load_clips, open_rows, read_frame
from cest.segmentation import FaceSegmenter

RELEASED = Path(__file__).resolve().parent.parent / "model_card" / "segmenter"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", metavar="CLIPS")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--columns", nargs="*", default=[], metavar="OURS=THEIRS", help="such as frames=images"
    )
    parser.add_argument("--segmenter", default=str(RELEASED), help="a folder or a Hub id")
    parser.add_argument("--shard-rows", type=int, default=256, help="clips a shard")
    arguments = parser.parse_args()
    try:
        columns = dict(entry.split("=", 1) for entry in arguments.columns if "=" in entry)
        if len(columns) < len(arguments.columns):
            raise ValueError("--columns takes OURS=THEIRS, such as frames=images.")
        add_masks(
            arguments.clips, arguments.output, arguments.segmenter, arguments.shard_rows, columns
        )
    except (ValueError, OSError) as error:
        sys.exit(f"add_masks.py: {error}")
    except KeyboardInterrupt:
        sys.exit("add_masks.py: stopped; the same command goes on.")


def add_masks(
    source: str,
    output: Path,
    segmenter: str,
    shard_rows: int,
    columns: Mapping[str, str] | None = None,
) -> None:
    """Writes the shards that ``output`` lacks; memory is bounded by one of them.

    Raises:
        ValueError: no such clips or segmenter, an unreadable frame, a set that has masks, or an
            output begun with another set, segmenter or number of rows.
    """
    if shard_rows < 1:
        raise ValueError(f"--shard-rows is {shard_rows}; it must be at least 1.")
    clips = load_clips(source, columns)
    if "masks" in clips.column_names:
        raise ValueError(f"{source!r} has masks: remove that column to have them made again.")
    rows = open_rows(source, streaming=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FaceSegmenter.from_pretrained(segmenter).to(device)
    output.mkdir(parents=True, exist_ok=True)
    ids = hashlib.sha256("\n".join(map(str, clips["clip_id"])).encode()).hexdigest()[:16]
    _belongs(
        output,
        f"{len(rows)} rows of set {ids}, {shard_rows} a shard, segmenter {_fingerprint(model)}\n",
    )
    starts = range(0, len(rows), shard_rows)
    for number, start in enumerate(tqdm(starts, unit="shard")):
        path = output / f"train-{number:05d}-of-{len(starts):05d}.parquet"
        if path.is_file():
            continue
        chosen = range(start, min(start + shard_rows, len(rows)))
        masks = [_masks(model, clips[row]) for row in chosen]
        shard = rows.select(chosen).add_column(
            "masks", masks, feature=datasets.List(datasets.Image())
        )
        write_atomically(path, shard.to_parquet)


def _masks(model: FaceSegmenter, row: dict) -> list[dict]:
    """A clip's masks, encoded."""
    encoded = []
    for index in range(len(row["frames"])):
        image, _, _ = read_frame(row, index)
        buffer = io.BytesIO()
        Image.fromarray(model.segment(image)).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    return encoded


def _fingerprint(model: FaceSegmenter) -> str:
    digest = hashlib.sha256(repr(model.config).encode())
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _belongs(output: Path, what: str) -> None:
    """Notes what an output folder is made of; refuses to go on with anything else."""
    note = output / ".masks"  # hidden: a reader of the folder takes it for no data
    if note.is_file() and note.read_text() != what:
        raise ValueError(
            f"{output} was begun with {note.read_text().strip()}, not {what.strip()}: give "
            "another output."
        )
    write_atomically(note, lambda path: path.write_text(what))


if __name__ == "__main__":
    main()
