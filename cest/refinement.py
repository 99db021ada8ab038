"""A test-time fit: from the estimator's answer on, descend on the objective of this one photo."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cest.face_model import FaceModel
from cest.face_region import face_regions
from cest.geometry import project, rotate
from cest.modeling import FaceEstimator, FaceParameters
from cest.objective import ObjectiveConfig, objective
from cest.rendering import TexelMap, rasterize_surface, unwrap, vertex_normals

FACTORS = ("viewpoint", "shape_coefficients", "reflectance_map", "illumination")


@dataclass(frozen=True)
class RefinementConfig:
    """How far each factor may go a step (Adam's learning rates, in the factor's unit), and why.

    Attributes:
        viewpoint, shape_coefficients, reflectance_map, illumination: learning rates. They fall to
            zero over the steps as half a cosine. The reflectance's is low: at 0.005 it takes up
            what shape and light should explain, and they end further from the truth.
        texels: of the reflectance's map a side, to one of the change that is made to it: a face
            in a photo has fewer pixels than the map has texels, and single ones would be speckles.
        reflectance_weight, illumination_weight: of the mean squared change of A and of ℓ in the
            loss. One photo does not say which of the two to change, and what the model leaves out,
            shadows and highlights, would turn the light: they stay near the estimate, while the
            picture improves nearly as much.
        objective: what is descended on. One photo has no partner, so its constraint is symmetry,
            as for stills in training.
    """

    viewpoint: float = 0.005
    shape_coefficients: float = 0.1
    reflectance_map: float = 0.002
    illumination: float = 0.05
    texels: int = 2
    reflectance_weight: float = 30.0
    illumination_weight: float = 3.0
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(constraints="symmetry")
    )


def face_parameters(
    face_model: FaceModel,
    texel_map: TexelMap,
    image: Tensor,
    viewpoint: Tensor,
    shape_coefficients: Tensor,
    reflectance_map: Tensor,
    illumination: Tensor,
) -> FaceParameters:
    """The four factors with all that follows from them.

    Args:
        face_model, texel_map: of the estimator, on the factors' device.
        image: (B, 3, S, S) in [0, 1], what is explained.
        viewpoint, shape_coefficients, reflectance_map, illumination: as in FaceParameters.
    """
    geometry, normals = _geometry(face_model, viewpoint, shape_coefficients, image.shape[-2:])
    texture, visibility = unwrap(
        image, geometry["projected"], normals, geometry["surface"].fragments, texel_map
    )
    return FaceParameters(
        viewpoint=viewpoint,
        shape_coefficients=shape_coefficients,
        reflectance_map=reflectance_map,
        illumination=illumination,
        illuminated_texture=texture,
        texture_visibility=visibility,
        **geometry,
    )


def with_factors(
    face_model: FaceModel, estimate: FaceParameters, **factors: Tensor
) -> FaceParameters:
    """An estimate with other values for some of its four factors, named as in FaceParameters.

    What follows from viewpoint and shape follows; the texture stays what the photo showed.
    """
    changed = replace(estimate, **factors)
    size = estimate.surface.coverage.shape[-2:]
    shape, viewpoint = changed.shape_coefficients, changed.viewpoint
    return replace(changed, **_geometry(face_model, viewpoint, shape, size)[0])


def _geometry(
    face_model: FaceModel, viewpoint: Tensor, shape_coefficients: Tensor, size: tuple[int, int]
) -> tuple[dict, Tensor]:
    """`vertices`, `projected` and `surface` of FaceParameters; and normals (B, K, 3), camera's."""
    vertices = face_model.vertices(shape_coefficients)
    projected = project(vertices, viewpoint)
    normals = rotate(vertex_normals(vertices, face_model.triangles), viewpoint)
    surface = rasterize_surface(projected, normals, face_model.triangles, face_model.uv, size)
    return {"vertices": vertices, "projected": projected, "surface": surface}, normals


def refine(
    model: FaceEstimator,
    image: Tensor,
    estimate: FaceParameters,
    mask: Tensor | None = None,
    steps: int = 100,
    config: RefinementConfig | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> FaceParameters:
    """Optimises v, α, A and ℓ on photos, each by itself, by the objective of training (eq. 9).

    The landmarks are held where the estimate projects them, so that no detector is needed: they
    keep the shape from sliding over the photo.

    Args:
        model: whose estimate it is; its weights stay as they are.
        image: (B, 3, S, S) in [0, 1], as the estimator saw it, on any device.
        estimate: where to start, a batch of B, on any device.
        mask: (B, 1, S, S) face pixels; by default `face_region` about the estimated landmarks,
            so that hair does not turn the light.
        steps: 0 returns the estimate.
        config: learning rates and objective; by default RefinementConfig().
        progress: called after every step with its number, from 1, and the loss.

    Returns:
        FaceParameters of the batch, without gradients, on the model's device.

    Raises:
        ValueError: a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"A refinement takes 0 or more steps, not {steps}.")
    config = config or RefinementConfig()
    device = next(model.parameters()).device
    image = image.to(device)
    start = {name: getattr(estimate, name).detach().to(device) for name in FACTORS}
    ids, alone = model.face_model.landmarks, torch.arange(len(image), device=device)
    landmarks = estimate.projected.detach().to(device)[:, ids, :2]
    region = face_regions(image, landmarks) if mask is None else mask.to(device)
    change = {name: torch.zeros_like(value) for name, value in start.items()}
    change["reflectance_map"] = change["reflectance_map"][..., :: config.texels, :: config.texels]
    change = {name: value.clone().requires_grad_() for name, value in change.items()}
    kept = {
        "reflectance_map": config.reflectance_weight,
        "illumination": config.illumination_weight,
    }

    def current() -> dict[str, Tensor]:
        size = start["reflectance_map"].shape[-2:]
        added = change | {
            "reflectance_map": interpolate(change["reflectance_map"], size, mode="bilinear")
        }
        factors = {name: start[name] + added[name] for name in FACTORS}
        return factors | {"reflectance_map": factors["reflectance_map"].clamp(0, 1)}

    with torch.enable_grad():
        optimizer = torch.optim.Adam(
            [{"params": [value], "lr": getattr(config, name)} for name, value in change.items()]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for step in range(1, steps + 1):
            tried = with_factors(model.face_model, estimate, **current())
            terms = objective(tried, image, region, landmarks, alone, alone, ids, config.objective)
            optimizer.zero_grad()
            # Of a batch the loss is the mean: undone, so that each photo goes its own way.
            loss = len(image) * terms["loss"]
            for name, weight in kept.items():
                loss = loss + weight * change[name].square().flatten(1).mean(1).sum()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, loss.item() / len(image))
    with torch.no_grad():
        return face_parameters(model.face_model, model.texel_map, image, **current())
