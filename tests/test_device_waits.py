"""Nothing in a training step makes the host wait for the device, so that the GPU never starves."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cest.configuration import FaceEstimatorConfig
from cest.data import Frame, FrameBatch
from cest.data.augmentation import Relighter
from cest.modeling import FaceEstimator
from cest.objective import ObjectiveConfig, objective
from cest.rendering import rasterizer_numba, rasterizer_torch

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))

from averaging import MovingAverage

WAITING = {
    # Reads a number; a size that depends on values; numbers copied from the host.
    *("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "lift_fresh"),
}


class Watch(TorchDispatchMode):
    """Notes operations for which the host would wait if the tensors were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.__name__.split(".")[0]
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        )
        if name in WAITING or by_mask:
            self.found.append(name)
        return function(*arguments, **(options or {}))


def step(
    model: FaceEstimator,
    batch: FrameBatch,
    relighter: Relighter,
    average: MovingAverage,
) -> torch.Tensor:
    """All but the optimiser, whose count of steps is the host's own."""
    batch = batch.lit(relighter)
    terms = objective(
        model(batch.image), batch.image, batch.mask, batch.landmarks, batch.clip, batch.partner,
        model.face_model.landmarks, ObjectiveConfig(partner="average"),
    )  # fmt: skip
    terms["loss"].backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    average.update(model, 3)
    return terms["loss"]


@pytest.fixture
def batch(face_model):
    rng = np.random.default_rng(0)
    relighter = Relighter(face_model)
    points = (face_model.mean[face_model.landmarks, :2].numpy() * (20, -20) + 32).astype("float32")
    frames = [
        Frame(
            rng.integers(0, 256, (64, 64, 3), dtype="uint8"),
            rng.integers(0, 2, (64, 64), dtype="uint8"),
            points,
            relighter.draw(points, 64, rng, 0.3) if i % 2 else None,
        )
        for i in range(4)
    ]
    return FrameBatch.stack([frames[:2], frames[2:]])


def test_the_watch_sees_what_waits():
    values = torch.rand(4)
    with Watch() as watch:
        values.sum().item()
        values[values > 0.5]
        values.new_tensor([1.0])
    assert {"_local_scalar_dense", "index", "lift_fresh"} <= set(watch.found)


@pytest.mark.parametrize("reflectance", ["map", "linear"])
def test_no_operation_of_a_step_waits(batch, face_model, reflectance, monkeypatch):
    """On the CPU, with the operations that a GPU would be given around the visibility itself."""

    def rasterize(projected, triangles, image_size, cull):
        with torch.no_grad():
            pix_to_face = visible(projected, triangles, image_size, cull)[0]
        return pix_to_face, *rasterizer_torch.barycentric_and_depth(
            projected, triangles, pix_to_face
        )

    visible = rasterizer_numba.rasterize
    monkeypatch.setattr(rasterizer_numba, "rasterize", rasterize)
    monkeypatch.setattr(rasterizer_numba, "interpolate", rasterizer_torch.interpolate)
    config = FaceEstimatorConfig(image_size=64, width=0.125, reflectance=reflectance)
    model = FaceEstimator(config, face_model=face_model)
    relighter = Relighter(face_model)
    batch = batch.to(torch.device("cpu"))
    rest = relighter, MovingAverage(model, 0.9)
    step(model, batch, *rest)  # what is made once
    with Watch() as watch:
        step(model, batch, *rest)
    assert watch.found == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_the_gpu_does_not_wait(batch, face_model):
    device = torch.device("cuda")
    model = FaceEstimator(FaceEstimatorConfig(image_size=64, width=0.125), face_model=face_model)
    model = model.to(device)
    relighter = Relighter(model.face_model)
    batch = batch.to(device)
    rest = relighter, MovingAverage(model, 0.9)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, batch, *rest)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step(model, batch, *rest)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
