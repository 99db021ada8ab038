import os

# Two threads, so that a large machine runs what a small one does.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch

from cest.configuration import FaceEstimatorConfig
from cest.face_model import FaceModel, load_face_model
from cest.modeling import FaceEstimator


@pytest.fixture(scope="session")
def face_model() -> FaceModel:
    return load_face_model("open", level=0)


@pytest.fixture(params=["cest", "iest"])
def tiny_model(request: pytest.FixtureRequest, face_model: FaceModel) -> FaceEstimator:
    """64 pixels, an eighth of the width, random weights: what tests of plumbing need."""
    torch.manual_seed(0)
    config = FaceEstimatorConfig(conditioning=request.param, image_size=64, width=0.125)
    return FaceEstimator(config, face_model=face_model).eval()
