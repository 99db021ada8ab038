"""What is compared: the estimators, a test-time fit from them, and baselines that need no training.

A method explains a batch of images. Landmarks and mask are those of the data: estimators do not
look at them; baselines do, and a landmark error of theirs is that of a fit, not of an estimate.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import interpolate

from cest.data.augmentation import fit_weak_perspective
from cest.detail import fine_detail, with_detail
from cest.detection import DetectedFace
from cest.evaluation.dense import Shape
from cest.evaluation.disentanglement import resized
from cest.face_model import FaceModel
from cest.face_model.model import content_hash
from cest.geometry import ambient_illumination, sh_basis
from cest.landmarks import Box
from cest.light_fit import evidence, settle_light, solve_light
from cest.modeling import FaceEstimator, FaceParameters
from cest.objective import N_JAW
from cest.reconstruction import Reconstruction, Reconstructor
from cest.refinement import face_parameters, refine
from cest.rendering import TexelMap, wrap

LANDMARK_NOISE = 0.02
"""Image frame: standard deviation of a landmark about the face model's, against coefficients whose
own is 1. It is 1.3 pixels of 128."""
JAW_WEIGHT = 0.25
FIT_ROUNDS = 6
LIGHT_RIDGE = 0.1
"""Of a light's own squares, against those of its error on all pixels."""
MEAN_ALBEDO_PEOPLE, MEAN_ALBEDO_SEED = 64, 1_000_003
"""Of the synthetic people whose albedos' mean the baselines wear; no data set has this seed."""


class Method(Protocol):
    """Explains images.

    Attributes:
        face_model: whose shape it answers in.
        size: side of the images it takes.
    """

    face_model: FaceModel
    size: int

    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        """(B, 3, S, S) in [0, 1], (B, 68, 2) image frame, (B, 1, S, S) -> estimates."""


class ShapeMethod(Protocol):
    """Says the shape of one face of a photo."""

    def __call__(self, photo: np.ndarray, box: Box) -> Shape | None:
        """(H, W, 3) uint8 and the box of its landmarks, pixels -> a shape; None without a face."""


@dataclass(frozen=True)
class PhotoMethod:
    """An estimator on whole photos, with so many steps of a test-time fit."""

    reconstructor: Reconstructor
    refine: int = 0

    def __call__(self, photo: np.ndarray, faces: list[DetectedFace]) -> Reconstruction:
        """(H, W, 3) uint8 and its faces -> the largest's reconstruction."""
        (result,) = self.reconstructor.reconstruct(photo, faces=faces)
        return self.reconstructor.refine(result, self.refine) if self.refine else result

    @property
    def weights(self) -> str:
        """sha256 (hex) of the estimator's weights, wherever they came from."""
        state = self.reconstructor.model.state_dict()
        return content_hash({name: value.cpu().numpy() for name, value in state.items()})


class Estimate:
    """A trained estimator, in evaluation mode."""

    def __init__(self, model: FaceEstimator) -> None:
        self.model, self.face_model, self.size = model, model.face_model, model.config.image_size

    @torch.no_grad()
    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        return self.model(image)


class Settled(Estimate):
    """A trained estimator whose light is settled on the photo (`cest.light_fit`), as for users."""

    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        estimate = super().__call__(image, landmarks, mask)
        return settle_light(image, estimate, self.face_model.landmarks)


class Detailed(Settled):
    """The same with the photo's fine detail in its reflectance (`cest.detail`).

    The photo is the estimator's input, and the map twice as large as its own: less than what
    users get, whose photo is larger.
    """

    def __init__(self, model: FaceEstimator) -> None:
        super().__init__(model)
        face = self.face_model
        self.texel_map = TexelMap.build(face.uv, face.triangles, 2 * self.size)

    @torch.no_grad()
    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        estimate = super().__call__(image, landmarks, mask)
        shown = torch.ones_like(image[:, :1])
        detail = fine_detail(image, shown, estimate, self.face_model, self.texel_map)
        maps = {
            "illuminated_texture": estimate.illuminated_texture,
            "texture_visibility": estimate.texture_visibility,
        }
        larger = {name: interpolate(m, scale_factor=2.0) for name, m in maps.items()}
        reflectance = with_detail(estimate.reflectance_map, detail)
        return replace(estimate, reflectance_map=reflectance, **larger)


class Refined(Settled):
    """The same with `steps` of a fit from there on (`cest.refinement`).

    Without the data's mask, as for users, who have none.
    """

    def __init__(self, model: FaceEstimator, steps: int) -> None:
        super().__init__(model)
        self.steps = steps

    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        start = super().__call__(image, landmarks, mask)
        return refine(self.model, image, start, steps=self.steps)


class Baseline:
    """A face posed by the landmarks, with one albedo for all and the light that fits best.

    Args:
        face_model: gives shape and landmarks.
        size: side of the images it takes.
        albedo: (3, s, s) in [0, 1].
        fit_shape: False for the mean face; True for a regularised least squares fit of the
            coefficients to the landmarks.
    """

    def __init__(self, face_model: FaceModel, size: int, albedo: Tensor, fit_shape: bool) -> None:
        self.face_model, self.size = face_model, size
        self.albedo, self.fit_shape = resized(albedo[None], size), fit_shape
        self.texel_map = TexelMap.build(face_model.uv, face_model.triangles, size)

    @torch.no_grad()
    def __call__(self, image: Tensor, landmarks: Tensor, mask: Tensor) -> FaceParameters:
        fits = [fit_landmarks(self.face_model, points, self.fit_shape) for points in landmarks]
        viewpoint, coefficients = (torch.stack(part).to(image) for part in zip(*fits))
        albedo = self.albedo.to(image).expand(len(image), -1, -1, -1)
        ambient = ambient_illumination().to(image).expand(len(image), -1)
        posed = face_parameters(
            self.face_model, self.texel_map, image, viewpoint, coefficients, albedo, ambient
        )
        light = fit_light(image, posed, mask)
        return face_parameters(
            self.face_model, self.texel_map, image, viewpoint, coefficients, albedo, light
        )


def mean_face(face_model: FaceModel, size: int) -> Baseline:
    """Mean shape, mean albedo; pose by landmarks and light by least squares."""
    return Baseline(face_model, size, mean_albedo(), fit_shape=False)


def landmark_fit(face_model: FaceModel, size: int) -> Baseline:
    """The face model fitted to the landmarks alone, mean albedo; light by least squares."""
    return Baseline(face_model, size, mean_albedo(), fit_shape=True)


BASELINES: dict[str, Callable[[FaceModel, int], Baseline]] = {
    "mean face": mean_face,
    "landmark fit": landmark_fit,
}


def fit_landmarks(
    face_model: FaceModel, landmarks: Tensor, fit_shape: bool
) -> tuple[Tensor, Tensor]:
    """Viewpoint (7,) and coefficients (D,) from landmarks (68, 2) in the image frame.

    Pose and shape take turns. Coefficients minimise the squared distances over LANDMARK_NOISE
    squared plus their own squares; landmarks of the jaw weigh JAW_WEIGHT.
    """
    ids = face_model.landmarks.cpu()
    mean = face_model.mean.cpu()[ids].double().numpy()
    basis = face_model.basis.cpu()[:, ids].double().numpy()
    target = landmarks.cpu().double().numpy()
    weight = np.ones((68, 1))
    weight[:N_JAW] = JAW_WEIGHT
    coefficients = np.zeros(len(basis))
    for _ in range(FIT_ROUNDS if fit_shape else 1):
        points = mean + np.tensordot(coefficients, basis, 1)
        scale, rotation, shift = fit_weak_perspective(points[N_JAW:], target[N_JAW:])
        if fit_shape:
            rows = (scale * basis @ rotation[:2].T * np.sqrt(weight)).reshape(len(basis), -1)
            missing = (target - scale * mean @ rotation[:2].T - shift) * np.sqrt(weight)
            normal = rows @ rows.T + LANDMARK_NOISE**2 * np.eye(len(basis))
            coefficients = np.linalg.solve(normal, rows @ missing.ravel())
    vector = Rotation.from_matrix(rotation).as_rotvec()
    viewpoint = torch.from_numpy(np.concatenate(([np.log(scale)], vector, shift, [0.0])))
    return viewpoint, torch.from_numpy(coefficients)


def fit_light(image: Tensor, posed: FaceParameters, mask: Tensor) -> Tensor:
    """The light (B, 9) that renders the images best, least squares over the mask's pixels."""
    surface = posed.surface
    albedo = wrap(posed.reflectance_map, surface.uv)
    # A face shows half of all directions; from where it shows nothing, light is as if ambient.
    stiffness = torch.full((9,), LIGHT_RIDGE, device=image.device)
    stiffness[0] *= 1e-3
    none = torch.zeros_like(posed.illumination)
    basis, weight = sh_basis(surface.normals), mask * surface.coverage
    counts = evidence(basis, albedo, weight).clamp(min=1e-6)
    return solve_light(image, basis, albedo, weight, none, counts[:, None] * stiffness)


@cache
def mean_albedo() -> Tensor:
    """(3, 256, 256) in [0, 1]: of synthetic people with every tone of skin (open face model)."""
    from cest.data.synthetic import SyntheticClips
    from cest.evaluation.synthetic_truth import decoded

    clips = SyntheticClips(MEAN_ALBEDO_PEOPLE, MEAN_ALBEDO_SEED, frames=1, size=32)
    total = sum(decoded(clips[i]["reflectance_map"]).astype(np.float64) for i in range(len(clips)))
    return torch.from_numpy(total / len(clips) / 255).permute(2, 0, 1).float()
