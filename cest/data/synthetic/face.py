"""The face itself: the model's renderer, and on request what the model leaves out."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cest.data.synthetic.layers import Layer
from cest.data.synthetic.light import Light, highlights
from cest.data.synthetic.normals import unit
from cest.geometry import shade
from cest.rendering import wrap

Array = np.ndarray

WET_EXPONENT = 160.0  # of eyes and lips


@dataclass(frozen=True)
class Shine:
    """Highlights of a skin: strength of its oil, and the exponent that says how small they are."""

    oil: float
    exponent: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Shine":
        return cls(rng.uniform(0.02, 0.22), rng.uniform(8, 30))


def paint_face(
    surface: Tensor,
    coverage: Tensor,
    reflectance_map: Tensor,
    light: Light,
    shadowed: bool,
    shine: Shine | None,
) -> tuple[list[Layer], list[Array]]:
    """The faces of n frames, and the shading (P,) of each one's pixels.

    Neither shadowed nor shining this is `cest.rendering.render`, reflectance ⊗ Σ ℓ Y(n), of the
    pixels that the face covers.

    Args:
        surface: (n, S, S, 7) interpolated UV coordinates, normals (camera's axes), the part of the
            light that arrives, and the strength of the highlights of what is wet.
        coverage: (n, S, S) bool.
        reflectance_map: (1, 3, T, T).
    """
    layers, shadings = [], []
    for frame, covered in enumerate(coverage):
        pixels = covered.flatten().nonzero()[:, 0]
        uv, normals, arriving, wetness = surface[frame].flatten(0, 1)[pixels].split((2, 3, 1, 1), 1)
        normals = unit(normals)
        shading = shade(normals[None], light.illumination[frame : frame + 1])[0]
        colour = (wrap(reflectance_map, uv)[0] * shading).T.contiguous()
        if shadowed:
            colour *= arriving
        colour = colour.numpy()
        if shine is not None:
            facing, direction = normals.numpy(), light.direction[frame].numpy()
            found = shine.oil * highlights(facing, direction, shine.exponent)
            wet = wetness[:, 0].numpy()
            on = np.flatnonzero(wet)
            found[on] += wet[on] * highlights(facing[on], direction, WET_EXPONENT)
            colour += float(light.strength[frame]) * found[:, None]
        layers.append(Layer(pixels.numpy(), colour))
        shadings.append(shading.numpy())
    return layers, shadings
