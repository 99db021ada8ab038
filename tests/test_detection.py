"""Cropping is exact geometry; both detectors find the faces of a real photo, however it is turned.

YuNet's tests run where the environment variable CEST_DETECTOR names its file.
"""

import math
import os
from importlib.resources import files

import cv2
import numpy as np
import pytest

from cest.cropping import SquareCrop, crop_from_landmarks, crop_image, roll_of
from cest.detection import EMBEDDED, DetectorError, FaceDetector
from cest.photo import read_photo

YUNET = os.environ.get("CEST_DETECTOR")
DETECTORS = [
    EMBEDDED,
    pytest.param(YUNET, marks=pytest.mark.skipif(not YUNET, reason="CEST_DETECTOR is not set")),
]
# The astronaut's face, read off the picture: the middle between brows and chin, and the box of the
# landmarks from brow to chin.
FACE_CENTER, FACE_SIZE = (222.0, 128.0), 90.0


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return read_photo(files("cest") / "assets" / "astronaut.jpg")


def ramp(height: int, width: int) -> np.ndarray:
    """A photo whose red is x and green y of a pixel's middle, in units of one level a pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


# -- cropping ------------------------------------------------------------------------------------


def test_there_and_back():
    crop = SquareCrop(37.5, 80.25, 61.0, 0.7)
    points = np.random.default_rng(0).uniform(-2, 2, (50, 2))
    np.testing.assert_allclose(crop.from_photo(crop.to_photo(points)), points, atol=1e-12)


def test_angle_is_counter_clockwise_as_seen():
    """Turned by a quarter, the crop's right is the photo's up."""
    crop = SquareCrop(10, 10, 4, math.pi / 2)
    np.testing.assert_allclose(crop.to_photo(np.array([1.0, 0.0])), [10, 8], atol=1e-12)
    np.testing.assert_allclose(crop.to_photo(np.array([0.0, 1.0])), [8, 10], atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
@pytest.mark.parametrize("size", [40.0, 97.0])
def test_a_crop_shows_what_its_coordinates_say(size, angle):
    """On a ramp bilinear sampling is exact: half a level of rounding, and OpenCV's 1/32 pixel."""
    crop, pixels = SquareCrop(100.0, 90.0, size, angle), 49
    got = crop_image(ramp(200, 210), crop, pixels).astype(float)
    grid = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    x, y = np.meshgrid(grid, -grid)
    expected = crop.to_photo(np.stack([x, y], -1)) - 0.5
    assert np.abs(got[..., :2] - expected).max() < 0.5 + 1 / 16


def test_shrinking_averages_and_keeps_its_place():
    """A large crop: area averaging of a ramp keeps its values to within a level or two."""
    y, x = np.mgrid[:1000, :1200]
    photo = np.stack([x / 5, y / 5, (x + y) % 2 * 255], -1).astype(np.uint8)
    crop = SquareCrop(600, 500, 800, 0.0)
    got = crop_image(photo, crop, 64).astype(float)
    grid = (np.arange(64) + 0.5) / 64 * 2 - 1
    expected = crop.to_photo(np.stack(np.meshgrid(grid, -grid), -1)) / 5
    assert np.abs(got[..., :2] - expected).max() < 1.5
    assert np.abs(got[..., 2] - 127.5).max() < 16  # the checkerboard is grey, not aliased


def test_outside_the_photo_edges_are_repeated():
    photo = ramp(50, 50)
    got = crop_image(photo, SquareCrop(0, 0, 40), 20)
    assert (got[:10, :10] == photo[0, 0]).all()
    far = crop_image(photo, SquareCrop(-500, 25, 40), 20)
    assert (far[..., 0] == 0).all()


@pytest.mark.parametrize("values", [(0, 0, 0), (0, 0, -3), (math.nan, 0, 5), (0, 0, math.inf)])
def test_impossible_crops_are_refused(values):
    with pytest.raises(ValueError, match="A crop needs"):
        SquareCrop(*map(float, values))


def landmarks() -> np.ndarray:
    """68 points on a frontal face: only those that matter here are where they belong."""
    points = np.tile([100.0, 110.0], (68, 1))
    points[0], points[16], points[8] = (40, 90), (160, 90), (100, 170)
    points[19], points[24] = (75, 70), (125, 70)
    points[36:42], points[42:48], points[48:68] = (75, 85), (125, 85), (100, 140)
    return points


@pytest.mark.parametrize("angle", [0.0, 0.5, -1.2, 3.0])
def test_crop_from_landmarks_turns_with_the_face(angle):
    """The box is 120 wide and 100 high about (100, 120); rolled, it stays so in the face's axes."""
    turn = SquareCrop(100, 120, 2.0, angle)
    points = turn.to_photo(SquareCrop(100, 120, 2.0).from_photo(landmarks()))
    assert roll_of(points) == pytest.approx(angle, abs=1e-9)
    crop = crop_from_landmarks(points)
    assert (crop.center_x, crop.center_y) == pytest.approx((100, 120))
    assert crop.size == pytest.approx(1.65 * 120)
    assert crop.angle == pytest.approx(angle)


# -- detection -----------------------------------------------------------------------------------


def assert_is_the_face(crop: SquareCrop, center, size, angle):
    """Within a fifth of the face and 22 degrees: what estimators are trained to put right."""
    assert math.hypot(crop.center_x - center[0], crop.center_y - center[1]) < 0.2 * size
    assert 1.65 * size * 0.75 < crop.size < 1.65 * size * 1.33
    assert abs(math.remainder(crop.angle - angle, 2 * math.pi)) < math.radians(22)


@pytest.mark.parametrize("model", DETECTORS)
def test_the_astronaut(astronaut, model):
    (face,) = FaceDetector(model).detect(astronaut)
    assert_is_the_face(face.crop, FACE_CENTER, FACE_SIZE, 0)
    left, top, right, bottom = face.box
    assert left < FACE_CENTER[0] < right
    assert top < FACE_CENTER[1] < bottom
    assert face.score > 0.8


@pytest.mark.parametrize("scale", [0.35, 1.0, 4.0])
@pytest.mark.parametrize("model", DETECTORS)
def test_sizes(astronaut, model, scale):
    photo = cv2.resize(astronaut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    face = FaceDetector(model).detect(photo)[0]
    assert_is_the_face(face.crop, np.multiply(FACE_CENTER, scale), FACE_SIZE * scale, 0)


@pytest.mark.parametrize("model", DETECTORS)
def test_a_face_that_fills_the_photo(astronaut, model):
    face = FaceDetector(model).detect(astronaut[75:185, 165:280])[0]
    assert_is_the_face(face.crop, np.subtract(FACE_CENTER, (165, 75)), FACE_SIZE, 0)


@pytest.mark.parametrize("degrees", [25, -25, 90, 180, 270])
@pytest.mark.parametrize("model", DETECTORS)
def test_rolled(astronaut, model, degrees):
    """The photo's content turned counter-clockwise about its middle."""
    angle = math.radians(degrees)
    window = SquareCrop(256, 256, 512, -angle)
    photo = crop_image(astronaut, window, 512)
    x, y = window.from_photo(np.array(FACE_CENTER))
    face = FaceDetector(model).detect(photo)[0]
    assert_is_the_face(face.crop, ((x + 1) * 256, (1 - y) * 256), FACE_SIZE, angle)


@pytest.mark.parametrize("model", DETECTORS)
def test_twelve_faces_of_many_sizes(astronaut, model):
    photo = np.full((900, 1200, 3), 90, np.uint8)
    face, expected = astronaut[40:220, 130:310], []
    for i in range(12):
        row, column = divmod(i, 4)
        side = 110 + 15 * i
        x, y = column * 300 + 5, row * 300 + 5
        photo[y : y + side, x : x + side] = cv2.resize(
            face, (side, side), interpolation=cv2.INTER_AREA
        )
        scale = side / 180
        expected.append(
            (
                x + (FACE_CENTER[0] - 130) * scale,
                y + (FACE_CENTER[1] - 40) * scale,
                FACE_SIZE * scale,
            )
        )
    found = FaceDetector(model).detect(photo)
    assert len(found) == 12
    sizes = [face.crop.size for face in found]
    assert sizes == sorted(sizes, reverse=True)
    for x, y, size in expected:
        nearest = min(found, key=lambda f: math.hypot(f.crop.center_x - x, f.crop.center_y - y))
        assert_is_the_face(nearest.crop, (x, y), size, 0)


@pytest.mark.parametrize("model", DETECTORS)
@pytest.mark.parametrize("kind", ["noise", "flat", "rocks", "tiny", "narrow"])
def test_no_face(astronaut, model, kind):
    rng = np.random.default_rng(0)
    photo = {
        "noise": rng.integers(0, 256, (300, 400, 3), np.uint8),
        "flat": np.full((300, 400, 3), 128, np.uint8),
        "rocks": astronaut[260:, :200],  # her suit and the flag
        "tiny": astronaut[:16, :16],
        "narrow": astronaut[:, :20],
    }[kind]
    assert FaceDetector(model).detect(photo) == []


def test_files_that_are_no_detector(tmp_path):
    with pytest.raises(DetectorError, match="is not a file"):
        FaceDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(DetectorError, match="not a YuNet model"):
        FaceDetector(tmp_path / "text.onnx")


def test_without_the_hub_the_embedded_detector_serves(monkeypatch, caplog):
    from cest import detection

    # A port nobody listens on: the error that comes is the HTTP library's own.
    monkeypatch.delenv("CEST_DETECTOR", raising=False)
    monkeypatch.setattr(detection, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(detection, "hf_hub_url", lambda *_: "http://127.0.0.1:9/yunet.onnx")
    assert isinstance(FaceDetector().backend, detection._Embedded)
    assert len(caplog.records) == 1


def test_a_cached_yunet_that_does_not_work_is_done_without(monkeypatch, caplog, tmp_path):
    from cest import detection

    (tmp_path / "damaged.onnx").write_bytes(b"half a network")
    monkeypatch.delenv("CEST_DETECTOR", raising=False)
    monkeypatch.setattr(
        detection, "try_to_load_from_cache", lambda *_: str(tmp_path / "damaged.onnx")
    )
    assert isinstance(FaceDetector().backend, detection._Embedded)
    assert len(caplog.records) == 1


def test_the_second_yunet_is_tried_where_opencv_cannot_run_the_first(monkeypatch, tmp_path):
    """Read but not run, as OpenCV does with some networks; and one that the Hub no longer has."""
    from huggingface_hub.errors import EntryNotFoundError

    from cest import detection

    class Network:
        def setInputSize(self, size):
            pass

        def detect(self, photo):
            if self.first:
                raise cv2.error("not implemented")
            return 1, None

    def create(path, *_, **__):
        network = Network()
        network.first = path.endswith(detection.YUNET_FILES[0])
        return network

    def download(_, name):
        (tmp_path / name).write_bytes(b"")
        return str(tmp_path / name)

    monkeypatch.delenv("CEST_DETECTOR", raising=False)
    monkeypatch.setattr(detection.cv2.FaceDetectorYN, "create", create)
    with pytest.raises(DetectorError, match="not a YuNet model"):
        FaceDetector(download(None, detection.YUNET_FILES[0]))
    monkeypatch.setattr(detection, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(detection, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(detection, "hf_hub_download", download)
    assert not FaceDetector().backend._network.first

    def gone(_, name):
        if name == detection.YUNET_FILES[0]:
            raise EntryNotFoundError(name)
        return download(_, name)

    monkeypatch.setattr(detection, "hf_hub_download", gone)
    assert not FaceDetector().backend._network.first


def test_the_embedded_detector_looks_at_no_more_than_it_needs(astronaut, monkeypatch):
    """24 megapixels at full size take 2 GB; a small face that is left out, a large one is not."""
    from cest.embedded_detector import LARGEST_SIDE, EmbeddedDetector

    seen = []
    original = EmbeddedDetector._detect_level

    def note(self, level, scale):
        seen.append(level.shape[:2])
        return original(self, level, scale)

    monkeypatch.setattr(EmbeddedDetector, "_detect_level", note)
    photo = cv2.resize(astronaut, (4000, 4000), interpolation=cv2.INTER_AREA)
    found = EmbeddedDetector().detect(photo)
    assert seen[0] == (LARGEST_SIDE, LARGEST_SIDE)
    best = found.centers[found.scores.argmax()]
    assert np.abs(best - np.multiply(FACE_CENTER, 4000 / 512)).max() < 0.2 * FACE_SIZE * 4000 / 512
