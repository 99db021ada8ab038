"""The renderer R(S, R, v, ℓ): weak perspective, z-buffer, Lambertian shading (paper §3.1-3.2)."""

from dataclasses import dataclass

from torch import Tensor

from cest.face_model import FaceModel
from cest.geometry import project, rotate, shade
from cest.rendering.rasterizer import Fragments
from cest.rendering.surface import Surface, rasterize_surface, vertex_normals
from cest.rendering.unwrap import wrap


@dataclass(frozen=True, eq=False)
class Rendering:
    """A rendered face.

    Attributes:
        image: (B, 3, H, W) sRGB pixel values, zero outside the face; not clipped, so that the
            gradient of an overexposed pixel lives: clip to show it.
        coverage: (B, 1, H, W) 1 on the face, 0 elsewhere.
        normals: (B, 3, H, W) unit normals, camera's axes (x right, y up, z to the viewer).
        shading: (B, 1, H, W) Σ ℓ Y(n), 1 = the reflectance unchanged.
        fragments: the rasteriser's answer.
    """

    image: Tensor
    coverage: Tensor
    normals: Tensor
    shading: Tensor
    fragments: Fragments


def shade_surface(
    surface: Surface, reflectance_map: Tensor | None, illumination: Tensor
) -> tuple[Tensor, Tensor]:
    """Colours a surface: reflectance ⊗ Σ ℓ Y(n).

    The product is of sRGB pixel values, as the paper's is, not of linear light. The reflectance
    is looked up for each pixel rather than each vertex, which keeps detail finer than the mesh.

    Args:
        surface: of B images (H, W).
        reflectance_map: (B, 3, h, w) A in [0, 1], or None for white clay; several of them, one
            after the other in dim 1, are rendered at once.
        illumination: (B, 9).

    Returns:
        image (B, 3, H, W), zero outside the face, and shading (B, 1, H, W).
    """
    shading = shade(surface.normals, illumination).unsqueeze(1) * surface.coverage
    if reflectance_map is None:
        return shading.expand(-1, 3, -1, -1), shading
    return wrap(reflectance_map, surface.uv) * shading, shading


def render(
    face_model: FaceModel,
    vertices: Tensor,
    viewpoint: Tensor,
    reflectance_map: Tensor | None,
    illumination: Tensor,
    image_size: tuple[int, int],
) -> Rendering:
    """Renders faces.

    Args:
        face_model: gives triangles and UV coordinates.
        vertices: (B, K, 3) face frame, decimetres.
        viewpoint: (B, 7).
        reflectance_map: (B, 3, h, w) in [0, 1], or None for white clay.
        illumination: (B, 9) spherical harmonics of the irradiance, camera's axes.
        image_size: (H, W).

    Returns:
        A Rendering, differentiable in vertices, viewpoint, reflectance_map and illumination
        wherever the visible triangle of a pixel does not change.
    """
    normals = rotate(vertex_normals(vertices, face_model.triangles), viewpoint)
    projected = project(vertices, viewpoint)
    surface = rasterize_surface(projected, normals, face_model.triangles, face_model.uv, image_size)
    image, shading = shade_surface(surface, reflectance_map, illumination)
    return Rendering(
        image=image,
        coverage=surface.coverage,
        normals=surface.normals.permute(0, 3, 1, 2),
        shading=shading,
        fragments=surface.fragments,
    )
