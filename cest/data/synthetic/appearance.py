"""What synthetic clips may look like."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AppearanceRanges:
    """How varied synthetic faces are, and how often they break the model's assumptions.

    Attributes:
        skin_lightness: CIE L* of the skin's ground, drawn evenly between these.
        identity: standard deviation of the identity's coefficients.
        expression: strength of the strongest expressions, 1 = as the face model's statistics.
        yaw: degrees to either side.
        self_shadow: share of clips in which the head shadows itself, which the model ignores.
        highlights: share of clips with wet eyes and lips and a shining skin; likewise.
        glasses, medical_mask, hand: shares of clips with these.
        hair: share of clips with hair (some of these are bald all the same).
        padded: share of clips whose photo ends inside the crop.
        camera: share of clips that are seen through a camera, with its colours, blur, noise and
            compression; the others are what is before it, as PNG.
    """

    skin_lightness: tuple[float, float] = (24.0, 80.0)
    identity: float = 0.8
    expression: float = 0.9
    yaw: float = 90.0
    self_shadow: float = 0.7
    highlights: float = 0.7
    glasses: float = 0.15
    medical_mask: float = 0.04
    hand: float = 0.06
    hair: float = 1.0
    padded: float = 0.15
    camera: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.skin_lightness
        if not 15 <= low <= high <= 85:
            raise ValueError(
                f"skin_lightness {self.skin_lightness} is no range of CIE L* between 15 and 85."
            )
        if not 0 <= self.yaw <= 90:
            raise ValueError(f"yaw {self.yaw} is not between 0 and 90 degrees.")
        if self.identity < 0 or self.expression < 0:
            raise ValueError("identity and expression cannot be negative.")
        for name in (
            "self_shadow", "highlights", "glasses", "medical_mask", "hand", "hair", "padded",
            "camera",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share between 0 and 1.")

    @classmethod
    def lambertian(cls, **changes) -> "AppearanceRanges":
        """Faces that keep the model's assumptions: no shadows, highlights, or camera.

        Inside the mask their frames are `cest.rendering.render` of the truth, rounded to 8 bits.
        """
        return cls(**{"self_shadow": 0.0, "highlights": 0.0, "camera": 0.0} | changes)

    @classmethod
    def unfamiliar(cls) -> "AppearanceRanges":
        """Beyond the defaults, which training renders: to see how methods carry over."""
        return cls(
            identity=1.2,
            expression=1.3,
            self_shadow=1.0,
            highlights=1.0,
            glasses=0.4,
            medical_mask=0.1,
            hand=0.15,
            padded=0.3,
        )
