"""A saved GLB, read by trimesh and drawn, is the picture that our own renderer makes of the face.

That is axes, scale, the order of the texture's rows, and albedo that is not darkened, in one.
"""

from pathlib import Path

import numpy as np
import torch
import trimesh

from cest.cropping import SquareCrop
from cest.export import METRES_PER_UNIT
from cest.geometry import ambient_illumination, project
from cest.modeling import FaceEstimator
from cest.reconstruction import Reconstructor
from cest.rendering import interpolate, rasterize, render, wrap

SIZE = (160, 160)


def test_a_saved_glb_is_drawn_as_the_face_is(tiny_model: FaceEstimator, tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    reconstructor = Reconstructor(tiny_model, device="cpu")
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(48.0, 48.0, 96.0))
    # A reflectance of which every texel is another colour.
    noise = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    albedo = torch.nn.functional.interpolate(noise, (64, 64), mode="bilinear")
    viewpoint = torch.tensor([[0.0, 0.2, 0.4, 0.1, 0.05, -0.02, 0.0]])
    face = face.with_factors(reflectance_map=albedo, viewpoint=viewpoint)
    face.save(tmp_path)
    light = ambient_illumination()[None]
    ours = render(face.face_model, face.vertices, viewpoint, face.reflectance, light, SIZE)

    mesh = trimesh.load_mesh(tmp_path / "face.glb", process=False)
    vertices = torch.from_numpy(np.array(mesh.vertices)).float()[None] / METRES_PER_UNIT
    texture = np.array(mesh.visual.material.baseColorTexture.convert("RGB"))
    triangles = torch.from_numpy(np.array(mesh.faces))
    fragments = rasterize(project(vertices, viewpoint), triangles, SIZE)
    uv = torch.from_numpy(np.array(mesh.visual.uv)).float()[None]
    where = interpolate(fragments, triangles, uv)
    texels = torch.from_numpy(texture).permute(2, 0, 1)[None].float() / 255
    theirs = wrap(texels, where) * (fragments.pix_to_face >= 0)

    covered = (fragments.pix_to_face[0] >= 0).numpy()
    assert covered.mean() > 0.2
    # Vertices are rounded to float32 in metres: a pixel on a rim may fall to the other side.
    assert (covered != ours.coverage[0, 0].bool().numpy()).mean() < 1e-3
    difference = (theirs - ours.image)[0].abs().amax(0).numpy()[covered]
    # Texels are rounded to bytes, which is half a level.
    assert np.quantile(difference, 0.99) < 0.6 / 255
