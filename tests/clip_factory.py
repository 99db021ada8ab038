"""A small clip set made of rendered faces, for tests of data and training."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from cest.face_model import FaceModel
from cest.geometry import ambient_illumination, project, to_pixels
from cest.rendering import render

FEATURES = datasets.Features(
    {
        "clip_id": datasets.Value("string"),
        "video_id": datasets.Value("string"),
        "frames": datasets.List(datasets.Image()),
        "landmarks": datasets.List(datasets.Array2D(shape=(68, 2), dtype="float32")),
    }
)


def write_clips(
    path: Path, face_model: FaceModel, clips: int, frames: int, size: int = 64, seed: int = 0
) -> Path:
    """Writes ``clips`` rows of ``frames`` frames: one identity and albedo each, moving light."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for clip in range(clips):
        noise = torch.rand(1, 3, 6, 6, generator=generator)
        albedo = torch.nn.functional.interpolate(noise, (64, 64), mode="bicubic").clamp(0.1, 0.9)
        coefficients = 0.5 * torch.randn(1, face_model.n_coefficients, generator=generator)
        vertices = face_model.vertices(coefficients).expand(frames, -1, -1)
        viewpoint = 0.15 * torch.randn(frames, 7, generator=generator)
        light = ambient_illumination() + 0.4 * torch.randn(frames, 9, generator=generator)
        rendering = render(
            face_model, vertices, viewpoint, albedo.expand(frames, -1, -1, -1), light, (size, size)
        )
        background = torch.rand(3, 1, 1, generator=generator)
        pictures = rendering.image * rendering.coverage + background * (1 - rendering.coverage)
        points = to_pixels(project(vertices, viewpoint)[:, face_model.landmarks, :2], size, size)
        rows.append(
            {
                "clip_id": f"clip{clip}",
                "video_id": f"video{clip // 2}",
                "frames": [{"bytes": _png(picture), "path": None} for picture in pictures],
                "landmarks": points.numpy().tolist(),
            }
        )
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(str(path))
    return path


def _png(picture: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    array = (picture.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG")
    return buffer.getvalue()
