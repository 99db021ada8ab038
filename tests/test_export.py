"""Mesh files, read back: axes, unit, order, normals, and the right colour at every vertex."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from cest.export import textured_mesh, write_glb, write_obj, write_ply

# A bent square: x and y as in the picture, the middle column towards the viewer (dm).
VERTICES = np.array(
    [[-1, 1, 0], [0, 1, 0.5], [1, 1, 0], [-1, -1, 0], [0, -1, 0.5], [1, -1, 0]], float
)
TRIANGLES = np.array([[0, 3, 1], [1, 3, 4], [1, 4, 2], [2, 4, 5]])
UV = np.array([[0.1, 0.9], [0.5, 0.9], [0.9, 0.9], [0.1, 0.1], [0.5, 0.1], [0.9, 0.1]])
NORMALS = np.array([[-0.6, 0, 0.8], [0, 0, 1], [0.6, 0, 0.8]] * 2)


@pytest.fixture
def albedo() -> Image.Image:
    """Four colours: red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8], pixels[:8, 8:], pixels[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    pixels[8:, 8:] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def mesh(albedo) -> trimesh.Trimesh:
    return textured_mesh(VERTICES, TRIANGLES, NORMALS, UV, albedo)


def colour_at(picture: Image.Image, u: float, v: float) -> tuple[int, ...]:
    """The texel at OBJ coordinates: v up from the last row."""
    return picture.convert("RGB").getpixel(
        (
            min(int(u * picture.width), picture.width - 1),
            min(int((1 - v) * picture.height), picture.height - 1),
        )
    )


def corners_are_right(vertices: np.ndarray, uv: np.ndarray, picture: Image.Image) -> None:
    expected = {
        (-1, 1): (255, 0, 0),
        (1, 1): (0, 255, 0),
        (-1, -1): (0, 0, 255),
        (1, -1): (255, 255, 255),
    }
    seen = 0
    for vertex, (u, v) in zip(vertices, uv):
        key = tuple(np.sign(vertex[:2]).astype(int))
        if key in expected:
            assert colour_at(picture, u, v) == expected[key]
            seen += 1
    assert seen == 4


def gltf_of(path: Path) -> tuple[dict, bytes]:
    """The JSON and the binary chunk of a GLB, by the format's own definition."""
    data = path.read_bytes()
    magic, version, total = struct.unpack("<4sII", data[:12])
    assert (magic, version, total) == (b"glTF", 2, len(data))
    length = struct.unpack("<I", data[12:16])[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def accessor(tree: dict, binary: bytes, index: int, width: int) -> np.ndarray:
    entry = tree["accessors"][index]
    view = tree["bufferViews"][entry["bufferView"]]
    start = view.get("byteOffset", 0) + entry.get("byteOffset", 0)
    return np.frombuffer(binary, "<f4", entry["count"] * width, start).reshape(-1, width)


def test_glb_as_the_standard_reads_it(mesh, tmp_path):
    """Not through trimesh: metres, +Y up, +Z forward, v counted from the top row."""
    write_glb(mesh, tmp_path / "face.glb")
    tree, binary = gltf_of(tmp_path / "face.glb")
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    position = accessor(tree, binary, attributes["POSITION"], 3)
    np.testing.assert_allclose(position, VERTICES / 10, atol=1e-7)
    np.testing.assert_allclose(accessor(tree, binary, attributes["NORMAL"], 3), NORMALS, atol=1e-6)
    coordinates = accessor(tree, binary, attributes["TEXCOORD_0"], 2)
    np.testing.assert_allclose(coordinates, UV * [1, -1] + [0, 1], atol=1e-6)
    assert not any(
        "matrix" in node and node["matrix"] != np.eye(4).T.ravel().tolist()
        for node in tree["nodes"]
    )
    (material,) = tree["materials"]
    surface = material["pbrMetallicRoughness"]
    assert surface["metallicFactor"] == 0
    assert surface["roughnessFactor"] > 0.5
    assert surface.get("baseColorFactor", [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert "extensionsUsed" not in tree


def test_unlit_glb_says_so(mesh, tmp_path):
    write_glb(mesh, tmp_path / "face.glb", unlit=True)
    tree, _ = gltf_of(tmp_path / "face.glb")
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert tree["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}


def test_glb_through_trimesh(mesh, tmp_path):
    write_glb(mesh, tmp_path / "face.glb")
    again = trimesh.load_mesh(tmp_path / "face.glb", process=False)
    np.testing.assert_array_equal(again.faces, TRIANGLES)
    corners_are_right(again.vertices, again.visual.uv, again.visual.material.baseColorTexture)
    assert (again.face_normals[:, 2] > 0).all()  # the outside faces the viewer


def test_obj(mesh, albedo, tmp_path):
    albedo.save(tmp_path / "albedo.png")
    write_obj(mesh, tmp_path / "face.obj", tmp_path / "albedo.png")
    assert "mtllib face.mtl" in (tmp_path / "face.obj").read_text()
    assert "map_Kd albedo.png" in (tmp_path / "face.mtl").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["albedo.png", "face.mtl", "face.obj"]
    again = trimesh.load_mesh(tmp_path / "face.obj", process=False, maintain_order=True)
    np.testing.assert_allclose(again.vertices, VERTICES / 10, atol=1e-7)
    corners_are_right(again.vertices, again.visual.uv, again.visual.material.image)


def test_ply(mesh, tmp_path):
    colours = np.arange(18, dtype=np.uint8).reshape(6, 3) * 10
    write_ply(mesh, tmp_path / "face.ply", colours)
    again = trimesh.load_mesh(tmp_path / "face.ply", process=False)
    np.testing.assert_allclose(again.vertices, VERTICES / 10, atol=1e-7)
    np.testing.assert_array_equal(again.faces, TRIANGLES)
    np.testing.assert_array_equal(again.visual.vertex_colors[:, :3], colours)
    # trimesh computes normals anew when it reads; what was written stands in the file.
    header, body = (tmp_path / "face.ply").read_bytes().split(b"end_header\n", 1)
    names = [line.split()[-1] for line in header.decode().splitlines() if "property" in line]
    assert names[:6] == ["x", "y", "z", "nx", "ny", "nz"]
    rows = np.frombuffer(body, np.dtype([("f", "<f4", 6), ("colour", "u1", 4)]), 6)
    np.testing.assert_allclose(rows["f"][:, 3:], NORMALS, atol=1e-6)
