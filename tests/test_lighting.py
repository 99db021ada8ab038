"""Lights: the harmonics of a far light approximate a clamped cosine; turning them is exact."""

import json
import math

import numpy as np
import pytest
import torch

from cest.geometry import sh_basis, shade
from cest.lighting import (
    LIGHT_NAMES,
    LightError,
    directional_light,
    named_light,
    read_light,
    roll_light,
)


def sphere(n: int = 2000) -> torch.Tensor:
    """(n, 3) unit normals all around, float64."""
    normals = np.random.default_rng(0).normal(size=(n, 3))
    return torch.from_numpy(normals / np.linalg.norm(normals, axis=1, keepdims=True))


@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 2, -0.5), (-3, 0, 0)])
def test_a_far_light_is_a_clamped_cosine(direction):
    """Three bands of max(0, cos) are 1/4 + cos/2 + 5/16 P2(cos): at most 3/32 off (at 90°)."""
    unit = torch.tensor(direction, dtype=torch.float64)
    cosine = sphere() @ (unit / unit.norm())
    light = directional_light(direction, strength=1.0, ambient=0.0).double()
    shading = shade(sphere()[None], light[None])[0]
    expected = 1 / 4 + cosine / 2 + 5 / 32 * (3 * cosine**2 - 1)
    torch.testing.assert_close(shading, expected, atol=1e-6, rtol=0)
    assert (shading - cosine.clamp(min=0)).abs().max() < 3 / 32 + 1e-6


def test_ambient_is_added():
    light = directional_light((0, 0, 1), 0.0, 0.4)[None]
    assert shade(sphere().float()[None], light) == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_named_lights_stand_where_they_say(name):
    normal = {
        "left": (-1, 0, 0),
        "right": (1, 0, 0),
        "top": (0, 1, 0),
        "bottom": (0, -1, 0),
        "front": (0, 0, 1),
        "ambient": (0, 0, 1),
    }[name]
    toward = torch.tensor([normal, tuple(-v for v in normal)], dtype=torch.float32)
    near, far = sh_basis(toward) @ named_light(name)
    assert near == far if name == "ambient" else near > far + 0.5


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, -2.0])
def test_rolling_light_and_normals_together_changes_nothing(angle):
    light = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    before = sh_basis(sphere()) @ light
    after = sh_basis(sphere() @ turn.T) @ roll_light(light, angle)
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


def test_files(tmp_path):
    values = [1.0, 2, 3, 4, 5, 6, 7, 8, 9]
    for content in (values, {"illumination": values, "other": 1}):
        (tmp_path / "light.json").write_text(json.dumps(content))
        assert read_light(tmp_path / "light.json").tolist() == values


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"a": 1}', '"text"', "[1,2,3,4,5,6,7,8,NaN]", "[[1],[2,3]]"]
)
def test_files_that_are_no_light(tmp_path, content):
    (tmp_path / "light.json").write_text(content)
    with pytest.raises(LightError, match=r"light\.json"):
        read_light(tmp_path / "light.json")


def test_other_lights_that_are_none(tmp_path):
    with pytest.raises(LightError, match="No such file"):
        read_light(tmp_path / "none.json")
    with pytest.raises(LightError, match="choose one of"):
        named_light("moon")
    for direction in ((0, 0, 0), (1, math.nan, 0)):
        with pytest.raises(LightError, match="three numbers"):
            directional_light(direction)
