import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import cest
from cest.data.annotations import Annotations
from cest.detection import FaceDetector
from cest.landmarks import (
    CLOSE_UP,
    MESH_TO_IBUG,
    CestLandmarks,
    FaceAlignmentLandmarks,
    LandmarkError,
    MediaPipeLandmarks,
    load_landmark_detector,
    square_around,
)
from cest.photo import read_photo
from cest.reconstruction import Reconstructor

ASTRONAUT = Path(cest.__file__).parent / "assets" / "astronaut.jpg"


def spot(height: int, width: int, x: float, y: float, radius: float = 6.0) -> np.ndarray:
    """A white blob on black, its centre at pixel-edge (x, y)."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    grey = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * radius**2))
    return np.repeat(np.uint8(255 * grey)[..., None], 3, axis=2)


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    """(x, y), pixel-edge."""
    weight = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


# Anywhere, also where the close-up leaves the photo and where it magnifies or shrinks.
PLACES = [
    ((200, 300), (150.0, 110.0), (100.0, 60.0, 200.0, 160.0)),
    ((200, 300), (41.3, 37.8), (0.0, 0.0, 90.0, 80.0)),
    ((900, 1200), (700.2, 433.7), (400.0, 150.0, 950.0, 700.0)),
]


@pytest.mark.parametrize(("shape", "at", "box"), PLACES)
def test_mediapipes_points_come_back_where_they_were_seen(shape, at, box):
    """The stand-in sees the blob, as FaceLandmarker would a face, in edge-to-edge coordinates."""

    def detect(picture):
        assert picture.shape == (CLOSE_UP, CLOSE_UP, 3)
        x, y = centre_of_mass(picture) / CLOSE_UP
        return SimpleNamespace(face_landmarks=[[SimpleNamespace(x=x, y=y)] * 478])

    detector = MediaPipeLandmarks(SimpleNamespace(detect=detect), lambda pixels: pixels)
    found = detector(spot(*shape, *at, radius=(box[2] - box[0]) / 15), box)
    assert found.shape == (68, 2)
    # Bytes and bilinear look-up move a blob's centre of mass by less than a tenth of a pixel of
    # the coarser of the two pictures.
    scale = max(1, square_around(box, 2.4).size / CLOSE_UP)
    np.testing.assert_allclose(found, np.tile(at, (68, 1)), atol=0.1 * scale)


def test_no_face_is_none():
    nobody = SimpleNamespace(detect=lambda _: SimpleNamespace(face_landmarks=[]))
    image = np.zeros((64, 64, 3), np.uint8)
    assert MediaPipeLandmarks(nobody, lambda pixels: pixels)(image, (16, 16, 48, 48)) is None
    nobody = SimpleNamespace(get_landmarks_from_image=lambda *_, **__: None)
    assert FaceAlignmentLandmarks(nobody)(image, (16, 16, 48, 48)) is None


@pytest.mark.parametrize(("shape", "at", "box"), PLACES)
def test_face_alignments_points_come_back_where_they_were_seen(shape, at, box):
    """The stand-in counts whole pixels, as the package does."""

    def get_landmarks_from_image(picture, detected_faces):
        ((left, top, right, bottom),) = detected_faces
        # The given box is the face's in the close-up: the middle, a 2.4th of its side.
        assert (left + right) / 2 == (top + bottom) / 2 == CLOSE_UP / 2
        assert (right - left) * 2.4 == pytest.approx(CLOSE_UP)
        return [np.tile(np.floor(centre_of_mass(picture)), (68, 1)).astype(np.float32)]

    aligner = SimpleNamespace(get_landmarks_from_image=get_landmarks_from_image)
    found = FaceAlignmentLandmarks(aligner)(spot(*shape, *at, radius=(box[2] - box[0]) / 15), box)
    pixel = square_around(box, 2.4).size / CLOSE_UP
    np.testing.assert_allclose(found, np.tile(at, (68, 1)), atol=0.5 * pixel + 0.1 * max(1, pixel))


def test_the_real_face_alignment_puts_its_points_where_its_network_looks(monkeypatch):
    """The package's own code about a stand-in network, whose heat maps are the picture."""
    face_alignment = pytest.importorskip("face_alignment")
    torch = pytest.importorskip("torch")

    def network(*_):
        def heat(batch):
            small = torch.nn.functional.avg_pool2d(batch[:, :1], 4)
            return small.expand(-1, 68, -1, -1).clone()

        return heat

    monkeypatch.setattr(face_alignment.FaceAlignment, "_load_native", network)
    detector = FaceAlignmentLandmarks.load()
    at, box = (160.0, 120.0), (100.0, 60.0, 200.0, 160.0)
    found = detector(spot(240, 320, *at), box)
    # A heat map has 64 cells over 2.05 boxes; its maximum is placed to a quarter of one, and what
    # is read off it is a whole pixel of the close-up.
    cell, pixel = 2.05 * 100 / 64, 240 / CLOSE_UP
    np.testing.assert_allclose(found, np.tile(at, (68, 1)), atol=cell / 2 + pixel)


def test_the_mesh_indices_lie_on_mediapipes_contours():
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    contours = vision.FaceLandmarksConnections

    def vertices(name):
        lines = getattr(contours, f"FACE_LANDMARKS_{name}")
        return {line.start for line in lines} | {line.end for line in lines}

    assert set(MESH_TO_IBUG[:17]) <= vertices("FACE_OVAL")
    # On the image's left is the person's right.
    assert set(MESH_TO_IBUG[17:22]) <= vertices("RIGHT_EYEBROW")
    assert set(MESH_TO_IBUG[22:27]) <= vertices("LEFT_EYEBROW")
    assert set(MESH_TO_IBUG[36:42]) <= vertices("RIGHT_EYE")
    assert set(MESH_TO_IBUG[42:48]) <= vertices("LEFT_EYE")
    assert set(MESH_TO_IBUG[48:]) <= vertices("LIPS")


def test_the_real_mediapipe_refuses_what_is_no_model(tmp_path):
    pytest.importorskip("mediapipe")
    (tmp_path / "face_landmarker.task").write_bytes(b"no model")
    with pytest.raises(LandmarkError, match="download it again"):
        MediaPipeLandmarks.load(str(tmp_path / "face_landmarker.task"))


def test_the_mesh_indices_are_68_different_vertices():
    assert len(MESH_TO_IBUG) == len(set(MESH_TO_IBUG)) == 68
    assert max(MESH_TO_IBUG) < 468  # beyond are the irises


def test_a_missing_package_is_one_sentence(tmp_path):
    """In a process of its own, where importing them fails for certain."""
    (tmp_path / "model.task").write_bytes(b"model")
    program = f"""
import sys
sys.modules["face_alignment"] = sys.modules["mediapipe"] = None
from cest.landmarks import LandmarkError, load_landmark_detector
for name in ("face-alignment", "mediapipe"):
    try:
        load_landmark_detector(name, {str(tmp_path / "model.task")!r})
    except LandmarkError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'face-alignment>=1.5'" in result.stdout, result.stderr
    assert "pip install 'mediapipe>=0.10.30'" in result.stdout, result.stderr


def test_missing_models_and_names_are_one_sentence(tmp_path):
    with pytest.raises(LandmarkError, match=r"face_landmarker\.task"):
        load_landmark_detector("mediapipe")
    with pytest.raises(LandmarkError, match="neither a folder nor a Hub id"):
        load_landmark_detector("cest", str(tmp_path / "absent"))
    with pytest.raises(LandmarkError, match="choose cest, face-alignment, mediapipe"):
        load_landmark_detector("dlib")
    with pytest.raises(LandmarkError, match="'nowhere' is not there"):
        load_landmark_detector("cest", device="nowhere")


def test_our_own_landmarks_do_not_depend_on_where_the_photo_begins(tiny_model):
    """A margin around the photo moves the landmarks by that margin and nothing else."""
    detector = CestLandmarks(Reconstructor(tiny_model))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (120, 120, 3), np.uint8)
    box = (40.0, 45.0, 80.0, 80.0)  # what the first crop sees lies inside the photo
    points = detector(image, box)
    assert points.shape == (68, 2)
    padded = np.pad(image, ((30, 0), (50, 0), (0, 0)), mode="edge")
    moved = detector(padded, (90.0, 75.0, 130.0, 110.0))
    np.testing.assert_allclose(moved, points + np.array([50, 30]), atol=1e-3)


def test_our_own_landmarks_lie_on_the_face():
    photo = read_photo(ASTRONAUT)
    (face, *_) = FaceDetector("embedded").detect(photo)
    points = CestLandmarks.load()(photo, face.box)
    left, top, right, bottom = face.box
    size = max(right - left, bottom - top)
    # The detector's box is the landmarks', to within a fifth of its side.
    assert abs(points.min(0) - (left, top)).max() < size / 5
    assert abs(points.max(0) - (right, bottom)).max() < size / 5
    assert points[36, 0] < points[45, 0] and points[8, 1] > points[57, 1] > points[30, 1]


# -- landmarks that come with images -----------------------------------------------------------

POINTS = np.random.default_rng(3).uniform(20, 80, (68, 2))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "AFW" / "AFW_1_0.jpg"
    path.parent.mkdir()
    Image.new("RGB", (100, 100)).save(path)
    return path


def test_nothing_beside_an_image_is_none(tmp_path, image):
    assert Annotations(tmp_path)(image) is None


def test_pts_counts_pixel_centres_from_one(tmp_path, image):
    lines = "\n".join(f"{x:.6f} {y:.6f}" for x, y in POINTS)
    image.with_suffix(".pts").write_text(f"version: 1\nn_points:  68\n{{\n{lines}\n}}\n")
    np.testing.assert_allclose(Annotations(tmp_path)(image), POINTS - 0.5, atol=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        # AFLW2000-3D: pt2d are AFLW's own 21 points.
        {"pt3d_68": np.vstack((POINTS.T, np.ones(68))), "pt2d": np.full((2, 21), 5.0)},
        {"pt2d": POINTS.T, "Pose_Para": np.zeros((1, 7))},
        {"pts_2d": POINTS + 9, "pts_3d": POINTS},
        {"pts_2d": POINTS},
    ],
)
def test_mat_of_every_kind(tmp_path, image, content):
    savemat(image.with_suffix(".mat"), content)
    np.testing.assert_allclose(Annotations(tmp_path)(image), POINTS - 0.5, atol=1e-12)


def test_300w_lps_landmark_folder_goes_before_the_mat_beside_the_image(tmp_path, image):
    savemat(image.with_suffix(".mat"), {"pt2d": POINTS.T + 9})
    folder = tmp_path / "landmarks" / "AFW"
    folder.mkdir(parents=True)
    savemat(folder / "AFW_1_0_pts.mat", {"pts_2d": POINTS + 7, "pts_3d": POINTS})
    np.testing.assert_allclose(Annotations(tmp_path)(image), POINTS - 0.5, atol=1e-12)


def test_a_table_is_in_pixel_edge_coordinates(tmp_path, image):
    numbers = ",".join(map(repr, POINTS.ravel().tolist()))
    (tmp_path / "landmarks.csv").write_text(f"file,{'n,' * 135}n\nAFW/AFW_1_0.jpg,{numbers}\n")
    np.testing.assert_allclose(Annotations(tmp_path)(image), POINTS, atol=1e-5)


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        (".pts", b"68 points", "not in iBUG's"),
        (".pts", b"version: 1\nn_points: 2\n{\n1 2\n3 4\n}", "2 landmarks, not 68"),
        (".pts", b"{" + b"1 1\n" * 68 + b"}", "no face"),
        (".mat", b"MATLAB 5.0 but cut sh", "cannot be read as a .mat"),
        (".mat", b"", "cannot be read as a .mat"),
    ],
)
def test_damaged_annotations_are_one_sentence(tmp_path, image, suffix, content, message):
    image.with_suffix(suffix).write_bytes(content)
    with pytest.raises(LandmarkError, match=message):
        Annotations(tmp_path)(image)


def test_a_mat_without_68_points_says_what_was_looked_for(tmp_path, image):
    savemat(image.with_suffix(".mat"), {"pt2d": np.zeros((2, 21))})
    with pytest.raises(LandmarkError, match="pt3d_68, pts_3d"):
        Annotations(tmp_path)(image)


def test_a_damaged_table_names_its_line(tmp_path):
    (tmp_path / "landmarks.csv").write_text("file,x0,y0\na.jpg,1,2\n")
    with pytest.raises(LandmarkError, match="line 2: 2 numbers"):
        Annotations(tmp_path)
