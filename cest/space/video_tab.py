"""The video tab: a short clip in, the clip with the face drawn over it and relit out."""

import shutil
from collections.abc import Iterator
from typing import Any

import gradio as gr

from cest.space.answers import answered
from cest.space.components import status_line
from cest.space.sessions import Sessions
from cest.space.studio import MAX_SECONDS, Light, Studio

ABOUT = f"""
One face is followed, the largest at first; the **reflectance is one for the whole clip**, averaged
over what the frames saw of the skin. A frame takes a tenth of a second or two without a GPU. Up to
{MAX_SECONDS:g} seconds; sound is not kept.
"""
WAITING = "Waiting for its turn …"
CANCELLED = "Cancelled."
GONE = "The clip is gone from the server; give it again."


class VideoTab:
    """Its components, and the function behind them."""

    def __init__(self, studio: Studio, sessions: Sessions) -> None:
        self.studio, self.sessions = studio, sessions
        gr.Markdown(ABOUT)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                self.clip = gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip")
                # As it was uploaded: Gradio would have FFmpeg take the sound out first.
                self.clip.preprocess = lambda file: file and file.path
                self.model = gr.Radio(list(studio.reconstructors), value="CEST", label="Model")
                self.azimuth = gr.Slider(-90, 90, -60, step=1, label="Light: left – right")
                self.elevation = gr.Slider(-90, 90, 20, step=1, label="Light: below – above")
                self.strength = gr.Slider(0, 2, 1, step=0.05, label="Light: strength")
                with gr.Row():
                    self.start = gr.Button(
                        "Reconstruct",
                        variant="primary",
                        size="md",
                        min_width=120,
                        elem_id="start-clip",
                    )
                    self.cancel = gr.Button(
                        "Cancel", size="md", min_width=120, elem_id="cancel-clip"
                    )
            with gr.Column(scale=3, min_width=300):
                self.status = status_line("The result will be here.", "clip-status")
                self.video = gr.Video(
                    label="The clip; the face drawn over it; the face relit",
                    show_label=False,
                    interactive=False,
                    buttons=["download"],
                    loop=True,
                    elem_id="clip-result",
                )
        private = {"api_visibility": "private"}
        at_once = private | {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple"}
        self.start.click(
            answered(self.start_click),
            [self.clip, self.model, self.azimuth, self.elevation, self.strength],
            self.status,
            **at_once,
        ).success(
            answered(self.start_turn, lambda sentence: (sentence, None)),
            self.clip,
            [self.status, self.video],
            **private,
            trigger_mode="multiple",
            show_progress="minimal",
            show_progress_on=self.status,
            concurrency_id="clips",
            concurrency_limit=1,
        )
        self.cancel.click(answered(self.cancel_click), None, self.status, **at_once)

    def start_click(
        self,
        clip: str | None,
        model: str,
        azimuth: float,
        elevation: float,
        strength: float,
        request: gr.Request,
    ) -> str:
        """A clip is to be reconstructed; it may have to wait for its turn."""
        if clip is None:
            return "Give a clip first."
        with self.sessions.visit(request.session_hash) as session:
            session.ask("clip", (clip, model, Light(azimuth, elevation, strength)))
        return WAITING

    def cancel_click(self, request: gr.Request) -> Any:
        """The clip ends after its frame, or when its turn comes."""
        with self.sessions.visit(request.session_hash) as session:
            return CANCELLED if session.call_off("clip") else gr.skip()

    def start_turn(self, clip: str | None, request: gr.Request) -> Iterator[tuple]:
        """A frame after the other; between two of them it can be cancelled.

        clip: what the page has. Without one the click has asked for it: it cannot end the chain
        here, as Gradio does not show an error's sentence from outside the queue.
        """
        visit = self.sessions.visit(request.session_hash)
        with visit as session, session.running("clip") as run:
            if run is None:
                yield gr.skip() if session.runs or clip is None else GONE, gr.skip()
                return
            output = session.new_folder("clips", keep=2) / "clip.mp4"
            work = self.studio.reconstruct_clip(*run.wish, output)
            told = -1
            for share in work:
                if not run.wanted:
                    break
                if int(100 * share) > told:
                    told = int(100 * share)
                    yield f"{told} % done …", gr.skip()
            work.close()
            if run.end():
                yield "Done.", str(output)
            else:
                shutil.rmtree(output.parent)  # it is not to take the place of one that is shown
                yield CANCELLED, gr.skip()
