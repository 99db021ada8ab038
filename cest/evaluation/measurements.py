"""Figures of several methods on the same frames, what they are called, and which frames."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class Figure:
    """A figure of merit.

    Attributes:
        label: heading of its column.
        digits: after the point.
        better: "lower", "higher", or "" where neither is better by itself.
    """

    label: str
    digits: int = 2
    better: str = "lower"


FIGURES = {
    "nme68": Figure("NME-68, %"),
    "nme51": Figure("NME-51, %"),
    "photometric": Figure("photometric, /255"),
    "relit_photometric": Figure("photometric, albedo from under another light, /255"),
    "across_photometric": Figure("photometric, another frame's albedo, /255"),
    "shading_explained": Figure("photo explained by shading, R²", 3, "higher"),
    "reflectance_one_sided": Figure("albedo lit from one side, /255"),
    "reflectance_asymmetry": Figure("albedo asymmetry, /255", better=""),
    "texture_asymmetry": Figure("texture asymmetry, /255", better=""),
    "directional_light": Figure("light: deviation / mean", 3, ""),
    "relit_reflectance": Figure("albedo changed by relighting, /255", better=""),
    "relit_texture": Figure("texture changed by relighting, /255", better=""),
    "coefficients": Figure("mean α²", 3, ""),
    "pose": Figure("NME-68 of the true shape, %"),
    "vertex": Figure("per-vertex, %"),
    "vertex_scaled": Figure("per-vertex with scale, %"),
    "dense": Figure("dense NME, %"),
    "dense_scaled": Figure("dense NME with scale, %"),
    "albedo": Figure("albedo, /255"),
    "albedo_relative": Figure("albedo, % of its mean"),
    "albedo_bias": Figure("albedo too bright by, /255", 1, ""),
    "albedo_similarity": Figure("albedo detail, correlation", 3, "higher"),
    "light_angle": Figure("SH angle, °", 1),
    "direction_angle": Figure("light direction, °", 1),
    "cross_relight": Figure("cross-relight, /255"),
    "albedo_deviation": Figure("albedo over a clip, /255", better=""),
    "converged": Figure("ICP converged", 3, ""),
}


@dataclass
class Measurements:
    """Values by method and figure, one a frame (or a clip, where a figure is a clip's).

    Attributes:
        values: method -> figure -> values.
        frames: a name for each frame, in the order of the values.
        groups: grouping ("skin tone", "yaw") -> the group of each frame.
    """

    values: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    frames: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256, repr=False)

    def read(self, name: str, *content: Mapping | bytes | Path | Sequence | np.ndarray) -> None:
        """Notes that a frame was read: its picture and all that is known about it.

        content: encoded images ({"bytes": …, "path": …}, bytes or a file) and numbers.
        """
        self.frames.append(name)
        self._digest.update(f"{name};".encode())
        for part in content:
            if isinstance(part, Mapping):
                part = Path(part["path"]) if part["bytes"] is None else part["bytes"]
            if isinstance(part, Path):
                part = part.read_bytes()
            if not isinstance(part, bytes):
                part = np.asarray(part, "<f4").tobytes()
            self._digest.update(f"{len(part)};".encode())
            self._digest.update(part)

    @property
    def sha256(self) -> str:
        """Of the names and contents that were read, in order."""
        return self._digest.hexdigest()

    def add(self, method: str, figure: str, values: torch.Tensor | np.ndarray | list) -> None:
        """Appends values (n,), in the frames' order; NaN where there is none."""
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().flatten().tolist()
        self.values[method][figure].extend(float(value) for value in values)

    def mean(self, method: str, figure: str) -> float:
        """Over what was measured; NaN if nothing was."""
        return _summary(self.values.get(method, {}).get(figure, ())).get("mean", float("nan"))

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """method -> figure -> mean, median, 90th percentile and count."""
        return {
            method: {name: _summary(values) for name, values in figures.items()}
            for method, figures in self.values.items()
        }

    def by_group(self, grouping: str, figure: str) -> dict[str, dict[str, dict[str, float]]]:
        """method -> group -> mean, …, of a figure that every frame has; in the groups' order."""
        groups = np.array(self.groups.get(grouping, ()))
        result = {}
        for method, figures in self.values.items():
            values = np.asarray(figures.get(figure, ()), float)
            if len(values) == len(groups) > 0:
                result[method] = {
                    str(group): _summary(values[groups == group]) for group in np.unique(groups)
                }
        return result


def spread(items: Sequence, count: int | None) -> list:
    """`count` of the items, evenly spread, so that a short look sees every source; None: all."""
    if count is None or count >= len(items):
        return list(items)
    return [items[k * len(items) // count] for k in range(count)]


def _summary(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not values.size:
        return {"count": 0}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "percentile_90": float(np.percentile(values, 90)),
        "count": len(values),
    }
