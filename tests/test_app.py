"""The app as a person meets it: a process, its API, and its page in a real browser."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect

from browser import ROOT, RunningApp, chromium, find_chromium, pixels, running_app
from cest.configuration import FaceEstimatorConfig
from cest.modeling import FaceEstimator

PHOTO = ROOT / "cest" / "assets" / "astronaut.jpg"
NAMES = ("cest", "iest")
PATIENCE = 120_000  # milliseconds: for slow machines


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights, so that the app can be tested without released ones."""
    folders = {}
    for name in NAMES:
        torch.manual_seed(0)
        config = FaceEstimatorConfig(conditioning=name, image_size=64, width=0.125)
        folder = tmp_path_factory.mktemp(name)
        FaceEstimator(config).save_pretrained(folder)
        folders[f"{name.upper()}_MODEL"] = str(folder)
    return folders


@pytest.fixture(scope="module")
def app(
    checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningApp]:
    with running_app(tmp_path_factory.mktemp("app"), **checkpoints) as running:
        yield running


@pytest.fixture(scope="module")
def client(app: RunningApp, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(app.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture
def page(app: RunningApp) -> Iterator[Page]:
    if find_chromium() is None:
        pytest.skip("no Chromium: install it, or name it in the environment variable CHROMIUM")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
        # Everything comes from the app itself: it must work without a network.
        page.route(
            lambda url: not url.startswith((app.url, "data:", "blob:")),
            lambda route: route.abort(),
        )
        page.set_default_timeout(PATIENCE)
        page.goto(app.url)
        yield page


@pytest.fixture
def no_face(tmp_path: Path) -> Path:
    path = tmp_path / "<b>sky.png"
    Image.new("RGB", (320, 240), (110, 150, 210)).save(path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_api_gives_every_result(client: Client, name: str) -> None:
    overlay, mesh, error, strip, downloads = client.predict(handle_file(PHOTO), api_name=f"/{name}")
    with Image.open(PHOTO) as photo, Image.open(overlay) as drawn:
        assert drawn.size == photo.size
    with Image.open(strip) as picture:
        assert picture.width > 6 * picture.height
    assert 0 < float(error) < 255
    assert len(trimesh.load_mesh(mesh).faces) > 1000

    files = {Path(path).name: path for path in downloads}
    assert set(files) == {"face.glb", "face-obj.zip", "parameters.json", "everything.zip"}
    parameters = json.loads(Path(files["parameters.json"]).read_text())
    assert parameters["model"]["conditioning"] == name
    assert parameters["photometric_error"] == pytest.approx(float(error), abs=0.006)
    with zipfile.ZipFile(files["face-obj.zip"]) as archive:
        assert set(archive.namelist()) == {"face.obj", "face.mtl", "albedo.png"}
        assert archive.testzip() is None
    with zipfile.ZipFile(files["everything.zip"]) as archive:
        assert {"face.glb", "face.ply", "overlay.png", "strip.png"} <= set(archive.namelist())
        assert str(ROOT) not in archive.read("parameters.json").decode()


def test_what_a_request_wrote_is_removed_with_it(app: RunningApp, client: Client) -> None:
    client.predict(handle_file(PHOTO), api_name="/cest")
    assert not list(app.temporary.glob("cest-*"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is an empty file"),
        (b"Dear diary", "is not a picture"),
        (PHOTO.read_bytes()[:3000] if PHOTO.exists() else b"", "is cut short or damaged"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_bad_photos_are_answered_in_one_sentence(
    client: Client, app: RunningApp, tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(AppError, match=says) as caught:
        client.predict(handle_file(path), api_name="/iest")
    message = str(caught.value)
    assert "holiday.jpg" in message
    assert str(app.temporary) not in message  # the server's paths are nobody's business
    assert "\n" not in message.strip()
    assert "Traceback" not in app.log.read_text()


def test_photo_without_a_face_is_answered_in_one_sentence(client: Client, no_face: Path) -> None:
    with pytest.raises(AppError, match="No face was found"):
        client.predict(handle_file(no_face), api_name="/cest")


def test_no_photo_at_all(client: Client) -> None:
    with pytest.raises(AppError, match="Choose a photo first"):
        client.predict(None, api_name="/cest")


def test_unusable_checkpoint_ends_the_app_with_one_sentence(tmp_path: Path) -> None:
    app = running_app(tmp_path, CEST_MODEL=str(tmp_path))
    with pytest.raises(AssertionError, match="did not start") as caught, app:
        pass
    assert "app.py: " in str(caught.value)
    assert "has no config.json" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.browser
def test_upload_draws_both_meshes_and_gives_the_glb(page: Page, tmp_path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(PHOTO)
    page.get_by_role("button", name="Reconstruct", exact=True).click()

    for name in NAMES:
        # The downloads come with the rest; the canvas is drawn some moments later.
        page.locator(f"#{name}-downloads a[download='face.glb']").wait_for()
        canvas = page.locator(f"#{name}-mesh canvas")
        canvas.scroll_into_view_if_needed()
        face = wait_until_drawn(page, canvas, tmp_path / f"{name}.png")
        rows, columns = np.nonzero(face)
        # From the front: in the middle, upright, filling the view without leaving it.
        assert 0.15 < face.mean() < 0.8
        assert abs(columns.mean() / face.shape[1] - 0.5) < 0.05
        assert not face[[0, -1]].any() and not face[:, [0, -1]].any()
        assert np.ptp(rows) > np.ptp(columns)
    page.screenshot(path=tmp_path / "page.png", full_page=True)

    with page.expect_download() as event:
        page.locator("#cest-downloads a[download='face.glb']").click()
    event.value.save_as(tmp_path / "face.glb")
    mesh = trimesh.load_mesh(tmp_path / "face.glb")
    assert len(mesh.faces) > 1000
    assert mesh.visual.material.baseColorTexture is not None
    assert 0.1 < np.ptp(mesh.vertices[:, 1]) < 0.4  # metres


@pytest.mark.browser
def test_mesh_can_be_turned(page: Page, tmp_path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(PHOTO)
    page.get_by_role("button", name="Reconstruct", exact=True).click()
    canvas = page.locator("#cest-mesh canvas")
    before = wait_until_drawn(page, canvas, tmp_path / "before.png")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1500)
    after = drawn(pixels(canvas, tmp_path / "after.png"))
    assert after.any() and (before != after).mean() > 0.02


@pytest.mark.browser
def test_page_says_that_there_is_no_face(page: Page, no_face: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(no_face)
    page.get_by_role("button", name="Reconstruct", exact=True).click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("No face was found", timeout=PATIENCE)
    # Said once, though there are two models.
    page.wait_for_timeout(1500)
    assert toast.count() == 1


def drawn(picture: np.ndarray) -> np.ndarray:
    """(H, W): where a canvas shows something other than its background.

    Its top 38 rows are left out: Gradio lays a label and buttons over them.
    """
    picture = picture[38:].astype(int)
    return np.abs(picture - picture[0, 0]).max(-1) > 16


def wait_until_drawn(page: Page, canvas, path: Path) -> np.ndarray:
    """`drawn` of a canvas, once something is and it does not change any more."""
    canvas.wait_for(state="visible")
    last = None
    for _ in range(PATIENCE // 1000):
        now = drawn(pixels(canvas, path))
        if now.any() and last is not None and (now == last).all():
            return now
        last = now
        page.wait_for_timeout(1000)
    raise AssertionError(f"nothing was drawn on {canvas}")
