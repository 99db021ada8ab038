"""The photo tab: what a visitor sees of one photo, and what happens when something is chosen."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_file_to_cache
from PIL import Image

from cest.cropping import LANDMARK_BOX_TO_CROP, SquareCrop
from cest.export import write_glb
from cest.reconstruction import Reconstruction
from cest.space.answers import RequestError, answered
from cest.space.chain import draw_chain
from cest.space.components import own_component, served, status_line
from cest.space.downloads import write_downloads
from cest.space.expressions import expression_basis
from cest.space.sessions import Run, Session, Sessions
from cest.space.studio import Light, Studio, expression_amounts, square_on

ASSETS = Path(__file__).parent.parent / "assets"
EXAMPLE = str(ASSETS / "astronaut.jpg")
JPEG = {"format": "JPEG", "quality": 90}

START = "Give a photo, or take the example. Results come in seconds and are removed after an hour."
WELCOME = """
### What you will see

- **The face drawn over the photo**, by two models, with a slider between the two.
- **Both faces in 3D**: turn them, move the light, change the expression. What stays as it was when
  one thing is changed has been told apart from it.
- **How it came about**: what each estimate was given, and where the result differs from the photo.
- **Files to take away**: meshes, textures, parameters.
"""
LOOKING = "Looking for faces …"
CANCELLED = "Cancelled; give a photo again."
REFINING = "Refining …"
UNCHANGED = "Stopped; everything is as it was."
CHOSEN = "Reconstructing …"
DRAW = "Draw a square."
GONE = "The photo is gone from the server; give it again."
NO_FACE = "No face was found in the photo. Draw a square around the face, and it will do."


def all_there(paths: Iterable[Path]) -> bool:
    """Whether there are files under all of these names, and any name."""
    found = [path.exists() for path in paths]
    return bool(found) and all(found)


class PhotoTab:
    """Its components, and the functions behind them, each named for the event that it answers."""

    def __init__(self, studio: Studio, sessions: Sessions) -> None:
        self.studio, self.sessions = studio, sessions
        self.names = list(studio.reconstructors)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=260):
                self.photo = gr.Image(
                    label="Photo",
                    type="filepath",
                    height=260,
                    sources=["upload", "webcam", "clipboard"],
                    elem_id="photo",
                )
                # As it was uploaded, whatever it is: `cest` knows more pictures than Gradio, and
                # says better what is wrong with one.
                self.photo.preprocess = lambda file: file and file.path
                self.example = gr.Button(
                    "Example: Eileen Collins (NASA)",
                    icon=EXAMPLE,
                    size="sm",
                    elem_id="example",
                )
                self.status = status_line(START, "status")
                self.cancel = gr.Button("Cancel", size="sm", visible=False, elem_id="cancel")
            with gr.Column(scale=3, min_width=300):
                self.picker = own_component("picker", visible=False)
                self.welcome = gr.Markdown(WELCOME, elem_id="welcome")
                with gr.Row(visible=False, elem_id="overlays") as self.overlays_row:
                    self.figures, self.overlays = {}, {}
                    for name in self.names:
                        with gr.Column(min_width=280):
                            self.overlays[name] = own_component(
                                "compare", f"{name.lower()}-overlay", elem_classes="overlay"
                            )
                            self.figures[name] = gr.Markdown(elem_classes="figures")
        with gr.Column(visible=False, elem_id="results") as self.results:
            self.detail = gr.Checkbox(
                True,
                label="The photo's fine detail",
                info="Lashes, freckles and pores of the photo, over the estimated albedo. Switch "
                "it off to see the albedo as each model estimates it.",
                elem_id="detail",
            )
            gr.Markdown("## In three dimensions")
            self.stage = own_component("stage", server_functions=[self._expressions()])
            with gr.Accordion("Refine: fit further to this photo", open=False, elem_id="refine"):
                gr.Markdown(
                    "Starting from what was estimated, all four factors are fitted to this one "
                    "photo. The rendering comes closer to it, by either model; but one photo alone "
                    "does not tell light from skin, so the two may mix again."
                )
                self.steps = gr.Slider(20, 300, 100, step=20, label="Steps")
                with gr.Row():
                    self.refine = gr.Button("Refine", size="md", min_width=120)
                    self.stop = gr.Button("Stop", size="md", min_width=120)
            with gr.Accordion("Borrow the light of a second photo", open=False):
                gr.Markdown(
                    "The light that each model estimates on the second photo's largest face "
                    "is put on the first: choose *Second photo* under *Light*."
                )
                self.donor = gr.Image(
                    label="Second photo",
                    type="filepath",
                    height=200,
                    sources=["upload", "webcam", "clipboard"],
                    elem_id="donor",
                )
                self.donor.preprocess = lambda file: file and file.path
            gr.Markdown(
                "## What was estimated, given what\n"
                "An arrow says: this was given to that. Below each estimate is what its network "
                "was shown."
            )
            self.chains = {}
            for name in self.names:
                gr.Markdown(f"**{name}**")
                self.chains[name] = gr.HTML(elem_classes="chain", elem_id=f"{name.lower()}-chain")
            gr.Markdown(
                "## Where the rendering differs from the photo\n"
                "Black: not at all. Red, yellow, white: by up to 64 of 255 levels, and more."
            )
            self.errors = {}
            with gr.Row():
                for name in self.names:
                    self.errors[name] = gr.Image(
                        label=f"{name}: error",
                        height=300,
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id=f"{name.lower()}-error",
                        alt_text=f"Heat map of the error of {name}",
                    )
            gr.Markdown(
                "## Take it away\n"
                "Meshes are in metres, +y up, +z to the viewer; textures are albedo, without light."
            )
            self.downloads = {}
            with gr.Row():
                for name in self.names:
                    self.downloads[name] = gr.File(
                        label=f"{name}: files",
                        file_count="multiple",
                        interactive=False,
                        elem_id=f"{name.lower()}-downloads",
                    )
        self._connect()

    # -- wiring --------------------------------------------------------------------------------

    def _connect(self) -> None:
        self.shown = [
            self.picker,
            self.welcome,
            self.status,
            self.cancel,
            self.overlays_row,
            self.results,
            self.stage,
            self.donor,
            *self.figures.values(),
            *self.overlays.values(),
            *self.chains.values(),
            *self.errors.values(),
            *self.downloads.values(),
        ]
        private = {"api_visibility": "private", "show_progress": "hidden"}
        self.example.click(self.example_click, None, self.photo, **private, queue=False)
        # What takes long is asked for at once, and done when its turn comes.
        at_once = private | {"queue": False, "trigger_mode": "multiple"}
        in_turn = {"api_visibility": "private", "trigger_mode": "multiple"}
        # Not "full": its spinner would lie over what is below a line of text, such as Cancel.
        on_status = {"show_progress": "minimal", "show_progress_on": self.status}
        photo = self.photo.change(
            answered(self.photo_change),
            self.photo,
            self.shown,
            **at_once | {"trigger_mode": "always_last"},  # in the order in which they are given
        ).success(
            answered(self.photo_turn, self._nothing),
            self.detail,
            self.shown,
            **in_turn,
            **on_status,
            concurrency_id="photos",
        )
        choice = self.picker.choose(
            answered(self.picker_choose), None, [self.status, self.cancel], **at_once
        ).success(
            answered(self.picker_turn, self._as_it_was),
            self.detail,
            self.shown,
            **in_turn,
            **on_status,
            concurrency_id="photos",
        )
        refining = self.refine.click(
            answered(self.refine_click), self.steps, self.status, **at_once
        ).success(
            answered(self.refine_turn, lambda sentence: {self.status: sentence}),
            None,
            self.shown,
            **in_turn,
            show_progress_on=self.steps,
            concurrency_id="refinements",
            concurrency_limit=1,
        )
        detail = self.detail.input(
            answered(self.detail_input),
            self.detail,
            self.shown,
            api_visibility="private",
            trigger_mode="always_last",
            show_progress_on=self.detail,
            concurrency_id="photos",
        )
        for event in (photo, choice, refining, detail):
            event.success(
                answered(self.write_files),
                None,
                list(self.downloads.values()),
                **private,
                concurrency_id="photos",
            )
        self.cancel.click(answered(self.cancel_click), None, self.shown, **at_once)
        self.stop.click(answered(self.stop_click), None, self.status, **at_once)
        self.stage.settle(
            answered(self.stage_settle),
            None,
            list(self.overlays.values()),
            **private,
            trigger_mode="always_last",
            concurrency_id="photos",
        )
        self.donor.change(
            answered(self.donor_change),
            self.donor,
            self.stage,
            api_visibility="private",
            show_progress_on=self.donor,
            concurrency_id="photos",
        )

    # -- events --------------------------------------------------------------------------------

    def example_click(self) -> str:
        """The example, as if it had been uploaded; uploads are removed after an hour."""
        return save_file_to_cache(EXAMPLE, self.photo.GRADIO_CACHE)

    def photo_change(self, photo: str | None, request: gr.Request) -> dict:
        """Another photo, or none: what there was of the one before goes."""
        with self.sessions.visit(request.session_hash) as session:
            if photo is not None and session.wants("photo", photo):  # Gradio may say it twice
                return {self.status: gr.skip()}
            session.start_over()
            if photo is None:
                return self._nothing(START)
            session.ask("photo", photo)
            return self._nothing(LOOKING)

    def photo_turn(self, detail: bool, request: gr.Request) -> dict:
        """The largest face is reconstructed at once, others are offered."""
        start = time.perf_counter()
        visit = self.sessions.visit(request.session_hash)
        with visit as session, session.running("photo") as run:
            if run is None:
                return self._called_off(session)
            pixels = self.studio.read(run.wish)
            faces = self.studio.find(pixels)
            with session.writing:
                if not (run.wanted if faces else run.end()):
                    return self._called_off(session)
                session.pixels, session.faces = pixels, faces
                if not faces:
                    return self._nothing(DRAW) | {self.picker: self._offer(session, None)}
            session.detail = detail
            return self._reconstructed(session, run, pixels, faces[0].crop, 0, start)
        return self._called_off(session)

    def cancel_click(self, request: gr.Request) -> dict:
        """The search for a face ends; or the choice of one, and the one before stays."""
        with self.sessions.visit(request.session_hash) as session:
            if session.call_off("photo"):
                session.start_over()
                return self._nothing(CANCELLED)
            stopped = session.call_off("choice")
            return self._as_it_was(UNCHANGED) if stopped else self._called_off(session)

    def picker_choose(self, event: gr.EventData, request: gr.Request) -> tuple:
        """A face was clicked, or a square drawn where no face was found."""
        with self.sessions.visit(request.session_hash) as session:
            session.call_off("refinement")
            session.call_off("light")
            session.ask("choice", event._data or {})
            return CHOSEN, gr.update(visible=True)

    def picker_turn(self, detail: bool, request: gr.Request) -> dict:
        """What was chosen is reconstructed."""
        start = time.perf_counter()
        visit = self.sessions.visit(request.session_hash)
        with visit as session, session.running("choice") as run:
            if run is None:
                return self._called_off(session)
            with session.writing:
                pixels, faces = session.pixels, session.faces
            if pixels is None:
                raise RequestError(GONE)
            choice = run.wish
            if "square" in choice:
                # Drawn from brow to chin, that is around the landmarks.
                index, drawn = None, square_on(pixels, choice["square"])
                crop = replace(drawn, size=drawn.size * LANDMARK_BOX_TO_CROP)
            elif choice.get("face") in range(len(faces)):
                index = choice["face"]
                crop = faces[index].crop
            else:
                raise RequestError("That is no face of this photo; choose another.")
            session.detail = detail
            return self._reconstructed(session, run, pixels, crop, index, start)
        return self._called_off(session)

    def stage_settle(self, event: gr.EventData, request: gr.Request) -> list:
        """Light or expression came to rest: the photo is drawn with them."""
        with self.sessions.visit(request.session_hash) as session:
            state = event._data or {}
            actions = expression_amounts(state.get("expression", {}), self.studio.actions)
            own = Light(*(state.get(name, 0) for name in ("azimuth", "elevation", "strength")))
            with session.writing:
                if session.result is None:
                    if session.choice:  # another photo is on its way
                        return [gr.skip() for _ in self.names]
                    raise RequestError(GONE)
                folder = session.new_folder("light", keep=4)
                pairs = []
                for name, face in session.shown.items():
                    posed = face.posed(actions)
                    light = face.illumination
                    if state.get("light") == "studio":
                        light = own.on(face)
                    elif state.get("light") == "borrowed" and session.borrowed:
                        light = session.borrowed.faces[name].illumination
                    with self.studio.turn:
                        picture = posed.relight(light)
                    pairs.append(self._pair(name, face, picture, folder))
                return pairs

    def detail_input(self, detail: bool, request: gr.Request) -> dict:
        """The same faces with the photo's fine detail, or without."""
        with self.sessions.visit(request.session_hash) as session, session.writing:
            session.detail = detail
            if session.result is None:
                if session.choice:  # another photo is on its way
                    return {self.status: gr.skip()}
                raise RequestError(GONE)
            return self._results(session)

    def donor_change(self, donor: str | None, request: gr.Request) -> Mapping | None:
        """A second photo: its largest face's light, by each model."""
        with self.sessions.visit(request.session_hash) as session:
            session.ask("light", donor)
            with session.running("light") as run:
                if run is None or (donor is None and session.borrowed is None):
                    return gr.skip()
                if session.result is None:
                    raise RequestError(GONE)
                borrowed = None
                if donor is not None:
                    pixels = self.studio.read(donor)
                    borrowed = self.studio.reconstruct_photo(pixels, detail=False)
                with session.writing:
                    if not run.end():  # there is another photo, or another second one
                        return gr.skip()
                    session.borrowed = borrowed
                    return self._on_stage(session)
            return gr.skip()

    def refine_click(self, steps: float, request: gr.Request) -> str:
        """The estimates are to be fitted further to the photo."""
        with self.sessions.visit(request.session_hash) as session:
            if session.result is None:
                return GONE  # an error of what is not queued reaches the page without its words
            session.ask("refinement", min(300, max(1, int(steps))))
            return REFINING

    def refine_turn(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> dict:
        """The face is another then; the view stays as it is."""
        start = time.perf_counter()
        visit = self.sessions.visit(request.session_hash)
        with visit as session, session.running("refinement") as run:
            result = session.result
            if run is None or result is None:
                return self._called_off(session)

            def told(share: float) -> bool:
                progress(share, desc="Refining")
                return run.wanted

            refined = self.studio.refine(result, run.wish, told)
            with session.writing:
                if session.result is not result or not run.end():
                    return self._called_off(session)
                session.result = refined
                shown = self._results(session)
            seconds = time.perf_counter() - start
            return shown | {self.status: f"Refined in {seconds:.1f} s."}
        return self._called_off(session)

    def stop_click(self, request: gr.Request) -> Any:
        """The refinement ends after its step, or when its turn comes."""
        with self.sessions.visit(request.session_hash) as session:
            return UNCHANGED if session.call_off("refinement") else gr.skip()

    def write_files(self, request: gr.Request) -> list:
        """The files to take away are made once the results are on the screen; of a refinement that
        was stopped they are the ones there are."""
        with self.sessions.visit(request.session_hash) as session, session.writing:
            if session.result is None:
                return [None for _ in self.names]
            # Gradio removes what is an hour old, though its visitor may still be there.
            if not all_there(path for files in session.downloads for path in files):
                lists = []
                for face in session.shown.values():
                    with self.studio.turn:
                        lists.append(write_downloads(face, session.new_folder("results")))
                session.downloads = lists
            return [[str(path) for path in files] for files in session.downloads]

    # -- their parts ---------------------------------------------------------------------------

    def _expressions(self) -> Callable[[str], dict]:
        """What the stage calls when the first expression slider moves."""
        known = {
            name: expression_basis(reconstructor.face_model)
            for name, reconstructor in self.studio.reconstructors.items()
        }

        # Gradio marks the function, so a method will not do.
        def expressions(name: str) -> dict[str, Any]:
            return known.get(name, {})

        return expressions

    def _nothing(self, status: str) -> dict:
        """What an empty page shows."""
        return {
            self.picker: gr.update(visible=False, value=None),
            self.welcome: gr.update(visible=status == START),
            self.status: status,
            self.cancel: gr.update(visible=status == LOOKING),
            self.overlays_row: gr.update(visible=False),
            self.results: gr.update(visible=False),
            self.stage: None,
            self.donor: None,
        } | dict.fromkeys(self.downloads.values())

    def _as_it_was(self, status: str) -> dict:
        """What a page shows of a choice that came to nothing."""
        return {self.status: status, self.cancel: gr.update(visible=False)}

    def _called_off(self, session: Session) -> dict:
        """Of what is not wanted a page shows nothing: who called it off has said so. But a visitor
        whose session has ended meanwhile would wait for ever."""
        ended = session.over or not session.runs
        return self._nothing(GONE) if ended else {self.status: gr.skip()}

    def _reconstructed(
        self,
        session: Session,
        run: Run,
        pixels: np.ndarray,
        crop: SquareCrop,
        index: int | None,
        start: float,
    ) -> dict:
        """What the page shows of a face that is reconstructed now; nothing if the run is over."""
        result = self.studio.reconstruct(pixels, crop, index or 0)
        with session.writing:
            if not run.end():
                return self._called_off(session)
            session.result, session.borrowed = result, None
            session.choice = secrets.token_urlsafe(8)
            shown = self._results(session)
            offered = len(session.faces) > 1 or index is None
            picker = self._offer(session, index) if offered else gr.update(visible=False)
        seconds = time.perf_counter() - start
        return shown | {
            self.status: f"Everything on this page took {seconds:.1f} s.",
            self.cancel: gr.update(visible=False),
            self.picker: picker,
            self.donor: None,
            self.overlays_row: gr.update(visible=True),
            self.results: gr.update(visible=True),
        }

    def _results(self, session: Session) -> dict:
        """Every model's figures, pictures and 3D face."""
        session.meshes, session.downloads = {}, []
        folder, shown = session.new_folder("results", keep=8), {}
        for name, face in session.shown.items():
            with self.studio.turn:
                overlay, chain = face.overlay(), draw_chain(face)
                error = face.error_map(384, overlay)
            shown[self.overlays[name]] = self._pair(name, face, overlay, folder)
            shown[self.chains[name]] = (
                f'<div class="scroll" tabindex="0" role="group" aria-label="{name}: the chain">'
                f"{chain}</div>"
            )
            error.save(folder / f"{name}-error.png")
            shown[self.errors[name]] = str(folder / f"{name}-error.png")
            shown[self.figures[name]] = (
                f"**{name}** · photometric error of the estimate "
                f"**{face.photometric_error:.1f}** of 255 · estimated in "
                f"**{session.result.seconds[name]:.2f} s**"
                + (f", refined by {face.refined} steps" if face.refined else "")
            )
        return shown | {self.stage: self._on_stage(session)}

    def _offer(self, session: Session, chosen: int | None) -> dict:
        """The picker, with the photo's faces, or for a square by hand where there are none."""
        height, width = session.pixels.shape[:2]
        faces = []
        for found in session.faces:
            left, top, right, bottom = found.box
            box = {"left": left / width, "top": top / height}
            box |= {"width": (right - left) / width, "height": (bottom - top) / height}
            faces.append(box)
        ask = f"{len(faces)} faces were found; choose one." if faces else NO_FACE
        value = {
            "ask": ask,
            "photo": served(self._photo_file(session)),
            "width": width,
            "height": height,
            "faces": faces,
            "chosen": chosen,
            "by_hand": not faces,
        }
        return gr.update(visible=True, value=value)

    def _on_stage(self, session: Session) -> dict:
        """The stage's value: every model's mesh and light, and the light that was borrowed."""
        if not all_there(session.meshes.values()):
            session.meshes = {}
            folder = session.new_folder("results")
            for name, face in session.shown.items():
                session.meshes[name] = folder / f"{name.lower()}.glb"
                write_glb(face.mesh(), session.meshes[name])
        borrowed = session.borrowed.faces if session.borrowed else {}
        return {
            "photo": session.choice,
            "faces": {
                name: {
                    "mesh": served(session.meshes[name]),
                    "light": face.illumination.tolist(),
                    "exposure": face.exposure,
                }
                for name, face in session.result.faces.items()
            },
            "borrowed": {name: face.illumination.tolist() for name, face in borrowed.items()},
            "use_borrowed": bool(borrowed),
            "actions": self.studio.actions,
        }

    def _pair(self, name: str, face: Reconstruction, drawn: Image.Image, folder: Path) -> dict:
        """The photo and what is drawn over it, to be compared: both near the face only."""
        corners = face.crop.corners()
        box = (*np.floor(corners.min(0)), *np.ceil(corners.max(0)))
        limits = (0, 0, *drawn.size)
        box = [int(f(a, b)) for f, a, b in zip((max, max, min, min), box, limits)]
        pair: dict[str, Any] = {"name": name}
        for what, picture in (("photo", Image.fromarray(face.photo)), ("drawn", drawn)):
            path = folder / f"{name.lower()}-{what}.jpg"
            picture.crop(box).save(path, **JPEG)
            pair[what] = served(path)
        return pair

    def _photo_file(self, session: Session) -> Path:
        """The photo as it is worked on, for the browser."""
        if session.photo is None:
            session.photo = session.new_folder("photo", keep=2) / "photo.jpg"
            Image.fromarray(session.pixels).save(session.photo, **JPEG)
        return session.photo
