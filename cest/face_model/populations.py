"""Random adults and random expressions, as displacements of the cropped mesh.

The identity spread is ours: MakeHuman says what can change, not how often. It was set so that
random faces look like different people and not like caricatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import eigh

from cest.face_model.crop import Crop
from cest.face_model.makehuman import (
    ADULT_AGES,
    GENDERS,
    MUSCLES,
    RACES,
    WEIGHTS,
    FloatArray,
    IntArray,
    MakeHuman,
)

LOCAL_FOLDERS = ("cheek", "chin", "eyebrows", "eyes", "forehead", "head", "mouth", "nose")
OPPOSITES = (
    ("decr", "incr"),
    ("down", "up"),
    ("in", "out"),
    ("backward", "forward"),
    ("concave", "convex"),
    ("compress", "uncompress"),
)
LOCAL_SPREAD = 0.19  # standard deviation of a local change, full strength being 1
LOCAL_ASYMMETRY = 0.04  # of the difference between the two sides of a paired local change
ASYMMETRY_SPREAD = 0.10  # of the targets whose only purpose is asymmetry
MIN_MOTION = 0.002  # dm: targets that move the face less than this are left out

# Not shape: they turn or move the head as a whole; and "head-age", which the ages already are.
EXCLUDED = ("head-trans", "head-angle", "head-age", "head-back")


@dataclass(frozen=True)
class Population:
    """Samples = weights (N, T) @ targets (T, K, 3): displacements in dm."""

    weights: FloatArray
    targets: FloatArray


def random_adults(mesh: MakeHuman, crop: Crop, count: int, rng: np.random.Generator) -> Population:
    """Draw `count` adults: displacements from the base mesh."""
    macro_weights, macro_targets = _macro_changes(mesh, crop, count, rng)
    local_weights, local_targets = _local_changes(mesh, crop, count, rng)
    return Population(
        np.concatenate([macro_weights, local_weights], 1),
        np.concatenate([macro_targets, local_targets]),
    )


def _tent(values: FloatArray, n_anchors: int) -> FloatArray:
    """Linear interpolation weights (N, n_anchors) of values in [0, 1] between even anchors."""
    anchors = np.linspace(0, 1, n_anchors)
    return np.clip(1 - np.abs(values[:, None] - anchors) * (n_anchors - 1), 0, 1)


def _macro_changes(mesh, crop, count, rng) -> tuple[FloatArray, FloatArray]:
    """Age, gender, build and ancestry: every target is weighted by a product of these."""
    age = _tent(rng.beta(1.1, 1.9, count), len(ADULT_AGES))
    gender = _tent(rng.beta(0.6, 0.6, count), len(GENDERS))
    muscle = _tent(rng.beta(4, 4, count), len(MUSCLES))
    weight = _tent(rng.beta(3, 3, count), len(WEIGHTS))
    race = rng.dirichlet([0.5] * len(RACES), count)
    macro = mesh.target_files("macrodetails")
    weights, targets = [], []
    for g, a, m, w in product(*map(range, map(len, (GENDERS, ADULT_AGES, MUSCLES, WEIGHTS)))):
        name = f"universal-{GENDERS[g]}-{ADULT_AGES[a]}-{MUSCLES[m]}-{WEIGHTS[w]}"
        weights.append(gender[:, g] * age[:, a] * muscle[:, m] * weight[:, w])
        targets.append(crop.take(mesh.displacement(macro[name])))
    for r, g, a in product(*map(range, map(len, (RACES, GENDERS, ADULT_AGES)))):
        weights.append(race[:, r] * gender[:, g] * age[:, a])
        name = f"{RACES[r]}-{GENDERS[g]}-{ADULT_AGES[a]}"
        targets.append(crop.take(mesh.displacement(macro[name])))
    return np.stack(weights, 1), np.stack(targets)


def _local_changes(mesh, crop, count, rng) -> tuple[FloatArray, FloatArray]:
    """Single features: bipolar where a target has an opposite, alike on both sides."""
    files = {}
    for folder in LOCAL_FOLDERS:
        files |= mesh.target_files(folder)
    files |= {k: v for k, v in mesh.target_files("neck").items() if "double" in k}
    files |= {k: v for k, v in mesh.target_files("asym").items() if k.startswith("asym-")}
    shared: dict[str, FloatArray] = {}
    weights, targets = [], []
    for name, path in files.items():
        if name.startswith(EXCLUDED):
            continue
        target = crop.take(mesh.displacement(path))
        if np.linalg.norm(target, axis=1).max() < MIN_MOTION:
            continue
        if name.startswith("asym-"):
            value = np.abs(rng.normal(0, ASYMMETRY_SPREAD, count))
        else:
            feature, sign = _feature_and_sign(name)
            if feature not in shared:
                shared[feature] = rng.normal(0, LOCAL_SPREAD, count)
            side = feature if name[:2] not in ("l-", "r-") else name[:2] + feature
            if side not in shared:
                shared[side] = shared[feature] + rng.normal(0, LOCAL_ASYMMETRY, count)
            value = np.maximum(sign * shared[side], 0)
        weights.append(np.minimum(value, 1))
        targets.append(target)
    return np.stack(weights, 1), np.stack(targets)


def _feature_and_sign(name: str) -> tuple[str, int]:
    """Target name -> feature (without side and direction) and direction."""
    feature = name[2:] if name[:2] in ("l-", "r-") else name
    for low, high in OPPOSITES:
        for ending, sign in ((low, -1), (high, 1)):
            if feature.endswith("-" + ending):
                return feature.removesuffix("-" + ending), sign
    return feature, 1


def align(shapes: FloatArray, weights: FloatArray, rounds: int = 3) -> FloatArray:
    """Remove pose and scale by similarity alignment to the common mean, in place.

    shapes (N, K, 3); weights (K,) are the vertices' areas. The mean keeps its average size.
    Generalised Procrustes analysis (Gower 1975).
    """
    w = (weights / weights.sum())[:, None]
    shapes -= (shapes * w).sum(1, keepdims=True)
    size = np.sqrt((shapes**2 * w).sum((1, 2)))
    reference = shapes.mean(0)
    reference *= size.mean() / np.sqrt((reference**2 * w).sum())
    for _ in range(rounds):
        u, s, vt = np.linalg.svd(np.einsum("nki,kj->nij", shapes, reference * w))
        handed = np.ones_like(s)
        handed[:, 2] = np.sign(np.linalg.det(u @ vt))
        rotation = (u * handed[:, None, :]) @ vt
        scale = (s * handed).sum(1) / (shapes**2 * w).sum((1, 2))
        shapes[:] = scale[:, None, None] * (shapes @ rotation)
        reference = shapes.mean(0)
        reference *= size.mean() / np.sqrt((reference**2 * w).sum())
    return shapes


def random_expressions(names: list[str], count: int, rng: np.random.Generator) -> FloatArray:
    """Weights (count, len(names)) in [0, 1] of ARKit actions: a few active at once.

    Both sides of a paired action mostly move together; lids close in a third of the samples;
    ``mouthClose`` undoes ``jawOpen`` and is therefore never stronger than it.
    """
    weights = np.zeros((count, len(names)))
    features = sorted({name.removesuffix("Left").removesuffix("Right") for name in names})
    directions = {"jawLeft", "jawRight", "mouthLeft", "mouthRight"}
    for feature in features:
        sides = [
            i for i, n in enumerate(names) if n in (feature, feature + "Left", feature + "Right")
        ]
        active = rng.random(count) < {"eyeBlink": 0.3, "jawOpen": 0.4, "mouthSmile": 0.35}.get(
            feature, 0.12
        )
        strength = rng.beta(1.2, 1.6, count) * active
        for i in sides:
            own = rng.beta(1.2, 1.6, count) * active * (rng.random(count) < 0.7)
            together = rng.random(count) < (0.0 if names[i] in directions else 0.8)
            weights[:, i] = np.where(together, strength, own)
    if {"jawOpen", "mouthClose"} <= set(names):
        opened, closed = names.index("jawOpen"), names.index("mouthClose")
        weights[:, closed] = np.minimum(weights[:, closed], weights[:, opened])
    for a, b in (("jawLeft", "jawRight"), ("mouthLeft", "mouthRight")):
        if {a, b} <= set(names):
            i, j = names.index(a), names.index(b)
            smaller = np.minimum(weights[:, i], weights[:, j])
            weights[:, i] -= smaller
            weights[:, j] -= smaller
    return weights


def mirrored_components(
    displacements: FloatArray, mirror: IntArray, weights: FloatArray, count: int
) -> tuple[FloatArray, FloatArray, float]:
    """Principal directions of `displacements` (N, K, 3) together with their mirror images.

    Adding mirrored copies makes the second moment commute with the mirror, so each direction is
    exactly symmetric or antisymmetric: the two kinds are solved for apart, each on one vertex of
    every mirrored pair. `weights` (K,) are the vertices' areas: an error counts by its area. No
    mean is subtracted. Returns directions (count, K, 3) scaled to one standard deviation,
    standard deviations (count,) as root mean square motion in dm, and the share of the second
    moment that they hold.
    """
    n, k, _ = displacements.shape
    flip = np.array([-1.0, 1.0, 1.0])
    half = np.flatnonzero(np.arange(k) <= mirror)
    single = (half == mirror[half])[:, None]
    root = np.sqrt(weights / weights.sum())[half, None] * np.where(single, 1.0, np.sqrt(2.0))
    values, vectors, total = [], [], 0.0
    for sign in (1, -1):
        part = (displacements[:, half] + sign * displacements[:, mirror[half]] * flip) / 2
        matrix = (part * root).reshape(n, -1)
        moment = matrix.T @ matrix / n
        total += np.trace(moment)
        size = len(moment)
        value, vector = eigh(moment, subset_by_index=[size - count, size - 1])
        directions = np.zeros((count, k, 3))
        directions[:, half] = vector.T.reshape(count, -1, 3) / root
        other = mirror[half][~single[:, 0]]
        directions[:, other] = sign * directions[:, mirror[other]] * flip
        values.append(value)
        vectors.append(directions)
    value, directions = np.concatenate(values), np.concatenate(vectors)
    order = np.argsort(value)[::-1][:count]
    value, directions = np.maximum(value[order], 0), directions[order]
    flat = directions.reshape(count, -1)
    largest = flat[np.arange(count), np.abs(flat).argmax(1)]
    deviation = np.sqrt(value)
    directions *= (np.sign(largest) * deviation)[:, None, None]
    return directions, deviation, float(value.sum() / total)
