"""How a face moves through a clip: expression, head pose, and the crop that follows it."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cest.face_model import FaceModel
from cest.face_model.populations import random_expressions
from cest.geometry import project

Array = np.ndarray


def random_coefficients(
    model: FaceModel, rng: np.random.Generator, frames: int, spread: float, expression: float
) -> Tensor:
    """One identity with a changing expression: (frames, D) in standard deviations.

    spread: standard deviation of the identity's coefficients. expression: 0 none, 1 strong.
    """
    identity = rng.normal(0, spread, model.n_identity)
    names = list(model.actions)
    # The face goes from one expression to another and perhaps on to a third.
    knots = random_expressions(names, 3, rng) * rng.uniform(0, expression, (3, 1))
    for i, name in enumerate(names):
        if name.startswith("eyeBlink"):
            knots[:, i] *= rng.random() < 0.4
    if frames == 1:
        weights = knots[:1]
    else:
        time = np.linspace(0, rng.uniform(0.2, 2), frames)
        first = np.minimum(time.astype(int), 1)
        part = time - first
        part = (part * part * (3 - 2 * part))[:, None]
        weights = (1 - part) * knots[first] + part * knots[first + 1]
    actions = np.stack([model.actions[name].numpy() for name in names])
    whole = np.concatenate(
        (np.repeat(identity[None], frames, 0), weights @ actions), 1, dtype=np.float32
    )
    return torch.from_numpy(whole)


def random_rotations(rng: np.random.Generator, frames: int, widest: float) -> Tensor:
    """Rotation vectors (frames, 3) of a head that turns smoothly; yaw within ±``widest`` degrees.

    Half of the clips look about straight at the camera, the others anywhere.
    """
    straight = rng.random() < 0.5
    yaw = rng.normal(0, 12) if straight else rng.uniform(-widest, widest)
    angles = np.array([yaw, rng.normal(0, 9), rng.normal(0, 7)])
    time = np.linspace(0, rng.uniform(0.1, 1.5), frames) if frames > 1 else np.zeros(1)
    phase, rate = rng.uniform(0, 2 * np.pi, (2, 3)), rng.uniform(1, 4, (2, 3))
    swing = np.abs(rng.normal(0, (14, 5, 4), (2, 3)))
    track = angles + (swing * np.sin(rate * time[:, None, None] + phase)).sum(1)
    track[:, 0] = np.clip(track[:, 0], -widest, widest)
    # The neck turns the head about the vertical first, then it nods and tilts.
    rotation = Rotation.from_euler("ZXY", track[:, [2, 1, 0]], degrees=True)
    return torch.from_numpy(np.float32(rotation.as_rotvec()))


def framed_viewpoints(
    model: FaceModel, vertices: Tensor, rotations: Tensor, rng: np.random.Generator
) -> Tensor:
    """Viewpoints (n, 7) of crops as the training data have them.

    The crop is a square of 1.6 to 1.7 times the landmarks' box, about its centre, slightly off.
    """
    viewpoint = torch.zeros(len(vertices), 7)
    viewpoint[:, 1:4] = rotations
    points = project(vertices[:, model.landmarks], viewpoint)[..., :2]
    low, high = points.min(1).values, points.max(1).values
    ratio = rng.uniform(1.6, 1.7) * np.exp(rng.normal(0, 0.01, len(vertices)))
    scale = 2 / (torch.from_numpy(np.float32(ratio)) * (high - low).max(1).values)
    shift = torch.from_numpy(np.float32(rng.normal(0, 0.02, (len(vertices), 2))))
    viewpoint[:, 0] = scale.log()
    viewpoint[:, 4:6] = shift - scale[:, None] * (low + high) / 2
    return viewpoint
