"""Mesh files of a face: GLB, OBJ + MTL + PNG, PLY, all through trimesh.

The face frame (+x right, +y up, +z to the viewer) is glTF's, so axes stay; decimetres become
metres. Textures hold sRGB albedo, which is what all three formats expect.
"""

from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial, SimpleMaterial

METRES_PER_UNIT = 0.1
"""Face frame (decimetres) to the files' unit."""
ROUGHNESS = 0.85
"""Of skin, roughly; the estimators know diffuse reflection only."""


def textured_mesh(
    vertices: np.ndarray,
    triangles: np.ndarray,
    normals: np.ndarray,
    uv: np.ndarray,
    albedo: Image.Image,
) -> trimesh.Trimesh:
    """A mesh in metres that carries its albedo as a UV texture.

    vertices (K, 3) face frame, dm; triangles (F, 3) counter-clockwise; normals (K, 3) unit;
    uv (K, 2) in [0, 1], v up; albedo: RGB, its first row at v = 1. Vertices keep their order.
    """
    material = PBRMaterial(
        name="albedo",
        baseColorTexture=albedo,
        baseColorFactor=[255, 255, 255, 255],
        metallicFactor=0.0,
        roughnessFactor=ROUGHNESS,
    )
    return trimesh.Trimesh(
        vertices=np.asarray(vertices, np.float64) * METRES_PER_UNIT,
        faces=triangles,
        vertex_normals=normals,
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
        process=False,
        validate=False,
    )


def write_glb(mesh: trimesh.Trimesh, path: Path, unlit: bool = False) -> None:
    """Write a textured mesh as binary glTF with smooth normals.

    By default a lit PBR material (metallic 0), as engines that light the face want it; `unlit`
    asks viewers to show the albedo as it is (KHR_materials_unlit), without lighting it.
    """

    def mark_unlit(tree: dict) -> None:
        for material in tree["materials"]:
            material.setdefault("extensions", {})["KHR_materials_unlit"] = {}
        tree.setdefault("extensionsUsed", []).append("KHR_materials_unlit")

    data = trimesh.exchange.gltf.export_glb(
        trimesh.Scene({"face": mesh}),
        include_normals=True,
        tree_postprocessor=mark_unlit if unlit else None,
    )
    Path(path).write_bytes(data)


def write_obj(mesh: trimesh.Trimesh, path: Path, texture: Path) -> None:
    """Write `path` and, beside it, an MTL of the same stem that refers to the file `texture`.

    The texture must be in the same folder; it is not written.
    """
    path = Path(path)
    material = SimpleMaterial(name="albedo", diffuse=[255, 255, 255, 255])
    plain = mesh.copy()
    plain.visual = trimesh.visual.TextureVisuals(uv=mesh.visual.uv, material=material)
    text = trimesh.exchange.obj.export_obj(
        plain,
        include_normals=True,
        include_texture=True,
        write_texture=False,
        mtl_name=path.with_suffix(".mtl").name,
        header="Units: metres. +y up, +z to the viewer.",
    )
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".mtl").write_text(
        f"newmtl albedo\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {texture.name}\n",
        encoding="utf-8",
    )


def write_ply(mesh: trimesh.Trimesh, path: Path, colours: np.ndarray) -> None:
    """Write a binary PLY with a colour (K, 3) uint8 sRGB at each vertex."""
    coloured = trimesh.Trimesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        vertex_normals=mesh.vertex_normals,
        vertex_colors=colours,
        process=False,
        validate=False,
    )
    Path(path).write_bytes(trimesh.exchange.ply.export_ply(coloured, vertex_normal=True))
