"""Makes a clip set of videos or images: ``python train/prepare_clips.py FOLDER -o OUTPUT``.

Finds the largest face, follows it, cuts it out with its 68 landmarks and writes Parquet shards
that train.py reads. Stop it whenever you like; the same command goes on. With --push-to-hub the
finished set goes to the Hugging Face Hub, into a private repository unless told otherwise.
"""

import argparse
import logging
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from huggingface_hub.utils import validate_repo_id

from cest.checkpoint import write_atomically
from cest.data.clip_making import PreparationError, PreparationSettings
from cest.data.footage import LAYOUTS, find_footage
from cest.data.preparation import Preparation, Tally
from cest.landmarks import DETECTORS

SHARDS = "train-*.parquet"
CARD = """---
{metadata}
---

# {name}

Faces for training [CEST](https://arxiv.org/abs/2110.04800): {clips:,} clips, {frames:,} frames,
made by its `train/prepare_clips.py` from {source}. Licence: {license}.

A row is a clip of consecutive frames of one face (a still is a clip of one frame):

| column | what |
|---|---|
| `clip_id`, `video_id`, `person` | where it is from; `person` only if the source says who it is |
| `source`, `license` | of the footage |
| `frames` | 256 × 256 JPEG: an upright square, 1.65 times the longer side of the landmarks' box |
| `landmarks` | 68 × 2 a frame, iBUG order, pixels of the frame from its top left edge |

Landmarks: {landmarks}.

```python
from datasets import load_dataset

clips = load_dataset("{repository}", split="train")
```
"""
LANDMARKS = {
    "known": "as they came with the images",
    "cest": "by a CEST checkpoint, so that nothing new about landmarks can be learnt from them",
    "face-alignment": "by the package face-alignment (FAN, 2.5D)",
    "mediapipe": "by MediaPipe's FaceLandmarker, 68 points of its mesh",
}


def main() -> None:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # damaged videos are listed, not told
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arguments = _parser().parse_args()
    try:
        prepare(arguments)
    except KeyboardInterrupt:
        sys.exit("prepare_clips.py: stopped; the same command goes on.")
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_clips.py: {_sentence(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = PreparationSettings(source="")
    add = parser.add_argument
    add("folder", type=Path, help="with videos or images")
    add("-o", "--output", type=Path, required=True, help="folder of the clip set")
    add("--layout", choices=LAYOUTS, help="of the folder; default: as it looks")
    add("--source", help="name of the footage, for every row; default: the folder's")
    add("--license", default=defaults.license, help="the Hub's name for it, such as cc-by-4.0")
    add(
        "--landmarks",
        choices=("known", *DETECTORS),
        help="default: known if the layout is annotated, else cest",
    )
    add("--landmark-model", metavar="FILE", help="mediapipe's .task file, or a CEST checkpoint")
    add("--detector", metavar="FILE", help='a YuNet .onnx file, or "embedded"')
    add("--device", default=defaults.device, help="of torch, for the landmarks")
    add("--every", type=int, metavar="K", help="take each K-th frame; default: 5 of videos, else 1")
    add("--frames-per-clip", type=int, default=defaults.frames_per_clip, metavar="N")
    add("--smallest-face", type=int, default=defaults.smallest_face, metavar="PIXELS")
    add(
        "--items-per-shard",
        type=int,
        default=defaults.items_per_shard,
        metavar="N",
        help="videos, folders or stills a Parquet file; what a stopped process loses at most",
    )
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    add("--push-to-hub", metavar="OWNER/NAME", help="data set repository; made if need be")
    add("--public", action="store_true", help="push for everybody to see")
    return parser


def prepare(arguments: argparse.Namespace) -> None:
    """Makes, or goes on with, a clip set, and pushes it.

    Raises:
        ValueError, OSError: something is missing, unusable or cannot be written.
    """
    if arguments.workers < 1:
        raise PreparationError(f"--workers is {arguments.workers}; it must be 1 or more.")
    if repository := arguments.push_to_hub:
        check_repository(repository, arguments.public)
    layout, footage = find_footage(arguments.folder, arguments.layout)
    kinds = Counter(item.kind for item in footage)
    counted = ", ".join(f"{number} × {kind}" for kind, number in kinds.items())
    print(f"{arguments.folder}: layout {layout}, {counted}", flush=True)
    settings = PreparationSettings(
        source=arguments.source or arguments.folder.resolve().name,
        landmarks=arguments.landmarks or ("known" if layout == "annotated" else "cest"),
        **{
            name: getattr(arguments, name)
            for name in (
                *("license", "landmark_model", "detector", "device", "every"),
                *("frames_per_clip", "smallest_face", "items_per_shard"),
            )
        },
    )
    preparation = Preparation(arguments.folder, footage, arguments.output, settings)
    waiting = len(preparation.pending)
    if waiting < len(preparation.shards):
        print(f"{len(preparation.shards) - waiting} of {len(preparation.shards)} shards are there")
    started = time.monotonic()
    made = preparation.run(arguments.workers)
    seconds = time.monotonic() - started
    total = preparation.finish()
    print(
        f"{total.clips} clips, {total.frames} frames in {arguments.output}; skipped "
        f"{total.skipped_frames} frames; {total.unused} of {len(footage)} inputs gave no clip"
        + (f"; {made.frames / seconds:.1f} frames/s" if made.frames else "")
    )
    skipped = arguments.output / "skipped.jsonl"
    if total.skipped_frames:
        print(f"what was skipped, and why: {skipped}")
    if not total.clips:
        raise PreparationError(f"nothing could be used; {skipped} says why.")
    text = card(settings, total, repository or "OWNER/NAME")
    write_atomically(
        arguments.output / "README.md", lambda path: path.write_text(text, encoding="utf-8")
    )
    if repository:
        push(arguments.output, repository)


def card(settings: PreparationSettings, total: Tally, repository: str) -> str:
    """The README.md of the clip set's repository."""
    name = re.fullmatch(r"[a-z0-9.\-]+", settings.license)
    metadata = DatasetCardData(
        license=settings.license if name else "other",
        license_name=None if name else settings.license,
        pretty_name=repository.split("/")[1],
        tags=["face", "cest"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": SHARDS}]}],
    )
    text = CARD.format(
        metadata=metadata.to_yaml(),
        name=repository.split("/")[1],
        clips=total.clips,
        frames=total.frames,
        source=settings.source,
        license=settings.license,
        landmarks=LANDMARKS[settings.landmarks],
        repository=repository,
    )
    return str(DatasetCard(text))


# -- the Hub -------------------------------------------------------------------------------------


def check_repository(repository: str, public: bool) -> None:
    """Makes the repository before any work is done, and sees to it that it is not public by chance.

    Raises:
        PreparationError: a name that is none, no right to write there, or a public repository.
    """
    try:
        validate_repo_id(repository)
        _owner, _name = repository.split("/")
    except ValueError:
        raise PreparationError(
            f"{repository!r} is no repository of the Hub: give owner/name."
        ) from None
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
        api.auth_check(repository, repo_type="dataset", write=True)
        is_private = api.dataset_info(repository).private
    except Exception as error:
        raise _not_pushed(repository, error) from error
    if not public and not is_private:
        raise PreparationError(
            f"{repository} is public: give --public if these faces may be seen by everybody, or "
            "another repository."
        )


def push(output: Path, repository: str) -> None:
    """Uploads shards and card; what is on the Hub already is not sent again.

    Raises:
        PreparationError: it did not work; nothing is lost.
    """
    try:
        HfApi().upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=output,
            allow_patterns=["README.md", SHARDS],
            delete_patterns=[SHARDS],  # of an earlier set; those of this one stay
            commit_message="Upload clips",
        )
    except Exception as error:
        raise _not_pushed(repository, error) from error
    print(f"pushed to {repository}")


def _not_pushed(repository: str, error: Exception) -> PreparationError:
    """The Hub's client raises its own errors, its HTTP library's and the system's."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) in (401, 403, 404):
        advice = "give a token that may write there, by `hf auth login` or HF_TOKEN"
    else:
        advice = "try again when the Hub can be reached"
    return PreparationError(
        f"{repository} cannot be pushed to ({_sentence(error).rstrip('.')}): {advice}; the same "
        "command goes on."
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}."
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


if __name__ == "__main__":
    main()
