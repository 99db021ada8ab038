"""The whole page: its tabs, its limits, and what is tidied up behind a visitor."""

from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from cest.space.api import Api
from cest.space.photo_tab import PhotoTab
from cest.space.sessions import Sessions
from cest.space.studio import Studio
from cest.space.video_tab import VideoTab

CLEAN_UP = (600, 3600)
"""Every so many seconds, uploads older than so many seconds are removed."""
WAITING = 40
"""Requests that may wait; more are asked to come back."""
LARGEST_UPLOAD = "50mb"
SESSIONS_KEPT = 200
"""By Gradio, which keeps what it showed to each."""

INTRODUCTION = """
# One photo to a relightable 3D face

Give a photo of a face: turn it in 3D, move the light, make it smile, take the mesh away.
"""
ABOUT = """
**About.** A face is explained by viewpoint, shape, reflectance and light. **CEST** estimates them
one after the other, each given what is known by then; **IEST**, the control experiment, estimates
each from the photo alone. Both are small models: their estimates lack fine detail, turned, young or
hidden faces come out worse, and skin tone cannot be told from the brightness of the light; the
figures and limits are on their cards, under `model_card/` in the repository.
"""
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def build(studio: Studio) -> gr.Blocks:
    """The page over these models."""
    # Inside Gradio's own folder, the only one from which it serves files without copying them.
    sessions = Sessions(Path(get_upload_folder()) / "cest-sessions")
    sessions.keep_tidy()
    with gr.Blocks(title="CEST", analytics_enabled=False, delete_cache=CLEAN_UP) as page:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Tab("Photo"):
            PhotoTab(studio, sessions)
        with gr.Tab("Video"):
            VideoTab(studio, sessions)
        gr.Markdown(ABOUT, elem_id="about")
        Api(studio, sessions)

        def leave(request: gr.Request) -> None:
            sessions.end(request.session_hash)

        page.unload(leave)
    page.queue(max_size=WAITING, default_concurrency_limit=2)
    return page


def launch(studio: Studio) -> None:
    """Serve the page until the process ends."""
    build(studio).launch(
        theme=gr.themes.Default(
            primary_hue="indigo",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css=STYLE,
        footer_links=["api", "gradio", "settings"],
        run_history=False,
        max_file_size=LARGEST_UPLOAD,
        state_session_capacity=SESSIONS_KEPT,
        ssr_mode=False,
    )
