"""The same face with other factors: expression, head, light; and the map of the error."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from cest.cropping import SquareCrop, crop_image
from cest.face_model import FaceModel
from cest.geometry import ambient_illumination
from cest.geometry.viewpoint import rotation_matrix
from cest.modeling import FaceEstimator
from cest.pictures import light_sphere
from cest.reconstruction import Reconstruction, Reconstructor


@pytest.fixture
def face(tiny_model: FaceEstimator) -> Reconstruction:
    photo = np.random.default_rng(0).integers(60, 200, (160, 160, 3), dtype=np.uint8)
    reconstructor = Reconstructor(tiny_model, device="cpu")
    (face,) = reconstructor.reconstruct(photo, crop=SquareCrop(80.0, 80.0, 100.0, 0.2))
    return face


def test_nothing_changed_is_the_same(face: Reconstruction) -> None:
    same = face.posed()
    for name in ("vertices", "projected", "viewpoint", "shape_coefficients"):
        torch.testing.assert_close(getattr(same.parameters, name), getattr(face.parameters, name))
    assert same.overlay() == face.overlay()
    assert same.photometric_error == pytest.approx(face.photometric_error, abs=1e-4)


def test_actions_move_what_they_name_and_add_up(
    face: Reconstruction, face_model: FaceModel
) -> None:
    one, two = face.posed({"jawOpen": 0.5}), face.posed({"jawOpen": 1.0, "mouthPucker": 0.0})
    moved = [other.parameters.vertices - face.parameters.vertices for other in (one, two)]
    torch.testing.assert_close(2 * moved[0], moved[1], atol=1e-5, rtol=1e-4)
    chin, brow = face_model.landmarks[8], face_model.landmarks[19]
    assert moved[1][0, chin, 1] < -0.05  # decimetres, down
    assert moved[1][0, chin].norm() > 10 * moved[1][0, brow].norm()
    # Identity, skin and light are what they were.
    n = face_model.n_identity
    for name, part in (("shape_coefficients", slice(n)), ("illumination", slice(None))):
        before, after = getattr(face.parameters, name), getattr(two.parameters, name)
        assert torch.equal(before[:, part], after[:, part])
    assert torch.equal(two.parameters.reflectance_map, face.parameters.reflectance_map)


def test_an_unknown_action_is_told(face: Reconstruction) -> None:
    with pytest.raises(ValueError, match="'wink' is no action of this face model"):
        face.posed({"wink": 1.0})


@pytest.mark.parametrize(
    ("turn", "axis", "sign"), [((0, 20, 0), 0, 1), ((20, 0, 0), 1, -1), ((-20, 0, 0), 1, 1)]
)
def test_the_nose_goes_where_the_head_turns(
    face: Reconstruction, face_model: FaceModel, turn: tuple, axis: int, sign: int
) -> None:
    """About y to the picture's right, about x down: the image frame is x right, y up."""
    nose, turned = face_model.landmarks[30], face.posed(turn=turn)
    apart = turned.parameters.projected[0, nose] - face.parameters.projected[0, nose]
    assert sign * float(apart[axis]) > 0.05


def test_turns_are_put_after_the_estimated_rotation(face: Reconstruction) -> None:
    turned = face.posed(turn=(10.0, 20.0, 30.0))
    by = Rotation.from_euler("xyz", (10, 20, 30), degrees=True).as_matrix()
    before, after = (
        rotation_matrix(one.parameters.viewpoint[0, 1:4]).double().numpy() for one in (face, turned)
    )
    np.testing.assert_allclose(after, by @ before, atol=1e-5)


def test_error_map_is_the_heat_of_the_difference(face: Reconstruction) -> None:
    """Black, red, yellow, white: its sum rises with the error, to three at a quarter of 255."""
    size = 200  # two pixels of the map to one of the photo's crop
    seen, drawn = (
        crop_image(picture, face.crop, size).astype(float)
        for picture in (face.photo, np.asarray(face.overlay()))
    )
    error = np.abs(seen - drawn).mean(-1)
    heat = np.asarray(face.error_map(size), float).sum(-1) / 255
    # Each of three channels is rounded.
    np.testing.assert_allclose(heat, np.minimum(3, 12 * error / 255), atol=1.5 / 255 + 1e-6)
    assert heat.max() > 1 and (heat == 0).mean() > 0.2  # nothing is drawn beside the face


def test_light_on_the_ball_is_where_it_comes_from() -> None:
    light = ambient_illumination(0.5)
    light[3] = 0.5  # ~ x
    picture, coverage = light_sphere(light, 64)
    assert picture[0, 32, 60] > picture[0, 32, 32] > picture[0, 32, 4]
    # Ambient light of 0.5 on an albedo of 0.6, where x is 0.
    assert float(picture[0, 32, 31:33].mean()) == pytest.approx(0.3, abs=1e-3)
    assert float(coverage.mean()) == pytest.approx(np.pi / 4, abs=0.002)
    assert coverage[0, 0, 0] == 0 and coverage[0, 32, 32] == 1


def test_relit_face_keeps_the_photo_around_it(face: Reconstruction) -> None:
    light = ambient_illumination(0.1)
    relit = np.asarray(face.relight(light))
    assert isinstance(face.relight(light), Image.Image)
    assert (relit[0] == face.photo[0]).all()


def test_head_angles_are_of_the_photo(face: Reconstruction) -> None:
    tilt = np.degrees(face.crop.angle)
    frontal = torch.zeros(1, 7)
    straight = face.with_factors(viewpoint=frontal)
    # The face is upright in a crop that is turned counter-clockwise, as the drawing of it is.
    assert straight.head_angles == pytest.approx({"yaw": 0, "pitch": 0, "roll": tilt}, abs=1e-4)
    yaw, pitch, roll = 35.0, -20.0, 50.0
    inside = Rotation.from_euler("YXZ", (yaw, -pitch, roll), degrees=True)
    in_crop = Rotation.from_rotvec((0, 0, -face.crop.angle)) * inside
    frontal[0, 1:4] = torch.from_numpy(in_crop.as_rotvec())
    turned = face.with_factors(viewpoint=frontal)
    expected = {"yaw": yaw, "pitch": pitch, "roll": roll}
    assert turned.head_angles == pytest.approx(expected, abs=1e-3)
    assert turned.describe()["head_angles"] == turned.head_angles
    # Of the picture itself: the nose stands out to where the face looks, which is right and down.
    points, ids = turned.vertices_photo, turned.face_model.landmarks.numpy()
    nose = points[ids[30]] - points[ids[[36, 45, 48, 54]]].mean(0)
    mean = turned.face_model.mean
    x, y, z = mean[ids[30]] - mean[ids[[36, 45, 48, 54]]].mean(0)
    assert abs(x) < 1e-3 and abs(y) < z  # it stands out to the front
    direction = inside.apply((0.0, float(y), float(z)))
    # Shape coefficients are the estimate's: within ten degrees of the mean face's nose.
    cosine = direction[:2] @ (nose[0], -nose[1])
    assert cosine > 0.98 * np.linalg.norm(direction[:2]) * np.linalg.norm(nose[:2])
