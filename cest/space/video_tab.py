"""The video tab: a short clip in, the clip with the face drawn over it and relit out."""

import threading
from collections.abc import Iterator

import gradio as gr

from cest.space.answers import RequestError, answered
from cest.space.components import status_line
from cest.space.sessions import Sessions
from cest.space.studio import MAX_SECONDS, Light, Studio

ABOUT = f"""
Every frame is reconstructed; the **reflectance is one for the whole clip**, averaged over what the
frames saw of the skin. A frame takes a tenth of a second or two without a GPU. Up to
{MAX_SECONDS:g} seconds; sound is not kept.
"""


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
                    self.start = gr.Button("Reconstruct", variant="primary", elem_id="start-clip")
                    self.cancel = gr.Button("Cancel", elem_id="cancel-clip")
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
        # Not by Gradio's `cancels`, which may reach the server when the visitor has started again,
        # and then ends that run.
        self.start.click(
            self.ready, None, None, queue=False, api_visibility="private", show_progress="hidden"
        ).then(
            answered(self.start_click, lambda sentence: (sentence, None)),
            [self.clip, self.model, self.azimuth, self.elevation, self.strength],
            [self.status, self.video],
            api_visibility="private",
            show_progress_on=self.status,
            concurrency_id="clips",
            concurrency_limit=1,
        )
        self.cancel.click(
            self.cancel_click, None, None, queue=False, api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip

    def ready(self, request: gr.Request) -> None:
        """A new run begins, which may have to wait for its turn."""
        with self.sessions.visit(request.session_hash) as session:
            session.clip_stopped.set()
            session.clip_stopped = threading.Event()

    def cancel_click(self, request: gr.Request) -> None:
        """The run ends after its frame, or when its turn comes."""
        with self.sessions.visit(request.session_hash) as session:
            session.clip_stopped.set()

    def start_click(
        self,
        clip: str | None,
        model: str,
        azimuth: float,
        elevation: float,
        strength: float,
        request: gr.Request,
    ) -> Iterator[tuple]:
        """A frame after the other; between two of them it can be cancelled."""
        if clip is None:
            raise RequestError("Give a clip first.")
        with self.sessions.visit(request.session_hash) as session:
            stopped = session.clip_stopped
            output = session.new_folder("clips", keep=2) / "clip.mp4"
            work = self.studio.reconstruct_clip(
                clip, model, Light(azimuth, elevation, strength), output
            )
            told = -1
            for share in work:
                if stopped.is_set():
                    work.close()
                    yield "Cancelled.", gr.skip()
                    return
                if int(100 * share) > told:
                    told = int(100 * share)
                    yield f"{told} % done …", gr.skip()
            yield "Done.", str(output)
