"""What a training run's YAML file says."""

import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from cest.configuration import FaceEstimatorConfig
from cest.data import Recipe
from cest.objective import ObjectiveConfig


@dataclass(frozen=True)
class Settings:
    """One training run.

    Attributes:
        output: folder for checkpoints, pictures, metrics and the finished model.
        clips, stills, validation: Parquet files, globs or Hub ids; empty for none.
        model, recipe, objective: see their classes.
        seed: of initial weights, batches, augmentation and partners.
        steps: batches in all.
        learning_rate: Adam's peak; a short linear rise, then a cosine to zero.
        warmup: steps of the rise.
        gradient_norm: clipping.
        workers: processes that read and augment; 0 reads in the training process.
        log_every, picture_every, evaluate_every, save_every: steps.
        evaluation_frames: of the validation set, for the look during training.
        keep: checkpoints kept.
    """

    output: str
    clips: str = ""
    stills: str = ""
    validation: str = ""
    model: FaceEstimatorConfig = field(default_factory=FaceEstimatorConfig)
    recipe: Recipe = field(default_factory=Recipe)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    seed: int = 0
    steps: int = 50_000
    learning_rate: float = 1e-3
    warmup: int = 100
    gradient_norm: float = 5.0
    workers: int = 2
    log_every: int = 20
    picture_every: int = 500
    evaluate_every: int = 1000
    evaluation_frames: int = 256
    save_every: int = 500
    keep: int = 2

    @classmethod
    def load(cls, path: str, overrides: list[str]) -> "Settings":
        """Reads a YAML file and ``key.subkey=value`` overrides, strictly.

        Raises:
            ValueError: unreadable file, unknown key or impossible value, named.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"{path} cannot be read as YAML: {error}") from error
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"{override!r} is no override: write key=value.")
            *parents, last = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise ValueError(f"{override!r}: {parent} has no keys of its own.")
            target[last] = yaml.safe_load(value)
        return _build(cls, values, path)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")

    def record(self, output: Path) -> None:
        """Writes settings.json on a run's first start; a later start must not contradict it.

        Raises:
            ValueError: the run in ``output`` was started with other settings, named.
        """
        path = output / "settings.json"
        now = asdict(self)
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            names = [n for n in now if n not in CHANGEABLE and now[n] != before.get(n)]
            if names:
                raise ValueError(
                    f"{output} is a run with another {', '.join(names)}: give those of its "
                    "settings.json, or another output."
                )
        path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


POSITIVE = (
    *("steps", "learning_rate", "gradient_norm", "log_every", "picture_every"),
    *("evaluate_every", "evaluation_frames", "save_every", "keep"),
)
# What a run may be resumed with: how long, where it reads from now, and what it leaves behind.
CHANGEABLE = frozenset(
    (
        *("output", "clips", "stills", "validation", "steps", "workers", "log_every"),
        *("picture_every", "evaluate_every", "evaluation_frames", "save_every", "keep"),
    )
)


def _build(kind: type, values: Any, where: str) -> Any:
    """A dataclass from nested dictionaries; unknown keys are errors."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected key: value pairs, got {values!r}.")
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(
            f"{where}: unknown key(s) {', '.join(unknown)}; there are {', '.join(known)}."
        )
    arguments = {
        name: _build(known[name].type, value, f"{where}: {name}")
        if is_dataclass(known[name].type)
        else _converted(value, known[name].type, f"{where}: {name}")
        for name, value in values.items()
    }
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _converted(value: Any, kind: Any, where: str) -> Any:
    """YAML reads 1e-3 and 1e4 as text; a field that is a number gets a number."""
    if kind not in (int, float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is {value!r}, not a number.") from None
    if kind is int and number != int(number):
        raise ValueError(f"{where} is {value!r}, not a whole number.")
    return kind(number)
