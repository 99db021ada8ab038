"""The app as a program meets it: a process and its API, with good, bad and hostile requests."""

import contextlib
import http.client
import json
import re
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from browser import ROOT, RunningApp, random_checkpoints, running_app
from cest.video import open_clip, write_video

PHOTO = ROOT / "cest" / "assets" / "astronaut.jpg"
GUIDE = ROOT / "docs" / "api.md"
MODELS = ("CEST", "IEST")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    checkpoints = random_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    with running_app(tmp_path_factory.mktemp("app"), **checkpoints) as running:
        yield running


@pytest.fixture(scope="module")
def client(app: RunningApp, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(app.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of the astronaut, sliding by."""
    pytest.importorskip("av")
    photo = np.asarray(Image.open(PHOTO))
    frames = [np.ascontiguousarray(photo[:320, 2 * i : 2 * i + 320]) for i in range(25)]
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    for _ in write_video(path, frames, 25.0):
        pass
    return path


def as_array(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


# -- what it is for ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_reconstruct_gives_every_result(client: Client, model: str) -> None:
    parameters, overlay, downloads = client.predict(
        handle_file(PHOTO), model, api_name="/reconstruct"
    )
    assert as_array(overlay).shape == as_array(PHOTO).shape
    assert parameters["model"]["conditioning"] == model.lower()
    assert 0 < parameters["photometric_error"] < 255
    assert all(seconds > 0 for seconds in parameters["seconds"].values())

    files = {Path(path).name: path for path in downloads}
    assert set(files) == {
        "face.glb",
        "face-obj.zip",
        "textures.zip",
        "parameters.json",
        "everything.zip",
    }
    assert len(trimesh.load_mesh(files["face.glb"]).faces) > 1000
    written = json.loads(Path(files["parameters.json"]).read_text())
    assert written == {name: value for name, value in parameters.items() if name != "seconds"}
    contents = {}
    for name in ("face-obj.zip", "textures.zip", "everything.zip"):
        with zipfile.ZipFile(files[name]) as archive:
            assert archive.testzip() is None
            contents[name] = set(archive.namelist())
    assert contents["face-obj.zip"] == {"face.obj", "face.mtl", "albedo.png"}
    assert contents["textures.zip"] == {"albedo.png", "photo_texture.png"}
    assert {"face.ply", "overlay.png", "strip.png"} < contents["everything.zip"]
    assert str(ROOT) not in json.dumps(parameters)


def test_find_faces_gives_crops_that_reconstruct_takes(client: Client) -> None:
    (face,) = client.predict(handle_file(PHOTO), api_name="/find_faces")
    left, top, right, bottom = face["box"]
    assert 150 < left < right < 300 and 50 < top < bottom < 220
    found = client.predict(handle_file(PHOTO), api_name="/reconstruct")[0]
    given = client.predict(handle_file(PHOTO), crop=face["crop"], api_name="/reconstruct")[0]
    assert given["crop"] == found["crop"]


def test_one_factor_at_a_time(client: Client) -> None:
    """Light, borrowed light and pose change the face, and the photo around it stays."""
    photo = handle_file(PHOTO)
    before = as_array(client.predict(photo, api_name="/reconstruct")[1])
    left = as_array(client.predict(photo, azimuth=-80, api_name="/relight"))
    right = as_array(client.predict(photo, azimuth=80, api_name="/relight"))
    own = as_array(client.predict(photo, photo, api_name="/borrow_light"))
    same = as_array(client.predict(photo, api_name="/pose"))
    posed = as_array(client.predict(photo, expression={"jawOpen": 1}, yaw=30, api_name="/pose"))
    assert np.array_equal(own, before) and np.array_equal(same, before)  # its own light, no change
    for changed in (left, right, posed):
        assert np.array_equal(changed[300:], before[300:])
        assert np.abs(changed - before).max() > 30
    lit = (left - right)[60:200, 150:300].sum(-1)
    columns = np.abs(lit).sum(0).nonzero()[0]
    middle = int(columns.mean())
    assert lit[:, :middle].sum() > 0 > lit[:, middle:].sum()


def test_refine_comes_closer_to_the_photo(client: Client) -> None:
    before = client.predict(handle_file(PHOTO), api_name="/reconstruct")[0]
    after = client.predict(handle_file(PHOTO), steps=20, api_name="/refine")[0]
    assert after["model"]["refinement_steps"] == 20
    assert after["photometric_error"] < before["photometric_error"]


def test_video(client: Client, clip: Path) -> None:
    import cv2

    result = client.predict(handle_file(clip), "IEST", -60, 20, api_name="/video")
    capture = cv2.VideoCapture(result)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 25
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    _, frame = capture.read()
    assert frame.shape == (344, 960, 3)  # three square panels and their labels


def test_the_guide_is_complete_and_its_examples_run(
    app: RunningApp, client: Client, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(re.findall(r"^### `(/\w+)`", text, re.MULTILINE)) == set(named)
    for name, endpoint in named.items():
        section = text.split(f"### `{name}`")[1].split("\n### ")[0]
        for parameter in endpoint["parameters"]:
            assert f"`{parameter['parameter_name']}`" in section, f"{name}: {parameter}"

    (tmp_path / "photo.jpg").write_bytes(PHOTO.read_bytes())
    (tmp_path / "other.jpg").write_bytes(PHOTO.read_bytes())
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    code = "\n".join(examples).replace("http://127.0.0.1:7860", app.url)
    exec(compile(code, str(GUIDE), "exec"), {})


def test_every_action_has_a_name(app: RunningApp) -> None:
    with urllib.request.urlopen(f"{app.url}/config") as answer:
        dependencies = json.load(answer)["dependencies"]
    public = [one for one in dependencies if one["api_visibility"] == "public"]
    assert len({one["api_name"] for one in public}) == len(public) == 7


# -- what it refuses -----------------------------------------------------------------------------


def png(width: int, height: int, text: bytes | None = None) -> bytes:
    """A PNG whose header claims a size, black, or without pixels if it is large; with a text."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    written = b"" if text is None else chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text))
    pixels = zlib.compress(bytes(height * (1 + 3 * width))) if height < 1000 else b""
    return b"\x89PNG\r\n\x1a\n" + header + written + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    size = 0xFFFFFFFF  # 4 GB
    return (
        b"BM"
        + struct.pack("<IHHI", size, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size, 0, 0, 0, 0)
    )


def zip_bomb(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil.txt", bytes(50_000_000))
    return path.read_bytes()


HOSTILE = {
    "empty": (b"", "is an empty file"),
    "text": (b"Dear diary", "is not a picture"),
    "cut short": (PHOTO.read_bytes()[:3000], "is cut short or damaged"),
    "pixel bomb": (png(60_000, 60_000), "million pixels"),
    "size overflow": (png(2**31 - 1, 2**31 - 1), "million pixels"),
    "4 GB header": (bmp(30_000, 30_000), "million pixels"),
    "negative size": (bmp(-5, 1), "million pixels"),
    "text bomb": (png(64, 64, bytes(50_000_000)), "cut short or damaged"),
    "script": (
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        "not a picture",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_photos_are_answered_in_one_sentence(
    client: Client, app: RunningApp, tmp_path: Path, kind: str
) -> None:
    content, says = HOSTILE[kind]
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(AppError, match=says) as caught:
        client.predict(handle_file(path), api_name="/find_faces")
    message = str(caught.value)
    assert "holiday.jpg" in message
    assert str(app.temporary) not in message  # the server's paths are nobody's business
    assert "\n" not in message.strip()


def test_a_zip_bomb_is_no_photo_and_no_clip(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "bomb.jpg"
    zip_bomb(path)
    with pytest.raises(AppError, match="is not a picture"):
        client.predict(handle_file(path), api_name="/reconstruct")
    with pytest.raises(AppError, match="is not a video"):
        client.predict(handle_file(path), api_name="/video")


def test_requests_that_make_no_sense(client: Client, tmp_path: Path) -> None:
    photo, blank = handle_file(PHOTO), tmp_path / "<b>sky.png"
    Image.new("RGB", (320, 240), (110, 150, 210)).save(blank)
    for arguments, says in (
        ({"photo": handle_file(blank), "api_name": "/reconstruct"}, "No face was found"),
        ({"photo": None, "api_name": "/reconstruct"}, "Give a file first"),
        ({"photo": photo, "face": 7, "api_name": "/reconstruct"}, "There is no face 7"),
        ({"photo": photo, "crop": [1], "api_name": "/reconstruct"}, "A crop is an object"),
        (
            {"photo": photo, "crop": {"center_x": 1, "center_y": 1, "size": 1e30}}
            | {"api_name": "/reconstruct"},
            "The square must lie on the photo",
        ),
        ({"photo": photo, "azimuth": 1e30, "api_name": "/relight"}, "azimuth is a number from"),
        ({"photo": photo, "expression": {"wink": 1}, "api_name": "/pose"}, "no action 'wink'"),
        ({"photo": photo, "yaw": 1e9, "api_name": "/pose"}, "Yaw and pitch are degrees"),
        ({"photo": photo, "steps": 10**9, "api_name": "/refine"}, "Steps are a number from"),
        (
            {"photo": photo, "model": "BFM", "api_name": "/reconstruct"},
            "not in the list of choices",
        ),
    ):
        with pytest.raises(AppError, match=re.escape(says)):
            client.predict(**arguments)


def answer_of(app: RunningApp, name: str, data: list) -> str:
    """What the server says to a request that no client library would make."""
    request = urllib.request.Request(
        f"{app.url}/gradio_api/call/{name}",
        json.dumps({"data": data}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{app.url}/gradio_api/call/{name}/{event}") as answer:
        return answer.read().decode()


def upload(app: RunningApp, name: str, content: bytes) -> tuple[int, str]:
    host = app.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    body = (
        b'--limit\r\nContent-Disposition: form-data; name="files"; filename="'
        + name.encode()
        + b'"\r\nContent-Type: image/jpeg\r\n\r\n'
        + content
        + b"\r\n--limit--\r\n"
    )
    kind = "multipart/form-data; boundary=limit"
    try:
        # It may hang up in the middle of too much; it has answered then.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/gradio_api/upload", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_files_that_are_not_the_visitors_own_are_neither_read_nor_served(
    app: RunningApp, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (64, 64)).save(secret)
    for path in (str(secret), f"{app.temporary}/../app.log", "/etc/passwd", "../../../etc/passwd"):
        given = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answer = answer_of(app, "find_faces", [given])
        assert "event: error" in answer and "root:" not in answer, answer
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            urllib.request.urlopen(f"{app.url}/gradio_api/file={path}")


def test_file_names_that_are_paths_stay_in_the_upload_folder(app: RunningApp) -> None:
    before = set(app.folder.rglob("*"))
    for name in ("../../evil.jpg", "/etc/evil.jpg", "..\\evil.jpg", "a" * 300 + ".jpg", ".."):
        status, answer = upload(app, name, PHOTO.read_bytes())
        if status == 200:
            (stored,) = json.loads(answer)
            given = {"path": stored, "meta": {"_type": "gradio.FileData"}}
            assert "Traceback" not in answer_of(app, "find_faces", [given])
    new = set(app.folder.rglob("*")) - before
    assert all(app.temporary in path.parents for path in new), new
    assert not Path("/etc/evil.jpg").exists()


def test_too_large_an_upload_is_refused(app: RunningApp) -> None:
    for megabytes, expected in ((49, 200), (51, 413)):
        status, _ = upload(app, "large.jpg", bytes(megabytes * 2**20))
        assert status == expected, megabytes


def test_a_cancelled_clip_frees_the_queue(
    client: Client, clip: Path, app: RunningApp, tmp_path: Path
) -> None:
    """Clips run one at a time: one that waits runs once the one before is cancelled, which comes
    to nothing."""
    long, frames = tmp_path / "long.mp4", [np.full((320, 320, 3), 99, np.uint8)] * 200
    frames[:25] = open_clip(clip)
    for _ in write_video(long, frames, 25.0):
        pass
    before = set(app.temporary.rglob("clip.mp4"))
    first = client.submit(handle_file(long), api_name="/video")
    while first.status().code.name in ("STARTING", "JOINING_QUEUE", "SENDING_DATA", "IN_QUEUE"):
        time.sleep(0.02)
    second = client.submit(handle_file(clip), api_name="/video")
    first.cancel()
    assert Path(second.result(timeout=120)).stat().st_size > 1000
    uploads = {path for path in app.temporary.rglob("clip.mp4") if "session-" not in str(path)}
    assert len(set(app.temporary.rglob("clip.mp4")) - before - uploads) == 1


# -- what it leaves behind (last, when everything has been tried) --------------------------------


def test_files_are_removed_with_the_visit(app: RunningApp) -> None:
    visitor = Client(app.url, verbose=False, download_files=False)
    before = set(app.temporary.rglob("session-*"))
    visitor.predict(handle_file(PHOTO), api_name="/relight")
    (mine,) = set(app.temporary.rglob("session-*")) - before
    visitor.close()
    deadline = time.monotonic() + 60
    while mine.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not mine.exists()


def test_the_process_has_lived_through_it(app: RunningApp, client: Client) -> None:
    assert client.predict(handle_file(PHOTO), api_name="/find_faces")
    log = app.log.read_text()
    assert "Segmentation" not in log and "cest/space" not in log, log


def test_uploads_end_with_the_process(tmp_path: Path) -> None:
    with running_app(tmp_path, **random_checkpoints(tmp_path / "checkpoints")) as app:
        status, answer = upload(app, "mine.jpg", PHOTO.read_bytes())
        (stored,) = json.loads(answer)
        assert status == 200 and Path(stored).read_bytes() == PHOTO.read_bytes()
        (folder,) = app.temporary.glob("cest-*")
        assert folder in Path(stored).parents and folder.stat().st_mode & 0o077 == 0
    assert not [path for path in app.temporary.rglob("*") if path.is_file()]
    assert not folder.exists()


def test_unusable_checkpoint_ends_the_app_with_one_sentence(tmp_path: Path) -> None:
    app = running_app(tmp_path, CEST_MODEL=str(tmp_path))
    with pytest.raises(AssertionError, match="did not start") as caught, app:
        pass
    assert "app.py: " in str(caught.value)
    assert "has no config.json" in str(caught.value)
    assert "Traceback" not in str(caught.value)
