"""Parts of pictures with a transparency, and laying them over each other."""

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

FAINTEST = 0.08  # cover below this is none: a mask should not end where nothing can be seen


@dataclass(frozen=True)
class Layer:
    """Pixels to lay over a picture.

    Attributes:
        pixels: (P,) their flat indices.
        colour: (P, 3) float32 sRGB.
        cover: (P,) float32 in [0, 1]; None where nothing shines through.
    """

    pixels: Array
    colour: Array
    cover: Array | None = None

    @classmethod
    def of(cls, pixels: Array, colour: Array, cover: Array) -> "Layer":
        """Those of the pixels that can be seen."""
        seen = np.flatnonzero(cover >= FAINTEST)
        return cls(pixels[seen], colour[seen], cover[seen])

    def lay_over(self, picture: Array, seen: Array) -> None:
        """Blends into ``picture`` (S, S, 3) and hides ``seen`` (S, S) bool, in place."""
        flat = picture.reshape(-1, 3)
        if self.cover is None:
            flat[self.pixels] = self.colour
        else:
            under = flat[self.pixels]
            flat[self.pixels] = under + self.cover[:, None] * (self.colour - under)
        seen.reshape(-1)[self.pixels] = False
