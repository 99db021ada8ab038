"""Cumulative error distributions (CED, paper Fig. 9: the share of images below an error), and bars.

Pictures need matplotlib; their format goes by the file's ending.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from cest.checkpoint import write_atomically
from cest.evaluation.groups import group_title

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


def read_curves(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What `write_curves` wrote: thresholds (201,), and name -> percentages (201,).

    Raises:
        ValueError: the file is no such table.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            heading, *lines = csv.reader(file)
        values = np.array(lines, float)
        if heading[0] != "error" or values.shape[1] != len(heading) or len(heading) < 2:
            raise ValueError("its heading is not error, METHOD, …")
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no curve that `cest evaluate` wrote ({error}).") from error
    return values[:, 0], dict(zip(heading[1:], values[:, 1:].T))


def plot_curves(path: Path, curves: Mapping[str, np.ndarray], limit: float, label: str) -> None:
    """The picture of Fig. 9. curves: name -> errors (N,); label: of the horizontal axis.

    Raises ImportError, with what to install, where matplotlib is missing.
    """
    drawn = {}
    for name, errors in curves.items():
        finite = np.asarray(errors)[np.isfinite(errors)]
        mean = f" (mean {finite.mean():.2f})" if finite.size else ""
        drawn[name + mean] = cumulative_errors(errors, limit)
    _draw_curves(path, drawn, label)


def plot_curve_files(path: Path, files: Sequence[Path], label: str = "error") -> None:
    """Fig. 9 from the ced-FIGURE.csv of several runs.

    A method that is in several of them goes by its file's folder, too, and by a number where that
    does not tell it apart.

    Raises:
        ValueError: a file is no such table.
        ImportError: matplotlib is missing.
    """
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for file in files:
        thresholds, columns = read_curves(file)
        folder = Path(file).resolve().parent.name
        for name, share in columns.items():
            numbered = (f"{name} ({folder} {number})" for number in itertools.count(2))
            names = itertools.chain((name, f"{name} ({folder})"), numbered)
            curves[next(n for n in names if n not in curves)] = thresholds, share
    _draw_curves(path, curves, label)


def plot_groups(path: Path, groups: Mapping[str, Mapping[str, dict]], label: str) -> None:
    """Bars of means by method and group: method -> group -> {"mean": …, "count": …}."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    width = 0.8 / len(groups)
    for i, (method, values) in enumerate(groups.items()):
        places = np.arange(len(values)) + (i - (len(groups) - 1) / 2) * width
        axes.bar(places, [v.get("mean", 0) for v in values.values()], width, label=method)
    counts = {group: values["count"] for group, values in next(iter(groups.values())).items()}
    ticks = [f"{group_title(group)}\n{count}" for group, count in counts.items()]
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_ylabel(label)
    axes.legend(fontsize=8)
    _save(plt, figure, path)


def pyplot() -> ModuleType:
    """matplotlib.pyplot, drawing to files.

    Raises ImportError with one sentence that says what to install.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'cest[eval]'.") from error
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    return plt


def _draw_curves(
    path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str
) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    for name, (thresholds, share) in curves.items():
        axes.plot(thresholds, share, label=name)
    limit = max(thresholds[-1] for thresholds, _ in curves.values())
    axes.set(xlabel=label, ylabel="images, %", xlim=(0, limit), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    _save(plt, figure, path)


def _save(plt: ModuleType, figure, path: Path) -> None:
    write_atomically(
        Path(path), lambda temporary: figure.savefig(temporary, format=Path(path).suffix[1:])
    )
    plt.close(figure)
