"""What a training run's YAML file says."""

from dataclasses import dataclass, field, fields, is_dataclass
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
            target[last] = yaml.safe_load(value)
        return _build(cls, values, path)


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
        else _number(value, known[name].type)
        for name, value in values.items()
    }
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _number(value: Any, kind: Any) -> Any:
    """YAML reads 1e-3 as text; a field that is a float gets a float."""
    return float(value) if kind is float else value
