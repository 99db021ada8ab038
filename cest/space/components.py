"""The page's own components: the stage with the 3D faces, the picker of a face, and a slider
between two pictures.

Their markup, style and script lie beside this module, in stage.*, picker.* and compare.*.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

HERE = Path(__file__).parent


def own_component(name: str, elem_id: str | None = None, **options: Any) -> gr.HTML:
    """ "stage", "picker" or "compare". Its value is what its script is given: a dictionary, or
    None. elem_id: by default its name."""
    markup, style, script = (
        (HERE / f"{name}.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return gr.HTML(
        html_template=markup,
        css_template=style,
        js_on_load=script,
        apply_default_css=False,
        elem_id=elem_id or name,
        **options,
    )


def status_line(text: str, elem_id: str) -> gr.HTML:
    """A line of text that screen readers read out when it changes."""
    return gr.HTML(
        text,
        html_template='<p role="status" aria-live="polite">${value}</p>',
        js_on_load=None,
        elem_id=elem_id,
    )


def served(path: Path) -> dict[str, Any]:
    """A file of a session, as a component's script is told of it."""
    return FileData(path=str(path), orig_name=path.name).model_dump()
