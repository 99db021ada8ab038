"""The page as a person meets it, in a real browser with WebGL in software."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from browser import (
    ROOT,
    RunningApp,
    chromium,
    find_chromium,
    pixels,
    random_checkpoints,
    running_app,
    without_a_net,
)
from cest.rendering import interpolate, rasterize
from cest.rendering.unwrap import wrap
from cest.video import write_video

PHOTO = ROOT / "cest" / "assets" / "astronaut.jpg"
VIEWS = ("#cest-view", "#iest-view")
PATIENCE = 60_000  # milliseconds: for slow machines
STILL = 0.1
"""Levels, mean over a view: how far two screenshots of one thing differ, as they are scrolled."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        find_chromium() is None,
        reason="no Chromium: install it, or name it in the environment variable CHROMIUM",
    ),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    checkpoints = random_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    with running_app(tmp_path_factory.mktemp("app"), **checkpoints) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


def opened(context: BrowserContext, app: RunningApp) -> Page:
    page = context.new_page()
    without_a_net(page, app)
    page.set_default_timeout(PATIENCE)
    page.goto(app.url)
    page.locator("#photo input[type=file]").wait_for(state="attached")
    return page


@pytest.fixture
def page(app: RunningApp, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = opened(context, app)
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    yield page
    context.close()
    assert not errors


def give(page: Page, photo: Path) -> None:
    page.locator("#photo input[type=file]").set_input_files(photo)


def wait_for_faces(page: Page) -> None:
    for view in VIEWS:
        page.locator(f"{view} canvas.mesh[data-drawn]").wait_for()


def settled(element: Locator, folder: Path) -> np.ndarray:
    """What a person sees of an element, once it does not change any more."""
    element.scroll_into_view_if_needed()
    last = None
    for _ in range(60):
        now = pixels(element, folder / "element.png").astype(int)
        if last is not None and now.shape == last.shape and (now == last).all():
            return now
        last = now
        element.page.wait_for_timeout(150)
    raise AssertionError(f"{element} does not come to rest")


def slide(page: Page, selector: str, value: float) -> None:
    page.locator(selector).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def choose(page: Page, name: str) -> None:
    page.locator("#stage").get_by_role("radio", name=name, exact=True).check(force=True)


def test_faces_are_drawn_relit_turned_and_taken_away(page: Page, tmp_path: Path) -> None:
    give(page, PHOTO)
    wait_for_faces(page)
    canvases = [page.locator(f"{view} canvas.mesh") for view in VIEWS]
    relit = [settled(canvas, tmp_path) for canvas in canvases]
    for canvas, picture in zip(canvases, relit):
        # An empty viewer is what is behind the canvas: its frame, name and ball are not in it.
        canvas.evaluate("canvas => canvas.style.opacity = 0")
        empty = settled(canvas, tmp_path)
        canvas.evaluate("canvas => canvas.style.opacity = 1")
        face = np.abs(picture - empty).max(-1) > 8
        columns = np.nonzero(face)[1]
        assert 0.1 < face.mean() < 0.8
        assert abs(columns.mean() / face.shape[1] - 0.5) < 0.05
        assert not face[[0, -1]].any() and not face[:, [0, -1]].any()

    def differences() -> list[float]:
        now = [settled(canvas, tmp_path) for canvas in canvases]
        return [float(np.abs(a - b).mean()) for a, b in zip(now, relit)]

    # Geometry is grey; albedo is what the files hold; a light of one's own changes both faces.
    choose(page, "Geometry")
    assert min(differences()) > 1
    inside = relit[0].shape[0] // 2, relit[0].shape[1] // 2
    clay = settled(canvases[0], tmp_path)[inside]
    assert np.ptp(clay) <= 2
    choose(page, "Relit")
    assert max(differences()) < STILL
    overlay = page.locator("#cest-overlay img").last
    before = overlay.get_attribute("src")
    slide(page, "#stage input[name=azimuth]", -80)
    assert min(differences()) > 1
    assert page.locator("#stage input[value=studio]").is_checked()
    # The photo follows when the light has come to rest.
    expect(overlay).not_to_have_attribute("src", before, timeout=PATIENCE)

    page.get_by_role("button", name="Reset light, head and expression").click()
    assert max(differences()) < STILL
    slide(page, "#stage input[name=yaw]", 40)
    assert min(differences()) > 1  # one view of both
    slide(page, "#stage input[name=yaw]", 0)
    slide(page, "#stage .common input >> nth=0", 1)
    page.wait_for_timeout(1500)  # the expressions are fetched
    assert min(differences()) > 5 * STILL
    page.get_by_role("button", name="Reset light, head and expression").click()

    # Without the photo's fine detail, which the page averages where it is finer than the screen,
    # and our own look-up below does not.
    link = page.locator("#cest-downloads a[download='face.glb']")
    before = link.get_attribute("href")
    page.locator("#detail input").uncheck()
    expect(link).not_to_have_attribute("href", before, timeout=PATIENCE)
    with page.expect_download() as event:
        link.click()
    event.value.save_as(tmp_path / "face.glb")
    mesh = trimesh.load_mesh(tmp_path / "face.glb", process=False)
    assert 0.1 < np.ptp(mesh.vertices[:, 1]) < 0.4  # metres
    assert max(mesh.visual.material.baseColorTexture.size) < 512  # the estimator's own
    choose(page, "Albedo")
    seen = settled(canvases[0], tmp_path)
    face, expected = seen_from_the_front(mesh, *seen.shape[:2])
    # Axes, scale, the texture's orientation and its colour: two readers of one file agree but for
    # the rim and the rounding of bytes.
    assert np.abs(seen - expected)[face].mean() < 1.5
    assert np.quantile(np.abs(seen - expected)[face], 0.99) < 10


def seen_from_the_front(
    mesh: trimesh.Trimesh, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Our own rendering of what trimesh read: where it is, less a rim of 3 pixels; (H, W, 3)."""
    x, y, z = torch.from_numpy(np.array(mesh.vertices)).float().unbind(-1)
    distance, half, middle = 0.8, 0.115, 0.022  # of stage.js, metres
    scale = min(1.0, 1.2 * width / height) / half * distance / (distance - z)
    projected = torch.stack((x * scale * height / width, (y - middle) * scale, z), -1)[None]
    triangles = torch.from_numpy(np.array(mesh.faces))
    uv = torch.from_numpy(np.array(mesh.visual.uv)).float()[None]
    fragments = rasterize(projected, triangles, (height, width))
    # Perspective: what is linear on the triangle is so over the depth.
    depth = (1 / (distance - z))[None, :, None]
    values = interpolate(fragments, triangles, torch.cat((uv * depth, depth), -1))
    where = values[..., :2] / values[..., 2:].clamp(min=1e-6)
    texture = np.array(mesh.visual.material.baseColorTexture.convert("RGB"))
    albedo = torch.from_numpy(texture).permute(2, 0, 1)[None].float()
    colours = wrap(albedo, where)[0].permute(1, 2, 0).numpy()
    face = (fragments.pix_to_face[0] >= 0).float()[None, None]
    inner = -torch.nn.functional.max_pool2d(-face, 7, 1, 3)
    return inner[0, 0].numpy() > 0, colours


def test_one_of_several_faces_is_picked(page: Page, tmp_path: Path) -> None:
    photo = Image.open(PHOTO)
    group = Image.new("RGB", (900, 512), "gray")
    group.paste(photo)
    group.paste(photo.resize((380, 380)), (516, 132))
    group.save(tmp_path / "group.jpg", quality=95)
    give(page, tmp_path / "group.jpg")
    wait_for_faces(page)
    picker = page.get_by_role("group", name="Choose the face")
    faces = picker.get_by_role("button", name=re.compile(r"Face \d of 2"))
    expect(faces).to_have_count(2)
    expect(faces.first).to_have_attribute("aria-pressed", "true")
    overlay = page.locator("#cest-overlay img").last
    before = overlay.get_attribute("src")
    faces.last.click()
    expect(faces.last).to_have_attribute("aria-pressed", "true", timeout=PATIENCE)
    expect(overlay).not_to_have_attribute("src", before)

    # The light of a second photo, once that is given, and no more when it is taken away.
    page.get_by_role("button", name="Borrow the light of a second photo").click()
    before = overlay.get_attribute("src")
    page.locator("#donor input[type=file]").set_input_files(PHOTO)
    borrowed = page.get_by_role("radio", name="Second photo")
    expect(borrowed).to_be_checked(timeout=PATIENCE)
    expect(overlay).not_to_have_attribute("src", before, timeout=PATIENCE)
    page.locator("#donor").get_by_role("button", name=re.compile("Clear|Remove")).click()
    expect(page.locator("#stage input[value=estimated]")).to_be_checked(timeout=PATIENCE)


def test_no_face_a_square_and_a_bad_file(page: Page, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(90, 160, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    give(page, tmp_path / "noise.png")
    expect(page.locator("#status")).to_contain_text("Draw a square.", timeout=PATIENCE)
    expect(page.locator("#picker")).to_contain_text("No face was found")
    expect(page.locator("#results")).to_be_hidden()
    square = page.get_by_role("application", name="Square around the face")
    square.focus()
    rectangle = page.locator("#picker rect")
    start = rectangle.bounding_box()
    for key in ("ArrowRight", "ArrowDown", "+"):
        page.keyboard.press(key)
    moved = rectangle.bounding_box()
    assert moved["width"] > start["width"] and moved["x"] + moved["width"] > start["x"]
    page.keyboard.press("Enter")
    wait_for_faces(page)

    (tmp_path / "<b>broken.jpg").write_bytes(PHOTO.read_bytes()[:3000])
    page.locator("#photo").get_by_role("button", name=re.compile("Clear|Remove")).click()
    expect(page.locator("#results")).to_be_hidden(timeout=PATIENCE)
    give(page, tmp_path / "<b>broken.jpg")
    status = page.locator("#status")
    expect(status).to_contain_text("broken.jpg is cut short or damaged", timeout=PATIENCE)
    assert "Traceback" not in page.content()
    expect(page.locator("#results")).to_be_hidden()


def test_a_photo_is_cancelled_and_the_example_taken(page: Page, tmp_path: Path) -> None:
    Image.open(PHOTO).resize((6000, 6000)).save(tmp_path / "large.jpg")  # takes a while
    give(page, tmp_path / "large.jpg")
    page.locator("#cancel").click()  # nothing lies over it
    status = page.locator("#status")
    expect(status).to_contain_text("Cancelled; give a photo again.", timeout=PATIENCE)
    expect(page.locator("#results")).to_be_hidden()
    page.locator("#example").click()
    wait_for_faces(page)
    expect(status).to_contain_text("Everything on this page", timeout=PATIENCE)
    expect(page.locator("#cancel")).to_be_hidden()


def test_a_refined_face_is_drawn_in_the_light_that_is_chosen(page: Page) -> None:
    give(page, PHOTO)
    wait_for_faces(page)
    slide(page, "#stage input[name=azimuth]", -80)
    overlay = page.locator("#cest-overlay img").last
    expect(overlay).to_have_attribute("src", re.compile("/light/"), timeout=PATIENCE)
    before = overlay.get_attribute("src")
    page.get_by_role("button", name="Refine: fit further to this photo").click()
    page.locator("#refine input[type=number]").fill("20")
    page.get_by_role("button", name="Refine", exact=True).click()
    expect(page.locator("#status")).to_contain_text("Refined in", timeout=PATIENCE)
    expect(overlay).not_to_have_attribute("src", before, timeout=PATIENCE)
    expect(overlay).to_have_attribute("src", re.compile("/light/"), timeout=PATIENCE)


def test_without_webgl_the_views_say_so(page: Page) -> None:
    page.evaluate(
        """() => {
            const known = HTMLCanvasElement.prototype.getContext;
            HTMLCanvasElement.prototype.getContext = function (kind, options) {
                return kind === 'webgl' ? null : known.call(this, kind, options);
            };
        }"""
    )
    give(page, PHOTO)
    expect(page.locator("#status")).to_contain_text("Everything on this page", timeout=PATIENCE)
    page.wait_for_timeout(3000)  # the meshes are read
    for view in VIEWS:
        expect(page.locator(f"{view} .trouble")).to_have_text(re.compile("has no WebGL"))


def test_two_visitors_do_not_meet(app: RunningApp, browser: Browser, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    Image.open(PHOTO).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned)
    contexts = [browser.new_context(), browser.new_context()]
    pages = [opened(context, app) for context in contexts]
    asked: list[set[str]] = [set(), set()]
    for page, urls in zip(pages, asked):
        page.on("request", lambda request, urls=urls: urls.add(request.url))
    for page, photo in zip(pages, (PHOTO, turned)):
        give(page, photo)
    for page in pages:
        wait_for_faces(page)
    sessions = [
        {match[1] for url in urls if (match := re.search(r"/(session-[^/]+)/", url))}
        for urls in asked
    ]
    assert [len(one) for one in sessions] == [1, 1] and not sessions[0] & sessions[1]
    for page, own in zip(pages, sessions):
        text = page.content()
        assert all((name in text) == (name in own) for name in sessions[0] | sessions[1])
    (first,), (second,) = sessions
    folders = {path.name for path in app.temporary.rglob("session-*")}
    assert {first, second} <= folders
    contexts[0].close()
    for _ in range(120):
        folders = {path.name for path in app.temporary.rglob("session-*")}
        if first not in folders:
            break
        pages[1].wait_for_timeout(500)
    assert first not in folders and second in folders
    contexts[1].close()


def test_a_clip_is_cancelled_and_reconstructed(page: Page, tmp_path: Path) -> None:
    pytest.importorskip("av")
    photo = np.asarray(Image.open(PHOTO))
    frames = [np.ascontiguousarray(photo[:256, i : i + 256]) for i in range(60, 84)]
    for _ in write_video(tmp_path / "clip.mp4", frames, 25.0):
        pass
    page.get_by_role("tab", name="Video").click()
    status = page.locator("#clip-status")
    page.locator("#start-clip").click()
    expect(status).to_contain_text("Give a clip first.", timeout=PATIENCE)
    page.wait_for_timeout(1000)  # nothing else is said after it
    expect(status).to_contain_text("Give a clip first.")
    page.locator("#clip input[type=file]").set_input_files(tmp_path / "clip.mp4")
    page.locator("#clip video").wait_for()
    page.locator("#start-clip").click()
    expect(status).to_contain_text("% done", timeout=PATIENCE)
    page.locator("#cancel-clip").click()
    expect(status).to_contain_text("Cancelled.", timeout=PATIENCE)
    page.locator("#start-clip").click()
    expect(status).to_contain_text("Done.", timeout=3 * PATIENCE)  # 24 frames beside a browser
    source = page.locator("#clip-result video").get_attribute("src")
    assert source.startswith(page.url) and source.endswith("clip.mp4")


def test_a_phone_a_keyboard_and_a_screen_reader(app: RunningApp, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = opened(context, app)
    give(page, PHOTO)
    wait_for_faces(page)
    page.locator("#cest-chain svg").wait_for()
    # Nothing is wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [page.locator(view).bounding_box() for view in VIEWS]
    assert boxes[0]["y"] == boxes[1]["y"]  # side by side, to be compared
    # Everything that can be worked has a name.
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('#stage :is(input, button, canvas), .compare input')]
            .filter(e => !(e.getAttribute('aria-label') || e.closest('label')?.textContent.trim()
                           || e.textContent.trim()))
            .map(e => e.outerHTML)"""
    )
    assert nameless == []
    # Arrow keys move the bar between photo and face, turn the head and move the light.
    bar = page.get_by_role("slider", name="Between the photo and the face by CEST")
    drawn = page.get_by_role("img", name="The photo with the face by CEST drawn over it")
    before = drawn.evaluate("image => getComputedStyle(image).clipPath")
    bar.focus()
    page.keyboard.press("ArrowRight")
    assert drawn.evaluate("image => getComputedStyle(image).clipPath") != before
    page.locator("#cest-view canvas.mesh").focus()
    page.keyboard.press("ArrowRight")
    assert float(page.locator("#stage input[name=yaw]").input_value()) > 0
    page.locator("#cest-view canvas.ball").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("#stage input[value=studio]").is_checked()
    context.close()


def test_screenshots_are_there_and_small_enough_to_keep() -> None:
    shown = re.findall(r"\(docs/screenshots/(.*?)\)", (ROOT / "README.md").read_text("utf-8"))
    assert shown
    for name in {*shown, "desktop.jpg", "phone.jpg"}:
        path = ROOT / "docs" / "screenshots" / name
        assert path.stat().st_size <= 300 * 1024, name
        with Image.open(path) as picture:
            assert np.ptp(np.asarray(picture)) > 200, name
