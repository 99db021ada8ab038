"""What a folder holds to make clips of: videos, folders of frames, stills; and reading them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cest.photo import PHOTO_SUFFIXES, PhotoError, read_photo

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
LAYOUTS = ("voxceleb", "annotated", "plain", "stills")
EVERY = {"video": 5, "frames": 1, "album": 1, "still": 1}
"""By kind, which frames are taken if nobody says: neighbours in a video are all but equal."""


@dataclass(frozen=True)
class Footage:
    """Something that clips, or one still, are made of.

    Attributes:
        name: its path relative to the folder.
        video_id: the recording that it is of; several may be of one.
        person: who is seen, if the layout says so.
        path: a file, or a folder of images.
        kind: "video"; "frames", a folder of a video's frames; "album", a folder of photos of one
            person; "still".
    """

    name: str
    video_id: str
    person: str | None
    path: Path
    kind: str

    @property
    def continuous(self) -> bool:
        """Whether a face that jumps between frames is another shot."""
        return self.kind in ("video", "frames")


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One image of a footage.

    Attributes:
        number: counted from 0, also over those that are not taken.
        path: of the file that it came from.
        image: (H, W, 3) uint8 sRGB; None if it cannot be read.
        problem: why not.
    """

    number: int
    path: Path
    image: np.ndarray | None
    problem: str = ""


# -- what there is -------------------------------------------------------------------------------

_VOXCELEB = re.compile(r"(?:.*/)?(?P<person>id\d{4,})/(?P<video>[^/]+)/(?P<utterance>[^/]+)")
_VIEW_OF_300W_LP = re.compile(r"(?P<photo>.+)_\d+\.\w+")


def find_footage(folder: Path, layout: str | None = None) -> tuple[str, list[Footage]]:
    """Looks through a folder, hidden files aside.

    Args:
        folder: the root.
        layout: one of LAYOUTS, or None to choose by what is there:
            "voxceleb": ``id00001/VIDEO/UTTERANCE.mp4`` or folders of frames in their place;
            "annotated": images with ``.pts`` or ``.mat`` beside them, each a still;
            "plain": each video by itself, each folder of images below ``folder`` an album of one
            person, images in ``folder`` itself stills;
            "stills": each image by itself, wherever it is.

    Returns:
        The layout and what was found, sorted by name.

    Raises:
        ValueError: nothing there.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with videos or images in it.")
    groups = list(_walk(folder))
    layout = layout or _layout_of(groups)
    found: list[Footage] = []
    for inside, names in groups:
        paths = [folder / inside / name for name in names]
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        images = [path for path in paths if path.suffix.lower() in PHOTO_SUFFIXES]
        if layout == "voxceleb":
            found += [_utterance(folder, video, "video") for video in videos]
            found += [_utterance(folder, folder / inside, "frames")] * bool(images)
        elif layout == "plain":
            found += [_single(folder, video, "video") for video in videos]
            if images and inside != Path():
                found.append(_single(folder, folder / inside, "album"))
            else:
                found += [_single(folder, image, "still") for image in images]
        else:
            found += [_single(folder, image, "still") for image in images]
    found = [footage for footage in found if footage is not None]
    if not found:
        raise ValueError(
            f"{folder} holds no videos or images that the layout {layout!r} knows of: give "
            f"another folder, or another --layout ({', '.join(LAYOUTS)})."
        )
    return layout, sorted(found, key=lambda footage: (footage.name, footage.kind))


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """(Path below the folder, names of the files in it), hidden ones and macOS's copies aside."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        names = [name for name in files if not name.startswith(".")]
        if names:
            yield Path(parent).relative_to(folder), names


def _layout_of(groups: list[tuple[Path, list[str]]]) -> str:
    for inside, names in groups:
        media = [n for n in names if Path(n).suffix.lower() in VIDEO_SUFFIXES | PHOTO_SUFFIXES]
        if not media:
            continue
        first = inside / media[0]
        utterance = first if first.suffix.lower() in VIDEO_SUFFIXES else inside
        if _VOXCELEB.fullmatch(utterance.as_posix()):
            return "voxceleb"
        stems = {Path(name).stem for name in names if Path(name).suffix in (".pts", ".mat")}
        if any(Path(name).stem in stems for name in media):
            return "annotated"
    return "plain"


def _utterance(folder: Path, path: Path, kind: str) -> Footage | None:
    """None where a stray file or folder is not in VoxCeleb's order."""
    name = path.relative_to(folder).as_posix()
    match = _VOXCELEB.fullmatch(name)
    if match is None:
        return None
    return Footage(name, f"{match['person']}/{match['video']}", match["person"], path, kind)


def _single(folder: Path, path: Path, kind: str) -> Footage:
    name = path.relative_to(folder).as_posix()
    # 300W-LP renders each photo from many sides: AFW_134212_1_0, AFW_134212_1_1, …
    view = _VIEW_OF_300W_LP.fullmatch(name) if (folder / "landmarks").is_dir() else None
    return Footage(name, view["photo"] if view and kind == "still" else name, None, path, kind)


# -- reading it ----------------------------------------------------------------------------------


def read_frames(footage: Footage, every: int | None = None) -> Iterator[SourceFrame]:
    """Every ``every``-th frame in order, one in memory at a time.

    Those that cannot be read come with ``problem`` instead of an image.
    """
    every = every or EVERY[footage.kind]
    if footage.kind == "video":
        yield from _video_frames(footage.path, every)
    elif footage.kind == "still":
        yield _photo_frame(0, footage.path)
    else:
        for number, path in list(enumerate(images_in(footage.path)))[::every]:
            yield _photo_frame(number, path)


def images_in(folder: Path) -> list[Path]:
    """A folder's images, 2.jpg before 10.jpg."""
    images = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in PHOTO_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted(
        images,
        # Text and numbers alternate, so that like is compared with like.
        key=lambda path: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", path.name)],
    )


def _photo_frame(number: int, path: Path) -> SourceFrame:
    try:
        return SourceFrame(number, path, read_photo(path))
    except (PhotoError, OSError) as error:
        return SourceFrame(number, path, None, str(error))


def _video_frames(path: Path, every: int) -> Iterator[SourceFrame]:
    video = cv2.VideoCapture(str(path))
    try:
        expected = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        number = 0
        while video.grab():
            if number % every == 0:
                decoded, image = video.retrieve()
                if decoded and image is not None:
                    yield SourceFrame(number, path, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
                else:
                    yield SourceFrame(number, path, None, "this frame cannot be decoded")
            number += 1
        if number == 0:
            yield SourceFrame(0, path, None, "it cannot be read as a video")
        # Containers' counts are estimates; far fewer frames mean a file that was cut short.
        elif number < 0.9 * expected:
            problem = f"it ends after {number} of {expected} frames: cut short or damaged"
            yield SourceFrame(number, path, None, problem)
    finally:
        video.release()
