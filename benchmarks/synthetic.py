"""Frames a second of synthetic clips, and their colours beside those of photographed faces.

python benchmarks/synthetic.py [CLIPS]

CLIPS: a clip set of photographs (Parquet file, glob, folder or Hub id) to compare with. Measured on
frames of 256 x 256 without truth columns; every thread runs one clip at a time. The colours are of
cheeks and nose, CIE Lab.
"""

import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch

from cest.data import load_clips, read_frame
from cest.data.synthetic import SyntheticClips

CLIPS, FRAMES = 100, 4
COMPARED = 300
CHEEKS = ([1, 2, 3, 4, 31, 36, 41], [15, 14, 13, 12, 35, 45, 46], list(range(27, 36)))
EYES, BROWS, LIPS = (range(36, 42), range(42, 48)), (range(17, 22), range(22, 27)), range(48, 60)


def main() -> None:
    try:
        photographs = load_clips(sys.argv[1]) if len(sys.argv) > 1 else None
    except ValueError as error:
        sys.exit(str(error))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    clips = SyntheticClips(10_000, seed=1, frames=FRAMES, truth=False)
    clips[0]  # compiles
    print("| threads | frames a second | CPU milliseconds a frame |\n|---|---|---|")
    for threads in (1, 2):
        wall, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(clips.__getitem__, range(CLIPS)):
                pass
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        number = CLIPS * FRAMES
        print(f"| {threads} | {number / wall:.0f} | {1000 * cpu / number:.1f} |")
    if photographs is None:
        return
    chosen = np.random.default_rng(0).permutation(len(photographs))[:COMPARED]
    columns = [
        colours(photographs[int(i)] for i in chosen),
        colours(SyntheticClips(COMPARED, seed=1, frames=1, truth=False)),
    ]
    print("\n| 10th, 50th, 90th percentile | photographs | synthetic |\n|---|---|---|")
    for name in columns[0]:
        cells = (" ".join(f"{v:.1f}" for v in column[name]) for column in columns)
        print(f"| {name} | {' | '.join(cells)} |")


def colours(rows: Iterable[dict]) -> dict[str, np.ndarray]:
    """Name of a quantity -> its percentiles (3,) over the first frames of the rows."""
    found = [values for row in rows if (values := frame_colours(*read_frame(row, 0)[:2]))]
    return {
        name: np.nanpercentile([values[name] for values in found], (10, 50, 90))
        for name in found[0]
    }


def frame_colours(image: np.ndarray, landmarks: np.ndarray) -> dict[str, float] | None:
    """Of one frame; None if it shows too little of cheeks and nose."""
    lab = cv2.cvtColor(np.float32(image) / 255, cv2.COLOR_RGB2LAB)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth, coarse, light = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (1, 4, 8))

    def inside(*areas) -> np.ndarray:
        mask = np.zeros(grey.shape, np.uint8)
        for area in areas:
            outline = np.round(landmarks[list(area)]).astype(np.int32)
            cv2.fillPoly(mask, [cv2.convexHull(outline)], 1)
        return mask > 0

    skin = inside(*CHEEKS)
    if skin.sum() < 300:
        return None
    brightness = np.median(lab[skin][:, 0])
    eyes, brows, lips = inside(*EYES), inside(*BROWS), inside(LIPS)

    def mean_lightness(mask: np.ndarray) -> float:
        return float(lab[mask][:, 0].mean()) if mask.any() else np.nan

    return {
        "lightness L*": float(lab[skin][:, 0].mean()),
        "a* (red)": float(lab[skin][:, 1].mean()),
        "b* (yellow)": float(lab[skin][:, 2].mean()),
        "deviation of L*": float(lab[skin][:, 0].std()),
        "of light, over 8 pixels, /255": float(light[skin].std()),
        "of features, 1 to 4 pixels, /255": float((smooth - coarse)[skin].std()),
        "of detail and noise, under 1 pixel, /255": float((grey - smooth)[skin].std()),
        "L* skin over eyes": brightness - mean_lightness(eyes),
        "L* skin over brows": brightness - mean_lightness(brows),
        "L* skin over lips": brightness - mean_lightness(lips),
    }


if __name__ == "__main__":
    main()
