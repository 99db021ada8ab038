"""Meshes for the NoW challenge, in the layout that its evaluation reads.

``OUT/SUBJECT/CHALLENGE/NAME.obj`` (metres) and ``NAME.npy``: seven landmarks (7, 3) in the mesh's
own coordinates; beside them `submission.json`, which says by which method, so that another one's
meshes are never mixed in. NoW's scans are neutral, so the meshes are: identity without expression.
Checked against the code of the official evaluation (soubhiksanyal/now_evaluation), not by running
it: the images and scans must be asked for.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import trimesh
from tqdm import tqdm

from cest.checkpoint import write_atomically
from cest.cropping import SquareCrop
from cest.evaluation.methods import PhotoMethod
from cest.evaluation.report import write_text
from cest.export import METRES_PER_UNIT
from cest.photo import read_photo
from cest.reconstruction import NoFaceError, Reconstruction

SEVEN_LANDMARKS = (36, 39, 42, 45, 33, 48, 54)
"""Of the 68: corners of the subject's right eye and left eye, nose bottom, corners of the mouth."""
PICTURES = "NoW_Dataset/final_release_version/iphone_pictures"
RECORD = "submission.json"
IMAGE_LISTS = ("imagepathsvalidation.txt", "imagepathstest.txt")


def read_image_list(dataset: Path, listed: Path | None = None) -> list[Path]:
    """Images as SUBJECT/CHALLENGE/NAME.jpg, of a list or of whichever list the data set has.

    Raises:
        ValueError: there is no list, or a line of it has no such form.
    """
    lists = [listed] if listed else [dataset / name for name in IMAGE_LISTS]
    found = next((path for path in lists if path.is_file()), None)
    if found is None:
        tried = ", ".join(map(str, lists))
        raise ValueError(f"There is no list of NoW's images at {tried}: give its file by --images.")
    images = []
    for line in found.read_text(encoding="utf-8").splitlines():
        if line.strip():
            parts = Path(line.strip()).parts[-3:]
            if len(parts) != 3:
                raise ValueError(f"{found}: {line!r} is not SUBJECT/CHALLENGE/NAME.")
            images.append(Path(*parts))
    if not images:
        raise ValueError(f"{found} names no image.")
    return images


def submit(
    method: PhotoMethod,
    dataset: Path,
    images: Sequence[Path],
    output: Path,
    progress: bool = False,
) -> list[str]:
    """Writes mesh and landmarks of every image; one that is there is kept.

    A face that the detector misses is looked for in the middle of the image, since a submission
    must not lack any.

    Returns:
        The images in which no face was found, now or in an earlier call that was stopped.

    Raises:
        ValueError: the folder holds another method's submission.
        OSError, PhotoError: an image that cannot be read.
    """
    by = {"weights": method.weights, "refine": method.refine}
    missed = _missed_before(output / RECORD, by)
    output.mkdir(parents=True, exist_ok=True)

    def keep_record() -> None:
        write_text(output / RECORD, json.dumps({"method": by, "missed": missed}, indent=1) + "\n")

    keep_record()
    for image in tqdm(images, unit="image", disable=not progress):
        target = output / image.with_suffix(".obj")
        if target.is_file() and target.with_suffix(".npy").is_file():
            continue
        photo = read_photo(_find(dataset, image))
        try:
            result = method(photo, method.reconstructor.detector.detect(photo))
        except NoFaceError:
            if image.as_posix() not in missed:  # as it is if a call was stopped right here
                missed.append(image.as_posix())
                keep_record()
            result = method.reconstructor.reconstruct(photo, crop=_middle(photo))[0]
        mesh, landmarks = neutral_mesh(result)
        target.parent.mkdir(parents=True, exist_ok=True)
        for path, write in _writers(target, mesh, landmarks):
            write_atomically(path, write)
    return missed


def neutral_mesh(result: Reconstruction) -> tuple[trimesh.Trimesh, np.ndarray]:
    """The face without expression, metres, and its seven landmarks (7, 3)."""
    model = result.face_model
    coefficients = result.parameters.shape_coefficients.clone()
    coefficients[:, model.n_identity :] = 0
    vertices = model.vertices(coefficients)[0].double().numpy() * METRES_PER_UNIT
    mesh = trimesh.Trimesh(vertices, model.triangles.numpy(), process=False)
    return mesh, vertices[model.landmarks.numpy()[list(SEVEN_LANDMARKS)]]


def _missed_before(record: Path, by: dict) -> list[str]:
    """What the record says, if it is this method's; nothing in a new folder."""
    if not record.is_file() and not any(record.parent.glob("*/*/*.obj")):
        return []
    try:
        found = json.loads(record.read_text("utf-8"))
        if found["method"] == by:
            return list(found["missed"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{record.parent} holds meshes that are, as far as its {RECORD} says, not of this "
        "checkpoint and number of steps: give another folder."
    )


def _writers(target: Path, mesh: trimesh.Trimesh, landmarks: np.ndarray) -> Iterator[tuple]:
    text = trimesh.exchange.obj.export_obj(mesh, include_normals=False, include_color=False)
    yield target, lambda path: path.write_text(text, encoding="utf-8")

    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.save(file, landmarks)

    yield target.with_suffix(".npy"), save


def _find(dataset: Path, image: Path) -> Path:
    inside = dataset / PICTURES / image
    return inside if inside.is_file() else dataset / image


def _middle(photo: np.ndarray) -> SquareCrop:
    height, width = photo.shape[:2]
    return SquareCrop(width / 2, height / 2, float(min(height, width)))
