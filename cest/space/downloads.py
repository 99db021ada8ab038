"""The files a visitor can take away."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from cest.pictures import to_uint8
from cest.reconstruction import Reconstruction

DOWNLOADS = ("face.glb", "face-obj.zip", "textures.zip", "parameters.json", "everything.zip")


def write_downloads(face: Reconstruction, folder: Path) -> list[Path]:
    """Writes all files of one face into a folder, which is made, and returns `DOWNLOADS` of them.

    textures.zip has the albedo and, as photo_texture.png, the photo's own colours in the texture
    plane; face-obj.zip has the mesh with the albedo; everything.zip all files there are.
    """
    files = {path.name: path for path in face.save(folder)}
    texture = folder / "photo_texture.png"
    Image.fromarray(to_uint8(face.parameters.illuminated_texture[0]).numpy()).save(texture)
    files[texture.name] = texture
    _zip(folder / "face-obj.zip", files, ("face.obj", "face.mtl", "albedo.png"))
    _zip(folder / "textures.zip", files, ("albedo.png", texture.name))
    _zip(folder / "everything.zip", files, files)
    return [folder / name for name in DOWNLOADS]


def _zip(archive: Path, files: Mapping[str, Path], names: Iterable[str]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in names:
            # PNG is deflated already.
            packed = zipfile.ZIP_STORED if name.endswith(".png") else None
            target.write(files[name], name, packed)
