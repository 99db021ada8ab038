"""The self-supervised objective (eqs. 6-9): re-render every frame with a partner's reflectance."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cest.modeling import FaceParameters
from cest.rendering import shade_surface

CONSTRAINTS = ("both", "consistency", "symmetry", "none")
PARTNERS = ("random", "average")
N_JAW = 17


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of eq. 9 and the constraints on the reflectance.

    Attributes:
        constraints: "both"; "consistency" (a partner's reflectance, not mirrored); "symmetry"
            (one's own, also mirrored); "none" (one's own: the degenerate case of Fig. 4e).
        partner: under consistency, the reflectance of a "random" other frame of the clip (eq.
            8), or the "average" over the clip's frames (B.2, Fig. 10; as in FML).
        landmark_weight: λ1, for landmarks in the image frame ([-1, 1], so 0.01 is 1.3 of 256
            pixels).
        regularisation_weight: λ2, for the mean over coefficients of α² (α in standard
            deviations, so a typical face has 1).
        jaw_weight: of landmarks 0-16 against 1 for the others: the jaw's landmarks are the
            least reliable of detectors' answers.
        outlier_factor: a pixel whose error is above this many times the image's mean error
            counts as that much and pulls no more: hair, glasses, hands and highlights inside
            the mask must not be painted into the reflectance.
    """

    constraints: str = "both"
    partner: str = "random"
    landmark_weight: float = 4.0
    regularisation_weight: float = 0.01
    jaw_weight: float = 0.25
    outlier_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.constraints not in CONSTRAINTS:
            raise ValueError(
                f"constraints is {self.constraints!r}; it must be one of {CONSTRAINTS}."
            )
        if self.partner not in PARTNERS:
            raise ValueError(f"partner is {self.partner!r}; it must be one of {PARTNERS}.")


def photometric_error(
    image: Tensor, rendered: Tensor, mask: Tensor, outlier_factor: float | None = None
) -> Tensor:
    """E (eq. 6): mean |I - Î| over the pixels of the mask.

    Args:
        image, rendered: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W), face ∧ coverage.
        outlier_factor: see ObjectiveConfig; None for the plain mean.

    Returns:
        (B,); 0 for an image whose mask is empty.
    """
    error = (image - rendered).abs().mean(1, keepdim=True) * mask
    pixels = mask.sum((1, 2, 3)).clamp(min=1)
    if outlier_factor is not None:
        with torch.no_grad():
            limit = outlier_factor * error.sum((1, 2, 3)) / pixels
        error = torch.minimum(error, limit[:, None, None, None])
    return error.sum((1, 2, 3)) / pixels


def landmark_error(projected: Tensor, landmarks: Tensor, ids: Tensor, jaw_weight: float) -> Tensor:
    """L_kp: weighted mean |Q(k) - q| over the 68 landmarks and both coordinates.

    Args:
        projected: (B, K, 3) image frame.
        landmarks: (B, 68, 2) image frame.
        ids: (68,) vertices of the landmarks.
        jaw_weight: of landmarks 0-16.

    Returns:
        (B,), image frame.
    """
    inner = len(ids) - N_JAW
    weights = torch.cat((landmarks.new_full((N_JAW,), jaw_weight), landmarks.new_ones(inner)))
    error = (projected[:, ids, :2] - landmarks).abs().mean(-1)
    return (error * weights).sum(-1) / weights.sum()


def choose_partners(frames: int, rng: np.random.Generator) -> np.ndarray:
    """For each frame of a clip another one of it at random (eq. 8); itself if it is alone.

    Returns:
        (frames,) numbers j != i, uniform over the others.
    """
    away = rng.integers(1, frames, frames) if frames > 1 else np.zeros(1, np.int64)
    return (np.arange(frames) + away) % frames


def clip_mean(values: Tensor, clips: Tensor) -> Tensor:
    """Every frame's values replaced by their mean over its clip (B.2, after FML).

    Args:
        values: (B, ...).
        clips: (B,) numbers of the frames' clips, below B.
    """
    sums = torch.zeros_like(values).index_add(0, clips, values)
    counts = torch.zeros_like(values[:, :1]).flatten(1)[:, 0]
    counts = counts.index_add(0, clips, torch.ones_like(counts))
    means = sums / counts.clamp(min=1).reshape(-1, *(1,) * (values.ndim - 1))
    return means[clips]


def objective(
    estimate: FaceParameters,
    image: Tensor,
    mask: Tensor,
    landmarks: Tensor,
    clips: Tensor,
    partners: Tensor,
    landmark_ids: Tensor,
    config: ObjectiveConfig,
) -> dict[str, Tensor]:
    """L = L_ph + λ1 L_kp + λ2 L_rg (eq. 9) for one batch.

    Args:
        estimate: of the batch.
        image: (B, 3, H, W) in [0, 1].
        mask: (B, 1, H, W) face pixels.
        landmarks: (B, 68, 2) image frame.
        clips: (B,) the clip of each frame, numbers below B.
        partners: (B,) for each frame another of its clip, from choose_partners.
        landmark_ids: (68,) vertices of the landmarks.
        config: weights and constraints.

    Returns:
        Scalars "loss" (to descend), "photometric", "landmarks", "regularisation" (unweighted).
    """
    reflectance = estimate.reflectance_map
    if config.constraints in ("both", "consistency"):
        averaged = config.partner == "average"
        reflectance = clip_mean(reflectance, clips) if averaged else reflectance[partners]
    mirrored = config.constraints in ("both", "symmetry")
    reflectances = (reflectance, reflectance.flip(-1)) if mirrored else (reflectance,)
    region = mask * estimate.surface.coverage
    # One look-up of all colours of both: their UV coordinates are the same.
    rendered, _ = shade_surface(
        estimate.surface, torch.cat(reflectances, dim=1), estimate.illumination
    )
    photometric = sum(
        photometric_error(image, one, region, config.outlier_factor).mean()
        for one in rendered.chunk(len(reflectances), dim=1)
    ) * (2 / len(reflectances))  # two terms' worth, so that λ1 and λ2 mean the same in all
    keypoints = landmark_error(
        estimate.projected, landmarks, landmark_ids, config.jaw_weight
    ).mean()
    regularisation = estimate.shape_coefficients.square().mean()
    return {
        "loss": photometric
        + config.landmark_weight * keypoints
        + config.regularisation_weight * regularisation,
        "photometric": photometric.detach() / 2,
        "landmarks": keypoints.detach(),
        "regularisation": regularisation.detach(),
    }
