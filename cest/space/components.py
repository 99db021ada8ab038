"""The page's own components: the stage with the 3D faces, and the picker of a face.

Their markup, style and script lie beside this module, in stage.* and picker.*.
"""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

HERE = Path(__file__).parent


def own_component(name: str, **options: Any) -> gr.HTML:
    """ "stage" or "picker". Its value is what its script is given: a dictionary, or None."""
    markup, style, script = (
        (HERE / f"{name}.{suffix}").read_text(encoding="utf-8") for suffix in ("html", "css", "js")
    )
    return gr.HTML(
        html_template=markup,
        css_template=style,
        js_on_load=script,
        apply_default_css=False,
        elem_id=name,
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
