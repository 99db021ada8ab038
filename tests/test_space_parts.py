"""The Space's parts without a browser or a server: sessions, requests, the chain, a lent GPU."""

import base64
import contextlib
import importlib
import inspect
import json
import multiprocessing
import os
import pickle
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from xml.etree import ElementTree

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from cest.configuration import FaceEstimatorConfig
from cest.cropping import SquareCrop
from cest.detection import DetectedFace
from cest.face_model import FaceModel
from cest.geometry import sh_basis
from cest.lighting import LightError
from cest.modeling import FaceEstimator, FaceParameters
from cest.photo import PhotoError
from cest.reconstruction import NoFaceError, Reconstructor
from cest.space import gpu, photo_tab, studio, video_tab
from cest.space import sessions as sessions_module
from cest.space.answers import TROUBLE, RequestError, answered
from cest.space.api import ANSWERS_KEPT, Api
from cest.space.chain import draw_chain
from cest.space.expressions import expression_basis
from cest.space.photo_tab import PhotoTab
from cest.space.sessions import Sessions
from cest.space.studio import Light, Result, Studio, expression_amounts, named, square_on
from cest.space.video_tab import VideoTab

PHOTO = str(photo_tab.ASSETS / "astronaut.jpg")


class OneFace:
    """A detector that always finds a face in the middle of the photo."""

    def detect(self, photo: np.ndarray) -> list[DetectedFace]:
        height, width = photo.shape[:2]
        box = (width / 4, height / 4, 3 * width / 4, 3 * height / 4)
        return [DetectedFace(box, 1.0, SquareCrop(width / 2, height / 2, width * 0.8))]


def make_studio(face_model: FaceModel) -> Studio:
    detector, reconstructors = OneFace(), {}
    for name in ("cest", "iest"):
        torch.manual_seed(0)
        config = FaceEstimatorConfig(conditioning=name, image_size=64, width=0.125)
        model = FaceEstimator(config, face_model=face_model)
        reconstructors[name.upper()] = Reconstructor(model, detector, "cpu", name=name.upper())
    return Studio(reconstructors, detector)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 200, (120, 100, 3), dtype=np.uint8)


# -- sessions ------------------------------------------------------------------------------------


def test_a_session_ends_with_its_files_and_no_other(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path / "sessions")
    folders = {}
    for key in "ab":
        with sessions.visit(key) as session:
            folders[key] = session.new_folder("results")
            (folders[key] / "face.glb").write_bytes(b"x")
    assert folders["a"].parent != folders["b"].parent
    sessions.end("a")
    assert not folders["a"].parent.exists() and folders["b"].exists()
    with sessions.visit("a") as session:
        assert session.pixels is None
    sessions.end_all()
    assert not list((tmp_path / "sessions").iterdir())


def test_who_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    with sessions.visit("a") as session:
        session.new_folder("results")
        session.ask("clip", "clip.mp4")
        sessions.end("a")
        assert not session.runs["clip"].wanted
        session.new_folder("results")
    assert not list(tmp_path.iterdir())


def test_the_longest_away_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "SESSIONS_KEPT", 2)
    sessions, folders = Sessions(tmp_path), {}
    for key in "abac":
        with sessions.visit(key) as session:
            folders.setdefault(key, session.new_folder("results"))
    assert folders["a"].exists() and folders["c"].exists() and not folders["b"].exists()


def test_tidying_up_ends_old_sessions_and_orphans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = Sessions(tmp_path)
    with sessions.visit("old") as session:
        old = session.new_folder("results")
    with sessions.visit("new") as session:
        new = session.new_folder("results")
    sessions._sessions["old"].used -= sessions_module.SECONDS_KEPT + 1
    orphan, young = tmp_path / "session-orphan", tmp_path / "session-young"
    orphan.mkdir()
    young.mkdir()
    os.utime(orphan, (time.time() - sessions_module.SECONDS_KEPT - 9,) * 2)
    sessions.tidy()
    assert new.exists() and young.exists() and not old.parent.exists() and not orphan.exists()


def test_a_session_keeps_the_last_of_a_kind(tmp_path: Path) -> None:
    with Sessions(tmp_path).visit("a") as session:
        other = session.new_folder("clips")
        folders = [session.new_folder("light", keep=2) for _ in range(4)]
        assert [folder.exists() for folder in folders] == [False, False, True, True]
        session.pixels = np.zeros((2, 2, 3))
        session.ask("refinement", 20)
        session.ask("clip", "clip.mp4")
        session.start_over()
        assert folders[-1].exists() and other.exists() and session.pixels is None
        assert not session.runs["refinement"].wanted and session.runs["clip"].wanted


def test_requests_without_a_key_share_nothing(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path)
    with sessions.visit(None) as one, sessions.visit(None) as other:
        assert one.folder != other.folder


def test_a_run_that_is_called_off_takes_no_later_one_along(tmp_path: Path) -> None:
    with Sessions(tmp_path).visit("a") as session:
        session.ask("photo", "one.jpg")
        with session.running("photo") as first:
            assert session.call_off("photo") and not session.call_off("photo")
            session.ask("photo", "one.jpg")
            with session.running("photo") as second:
                assert not first.wanted and second.wanted
        session.ask("photo", "two.jpg")
        assert session.call_off("photo")
        with session.running("photo") as run:  # it waited for its turn
            assert run is None


def test_the_same_wish_again_is_done_once(tmp_path: Path) -> None:
    with Sessions(tmp_path).visit("a") as session:
        session.ask("refinement", 20)
        session.ask("refinement", 20)
        with session.running("refinement") as run, session.running("refinement") as again:
            session.ask("refinement", 20)
            assert run.wanted and again is None
            session.ask("refinement", 40)  # but another takes its place
            assert not run.wanted and session.runs["refinement"].wanted


def test_what_goes_wrong_is_told_unless_it_was_called_off(tmp_path: Path) -> None:
    with Sessions(tmp_path).visit("a") as session:
        session.ask("photo", "one.jpg")
        with pytest.raises(PhotoError), session.running("photo") as run:
            assert run.end()  # what came of it is about to be shown
            raise PhotoError
        session.ask("photo", "one.jpg")
        with session.running("photo"):
            assert session.call_off("photo")
            raise PhotoError
        session.ask("photo", "one.jpg")
        with pytest.raises(ZeroDivisionError), session.running("photo"):
            session.call_off("photo")
            raise ZeroDivisionError  # which is our own fault


# -- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"azimuth": 1e9}, {"elevation": float("nan")}, {"strength": "1"}, {"strength": -1}]
)
def test_lights_that_are_none(wrong: dict) -> None:
    with pytest.raises(LightError, match=next(iter(wrong))):
        Light(**wrong)


@pytest.mark.parametrize("wrong", [[], "jawOpen", {"jawOpen": "1"}, {"jawOpen": 9}, {1: 1}])
def test_expressions_that_are_none(wrong: object) -> None:
    with pytest.raises(RequestError, match="An expression is"):
        expression_amounts(wrong, ["jawOpen"])


def test_an_action_that_is_not_known() -> None:
    assert expression_amounts({"jawOpen": 1}, ["jawOpen"]) == {"jawOpen": 1.0}
    with pytest.raises(RequestError, match="no action 'wink'; the face model knows jawOpen"):
        expression_amounts({"wink": 1}, ["jawOpen"])


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [1],
        {"center_x": 1},
        {"center_x": 0, "center_y": 0, "size": "big"},
        {"center_x": 50, "center_y": 50, "size": 1e12},
        {"center_x": 500, "center_y": 50, "size": 50},
        {"center_x": 50, "center_y": 50, "size": 2},
        {"center_x": float("inf"), "center_y": 50, "size": 50},
    ],
)
def test_squares_that_are_none(wrong: object, photo: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"A crop is|The square must"):
        square_on(photo, wrong)


def test_answers_are_one_sentence_of_text_without_paths(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: str) -> None:
        with named(path):
            raise NoFaceError(f"{path} is no photo.")

    def yield_and_fail(path: str):
        yield 1
        raise ZeroDivisionError(path)

    with pytest.raises(gr.Error) as caught:
        answered(refuse)("/tmp/secret/<b>me.png")
    assert caught.value.message == "&lt;b&gt;me.png is no photo."
    assert answered(refuse, str.upper)("/tmp/secret/me.png") == "ME.PNG IS NO PHOTO."
    with pytest.raises(gr.Error) as caught:
        list(answered(yield_and_fail)("/tmp/secret"))
    assert caught.value.message == TROUBLE
    assert list(answered(yield_and_fail, str.upper)("/tmp/secret")) == [1, TROUBLE.upper()]
    assert "ZeroDivisionError" in caplog.text  # for the one who runs the server


# -- studio --------------------------------------------------------------------------------------


def test_large_photos_are_scaled_down(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studio, "LONG_SIDE", 50)
    Image.new("RGB", (200, 80), "red").save(tmp_path / "wide.png")
    pixels = make_studio(face_model).read(tmp_path / "wide.png")
    assert pixels.shape == (20, 50, 3) and (pixels == (255, 0, 0)).all()


def test_both_models_answer_and_refine_gives_way(face_model: FaceModel, photo: np.ndarray) -> None:
    shared = make_studio(face_model)
    result = shared.reconstruct_photo(photo)
    assert set(result.faces) == set(result.seconds) == {"CEST", "IEST"}
    shares, free = [], []

    def told(share: float) -> bool:
        shares.append(share)
        free.append(shared.turn.acquire(blocking=False))
        shared.turn.release()
        return True

    refined = shared.refine(result, 3, told)
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert all(free)  # others could have had their turn
    assert refined.faces["CEST"].refined == 3 and result.faces["CEST"].refined == 0

    assert shared.refine(result, 3, lambda share: False) is None
    assert not shared.turn.locked()


def test_own_light_is_as_bright_as_the_photos(face_model: FaceModel, photo: np.ndarray) -> None:
    face = make_studio(face_model).reconstruct_photo(photo).faces["CEST"]
    front = Light().on(face)
    facing = sh_basis(torch.tensor([0.0, 0.0, 1.0]))
    # A clamped cosine in three bands, 1/4 + 1/2 + 5/16 where it faces the light, and 1/4 ambient.
    assert float(front @ facing) == pytest.approx((17 / 16 + 1 / 4) * face.exposure, rel=1e-4)
    right = Light(azimuth=90).on(face)
    assert right[3] > 0.5 * right.abs().max() and abs(float(right[2])) < 1e-6


@pytest.fixture
def lent_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """A stand-in for ZeroGPU: what is marked for the GPU runs in a process that is forked off.

    What goes in and comes out is pickled, a generator's values as they come, and a generator that
    is closed here is closed there after its next value. Yields what was called, with the largest
    number of bytes that were sent at a time.
    """
    fork, calls = multiprocessing.get_context("fork"), []

    def lent(function: Callable) -> Callable:
        def there(arguments: bytes, pipe: Connection, closed: Event) -> None:
            torch.set_num_threads(1)  # a pool of threads does not live through a fork
            said = function(*pickle.loads(arguments))
            for value in said if inspect.isgeneratorfunction(function) else [said]:
                if closed.is_set():
                    break
                pipe.send_bytes(pickle.dumps(value))
            pipe.close()

        def values(*arguments: object) -> Iterator[object]:
            sent = pickle.dumps(arguments)
            calls.append((function.__name__, len(sent)))
            (here, pipe), closed = fork.Pipe(duplex=False), fork.Event()
            process = fork.Process(target=there, args=(sent, pipe, closed))
            process.start()
            pipe.close()
            try:
                with contextlib.suppress(EOFError):
                    while True:
                        yield pickle.loads(here.recv_bytes())
            finally:
                closed.set()
                process.join(60)
                assert process.exitcode == 0

        def value(*arguments: object) -> object:
            (only,) = values(*arguments)
            return only

        return values if inspect.isgeneratorfunction(function) else value

    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=lent))
    importlib.reload(gpu)
    monkeypatch.setattr(studio, "on_gpu", gpu.on_gpu)
    yield calls
    monkeypatch.delitem(sys.modules, "spaces")
    importlib.reload(gpu)
    assert gpu.on_gpu(len) is len


def test_a_lent_gpu_is_another_process(
    face_model: FaceModel,
    photo: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lent_gpu: list[tuple[str, int]],
) -> None:
    """Progress comes from it, and a stop gets there."""
    steps = tmp_path / "steps"

    def fit(
        self: Reconstructor,
        photo: np.ndarray,
        crop: SquareCrop,
        parameters: FaceParameters,
        count: int,
        progress: Callable,
    ) -> FaceParameters:  # no gradients: torch does not take them in a fork of a process with some
        for step in range(1, count + 1):
            with steps.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.02)
            progress(step, 0.0)
        return replace(parameters, illumination=parameters.illumination + 1)

    monkeypatch.setattr(Reconstructor, "fit", fit)
    shared, shares = make_studio(face_model), []
    result = shared.reconstruct_photo(photo)
    assert result.faces["IEST"].overlay().size == (100, 120)
    refined = shared.refine(result, 2, lambda share: not shares.append(share))
    assert shares == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1])
    done = steps.read_text().split()
    assert len(done) == 4 and str(os.getpid()) not in done
    for name, face in result.faces.items():
        assert refined.faces[name].refined == 2
        light = refined.faces[name].parameters.illumination
        assert torch.equal(light, face.parameters.illumination + 1)
        assert refined.faces[name].face_model is face.face_model  # not a copy for each visitor

    assert shared.refine(result, 200, lambda share: share < 0.05) is None
    assert len(steps.read_text().split()) - len(done) < 200  # of 400; 20 are what was wanted
    assert [name for name, _ in lent_gpu] == ["estimate", "refine", "refine"]
    assert max(size for _, size in lent_gpu) < 5_000_000


# -- the photo tab -------------------------------------------------------------------------------


def make_tab(face_model: FaceModel, folder: Path) -> tuple[PhotoTab, gr.Request]:
    with gr.Blocks():
        tab = PhotoTab(make_studio(face_model), Sessions(folder / "sessions"))
    return tab, types.SimpleNamespace(session_hash="a")


def give(tab: PhotoTab, request: gr.Request) -> dict:
    tab.photo_change(PHOTO, request)
    return tab.photo_turn(True, request)


def test_another_photo_waits_for_files_that_are_written(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    give(tab, request)
    next_photo = threading.Thread(target=lambda: tab.photo_change(PHOTO, request))
    write, alive = photo_tab.write_downloads, []

    def write_meanwhile(*arguments: object) -> list[Path]:
        if not alive:
            next_photo.start()
            next_photo.join(0.2)
        alive.append(next_photo.is_alive())
        return write(*arguments)

    monkeypatch.setattr(photo_tab, "write_downloads", write_meanwhile)
    files = tab.write_files(request)
    assert len(files) == 2 and alive == [True, True]
    next_photo.join(10)
    assert not next_photo.is_alive()
    assert all(Path(path).exists() for paths in files for path in paths)  # Gradio sends them now
    assert tab.write_files(request) == [None, None]


def test_files_that_gradio_removed_are_made_again(face_model: FaceModel, tmp_path: Path) -> None:
    """It removes what it served an hour ago, also of a visitor who is still there."""
    tab, request = make_tab(face_model, tmp_path)
    give(tab, request)
    files = [Path(path) for paths in tab.write_files(request) for path in paths]
    with tab.sessions.visit(request.session_hash) as session:
        meshes = list(session.meshes.values())
        files[0].unlink()
        meshes[0].unlink()
        tab._on_stage(session)
        assert all(path.exists() for path in session.meshes.values())
        kept = dict(session.meshes)
        tab._on_stage(session)
        assert session.meshes == kept  # what is there is not made again
    again = [Path(path) for paths in tab.write_files(request) for path in paths]
    assert all(path.exists() for path in again)
    assert [Path(path) for paths in tab.write_files(request) for path in paths] == again


def test_a_face_of_the_photo_before_is_not_shown(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one whose search was cancelled, nor what was wrong with it; and Cancel says nothing when
    there is nothing to."""
    tab, request = make_tab(face_model, tmp_path)
    nothing, reconstruct = {tab.status: gr.skip()}, tab.studio.reconstruct
    meanwhile: list[Callable[[], dict]] = []

    def reconstruct_slowly(*arguments: object) -> Result:
        if meanwhile:
            meanwhile.pop()()
        return reconstruct(*arguments)

    monkeypatch.setattr(tab.studio, "reconstruct", reconstruct_slowly)

    def change_and_fail() -> None:
        tab.photo_change(f"{PHOTO}?", request)
        raise PhotoError("The photo before is damaged.")

    for happens in (
        lambda: tab.cancel_click(request),
        lambda: tab.photo_change(f"{PHOTO}?", request),
        change_and_fail,
    ):
        meanwhile.append(happens)
        assert tab.photo_change(PHOTO, request)[tab.status] == photo_tab.LOOKING
        assert tab.photo_turn(True, request) == nothing and not meanwhile
    tab.photo_change(PHOTO, request)
    assert tab.cancel_click(request)[tab.status] == photo_tab.CANCELLED
    assert tab.photo_turn(True, request) == nothing  # it waited for its turn
    assert tab.cancel_click(request) == nothing
    assert give(tab, request)[tab.status].startswith("Everything on this page took")
    assert tab.photo_turn(True, request) == tab.cancel_click(request) == nothing


def test_a_choice_that_is_cancelled_leaves_the_face_before(
    face_model: FaceModel, tmp_path: Path
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    give(tab, request)
    with tab.sessions.visit("a") as session:
        before = session.result
    event = types.SimpleNamespace(_data={"face": 0})
    tab.picker_choose(event, request)
    assert tab.cancel_click(request)[tab.status] == photo_tab.UNCHANGED
    assert tab.picker_turn(True, request) == {tab.status: gr.skip()} and session.result is before
    tab.picker_choose(event, request)
    assert tab.results in tab.picker_turn(True, request) and session.result is not before


def test_a_stop_ends_the_refinement_that_goes_on_and_no_later_one(
    face_model: FaceModel, tmp_path: Path
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    give(tab, request)
    files = tab.write_files(request)
    shares: list[float] = []

    def stop_and_ask_again(share: float, desc: str) -> None:
        shares.append(share)
        if share == 0.1:
            assert tab.stop_click(request) == photo_tab.UNCHANGED
            assert tab.refine_click(20, request) == photo_tab.REFINING

    tab.refine_click(5, request)
    assert tab.refine_turn(request, stop_and_ask_again) == {tab.status: gr.skip()}
    assert shares == [0.1] and tab.write_files(request) == files  # nothing new to write
    tab.refine_click(20, request)  # a double-click
    shown = tab.refine_turn(request, lambda share, desc: shares.append(share))
    assert shown[tab.status].startswith("Refined in") and len(shares) == 1 + 2 * 20
    assert tab.refine_turn(request) == {tab.status: gr.skip()}
    assert tab.stop_click(request) == gr.skip()
    assert tab.write_files(request) != files


def test_detail_is_switched_off_and_on_again(face_model: FaceModel, tmp_path: Path) -> None:
    """What is drawn, and the files, follow; the estimate stays. The page knows what the visitor
    wants of the next photo, even if the session has ended."""
    tab, request = make_tab(face_model, tmp_path)
    with pytest.raises(RequestError, match="The photo is gone"):
        tab.detail_input(False, request)

    def albedos() -> Iterator[tuple[int, int] | bool]:
        files = [{Path(path).name: path for path in paths} for paths in tab.write_files(request)]
        for one in files:
            archive = zipfile.ZipFile(one["textures.zip"])
            yield Image.open(archive.open("albedo.png")).size
            said = json.loads(Path(one["parameters.json"]).read_text())
            yield said["model"]["detail_of_the_photo"]

    give(tab, request)
    assert list(albedos()) == 2 * [(512, 512), True]
    with tab.sessions.visit("a") as session:
        estimated = session.result
    shown = tab.detail_input(False, request)
    assert tab.stage in shown and all(overlay in shown for overlay in tab.overlays.values())
    assert list(albedos()) == 2 * [(64, 64), False]
    assert session.result is estimated
    tab.photo_change(f"{PHOTO}?", request)
    assert tab.detail_input(True, request) == {tab.status: gr.skip()}  # another is on its way
    tab.sessions.end("a")
    tab.photo_change(PHOTO, request)
    tab.photo_turn(False, request)
    assert list(albedos()) == 2 * [(64, 64), False]
    tab.detail_input(True, request)
    assert list(albedos()) == 2 * [(512, 512), True]


def test_what_is_wrong_with_a_photo_becomes_the_status(
    face_model: FaceModel, tmp_path: Path
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    (tmp_path / "diary.jpg").write_text("Dear diary")
    tab.photo_change(str(tmp_path / "diary.jpg"), request)
    shown = answered(tab.photo_turn, tab._nothing)(True, request)
    assert shown[tab.status].startswith("diary.jpg is not a picture")
    assert tab.cancel_click(request) == {tab.status: gr.skip()}


def test_a_photo_that_is_gone_is_said_so(face_model: FaceModel, tmp_path: Path) -> None:
    tab, request = make_tab(face_model, tmp_path)
    event = types.SimpleNamespace(_data={"light": "studio"})
    for call in (
        lambda: tab.stage_settle(event, request),
        lambda: tab.donor_change(PHOTO, request),
        lambda: (tab.picker_choose(event, request), tab.picker_turn(True, request)),
    ):
        with pytest.raises(RequestError, match="gone from the server"):
            call()
    # What follows a click leaves its words on the page, or says the same.
    assert tab.refine_click(20, request) == photo_tab.GONE
    assert tab.refine_turn(request)[tab.status] in (photo_tab.GONE, gr.skip())


def test_who_had_to_make_room_does_not_wait_for_ever(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    for turn in (partial(tab.photo_turn, True), tab.cancel_click):
        tab.photo_change(PHOTO, request)
        tab.sessions.end("a")
        assert turn(request)[tab.status] == photo_tab.GONE
    tab.photo_change(PHOTO, request)
    monkeypatch.setattr(OneFace, "detect", lambda self, photo: tab.sessions.end("a") or [])
    assert tab.photo_turn(True, request)[tab.status] == photo_tab.GONE


def test_a_second_photo_without_a_face_leaves_the_light_that_was_borrowed(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, request = make_tab(face_model, tmp_path)
    give(tab, request)
    assert tab.donor_change(PHOTO, request)["use_borrowed"]
    monkeypatch.setattr(OneFace, "detect", lambda self, photo: [])
    with pytest.raises(PhotoError):
        tab.donor_change(PHOTO, request)
    with tab.sessions.visit("a") as session:
        assert session.borrowed is not None


# -- the video tab -------------------------------------------------------------------------------


def test_clips_that_are_cancelled_leave_the_one_that_is_shown(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = types.SimpleNamespace(session_hash="a")
    with gr.Blocks():
        tab = VideoTab(make_studio(face_model), Sessions(tmp_path / "sessions"))

    def work(clip: str, model: str, light: Light, output: Path) -> Iterator[float]:
        yield 0.5
        output.write_text(clip)
        yield 1.0

    monkeypatch.setattr(tab.studio, "reconstruct_clip", work)

    def reconstructed(cancelled_at: str = "") -> tuple[str, str]:
        tab.start_click("clip", "CEST", 0.0, 0.0, 1.0, request)
        for said in tab.start_turn("clip", request):
            if said[0] == cancelled_at:
                assert tab.cancel_click(request) == video_tab.CANCELLED
        return said

    status, video = reconstructed()
    assert status == "Done."
    for share in (50, 50, 100):
        assert reconstructed(f"{share} % done …")[0] == video_tab.CANCELLED
    assert Path(video).exists()
    tab.start_click("clip", "CEST", 0.0, 0.0, 1.0, request)
    tab.sessions.end("a")
    assert [status for status, _ in tab.start_turn("clip", request)] == [video_tab.GONE]


def test_a_visitor_without_a_clip_is_asked_for_one(face_model: FaceModel, tmp_path: Path) -> None:
    """The turn that follows leaves it at that: there is no clip that could be gone."""
    request = types.SimpleNamespace(session_hash="a")
    with gr.Blocks():
        tab = VideoTab(make_studio(face_model), Sessions(tmp_path / "sessions"))
    assert tab.start_click(None, "CEST", 0.0, 0.0, 1.0, request) == "Give a clip first."
    assert list(tab.start_turn(None, request)) == [(gr.skip(), gr.skip())]


# -- programs ------------------------------------------------------------------------------------


def test_other_answers_leave_the_video_that_is_being_written(
    face_model: FaceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = types.SimpleNamespace(session_hash="a")
    with gr.Blocks():
        api = Api(make_studio(face_model), Sessions(tmp_path / "sessions"))

    def work(clip: str, model: str, light: Light, output: Path) -> Iterator[float]:
        yield 0.5
        output.write_text(clip)
        yield 1.0

    monkeypatch.setattr(api.studio, "reconstruct_clip", work)
    video = api.video("clip", request=request, progress=lambda share: None)
    assert next(video) is None
    pictures = []
    for _ in range(2 * ANSWERS_KEPT):
        pictures.append(api._kept(lambda: Image.new("RGB", (2, 2)), request))
    assert sum(Path(picture).exists() for picture in pictures) == ANSWERS_KEPT
    assert Path(list(video)[-1]).read_text() == "clip"


# -- what the page shows -------------------------------------------------------------------------


def test_the_chain_shows_the_conditioning(face_model: FaceModel, photo: np.ndarray) -> None:
    """Arrows end in the nodes v, S, R, ℓ: 1 + 2 + 3 + 4 of them in CEST, one each in IEST."""
    result = make_studio(face_model).reconstruct_photo(photo)
    drawings = {
        name: ElementTree.fromstring(draw_chain(face)) for name, face in result.faces.items()
    }
    space = "{http://www.w3.org/2000/svg}"
    arrows = {name: len(svg.findall(f"{space}path")) for name, svg in drawings.items()}
    assert arrows == {"CEST": 10, "IEST": 4}
    pictures = {name: len(svg.findall(f"{space}image")) for name, svg in drawings.items()}
    assert pictures == {"CEST": 5 + 6, "IEST": 5 + 4}  # estimates, and what networks were shown
    text = ["".join(node.itertext()) for node in drawings["CEST"].findall(f"{space}text")]
    estimates = ["v viewpoint", "S shape", "R reflectance", "ℓ light"]
    assert [name for name in text if name in estimates] == estimates


def test_expressions_for_the_script_are_the_face_models(face_model: FaceModel) -> None:
    basis = expression_basis(face_model)
    data = np.frombuffer(base64.b64decode(basis["data"]), "<i2").astype(float) * basis["scale"]
    data = data.reshape(basis["components"], -1, 3)
    expected = 0.1 * face_model.basis[face_model.n_identity :].numpy()
    assert np.abs(data - expected).max() <= 0.51 * basis["scale"]
    assert basis["scale"] < 2e-6  # metres: far below what can be seen
    smile = np.tensordot(basis["actions"]["mouthSmileLeft"], data, 1)
    wanted = np.tensordot(face_model.actions["mouthSmileLeft"].numpy(), expected, 1)
    assert np.abs(smile - wanted).max() < 1e-5
