"""Draw the face model: mean, identities, expressions, landmarks, UV layout.

    python docs/face_model_pictures.py [FOLDER]

writes one PNG each into FOLDER (default: face_model_pictures).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cest.face_model import FaceModel, load_face_model
from cest.pictures import CLAY_LIGHT
from cest.rendering import render

SIZE = 320  # pixels a face
PART_COLOURS = torch.tensor(
    [[0.80, 0.65, 0.55], [0.92, 0.92, 0.92], [0.70, 0.38, 0.38], [0.25, 0.10, 0.10]]
)


def part_map(model: FaceModel, size: int = 1024) -> Tensor:
    """Texture (3, size, size) that colours skin, eyeballs, lips and inner mouth."""
    picture = Image.new("RGB", (size, size))
    pen = ImageDraw.Draw(picture)
    colours = (PART_COLOURS * 255).int().tolist()
    labels = model.parts[model.triangles].amin(1).tolist()
    for corners, label in zip(_texels(model, size), labels):
        pen.polygon(corners, fill=tuple(colours[label]), outline=tuple(colours[label]))
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(size, size, 3).permute(2, 0, 1) / 255


def faces(model: FaceModel, vertices: Tensor, yaw: float = 0.0) -> Tensor:
    """Pictures (B, 3, SIZE, SIZE) of shapes (B, K, 3), turned by `yaw` radians."""
    viewpoint = torch.zeros(len(vertices), 7)
    viewpoint[:, 0], viewpoint[:, 2], viewpoint[:, 5] = -0.25, yaw, -0.18
    light = torch.tensor(CLAY_LIGHT).expand(len(vertices), -1)
    texture = part_map(model).expand(len(vertices), -1, -1, -1)
    drawn = render(model, vertices, viewpoint, texture, light, (SIZE, SIZE))
    return drawn.image.clamp(0, 1) * drawn.coverage + (1 - drawn.coverage)


def sheet(pictures: Iterable[Tensor], columns: int) -> Image.Image:
    """Pictures (3, H, W) in [0, 1], row by row."""
    tiles = [(p * 255).byte().permute(1, 2, 0).contiguous() for p in pictures]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    result = Image.new("RGB", (columns * width, rows * height), "white")
    for i, tile in enumerate(tiles):
        place = (i % columns * width, i // columns * height)
        result.paste(Image.frombytes("RGB", (width, height), bytes(tile.flatten().tolist())), place)
    return result


def random_shapes(model: FaceModel, count: int, identity: bool) -> Tensor:
    """Shapes (count, K, 3) with random identity or random expression coefficients."""
    alpha = torch.randn(count, model.n_coefficients, generator=torch.Generator().manual_seed(0))
    other = slice(model.n_identity, None) if identity else slice(model.n_identity)
    alpha[:, other] = 0
    return model.vertices(alpha)


def action_shapes(model: FaceModel) -> Tensor:
    """The mean with each action at full strength (A, K, 3)."""
    alpha = torch.zeros(len(model.actions), model.n_coefficients)
    alpha[:, model.n_identity :] = torch.stack(list(model.actions.values()))
    return model.vertices(alpha)


def landmark_picture(model: FaceModel, scale: int = 3) -> Image.Image:
    """The mean from the front with its 68 numbered landmarks."""
    size = SIZE * scale
    picture = sheet(faces(model, model.mean[None]), 1).resize((size, size))
    pen = ImageDraw.Draw(picture)
    zoom = torch.tensor(-0.25).exp()
    for i, (x, y) in enumerate((model.mean[model.landmarks, :2] * zoom).tolist()):
        column, row = (x + 1) / 2 * size, (1 - (y - 0.18)) / 2 * size
        pen.ellipse((column - 3, row - 3, column + 3, row + 3), fill=(0, 90, 200))
        pen.text((column + 4, row - 5), str(i), fill=(0, 0, 0))
    return picture


def uv_picture(model: FaceModel, size: int = 1024) -> Image.Image:
    """The triangles' outlines in the texture, coloured by part."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    colours = [(60, 60, 60), (0, 90, 200), (190, 40, 40), (0, 130, 60)]
    labels = model.parts[model.triangles].amax(1).tolist()
    for corners, label in zip(_texels(model, size), labels):
        pen.polygon(corners, outline=colours[label])
    return picture


def _texels(model: FaceModel, size: int) -> list[list[tuple[float, float]]]:
    """Corners of each triangle in a texture of `size` texels, row 0 at v = 1."""
    places = torch.stack([model.uv[:, 0], 1 - model.uv[:, 1]], 1) * size
    return [[tuple(corner) for corner in t] for t in places[model.triangles].tolist()]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "face_model_pictures")
    folder.mkdir(parents=True, exist_ok=True)
    coarse, model = load_face_model("open"), load_face_model("open", level=1)
    mean = model.mean[None]
    views = torch.cat([faces(model, mean, yaw) for yaw in (0.0, 0.6, 1.2)])
    people = random_shapes(model, 24, identity=True)
    turned = torch.cat([faces(model, people[:12]), faces(model, people[12:], 0.6)])
    sheet(views, 3).save(folder / "mean.png")
    sheet(turned, 6).save(folder / "identities.png")
    sheet(faces(model, random_shapes(model, 24, identity=False)), 6).save(
        folder / "expressions.png"
    )
    sheet(faces(model, action_shapes(model)), 9).save(folder / "actions.png")
    landmark_picture(model).save(folder / "landmarks.png")
    uv_picture(coarse).save(folder / "uv.png")
    print(f"wrote mean, identities, expressions, actions, landmarks and uv .png to {folder}/")


if __name__ == "__main__":
    main()
