"""The photometric error of Table 3, on any folder of photos, such as CelebA's `img_celeba`.

The paper averages |I - Î| over RGB, 0-255, between the input and the overlay of 1,000 images of
CelebA; it does not say which. Here: the first N by name whose face the detector finds, over the
pixels that the rendered face covers, at the size that the estimator works in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cest.detection import DetectedFace
from cest.evaluation.measurements import Measurements
from cest.photo import PHOTO_SUFFIXES, PhotoError, read_photo
from cest.reconstruction import Reconstruction, Reconstructor


@dataclass(frozen=True)
class PhotoMethod:
    """An estimator on whole photos, with so many steps of a test-time fit."""

    reconstructor: Reconstructor
    refine: int = 0

    def __call__(self, photo: np.ndarray, faces: list[DetectedFace]) -> Reconstruction:
        """(H, W, 3) uint8 and its faces -> the largest's reconstruction."""
        (result,) = self.reconstructor.reconstruct(photo, faces=faces)
        return self.reconstructor.refine(result, self.refine) if self.refine else result


def photos_in(folder: Path) -> list[Path]:
    """Pictures of a folder and of those in it, by name.

    Raises:
        ValueError: there is none.
    """
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} has no pictures in it.")
    return found


def evaluate_photos(
    methods: Mapping[str, PhotoMethod],
    photos: Sequence[Path],
    max_photos: int | None = None,
    progress: bool = False,
) -> tuple[Measurements, list[str]]:
    """Photometric errors of the largest face of each photo.

    Args:
        methods: by name; they share the first one's detector.
        photos: files.
        max_photos: stop after so many faces.
        progress: whether to draw a bar.

    Returns:
        "photometric" for each photo in which a face was found, and one sentence for each of the
        others.

    Raises:
        ValueError: no photo has a face.
    """
    results, failures = Measurements(), []
    detector = next(iter(methods.values())).reconstructor.detector
    bar = tqdm(total=max_photos or len(photos), unit="photo", disable=not progress)
    for path in photos:
        if max_photos is not None and len(results.frames) >= max_photos:
            break
        try:
            photo = read_photo(path)
            faces = detector.detect(photo)
            if not faces:
                raise PhotoError(f"{path.name}: no face was found.")
            errors = {name: method(photo, faces) for name, method in methods.items()}
        except PhotoError as error:
            failures.append(str(error))
            continue
        results.read(path.name, {"bytes": path.read_bytes(), "path": None})
        for name, result in errors.items():
            results.add(name, "photometric", [result.photometric_error])
        bar.update()
    bar.close()
    if not results.frames:
        raise ValueError(f"None of {len(photos)} photos has a face that the detector finds.")
    return results, failures
