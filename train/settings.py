"""What a training run's YAML file says."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from cest.checkpoint import write_atomically
from cest.configuration import FaceEstimatorConfig
from cest.data import Recipe
from cest.objective import ObjectiveConfig


@dataclass(frozen=True)
class Settings:
    """One training run.

    Attributes:
        output: folder for checkpoints, pictures, metrics and the finished model.
        clips, stills, validation: what `cest.data.load_clips` opens; empty for none.
        columns: what these sets call our columns, {ours: theirs}.
        streaming: read clips and stills on as needed, instead of copying them first.
        segmenter: f_seg, a folder or Hub id of a FaceSegmenter, whose masks replace those of the
            data; empty for the data's own, or for the landmarks' hull where it has none.
        initial: weights to begin with, a folder or Hub id, of the same ``model``; empty for random
            ones.
        model, recipe, objective: see their classes.
        truth_weight: of what is known of rendered frames (`cest.known_factors`) beside the
            objective; 0 for the paper's, which asks nothing but the pictures.
        seed: of initial weights, batches, augmentation and partners.
        steps: batches in all.
        learning_rate: Adam's peak; a short linear rise, then a cosine to zero.
        warmup: steps of the rise.
        gradient_norm: clipping.
        accumulation: parts that a batch is worked through in, for less memory. Batch
            normalisation sees a part at a time.
        ema: decay of the moving average of the weights that is evaluated, saved and pushed; 0
            for the weights themselves.
        compile: networks by torch.compile.
        workers: threads that read and augment.
        log_every, picture_every, evaluate_every, save_every: steps.
        evaluation_frames: of the validation set, for the look during training.
        keep: checkpoints kept.
        tracker: "tensorboard", "wandb", … (accelerate's), written beside metrics.jsonl; empty for
            none.
        push_to_hub: Hub id that the model is pushed to at every checkpoint; empty for none.
        private: whether that repository is made private.
    """

    output: str
    clips: str = ""
    stills: str = ""
    validation: str = ""
    columns: dict = field(default_factory=dict)
    streaming: bool = False
    segmenter: str = ""
    initial: str = ""
    model: FaceEstimatorConfig = field(default_factory=FaceEstimatorConfig)
    recipe: Recipe = field(default_factory=Recipe)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    truth_weight: float = 0.0
    seed: int = 0
    steps: int = 50_000
    learning_rate: float = 1e-3
    warmup: int = 100
    gradient_norm: float = 5.0
    accumulation: int = 1
    ema: float = 0.0
    compile: bool = False
    workers: int = 2
    log_every: int = 20
    picture_every: int = 500
    evaluate_every: int = 1000
    evaluation_frames: int = 256
    save_every: int = 500
    keep: int = 2
    tracker: str = "tensorboard"
    push_to_hub: str = ""
    private: bool = True

    @classmethod
    def load(cls, path: str, overrides: list[str]) -> "Settings":
        """Reads a YAML file and ``key.subkey=value`` overrides, strictly.

        A file may say ``base: other.yaml``, beside it: it then says what differs from that.

        Raises:
            ValueError: unreadable file, unknown key or impossible value, named.
        """
        values = _read(Path(path))
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
            try:
                target[last] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(f"{override!r} is no YAML value: {error}") from error
        return _build(cls, values, path)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 and below 1.")
        if self.truth_weight < 0:
            raise ValueError(f"truth_weight is {self.truth_weight}; it must be at least 0.")

    def record(self, output: Path) -> None:
        """See `record`."""
        record(output, asdict(self), CHANGEABLE)


def record(output: Path, now: dict, changeable: Collection[str]) -> None:
    """Writes settings.json on a run's first start; a later start must not contradict it.

    Raises:
        ValueError: the run in ``output`` was started with other settings, named.
    """
    path = output / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = [n for n in now if n not in changeable and now[n] != before.get(n)]
        if names:
            raise ValueError(
                f"{output} is a run with another {', '.join(names)}: give those of its "
                "settings.json, or another output."
            )
    text = json.dumps(now, indent=1) + "\n"
    write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))


POSITIVE = (
    *("steps", "learning_rate", "gradient_norm", "log_every", "picture_every"),
    *("evaluate_every", "evaluation_frames", "save_every", "keep", "accumulation"),
)
# What a run may be resumed with: how long, where it reads from now, and what it leaves behind.
CHANGEABLE = frozenset(
    (
        *("output", "clips", "stills", "validation", "steps", "workers", "log_every"),
        *("picture_every", "evaluate_every", "evaluation_frames", "save_every", "keep"),
        *("columns", "compile", "tracker", "push_to_hub", "private"),
        # What a run that left the numbers needs another of.
        *("learning_rate", "warmup", "gradient_norm"),
        # Strong at first, to part reflectance from light, then weaker, for the photographs' detail.
        "truth_weight",
    )
)


def _read(path: Path) -> dict:
    """A YAML file's values over those of its base."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, dict) or "base" not in values:
        return values
    return _merged(_read(path.parent / values.pop("base")), values)


def _merged(base: dict, values: dict) -> dict:
    both = base | values
    for name in base.keys() & values.keys():
        if isinstance(base[name], dict) and isinstance(values[name], dict):
            both[name] = _merged(base[name], values[name])
    return both


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
    """YAML reads 1e-3 and 1e4 as text, and nothing as None; a field gets what it is made for."""
    if kind is str and value is None:
        return ""
    if kind in (str, bool, dict):
        if not isinstance(value, kind):
            names = {str: "text", bool: "true or false", dict: "key: value pairs"}
            raise ValueError(f"{where} is {value!r}, not {names[kind]}.")
        return value
    if kind not in (int, float):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is {value!r}, not a number.") from None
    if kind is int and not number.is_integer():
        raise ValueError(f"{where} is {value!r}, not a whole number.")
    return kind(number)
