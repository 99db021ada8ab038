"""What a checkpoint's config.json says."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

CONDITIONINGS = ("cest", "iest")
REFLECTANCES = ("map", "linear")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class ModelConfig:
    """What the frozen dataclasses that a config.json is read into have in common.

    Attributes:
        architecture: constant of the class; tells our config.json from anybody else's.
    """

    architecture: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, source: str) -> Self:
        """Reads config.json's content strictly.

        Raises:
            CheckpointError: another architecture, an unknown field or an impossible value.
        """
        if not isinstance(values, dict) or values.get("architecture") != cls.architecture:
            raise CheckpointError(
                f"{source} is the config of another architecture (it lacks "
                f'"architecture": "{cls.architecture}"): give a checkpoint of that kind.'
            )
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - names):
            raise CheckpointError(
                f"{source} has fields this version of cest does not know: {', '.join(unknown)}; "
                "update cest or give another checkpoint."
            )
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        for name, value in values.items():
            allowed = (int, float) if kinds[name] is float else kinds[name]
            if isinstance(value, bool) or not isinstance(value, allowed):
                raise CheckpointError(
                    f"{source} cannot be used: {name} is {value!r}, of the wrong type."
                )
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{source} cannot be used: {error}") from error


@dataclass(frozen=True)
class FaceEstimatorConfig(ModelConfig):
    """Configuration of a FaceEstimator.

    Attributes:
        conditioning: "cest", each factor given what was estimated before (eq. 4), or "iest",
            each factor from the image alone.
        reflectance: "map", any UV map (Table 2), or "linear", a few coefficients of a learnt
            basis: the baselines in the style of MoFA and FML.
        image_size: side in pixels of the input, of the texture maps and of the renderings in
            training; a multiple of 64. The paper's is 256.
        width: multiplies the networks' channels; the paper's is 1.0.
        face_model: "open", or the name of a face model that the user has to supply.
        face_model_level: level of detail the estimator unwraps and is trained with.
        face_model_hash: content hash of the face model the weights belong to; filled in when
            the estimator is built.
        architecture: constant; tells our config.json from anybody else's.
    """

    conditioning: str = "cest"
    reflectance: str = "map"
    image_size: int = 256
    width: float = 1.0
    face_model: str = "open"
    face_model_level: int = 0
    face_model_hash: str | None = None
    architecture: str = "cest-face-estimator"

    def __post_init__(self) -> None:
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(
                f"conditioning is {self.conditioning!r}; it must be one of {CONDITIONINGS}."
            )
        if self.reflectance not in REFLECTANCES:
            raise ValueError(
                f"reflectance is {self.reflectance!r}; it must be one of {REFLECTANCES}."
            )
        if self.image_size % 64 or self.image_size < 64:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of 64.")
        if self.face_model_level not in (0, 1, 2):
            raise ValueError(f"face_model_level is {self.face_model_level}; it must be 0, 1 or 2.")
        if not 0 < self.width <= 4:
            raise ValueError(f"width is {self.width}; it must be above 0 and at most 4.")
