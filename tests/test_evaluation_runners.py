"""Runners of other data sets, on files made here in their layouts."""

import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.io import savemat

from cest.cli import main
from cest.configuration import FaceEstimatorConfig
from cest.detection import EMBEDDED, FaceDetector
from cest.evaluation.aflw2000 import (
    REANNOTATED,
    basel_vertices,
    by_yaw,
    evaluate_aflw2000,
    read_samples,
)
from cest.evaluation.dense import Shape
from cest.evaluation.groups import yaw_group
from cest.evaluation.measurements import Measurements
from cest.evaluation.mediapipe_mesh import MediaPipeMesh
from cest.evaluation.methods import PhotoMethod
from cest.evaluation.micc import Scan, View, evaluate_micc, read_scans
from cest.evaluation.now import SEVEN_LANDMARKS, neutral_mesh, read_image_list, submit
from cest.evaluation.photos import evaluate_photos, photos_in
from cest.evaluation.protocols import Run, basel_deviations, on_aflw2000, on_micc, on_photos
from cest.export import METRES_PER_UNIT
from cest.landmarks import (
    CLOSE_UP,
    CLOSE_UP_SCALE,
    MESH_TO_IBUG,
    MediaPipeLandmarks,
    square_around,
)
from cest.modeling import FaceEstimator
from cest.reconstruction import Reconstructor

PHOTO = Path(str(files("cest") / "assets" / "astronaut.jpg"))
TRIANGLE = np.array([[0, 8, 16]])


@pytest.fixture(scope="module")
def method(face_model) -> PhotoMethod:
    torch.manual_seed(0)
    config = FaceEstimatorConfig(image_size=64, width=0.125)
    model = FaceEstimator(config, face_model=face_model).eval()
    return PhotoMethod(Reconstructor(model, FaceDetector(EMBEDDED), "cpu", name="untrained"))


# -- any folder of photos ------------------------------------------------------------------------


def test_photos_and_those_without_a_face(method, tmp_path):
    folder = tmp_path / "img_celeba"
    folder.mkdir()
    shutil.copy(PHOTO, folder / "000001.jpg")
    Image.new("RGB", (200, 200), "grey").save(folder / "000002.jpg")
    (folder / "000003.jpg").write_bytes(b"no picture")
    results, failures = evaluate_photos({"untrained": method}, photos_in(folder))
    assert results.frames == ["000001.jpg"]
    (expected,) = method.reconstructor.reconstruct(PHOTO)
    assert results.values["untrained"]["photometric"] == [expected.photometric_error]
    assert len(failures) == 2 and "no face was found" in failures[0]
    refined = PhotoMethod(method.reconstructor, refine=10)
    better, _ = evaluate_photos({"refined": refined}, photos_in(folder)[:1])
    assert better.mean("refined", "photometric") < expected.photometric_error
    for figure in ("shading_explained", "reflectance_one_sided"):
        assert np.isfinite(results.mean("untrained", figure))
    with pytest.raises(ValueError, match="None of 1 photos"):
        evaluate_photos({"untrained": method}, [folder / "000002.jpg"])
    with pytest.raises(ValueError, match="no pictures"):
        photos_in(tmp_path / "nowhere")


def test_a_short_look_at_photos_is_spread_over_all(method, tmp_path):
    for number in range(6):
        shutil.copy(PHOTO, tmp_path / f"{number}.jpg")
    model = method.reconstructor.model
    run = Run(str(tmp_path), {"CEST": model}, frames=3, detector=EMBEDDED)
    report = on_photos(run, False)[""]
    assert report.measurements.frames == ["0.jpg", "2.jpg", "4.jpg"]


# -- AFLW2000-3D ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aflw2000(method, tmp_path_factory) -> Path:
    """Three copies of a photo with the method's own landmarks, turned this way and that on paper.

    Re-annotated, they are off by three pixels in x.
    """
    folder = tmp_path_factory.mktemp("aflw2000")
    (result,) = method.reconstructor.reconstruct(PHOTO)
    again = []
    for number, yaw in enumerate((-10.0, 45.0, 80.0)):
        shutil.copy(PHOTO, folder / f"image0000{number}.jpg")
        points = result.landmarks_photo.T + 0.5  # MATLAB counts pixels' centres from 1
        savemat(
            folder / f"image0000{number}.mat",
            {
                "pt3d_68": np.vstack((points, np.zeros(68))),
                "Pose_Para": np.radians([[5.0, yaw, -3.0, 0, 0, 0, 0]]),
                "Shape_Para": np.ones((199, 1)),
                "Exp_Para": np.ones((29, 1)),
            },
        )
        again.append(points + np.array([[3.0], [0.0]]))
    np.save(folder / REANNOTATED, np.stack(again))
    return folder


def test_aflw2000_by_set_and_yaw(method, aflw2000):
    samples = read_samples(aflw2000)
    np.testing.assert_allclose([sample.yaw for sample in samples], [-10, 45, 80])
    truth = samples[0].landmarks["original"]
    exact = Shape(np.column_stack((truth * (1, -1), np.zeros(68))), TRIANGLE, np.arange(68))
    known = {"exact": lambda image, box: exact, "blind": lambda image, box: None}
    results = evaluate_aflw2000({"untrained": method}, samples, known)
    assert set(results) == {"original", "re-annotated"}
    assert results["original"].mean("exact", "nme68") < 1e-5
    expected = 100 * 3 / np.sqrt(np.ptp(truth, axis=0).prod())
    assert results["re-annotated"].mean("exact", "nme68") == pytest.approx(expected, rel=1e-5)
    assert np.isnan(results["original"].values["blind"]["nme68"]).all()
    bins = by_yaw(results["original"])
    assert set(bins) == {"untrained", "exact"}
    assert set(bins["exact"]) == {"[0, 30)", "[30, 60)", "[60, 90)", "mean"}
    # The crop is the annotation's own, not the one that the landmarks were made from.
    assert 0 < results["original"].mean("untrained", "nme68") < 20


def test_yaw_bins_count_alike_whatever_their_sizes():
    measured = Measurements()
    measured.groups["yaw"] = [yaw_group(yaw) for yaw in (0, -29.9, 10, 30, -60, 120)]
    measured.add("m", "nme68", [1.0, 1.0, 1.0, 4.0, 7.0, 9.0])
    measured.add("half", "nme68", [1.0, 3.0, 2.0, 4.0, np.nan, np.nan])
    table = by_yaw(measured)
    assert table["m"] == {"[0, 30)": 1, "[30, 60)": 4, "[60, 90)": 8, "mean": pytest.approx(13 / 3)}
    assert table["half"] == {"[0, 30)": 2, "[30, 60)": 4}


def test_aflw2000_report(aflw2000, method, tmp_path):
    model = method.reconstructor.model
    reports = on_aflw2000(Run(str(aflw2000), {"CEST": model}, detector=EMBEDDED), False)
    report = reports["original"]
    values, text = report.to_dict(), report.markdown()
    mean = values["by_yaw"]["CEST"]["mean"]
    assert f"mean of the yaw bins |\n| --- | --- |\n| CEST | {mean:.2f} |" in text
    assert "By yaw (frames)" in text and "[60, 90) (1)" in text
    few = on_aflw2000(Run(str(aflw2000), {"CEST": model}, frames=2, detector=EMBEDDED), False)
    assert "mean of the yaw bins |\n| --- | --- |\n| CEST | – |" in few["original"].markdown()


def test_aflw2000_dense_truth(method, aflw2000, face_model):
    """The face model stands in for the Basel one: coefficients over their deviations."""
    sample = read_samples(aflw2000)[0]
    sigma = (np.full(199, 2.0), np.full(29, 4.0))
    alpha = torch.cat((torch.full((1, 199), 0.5), torch.full((1, 29), 0.25)), 1)
    true = face_model.vertices(alpha)[0].double().numpy()
    np.testing.assert_allclose(basel_vertices(face_model, sigma, sample), true, atol=1e-5)
    pixels = 90 * true * (1, -1, 1)
    own = Shape(pixels * (1, -1, 1), face_model.triangles.numpy(), face_model.landmarks.numpy())
    shapes = {"truth": lambda image, box: own, "blind": lambda image, box: None}
    results = evaluate_aflw2000({"untrained": method}, [sample], shapes, face_model, sigma)
    assert results["original"].values["untrained"]["converged"][0] in (0, 0.5, 1)
    assert results["original"].values["truth"]["converged"] == [1]
    assert 0 < results["original"].mean("untrained", "dense_scaled") < 20
    assert results["original"].mean("truth", "dense_scaled") < 1e-3
    assert "dense" not in results["original"].values["truth"]  # pixels are no decimetres
    assert np.isnan(results["original"].mean("blind", "dense_scaled"))
    # Without the shape's coefficients there is no such truth.
    incomplete = replace(sample, shape=None)
    with pytest.raises(ValueError, match=r"image00000\.mat lacks Shape_Para"):
        evaluate_aflw2000({"untrained": method}, [incomplete], None, face_model, sigma)


def test_deviations_of_the_basel_model(tmp_path):
    path = tmp_path / "01_MorphableModel.mat"
    savemat(path, {"shapeEV": np.full((199, 1), 2.0)})
    with pytest.raises(ValueError, match="has no Model_Exp"):
        basel_deviations(path)
    savemat(tmp_path / "Model_Exp.mat", {"other": 1})
    with pytest.raises(ValueError, match=r"Model_Exp\.mat has no sigma_exp"):
        basel_deviations(path)
    savemat(tmp_path / "Model_Exp.mat", {"sigma_exp": np.full((29, 1), 3.0)})
    identity, expression = basel_deviations(path)
    assert (identity == np.full(199, 2)).all() and (expression == np.full(29, 3)).all()


def test_mediapipe_mesh_in_our_axes():
    """A stand-in that says where in the close-up the points of a known mesh are."""
    rng = np.random.default_rng(0)
    box = (100.0, 50.0, 180.0, 150.0)
    close_up = square_around(box, CLOSE_UP_SCALE)
    photo_points = rng.uniform((100, 50, -20), (180, 150, 20), size=(478, 3))
    corner = np.array([close_up.center_x, close_up.center_y, 0]) - close_up.size / 2
    corner[2] = 0
    said = (photo_points - corner) / close_up.size
    asked = []

    class Landmarker:
        def detect(self, image):
            asked.append(image.shape)
            return SimpleNamespace(
                face_landmarks=[[SimpleNamespace(x=x, y=y, z=z) for x, y, z in said]]
            )

    edges = [(0, 1), (1, 2), (2, 0), (5, 3), (3, 4), (4, 5)]
    mesh = MediaPipeMesh(MediaPipeLandmarks(Landmarker(), lambda pixels: pixels), edges)
    shape = mesh(np.zeros((200, 300, 3), np.uint8), box)
    assert asked == [(CLOSE_UP, CLOSE_UP, 3)]
    assert shape.triangles.tolist() == [[0, 1, 2], [5, 3, 4]]
    np.testing.assert_allclose(shape.vertices, photo_points * (1, -1, -1), atol=1e-9)
    expected = photo_points[list(MESH_TO_IBUG), :2]
    np.testing.assert_allclose(shape.landmarks_photo, expected, atol=1e-9)


@pytest.mark.parametrize("damage", ["no mat", "not a mat", "count"])
def test_damaged_annotations_are_one_sentence(aflw2000, tmp_path, damage):
    shutil.copytree(aflw2000, tmp_path / "copy")
    if damage == "no mat":
        for path in (tmp_path / "copy").glob("*.mat"):
            path.unlink()
    elif damage == "not a mat":
        (tmp_path / "copy" / "image00001.mat").write_bytes(b"text")
    else:
        np.save(tmp_path / "copy" / REANNOTATED, np.zeros((2, 2, 68)))
    with pytest.raises(ValueError) as caught:
        read_samples(tmp_path / "copy")
    assert "\n" not in str(caught.value)


# -- NoW -----------------------------------------------------------------------------------------


def test_now_submission(method, tmp_path):
    dataset, output = tmp_path / "dataset", tmp_path / "submission"
    names = ["FaMoS_1/multiview_neutral/IMG_1.jpg", "FaMoS_1/selfie/IMG_2.jpg"]
    for name in names:
        path = dataset / "NoW_Dataset/final_release_version/iphone_pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTO, path)
    Image.new("RGB", (120, 160), "grey").save(path)  # a picture without a face
    for listed in (None, dataset / "mine.txt"):
        with pytest.raises(ValueError, match="mine.txt" if listed else "imagepathsvalidation"):
            read_image_list(dataset, listed)
    (dataset / "imagepathsvalidation.txt").write_text("\n".join(names) + "\n")
    images = read_image_list(dataset)
    assert submit(method, dataset, images, output) == [names[1]]
    for name in names:
        mesh = trimesh.load(output / name.replace("jpg", "obj"), process=False)
        landmarks = np.load(output / name.replace("jpg", "npy"), allow_pickle=False)
        model = method.reconstructor.face_model
        assert len(mesh.vertices) == model.n_vertices
        ids = model.landmarks.numpy()[list(SEVEN_LANDMARKS)]
        np.testing.assert_allclose(landmarks, mesh.vertices[ids], atol=1e-6)
        assert 0.1 < np.ptp(mesh.vertices, axis=0).max() < 0.3  # metres
    # Called again it keeps what is there, and still says which images have no face.
    first = output / names[0].replace("jpg", "obj")
    before = first.stat().st_mtime_ns
    assert submit(method, dataset, images, output) == [names[1]]
    assert first.stat().st_mtime_ns == before
    # Another method's meshes do not get in between.
    other = FaceEstimator(method.reconstructor.model.config, method.reconstructor.model.face_model)
    detector = method.reconstructor.detector
    for another in (
        PhotoMethod(Reconstructor(other.eval(), detector, "cpu")),
        replace(method, refine=1),
    ):
        with pytest.raises(ValueError, match="give another folder"):
            submit(another, dataset, images, output)
    for damage in (lambda record: record.write_text("{"), Path.unlink):
        damage(output / "submission.json")
        with pytest.raises(ValueError, match="give another folder"):
            submit(method, dataset, images, output)
    assert first.stat().st_mtime_ns == before


def test_now_takes_a_list_and_says_who_was_missed(method, tmp_path, capsys):
    name = "FaMoS_1/selfie/IMG_2.jpg"
    (tmp_path / name).parent.mkdir(parents=True)
    Image.new("RGB", (120, 160), "grey").save(tmp_path / name)
    (tmp_path / "imagepathsvalidation.txt").write_text("not/to/be_read.jpg\n")
    (tmp_path / "imagepathstest.txt").write_text(f"{name}\n")
    method.reconstructor.model.save_pretrained(tmp_path / "model")
    options = {"--model": "model", "--images": "imagepathstest.txt", "-o": "out"}
    paths = [part for name, path in options.items() for part in (name, str(tmp_path / path))]
    common = ["--protocol", "now", "--detector", "embedded", "--device", "cpu"]
    assert main(["evaluate", str(tmp_path), *paths, *common]) == 0
    assert (tmp_path / "out" / "CEST" / name).with_suffix(".obj").is_file()
    assert capsys.readouterr().err == f"CEST, {name}: no face was found, the middle was taken.\n"


def test_now_meshes_have_no_expression(method):
    (result,) = method.reconstructor.reconstruct(PHOTO)
    model = result.face_model
    coefficients = torch.ones(1, model.n_coefficients)
    mesh, landmarks = neutral_mesh(result.with_factors(shape_coefficients=coefficients))
    coefficients[:, model.n_identity :] = 0
    expected = model.vertices(coefficients)[0].numpy() * METRES_PER_UNIT
    np.testing.assert_allclose(mesh.vertices, expected, atol=1e-6)
    ids = model.landmarks[list(SEVEN_LANDMARKS)]
    np.testing.assert_allclose(landmarks, expected[ids], atol=1e-6)


# -- MICC ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def micc(method, tmp_path_factory) -> Path:
    """One subject: what the method itself makes of a photo, in millimetres, in its colours."""
    folder = tmp_path_factory.mktemp("micc")
    (result,) = method.reconstructor.reconstruct(PHOTO)
    target = folder / "subject_01" / "Model" / "frontal1" / "obj"
    target.mkdir(parents=True)
    model = result.face_model
    pixels = result.vertices_photo[:, :2].astype(int)
    colours = result.photo[pixels[:, 1], pixels[:, 0]]
    mesh = trimesh.Trimesh(
        result.vertices[0].numpy() * 100,
        model.triangles.numpy(),
        vertex_colors=colours,
        process=False,
    )
    (target / "110920150452.obj").write_text(
        trimesh.exchange.obj.export_obj(mesh, include_normals=False), encoding="utf-8"
    )
    return folder


def test_a_view_of_a_scan_and_back(micc):
    (path,) = read_scans(micc).values()
    scan = Scan.load(path)
    view = View.of(scan, yaw=30, pitch=-10, size=256)
    assert (view.picture != 128).any(-1).mean() > 0.1
    # The nose points to the picture's right and down.
    tip = scan.vertices[scan.vertices[:, 2].argmax()]
    placed = view.scale * view.rotation @ (tip - view.centre)
    straight = view.scale * (tip - view.centre)
    assert placed[0] > straight[0] and placed[1] < straight[1]
    np.testing.assert_allclose(view.to_scan(placed[None])[0], tip, atol=1e-9)
    # Points that are seen are found again: to a pixel's width and the depth across it.
    pixel = np.array([[(placed[0] + 1) * 128, (1 - placed[1]) * 128]])
    assert np.linalg.norm(view.lifted(pixel) - tip) < 0.05


def test_a_reconstruction_is_moved_along_the_line_of_sight(micc):
    """The scan's own vertices where the picture shows them, but at a depth of their own."""
    (path,) = read_scans(micc).values()
    scan = Scan.load(path)
    view = View.of(scan, yaw=20, pitch=0)
    size = len(view.depth)
    points = view.scale * (scan.vertices - view.centre) @ view.rotation.T
    points += (1, -1, -0.7)
    photo = points * (size / 2, -size / 2, size / 2)
    moved = view.placed(SimpleNamespace(vertices_photo=photo)) - scan.vertices
    # By as much as it was off, to a pixel's width times the slope of half a face.
    assert np.linalg.norm(moved, axis=1).max() < 2 * (2 / size) / view.scale
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:1], moved.shape), atol=1e-9)


def test_a_textured_scan_shows_its_texture(method, tmp_path):
    (result,) = method.reconstructor.reconstruct(PHOTO)
    result.save(tmp_path)
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "albedo.png")
    view = View.of(Scan.load(tmp_path / "face.obj"), 0, 0, size=64)
    assert (view.picture[np.isfinite(view.depth)] == (200, 100, 50)).all()


def test_micc_of_the_scans_own_shape(method, micc):
    """The scan is the untrained model's face, which is what it answers to any picture."""
    results, failures = evaluate_micc(
        {"untrained": method}, read_scans(micc), yaws=(0, 20), pitches=(0,)
    )
    assert not failures
    assert len(results.frames) == 2
    assert results.mean("untrained", "converged") == 1
    assert results.mean("untrained", "dense_scaled") < 0.5


def test_a_damaged_scan_does_not_end_the_others(method, micc, tmp_path):
    shutil.copytree(micc, tmp_path / "micc")
    for number in (0, 2):
        target = tmp_path / "micc" / f"subject_0{number}" / "Model" / "frontal1" / "obj"
        target.mkdir(parents=True)
        (target / "a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n")
    scans = read_scans(tmp_path / "micc")
    results, failures = evaluate_micc({"untrained": method}, scans, yaws=(0,), pitches=(0,))
    assert results.frames == ["subject_01/+0/+0"]
    assert [failure[:11] for failure in failures] == ["subject_00:", "subject_02:"]
    assert all("a.obj cannot be read as a mesh" in f and "\n" not in f for f in failures)
    # The one scan of a short look is the first of three.
    run = Run(str(tmp_path / "micc"), {"CEST": method.reconstructor.model}, frames=15)
    with pytest.raises(ValueError, match=r"None of 1 scan\(s\) can be used. subject_00: "):
        on_micc(replace(run, detector=EMBEDDED), False)


def test_micc_without_scans_or_colours_is_refused(tmp_path, micc):
    with pytest.raises(ValueError, match="subject_"):
        read_scans(tmp_path)
    mesh = trimesh.load(next(micc.rglob("*.obj")), process=False)
    plain = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    (tmp_path / "plain.obj").write_text(trimesh.exchange.obj.export_obj(plain))
    with pytest.raises(ValueError, match="neither a texture nor colours"):
        Scan.load(tmp_path / "plain.obj")
