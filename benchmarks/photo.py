"""Where the seconds go from one photo to all results of both models, in one process.

python benchmarks/photo.py [PHOTO]
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASTRONAUT = Path(__file__).parent.parent / "cest" / "assets" / "astronaut.jpg"


def main() -> None:
    photo = sys.argv[1] if len(sys.argv) > 1 else ASTRONAUT
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    with timed("import"):
        from cest import Reconstructor
        from cest.detection import EMBEDDED, FaceDetector
        from cest.photo import read_photo
        from cest.released import RELEASED, released_checkpoint
    with timed("load detector and both models"):
        detector = FaceDetector(EMBEDDED)
        models = [
            Reconstructor.from_pretrained(released_checkpoint(name), detector) for name in RELEASED
        ]
    for attempt in ("first photo", "second photo"):
        with timed(f"{attempt}: read and detect"):
            pixels = read_photo(photo)
            faces = detector.detect(pixels)
        for model in models:
            with timed(f"{attempt}: estimate, twice a model, and the photo's detail"):
                (face,) = model.reconstruct(pixels, faces=faces)
            with timed(f"{attempt}: overlay"):
                face.overlay()
            with timed(f"{attempt}: strip"):
                face.strip()
            with tempfile.TemporaryDirectory() as folder, timed(f"{attempt}: save everything"):
                face.save(folder)
    print("| step | seconds |\n|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
