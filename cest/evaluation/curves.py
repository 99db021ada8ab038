"""Cumulative error distributions (CED, paper Fig. 9): the share of images below an error."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cest.checkpoint import write_atomically
from cest.evaluation.plotting import pyplot

POINTS = 201


def cumulative_errors(errors: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The curve of one method.

    Args:
        errors: (N,) one an image; NaN or infinite where a method failed, which counts as above
            every threshold.
        limit: where the curve ends.

    Returns:
        Thresholds (201,) from 0 to the limit, and the % of images whose error is less (201,).
    """
    errors = np.asarray(errors, float)
    if errors.size == 0:
        raise ValueError("There is no error to draw a curve of: no image was evaluated.")
    thresholds = np.linspace(0, limit, POINTS)
    counted = np.sort(errors[np.isfinite(errors)])
    return thresholds, 100 * np.searchsorted(counted, thresholds, side="left") / errors.size


def area_under_curve(errors: np.ndarray, limit: float) -> float:
    """Of the curve up to the limit, %: the exact integral, 100 if every error is 0."""
    errors = np.asarray(errors, float)
    inside = np.where(np.isfinite(errors), np.clip(1 - errors / limit, 0, 1), 0)
    return float(100 * inside.mean())


def write_curves(path: Path, curves: Mapping[str, np.ndarray], limit: float) -> None:
    """CSV: a column of thresholds and one of percentages a method. curves: name -> errors (N,)."""
    lines = {name: cumulative_errors(errors, limit)[1] for name, errors in curves.items()}
    thresholds = np.linspace(0, limit, POINTS)

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["error", *lines])
            for row, threshold in enumerate(thresholds):
                shares = [f"{share[row]:.3f}" for share in lines.values()]
                table.writerow([f"{threshold:.6g}", *shares])

    write_atomically(Path(path), write)


def plot_curves(
    path: Path, curves: Mapping[str, np.ndarray], limit: float, label: str, title: str = ""
) -> None:
    """The picture of Fig. 9, format by the file's ending. curves: name -> errors (N,).

    Raises ImportError, with what to install, where matplotlib is missing.
    """
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for name, errors in curves.items():
        thresholds, share = cumulative_errors(errors, limit)
        mean = np.mean(np.asarray(errors)[np.isfinite(errors)]) if np.isfinite(errors).any() else 0
        axes.plot(thresholds, share, label=f"{name} (mean {mean:.2f})")
    axes.set(xlabel=label, ylabel="images, %", title=title, xlim=(0, limit), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    write_atomically(
        Path(path), lambda temporary: figure.savefig(temporary, format=Path(path).suffix[1:])
    )
    plt.close(figure)
