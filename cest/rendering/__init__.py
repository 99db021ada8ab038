"""Rasteriser, unwrapping and renderer. Frames are those of `cest.geometry`."""

from cest.rendering.rasterizer import Fragments, interpolate, rasterize
from cest.rendering.renderer import Rendering, render, shade_surface
from cest.rendering.surface import Surface, rasterize_surface, vertex_normals
from cest.rendering.unwrap import TexelMap, unwrap, wrap

__all__ = [
    "Fragments",
    "Rendering",
    "Surface",
    "TexelMap",
    "interpolate",
    "rasterize",
    "rasterize_surface",
    "render",
    "shade_surface",
    "unwrap",
    "vertex_normals",
    "wrap",
]
