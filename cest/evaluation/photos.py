"""What needs no truth, such as Table 3's photometric error, on any photos, such as CelebA's.

The paper averages |I - Î| over RGB, 0-255, between the input and the overlay of 1,000 images of
CelebA; it does not say which. Here: those whose face the detector finds, over the pixels that the
rendered face covers, at the size that the estimator works in. The light is settled on
each photo (`cest.light_fit`), as for users; the photo's fine detail is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from cest.evaluation.measurements import Measurements
from cest.evaluation.methods import PhotoMethod
from cest.evaluation.metrics import one_sidedness, shading_explained
from cest.photo import PHOTO_SUFFIXES, PhotoError, read_photo
from cest.reconstruction import Reconstruction
from cest.rendering import shade_surface


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
    progress: bool = False,
) -> tuple[Measurements, list[str]]:
    """Figures of the largest face of each photo.

    Args:
        methods: by name; they share the first one's detector.
        photos: files.
        progress: whether to draw a bar.

    Returns:
        "photometric", "shading_explained" and "reflectance_one_sided" for each photo in which a
        face was found, and one sentence for each of the others.

    Raises:
        ValueError: no photo has a face.
    """
    results, failures = Measurements(), []
    detector = next(iter(methods.values())).reconstructor.detector
    for path in tqdm(photos, unit="photo", disable=not progress):
        try:
            photo = read_photo(path)
            faces = detector.detect(photo)
            if not faces:
                raise PhotoError(f"{path.name}: no face was found.")
            found = {name: method(photo, faces) for name, method in methods.items()}
        except PhotoError as error:
            failures.append(str(error))
            continue
        results.read(path.name, path)
        for name, result in found.items():
            for figure, value in _figures(result).items():
                results.add(name, figure, [value])
    if not results.frames:
        raise ValueError(f"None of {len(photos)} photos has a face that the detector finds.")
    return results, failures


def _figures(result: Reconstruction) -> dict[str, float]:
    estimate = result.parameters
    _, shading = shade_surface(estimate.surface, None, estimate.illumination)
    shaded = shading_explained(result.image, shading, estimate.surface.coverage)
    one_sided = one_sidedness(estimate.reflectance_map, estimate.texture_visibility)
    return {
        "photometric": result.photometric_error,
        "shading_explained": float(shaded),
        "reflectance_one_sided": float(one_sided),
    }
