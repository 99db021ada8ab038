"""The paper's strip: input, overlay, illuminated texture, reflectance, geometry, illumination."""

import torch
from torch import Tensor

from cest.face_model import FaceModel
from cest.geometry import shade
from cest.modeling import FaceParameters
from cest.rendering import render, shade_surface

# Clay is seen under a light of our own, from above the viewer's left shoulder, so that shapes
# can be compared whatever light was estimated: ambient, then y, z and x of the first band.
CLAY_LIGHT = (1.9, 0.35, 0.75, -0.35, 0.0, 0.0, 0.0, 0.0, 0.0)


def overlay(image: Tensor, rendered: Tensor, coverage: Tensor) -> Tensor:
    """The rendering over the photo: (B, 3, H, W), all in [0, 1]; coverage may be fractional."""
    return image * (1 - coverage) + rendered.clamp(0, 1) * coverage


@torch.no_grad()
def panels(image: Tensor, estimate: FaceParameters, face_model: FaceModel) -> dict[str, Tensor]:
    """The strip's pictures by name, in the paper's order and with an error map at the end.

    Args:
        image: (B, 3, S, S) in [0, 1], what the estimator saw.
        estimate: what it said.
        face_model: of the estimator.

    Returns:
        name -> (B, 3, S, S) in [0, 1].
    """
    size = image.shape[-2:]
    surface = estimate.surface
    rendered, _ = shade_surface(surface, estimate.reflectance_map, estimate.illumination)
    clay_light = image.new_tensor(CLAY_LIGHT).expand(len(image), -1)
    clay, _ = shade_surface(surface, None, clay_light)
    # The light alone, on the mean face seen from the front ("canonical view").
    frontal = torch.zeros_like(estimate.viewpoint)
    sphere = render(
        face_model,
        face_model.mean.expand(len(image), -1, -1),
        frontal,
        None,
        estimate.illumination,
        size,
    )
    error = (image - rendered).abs().mean(1, keepdim=True) * surface.coverage
    return {
        "input": image,
        "overlay": overlay(image, rendered, surface.coverage),
        "illuminated texture": estimate.illuminated_texture,
        "reflectance": estimate.reflectance_map,
        "geometry": overlay(torch.ones_like(image), clay, surface.coverage),
        "illumination": overlay(torch.ones_like(image), 0.6 * sphere.image, sphere.coverage),
        "error": heat(error * 4),
    }


def light_sphere(illumination: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A grey ball under a light: picture (3, size, size) in [0, 1] and coverage (1, size, size).

    illumination: (9,), camera's axes. The ball's albedo is 0.6, so that light brighter than the
    photo's white still shows its shape.
    """
    centres = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    radius = (x * x + y * y).sqrt()
    z = (1 - radius * radius).clamp(min=0).sqrt()
    normals = torch.stack((x, y, z), dim=-1) / radius.clamp(min=1)[..., None]
    shading = 0.6 * shade(normals[None], illumination[None])
    # Half a pixel of slope at the edge: smooth, and exact in the mean.
    coverage = ((1 - radius) * (size / 2) + 0.5).clamp(0, 1)[None]
    return shading.clamp(0, 1).expand(3, -1, -1), coverage


def heat(values: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] -> (B, 3, H, W): black, red, yellow, white."""
    values = values.clamp(0, 1)
    return torch.cat((values * 3, values * 3 - 1, values * 3 - 2), dim=1).clamp(0, 1)


def grid(pictures: dict[str, Tensor]) -> Tensor:
    """One picture: a row a face, a column a panel. (3, B H, n W) in [0, 1]."""
    columns = [torch.cat(list(column), dim=1) for column in pictures.values()]
    return torch.cat(columns, dim=2)


def to_uint8(picture: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8 on the CPU."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()
