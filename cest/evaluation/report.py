"""A run's results as files: report.json, report.md, curves and plots; and on model cards."""

import datetime
import hashlib
import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    eval_result_entries_to_yaml,
)

from cest import __version__
from cest.checkpoint import write_atomically
from cest.evaluation.groups import group_title
from cest.evaluation.measurements import FIGURES, Measurements
from cest.evaluation.plots import area_under_curve, plot_curves, plot_groups, write_curves

CURVE_LIMITS = {
    "nme68": 10.0,
    "photometric": 40.0,
    "dense": 10.0,
    "dense_scaled": 10.0,
    "vertex": 15.0,
    "albedo": 60.0,
}
"""Figures that a cumulative curve is drawn of, and where it ends."""
GROUPED = {
    "skin tone": ("photometric", "albedo_relative", "albedo_bias"),
    "yaw": ("nme68", "vertex", "photometric", "albedo"),
}
"""Figures that are shown by group, where a run knows the groups. The albedo's error grows with the
albedo: between skin tones its share of that is compared."""
PAPER = {
    "dense NME, AFLW2000-3D, %": {"CEST": 3.37},
    "dense NME, MICC, %": {"CEST": 3.14},
    "photometric, 1,000 images of CelebA, /255": {
        "CEST": 10.74, "IEST": 13.76, "FML": 20.65, "Garrido16": 21.95,
    },
}  # fmt: skip
"""What the paper reports (§4.4, Table 3): other data, face model and sizes; for orientation."""
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


@dataclass(frozen=True)
class Report:
    """What was measured, on what and how.

    Attributes:
        measurements: the figures.
        protocol: the choices made, by name.
        dataset: name and sha256 of what was read, and the number of frames.
        methods: name -> what it is, such as the sha256 of a checkpoint's weights.
        extra: further results of a protocol, such as yaw bins.
    """

    measurements: Measurements
    protocol: Mapping[str, object]
    dataset: Mapping[str, object]
    methods: Mapping[str, Mapping[str, object]]
    extra: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values for JSON; NaN is left out."""
        measured = self.measurements
        groups = {
            grouping: {
                figure: found
                for figure in figures
                if (found := measured.by_group(grouping, figure))
            }
            for grouping, figures in GROUPED.items()
        }
        curves = {
            figure: {
                name: area_under_curve(np.array(values[figure]), limit)
                for name, values in measured.values.items()
                if figure in values
            }
            for figure, limit in CURVE_LIMITS.items()
        }
        return {
            "protocol": dict(self.protocol),
            "dataset": dict(self.dataset),
            "code": {"version": __version__, **commit()},
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "methods": {name: dict(about) for name, about in self.methods.items()},
            "figures": measured.summary(),
            "without_answer": _without_answer(measured),
            "by_group": {grouping: found for grouping, found in groups.items() if found},
            "area_under_ced": {figure: areas for figure, areas in curves.items() if areas},
            "paper": PAPER,
            **self.extra,
        }

    def markdown(self) -> str:
        """Tables of the means: figures, then by group; and what they are of."""
        report = self.to_dict()
        parts = [
            f"{self.dataset['frames']:,} frames of {self.dataset['name']} (sha256 "
            f"{str(self.dataset['sha256'])[:12]}…).",
            figures_table(report),
        ]
        if silent := report["without_answer"]:
            parts.append(f"Without an answer, and in no mean: {'; '.join(silent)}.")
        if failures := self.extra.get("failures"):
            parts.append(f"Left out, for the reasons in report.json: {len(failures)}.")
        if bins := self.extra.get("by_yaw"):
            means = [[name, _number(m.get("mean", math.nan), "nme68")] for name, m in bins.items()]
            heading = ["", f"{FIGURES['nme68'].label}: mean of the yaw bins"]
            parts.append(_table(heading, means))
        for grouping, table in group_tables(report).items():
            parts.append(f"By {grouping} (frames):\n\n{table}")
        choices = "\n".join(f"- {name}: {value}" for name, value in self.protocol.items())
        return "\n\n".join([*parts, choices]) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """report.json, report.md, ced-FIGURE.csv; and .png where matplotlib is installed.

        Raises ImportError, with what to install, after the rest is written, where it is not.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        write_text(folder / "report.json", text)
        write_text(folder / "report.md", self.markdown())
        written = [folder / "report.json", folder / "report.md"]
        curves = {}
        for figure, limit in CURVE_LIMITS.items():
            values = self.measurements.values
            found = {n: np.array(f[figure]) for n, f in values.items() if len(f.get(figure, ()))}
            if found:
                curves[figure] = found
                write_curves(folder / f"ced-{figure}.csv", found, limit)
                written.append(folder / f"ced-{figure}.csv")
        for figure, found in curves.items():
            path = folder / f"ced-{figure}.png"
            plot_curves(path, found, CURVE_LIMITS[figure], FIGURES[figure].label)
            written.append(path)
        for figure in GROUPED["skin tone"]:
            if groups := self.measurements.by_group("skin tone", figure):
                path = folder / f"tone-{figure}.png"
                plot_groups(path, groups, FIGURES[figure].label)
                written.append(path)
        return written


def figures_table(report: Mapping) -> str:
    """Means of `Report.to_dict()`, a row a figure and a column a method: Markdown."""
    methods = report["figures"]
    rows = [
        [_heading(figure), *(_mean(found.get(figure), figure) for found in methods.values())]
        for figure in FIGURES
        if any(figure in found for found in methods.values())
    ]
    return _table(["", *methods], rows)


def group_tables(report: Mapping) -> dict[str, str]:
    """Grouping -> means of `Report.to_dict()` by group, and worst over best: Markdown."""
    tables = {}
    for grouping, figures in report["by_group"].items():
        found = [
            (figure, method, groups)
            for figure, methods in figures.items()
            for method, groups in methods.items()
        ]
        # Frames without an answer may differ between methods.
        counts = {name: max(groups[name]["count"] for *_, groups in found) for name in found[0][2]}
        rows = [
            [
                _heading(figure),
                method,
                *(_mean(summary, figure) for summary in groups.values()),
                _worst_over_best(groups, figure),
            ]
            for figure, method, groups in found
        ]
        titles = [f"{group_title(name)} ({count})" for name, count in counts.items()]
        tables[grouping] = _table(["", "", *titles, "worst / best"], rows)
    return tables


def card_of(folder: Path) -> Path:
    """A checkpoint's README.md.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        raise ValueError(f"{folder} has no README.md to put results on.")
    return path


def attach(folder: Path, report: Mapping, method: str, dataset_id: str) -> list[Path]:
    """Puts a report's figures on a checkpoint's card and into its `.eval_results`.

    Results of other protocols and data sets stay; earlier ones of the same are replaced.

    Args:
        folder: a checkpoint with a README.md.
        report: `Report.to_dict()`, or what report.json holds.
        method: whose figures.
        dataset_id: the data set's on the Hub ("owner/name"), which both forms ask for.

    Returns:
        The files written: `.eval_results/PROTOCOL-NAME.yaml`, the Hub's form, and README.md, whose
        "model-index" is the older one; there, PROTOCOL-NAME is the data set's configuration.

    Raises:
        ValueError: the report does not have the method, or the folder has no card.
    """
    if method not in report["figures"]:
        known = ", ".join(report["figures"])
        raise ValueError(f"The report has no method {method!r}; it has {known}.")
    card_path = card_of(folder)
    figures = {
        name: values["mean"]
        for name, values in report["figures"][method].items()
        if values.get("count") and FIGURES[name].better
    }
    protocol, code = report["protocol"]["name"], report["code"]
    modified = ", modified" if code.get("modified") else ""
    notes = (
        f"sha256 {report['dataset']['sha256']}, {report['dataset']['frames']} frames; protocol "
        f"{protocol}; cest {code['version']}, commit {code.get('commit')}{modified}"
    )
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id, task_id=name, value=value, date=report["date"], notes=notes
        )
        for name, value in figures.items()
    ]
    run = re.sub(r"[^a-z0-9]+", "-", f"{protocol}-{report['dataset']['name']}".lower()).strip("-")
    results = Path(folder) / ".eval_results" / f"{run}.yaml"
    results.parent.mkdir(exist_ok=True)
    dumped = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    write_text(results, dumped)
    card = ModelCard.load(card_path)
    card.data.model_name = card.data.model_name or Path(folder).name
    others = [
        result
        for result in card.data.eval_results or ()
        if (result.dataset_type, result.dataset_config) != (dataset_id, run)
    ]
    card.data.eval_results = others + [
        EvalResult(
            task_type="image-to-3d",
            dataset_type=dataset_id,
            dataset_name=str(report["dataset"]["name"]),
            dataset_config=run,
            metric_type=name,
            metric_name=FIGURES[name].label,
            metric_value=value,
        )
        for name, value in figures.items()
    ]
    write_text(card_path, str(card))
    return [results, card_path]


def commit() -> dict[str, object]:
    """The checkout's commit and whether it was changed since; nothing outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return {}
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {}


def file_hash(path: Path) -> str:
    """sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _without_answer(measured: Measurements) -> list[str]:
    return [
        f"{method}, {FIGURES[figure].label}: {missing} of {len(values)}"
        for method, figures in measured.values.items()
        for figure, values in figures.items()
        if (missing := len(values) - sum(map(math.isfinite, values)))
    ]


def _heading(figure: str) -> str:
    return f"{FIGURES[figure].label}{ARROWS[FIGURES[figure].better]}"


def _mean(summary: Mapping | None, figure: str) -> str:
    return _number((summary or {}).get("mean", math.nan), figure)


def _worst_over_best(groups: Mapping[str, Mapping], figure: str) -> str:
    means = [summary["mean"] for summary in groups.values() if summary["count"]]
    comparable = FIGURES[figure].better == "lower" and means and min(means) > 0
    return f"{max(means) / min(means):.2f}" if comparable else ""


def _number(value: float, figure: str) -> str:
    return "–" if math.isnan(value) else f"{value:z.{FIGURES[figure].digits}f}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
