"""Rendered frames, whose factors are known, held to them.

Photographs alone leave it open what is shape, what reflectance and what light; the paper's
constraints (`cest.objective`) decide much of it, and what was rendered can teach the rest. It is
no label that anybody had to make.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cest.face_model import FaceModel
from cest.geometry import sh_basis
from cest.modeling import FaceParameters
from cest.rendering import TexelMap


@dataclass(frozen=True, eq=False)
class KnownFactors:
    """What is true of the T rendered frames of a batch, in the conventions of FaceParameters.

    Attributes:
        frame: (T,) their numbers in the batch.
        shape_coefficients: (T, D).
        mirrored: (T,) bool: the true shape is the mirror image of these coefficients'.
        reflectance_map: (T, 3, S, S) in [0, 1], mirrored already if the frame is; bytes until it is
            brought `to` a device.
        illumination: (T, 9), turned and mirrored as the frame is.
    """

    frame: Tensor
    shape_coefficients: Tensor
    mirrored: Tensor
    reflectance_map: Tensor
    illumination: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "KnownFactors":
        """Brings bytes to the device and makes them floats there."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=non_blocking)
            for f in fields(self)
        }
        return KnownFactors(**moved | {"reflectance_map": moved["reflectance_map"].float() / 255})

    def pin_memory(self) -> "KnownFactors":
        return KnownFactors(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})

    def vertices(self, face_model: FaceModel) -> Tensor:
        """(T, K, 3), face frame."""
        shape = face_model.vertices(self.shape_coefficients)
        mirror_image = shape[:, face_model.mirror] * shape.new_tensor([-1, 1, 1])
        return torch.where(self.mirrored[:, None, None], mirror_image, shape)


def known_factor_errors(
    estimate: FaceParameters, truth: KnownFactors, face_model: FaceModel, texel_map: TexelMap
) -> dict[str, Tensor]:
    """Mean absolute errors of shape, reflectance and light where they are known.

    A level of reflectance counts in proportion to the face's own, so that dark skin weighs as
    much as light skin. The light's strength is not asked for: no picture tells it from the
    skin's tone, and reflectance and picture together fix it.

    Args:
        estimate: of the whole batch.
        truth: of some of its frames.
        face_model, texel_map: the estimator's.

    Returns:
        Scalars: "true_shape", of the vertices, decimetres; "true_reflectance", of the texels,
        fractions of each face's mean; "true_light", of the shading of surfaces that face the viewer
        within 60 degrees, each shading divided by its mean over them.
    """
    frame, texels = truth.frame, texel_map.texels
    reflectance = truth.reflectance_map.flatten(2)[..., texels]
    difference = estimate.reflectance_map[frame].flatten(2)[..., texels] - reflectance
    return {
        "true_shape": (estimate.vertices[frame] - truth.vertices(face_model)).abs().mean(),
        "true_reflectance": (difference.abs().mean((1, 2)) / reflectance.mean((1, 2))).mean(),
        "true_light": (
            _shading_profile(estimate.illumination[frame]) - _shading_profile(truth.illumination)
        )
        .abs()
        .mean(),
    }


def _shading_profile(illumination: Tensor) -> Tensor:
    """(B, 9) -> (B, 64): the shading of `_FACING` over its mean."""
    shading = illumination @ sh_basis(_FACING.to(illumination)).mT
    # A light that is almost out, which an estimate may pass through, has no profile.
    return shading / shading.mean(1, keepdim=True).clamp(min=0.1)


def _directions(count: int) -> Tensor:
    """(count, 3): spread evenly within 60 degrees of the viewer, on a spiral."""
    k = torch.arange(count)
    z = 1 - 0.5 * (k + 0.5) / count
    angle = k * 2.399963  # the golden angle
    radius = (1 - z * z).sqrt()
    return torch.stack((radius * angle.cos(), radius * angle.sin(), z), dim=-1)


_FACING = _directions(64)
