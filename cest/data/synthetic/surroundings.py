"""What is painted around the face: skin of ears and neck, clothes, hair."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cest.data.synthetic.complexion import Complexion
from cest.data.synthetic.hair import Hair
from cest.data.synthetic.head import Head
from cest.data.synthetic.layers import Layer
from cest.data.synthetic.light import Light, highlights
from cest.data.synthetic.noise import smoothstep
from cest.data.synthetic.normals import VertexNormals, unit
from cest.data.synthetic.skin import beard_region
from cest.geometry import project, rotate, shade
from cest.rendering import interpolate, rasterize

Array = np.ndarray

IN_FRONT = 0.004  # image frame: by how much an ear has to be nearer to hide the face


@dataclass(frozen=True)
class Clothes:
    """colour (3,) sRGB; neckline: dm under the origin, at the throat; slope: its rise outwards."""

    colour: Array
    neckline: float
    slope: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Clothes":
        value = rng.beta(0.8, 1.2)
        colour = value * (1 + rng.beta(1, 5) * (3 * rng.dirichlet([1, 1, 1]) - 1))
        return cls(
            np.float32(np.clip(colour, 0.02, 0.93)), rng.uniform(0.72, 1.5), rng.uniform(-0.3, 0.5)
        )


@dataclass(frozen=True)
class _Patch:
    """The part of one frame that shows a mesh before the face.

    pixels (P,) flat indices; values (P, C) of the attributes; normals (P, 3) unit; shading (P,);
    arriving (P,).
    """

    pixels: Array
    values: Array
    normals: Array
    shading: Array
    arriving: Array


def _patches(
    vertices: Tensor,
    triangles: Tensor,
    normals: VertexNormals,
    viewpoint: Tensor,
    illumination: Tensor,
    arriving: Tensor,
    attributes: Tensor,
    depth: Tensor,
    cull_backfaces: bool = True,
) -> tuple[list[_Patch], Tensor]:
    """Draws a mesh (n, H, 3) where it is nearer than ``depth`` (n, S, S); and its own depth."""
    size = depth.shape[-1]
    # A head changes little with the expression: one frame's normals serve them all.
    normals = rotate(normals(vertices[:1]).expand(len(vertices), -1, -1), viewpoint)
    projected = project(vertices, viewpoint)
    fragments = rasterize(projected, triangles, (size, size), cull_backfaces=cull_backfaces)
    carried = (attributes.expand(len(vertices), -1, -1), normals, arriving[..., None])
    values = interpolate(fragments, triangles, torch.cat(carried, -1))
    count = attributes.shape[1]
    patches = []
    for frame, nearer in enumerate(fragments.depth > depth):
        pixels = nearer.flatten().nonzero()[:, 0]
        found = values[frame].flatten(0, 1)[pixels]
        facing = unit(found[:, count : count + 3])
        light = shade(facing[None], illumination[frame : frame + 1])[0]
        parts = (pixels, found[:, :count], facing, light, found[:, -1])
        patches.append(_Patch(*(part.numpy() for part in parts)))
    return patches, fragments.depth


def paint_head(
    head: Head,
    heads: Tensor,
    viewpoint: Tensor,
    light: Light,
    arriving: Tensor,
    depth: Tensor,
    person: Complexion,
    clothes: Clothes,
) -> tuple[list[Layer], Tensor]:
    """Skin and clothes around a face, and the depth (n, S, S) of both.

    Args:
        heads: (n, H, 3) face frame.
        viewpoint: (n, 7).
        arriving: (n, H) part of the light that reaches each vertex.
        depth: (n, S, S), of the face.
    """
    patches, own_depth = _patches(
        heads,
        head.triangles,
        head.normals,
        viewpoint,
        light.illumination,
        arriving,
        head.template,
        depth + IN_FRONT,
    )
    layers = []
    for patch in patches:
        p = patch.values
        colour = np.repeat(person.colour()[None], len(p), 0)
        ears = np.exp(-(((np.abs(p[:, 0]) - 0.8) / 0.07) ** 2)) * (np.abs(p[:, 1] - 0.3) < 0.4)
        colour *= 1 - ears[:, None] * np.float32([0.02, 0.14, 0.12])
        if person.beard:
            hairy = 0.6 * min(person.beard, 0.9) * beard_region(p)[:, None]
            colour += hairy * (person.hair - colour)
        # The roots of the hair show on a shaven head.
        colour += 0.3 * smoothstep(0.9, 1.2, p[:, 1])[:, None] * (person.hair - colour)
        colour[p[:, 1] < -clothes.neckline + clothes.slope * np.abs(p[:, 0])] = clothes.colour
        colour *= (patch.shading * patch.arriving)[:, None]
        layers.append(Layer(patch.pixels, colour))
    return layers, torch.maximum(depth, own_depth)


def paint_hair(
    hair: Hair,
    head: Head,
    heads: Tensor,
    viewpoint: Tensor,
    light: Light,
    arriving: Tensor,
    depth: Tensor,
) -> list[Layer]:
    """Hair over everything whose ``depth`` (n, S, S) is behind it; arguments as `paint_head`'s."""
    triangles, place = head.all_triangles, head.around_skull
    patches, _ = _patches(
        hair.grow(heads, head.template, place),
        triangles[hair.reaches(head.template, place)[triangles].all(1)],
        head.all_normals,
        viewpoint,
        light.illumination,
        arriving,
        place,
        depth,
        cull_backfaces=not hair.hangs,  # it is also seen from inside, behind the neck
    )
    layers = []
    for frame, patch in enumerate(patches):
        cover, brightness = hair.look(patch.values)
        # Hair lets light through: it is never as dark as a wall would be.
        inside = np.where(patch.normals[:, 2] < 0, 0.5, 1).astype(np.float32)
        shading = (0.2 + 0.8 * np.maximum(patch.shading, 0)) * inside * brightness
        shading *= 0.4 + 0.6 * patch.arriving
        shine = highlights(patch.normals, light.direction[frame].numpy(), 12)
        shine *= hair.gloss * float(light.strength[frame]) * np.clip(brightness - 0.6, 0, 1)
        colour = hair.colour * shading[:, None] + (0.5 * shine)[:, None] * (0.3 + hair.colour)
        layers.append(Layer.of(patch.pixels, colour, cover))
    return layers
