"""Results in the photo's own coordinates, with an untrained estimator: the mean face, upright."""

import json
import math
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from cest.configuration import FaceEstimatorConfig
from cest.cropping import SquareCrop, covered
from cest.detection import EMBEDDED, FaceDetector
from cest.face_model import load_face_model
from cest.geometry import ambient_illumination, project, shade
from cest.lighting import directional_light, named_light, roll_light
from cest.modeling import FaceEstimator
from cest.photo import read_photo
from cest.reconstruction import RESULT_FILES, NoFaceError, Reconstructor


@pytest.fixture(scope="module")
def reconstructor() -> Reconstructor:
    torch.manual_seed(0)
    model = FaceEstimator(FaceEstimatorConfig(image_size=64, width=0.125))
    return Reconstructor(model, FaceDetector(EMBEDDED), "cpu", name="untrained")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return read_photo(files("cest") / "assets" / "astronaut.jpg")


def grey(size: tuple[int, int] = (240, 320)) -> np.ndarray:
    return np.full((*size, 3), 100, np.uint8)


def changed(picture: Image.Image, photo: np.ndarray) -> np.ndarray:
    return (np.asarray(picture) != photo).any(-1)


@pytest.mark.parametrize("angle", [0.0, 0.6, -1.9])
def test_the_drawing_is_where_the_vertices_are(reconstructor, angle):
    """The outline's box, to the pixel: vertices are its corners."""
    photo = grey()
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(150, 120, 140, angle))
    mask = changed(face.relight(ambient_illumination(9.0)), photo)
    rows, columns = np.where(mask)
    points = face.vertices_photo[:, :2]
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        [*points.min(0), *points.max(0)],
        atol=1.0,
    )


def test_vertices_photo_is_the_projection_moved_to_the_photo(reconstructor):
    """Without roll: x grows to the right, y down, depth in the same scale."""
    (face,) = reconstructor.reconstruct(grey(), crop=SquareCrop(100, 90, 60))
    projected = project(face.vertices, face.parameters.viewpoint)[0].detach().numpy()
    expected = projected * (30, -30, 30) + (100, 90, 0)
    np.testing.assert_allclose(face.vertices_photo, expected, atol=1e-4)
    nose, chin, brow = (face.landmarks_photo[i] for i in (30, 8, 24))
    assert brow[1] < nose[1] < chin[1]
    ear = face.vertices_photo[face.face_model.landmarks[0], 2]
    assert face.vertices_photo[face.face_model.landmarks[30], 2] > ear


def test_turning_the_photo_turns_the_result(reconstructor, astronaut):
    """A quarter turn moves pixels exactly; crop, light and drawing have to follow."""
    crop = SquareCrop(222, 130, 150, 0.1)
    turned = SquareCrop(130, 512 - 222, 150, 0.1 + math.pi / 2)
    (upright,) = reconstructor.reconstruct(astronaut, crop=crop)
    (aside,) = reconstructor.reconstruct(np.rot90(astronaut).copy(), crop=turned)
    x, y = upright.vertices_photo[:, 0], upright.vertices_photo[:, 1]
    # Crops agree to a level of rounding, which the untrained networks pass on.
    np.testing.assert_allclose(aside.vertices_photo[:, :2], np.stack([y, 512 - x], -1), atol=0.2)
    for light in (named_light("left"), named_light("top")):
        # The same light in the photo's axes must differ, its turned twin agree.
        first = np.asarray(upright.relight(light)).astype(int)
        second = np.asarray(aside.relight(roll_light(light, math.pi / 2))).astype(int)
        wrong = np.asarray(aside.relight(light)).astype(int)
        mask = (first != astronaut).any(-1)
        assert np.abs(np.rot90(second, -1) - first)[mask].mean() < 2
        assert np.abs(np.rot90(wrong, -1) - first)[mask].mean() > 10


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, math.pi])
def test_light_from_the_left_of_the_picture(reconstructor, angle):
    """However the crop is turned, left is the photo's left."""
    photo = grey()
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(160, 120, 200, angle))
    lit = np.asarray(face.geometry(named_light("left"))).astype(float).mean(-1)
    mask = changed(face.geometry(named_light("left")), photo)
    columns = np.where(mask)[1]
    middle = int(columns.mean())
    left, right = lit[:, :middle][mask[:, :middle]], lit[:, middle:][mask[:, middle:]]
    assert left.mean() > right.mean() + 40


def test_its_own_light_is_the_overlay(reconstructor, astronaut):
    (face,) = reconstructor.reconstruct(astronaut, crop=SquareCrop(222, 130, 150, 0.7))
    np.testing.assert_array_equal(
        np.asarray(face.relight(face.illumination)), np.asarray(face.overlay())
    )


def test_exposure_is_the_shading_of_what_faces_the_viewer(reconstructor):
    (face,) = reconstructor.reconstruct(grey(), crop=SquareCrop(160, 120, 200))
    light = directional_light((1.0, 2.0, 3.0), 0.8, 0.3)
    face.parameters.illumination.copy_(light)
    normal = torch.tensor([0.0, 0.0, 1.0])
    assert face.exposure == pytest.approx(float(shade(normal[None, None], light[None])))


def test_photometric_error_is_that_of_a_known_picture(reconstructor):
    """A photo of one grey against a rendering of one grey."""
    (face,) = reconstructor.reconstruct(grey(), crop=SquareCrop(160, 120, 200))
    parameters = face.parameters
    parameters.reflectance_map.fill_(0.5)
    parameters.illumination.copy_(ambient_illumination())
    assert face.photometric_error == pytest.approx(127.5 - 100, abs=1e-3)


def test_a_face_off_the_photo_leaves_it_alone(reconstructor):
    photo = grey()
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(-500, 50, 60))
    np.testing.assert_array_equal(np.asarray(face.overlay()), photo)


def test_a_very_large_face_is_drawn_too(reconstructor):
    photo = grey((3000, 3000))
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(1500, 1500, 3200))
    mask = changed(face.geometry(), photo)
    assert mask[1400:1600, 1400:1600].mean() > 0.95
    assert not mask[:, :100].any()


def test_faces_by_number(reconstructor, astronaut):
    photo = np.concatenate([astronaut[:256], astronaut[:256, :400][::1, ::1]], 1)
    assert len(reconstructor.reconstruct(photo, "all")) == 2
    (second,) = reconstructor.reconstruct(photo, 1)
    assert second.index == 1
    with pytest.raises(NoFaceError, match="There is no face 2: the photo has 2"):
        reconstructor.reconstruct(photo, 2)


def test_no_face(reconstructor):
    with pytest.raises(NoFaceError, match="No face was found"):
        reconstructor.reconstruct(grey())


def test_only_a_finer_level_of_the_same_model_is_drawn():
    """Not the package's for an own build, nor a coarser level than the estimator's own."""

    def drawn(face_model):
        config = FaceEstimatorConfig(image_size=64, width=0.125)
        model = FaceEstimator(config, face_model)
        reconstructor = Reconstructor(model, FaceDetector(EMBEDDED), "cpu")
        (face,) = reconstructor.reconstruct(grey(), crop=SquareCrop(100, 90, 60))
        return face.face_model

    level0, level1, level2 = (load_face_model("open", level) for level in range(3))
    assert drawn(level0).n_vertices == level1.n_vertices
    assert drawn(level2).n_vertices == level2.n_vertices
    own = replace(level0, mean=level0.mean * 1.1, content_hash="0" * 64)
    assert drawn(own).content_hash == own.content_hash
    assert drawn(own).n_vertices == own.n_vertices


def test_everything_is_saved_and_agrees(reconstructor, astronaut, tmp_path):
    (face,) = reconstructor.reconstruct(astronaut)
    written = face.save(tmp_path / "deep" / "er")
    assert [path.name for path in written] == list(RESULT_FILES)
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == sorted(RESULT_FILES)
    assert Image.open(written[RESULT_FILES.index("overlay.png")]).size == (512, 512)

    mesh = trimesh.load_mesh(written[RESULT_FILES.index("face.glb")], process=False)
    np.testing.assert_allclose(mesh.vertices, face.vertices[0].numpy() / 10, atol=1e-6)
    width = np.ptp(mesh.vertices[:, 0])
    assert 0.12 < width < 0.25  # metres: a human head

    said = json.loads(written[RESULT_FILES.index("parameters.json")].read_text())
    viewpoint = torch.tensor(
        [
            [
                said["viewpoint"]["log_scale"],
                *said["viewpoint"]["rotation"],
                *said["viewpoint"]["translation"],
            ]
        ]
    )
    coefficients = torch.tensor([said["identity_coefficients"] + said["expression_coefficients"]])
    points = project(face.face_model.vertices(coefficients), viewpoint)[0].numpy()
    crop = SquareCrop(**{k: said["crop"][k] for k in ("center_x", "center_y", "size", "angle")})
    np.testing.assert_allclose(
        crop.to_photo(points[face.face_model.landmarks.numpy(), :2]),
        said["landmarks_68"],
        atol=1e-3,
    )
    assert said["model"]["face_model_hash"] == face.face_model.content_hash
    assert said["illumination"] == pytest.approx(face.illumination.tolist())


def test_whose_detail_is_drawn(reconstructor, astronaut):
    """The photo's over what was estimated of it; none over a reflectance that was given."""
    crop = SquareCrop(222, 130, 150)
    (face,) = reconstructor.reconstruct(astronaut, crop=crop)
    (plain,) = reconstructor.reconstruct(astronaut, crop=crop, detail=False)
    assert face.reflectance.shape[-1] == 512 and face.describe()["model"]["detail_of_the_photo"]
    assert torch.equal(plain.reflectance, plain.parameters.reflectance_map)
    assert torch.equal(face.without_detail().reflectance, plain.reflectance)
    given = torch.full_like(plain.reflectance, 0.5)
    assert torch.equal(face.with_factors(reflectance_map=given).reflectance, given)
    turned = face.posed(turn=(0, 30, 0))
    assert torch.equal(turned.detail, face.detail)  # of the photo, not of the new pose
    assert reconstructor.refine(plain, 1).detail is None
    assert reconstructor.refine(face, 1).detail is not None


def test_what_the_photo_shows_of_a_crop():
    photo = np.zeros((100, 60, 3), np.uint8)
    assert covered(photo, SquareCrop(30, 50, 60), 32).all()
    right = covered(photo, SquareCrop(60, 50, 40), 32)
    assert right[:, :16].all() and not right[:, 16:].any()
    assert not covered(photo, SquareCrop(-100, 50, 60), 32).any()
    turned = covered(photo, SquareCrop(30, 50, 60, np.pi / 4), 64)
    # A square on its corner reaches beyond the narrow side on both: two triangles of its area.
    assert turned.mean() == pytest.approx(1 - 2 * (np.sqrt(2) / 2 - 1 / 2) ** 2, abs=0.01)
