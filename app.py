"""The Gradio Space: one photo in, CEST and IEST side by side. All it does is call `cest`.

    python app.py                                    serves http://127.0.0.1:7860
    GRADIO_SERVER_NAME=0.0.0.0 python app.py         serves other machines too

CEST_MODEL and IEST_MODEL name other checkpoints than this copy's own: a folder or a Hub id.
"""

import html
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path

import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from cest.configuration import CheckpointError
from cest.detection import DetectorError, FaceDetector
from cest.modeling import FaceEstimator
from cest.photo import PhotoError
from cest.reconstruction import Reconstructor
from cest.released import RELEASED, released_checkpoint

ROOT = Path(__file__).parent
EXAMPLE = ROOT / "cest" / "assets" / "astronaut.jpg"
CAMERA = (90, 90, 0.32)
"""Of both viewers: degrees, degrees, metres; from the front (+z), at eye height."""
CLEAN_UP = (600, 3600)
"""Every so many seconds, photos and results older than so many seconds are removed."""
CSS = """
.label-clear-button {display: none}  /* of a list of downloads nothing is to be removed */
"""
INTRODUCTION = """
# One photo to a relightable 3D face
**CEST** estimates viewpoint, shape, reflectance and light one after the other, each from the photo
and what is known by then. **IEST**, the control experiment, estimates each from the photo alone.
"""
PRIVACY = """
Of several faces the largest is taken. Photos and results are removed after an hour. Turn a face
with the mouse; the wheel comes closer.
"""


def reconstruct(reconstructor: Reconstructor, photo: str | None) -> tuple:
    """A photo's largest face: overlay, mesh, photometric error, strip, files to download."""
    if photo is None:
        raise gr.Error("Choose a photo first.", print_exception=False)
    try:
        (face,) = reconstructor.reconstruct(photo, face="largest")
    except PhotoError as error:
        # A person knows the photo by its name, not by where the server keeps it; and a name is
        # text, whereas Gradio takes a message for HTML.
        message = html.escape(str(error).replace(photo, Path(photo).name))
        raise gr.Error(message, print_exception=False) from None
    with tempfile.TemporaryDirectory(prefix="cest-") as folder:
        files = {path.name: path for path in face.save(folder)}
        objects = [files[name] for name in ("face.obj", "face.mtl", "albedo.png")]
        downloads = [
            files["face.glb"],
            _zipped(Path(folder, "face-obj.zip"), objects),
            files["parameters.json"],
            _zipped(Path(folder, "everything.zip"), list(files.values())),
        ]
        # What is shown goes to Gradio's cache, which Gradio keeps clean, and nowhere else.
        keep = partial(save_file_to_cache, cache_dir=get_upload_folder())
        return (
            keep(files["overlay.png"]),
            keep(files["face.glb"]),
            f"{face.photometric_error:.2f}",
            keep(files["strip.png"]),
            [keep(path) for path in downloads],
        )


def _zipped(archive: Path, files: list[Path]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for path in files:
            target.write(path, path.name)
    return archive


def build(reconstructors: dict[str, Reconstructor]) -> gr.Blocks:
    """The page. Each model is an API endpoint of its own: /cest and /iest."""
    with gr.Blocks(title="CEST", analytics_enabled=False, delete_cache=CLEAN_UP) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=1, min_width=240):
                photo = gr.Image(label="Photo", type="filepath", height=300)
                # As it was uploaded, whatever it is: `cest` knows more pictures than Gradio,
                # and says better what is wrong with one.
                photo.preprocess = lambda file: file and file.path
                start = gr.Button("Reconstruct", variant="primary")
                gr.Examples([[str(EXAMPLE)]], photo, label="Example (NASA, public domain)")
                gr.Markdown(PRIVACY)
            meshes, errors, overlays = {}, {}, {}
            for name in reconstructors:
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown(f"## {name}")
                    errors[name] = gr.Textbox(
                        label="Photometric error",
                        info="Mean |photo − rendering| over the face; levels from 0 to 255.",
                        interactive=False,
                    )
                    meshes[name] = gr.Model3D(
                        label=f"{name}: mesh",
                        height=380,
                        camera_position=CAMERA,
                        interactive=False,
                        elem_id=f"{name.lower()}-mesh",
                    )
                    overlays[name] = gr.Image(
                        label=f"{name}: overlay",
                        height=400,
                        interactive=False,
                        buttons=["fullscreen"],
                    )
        strips, downloads = {}, {}
        for name in reconstructors:
            gr.Markdown(f"### {name}: what was estimated")
            strips[name] = gr.Image(
                label=f"{name}: strip", show_label=False, interactive=False, buttons=[]
            )
        with gr.Row():
            for name in reconstructors:
                with gr.Column(min_width=320):
                    downloads[name] = gr.File(
                        label=f"{name}: downloads",
                        file_count="multiple",
                        interactive=False,
                        elem_id=f"{name.lower()}-downloads",
                    )

        outputs = {
            name: [overlays[name], meshes[name], errors[name], strips[name], downloads[name]]
            for name in reconstructors
        }
        shown = [component for group in outputs.values() for component in group]
        photo.change(lambda: [None] * len(shown), None, shown, api_visibility="private")
        # One after the other: a photo that one model refuses is refused once.
        event = start.click
        for name, reconstructor in reconstructors.items():
            event = event(
                partial(reconstruct, reconstructor),
                photo,
                outputs[name],
                api_name=name.lower(),
                show_progress_on=meshes[name],
                concurrency_id="models",
            ).success
    return page


def main() -> None:
    try:
        detector = FaceDetector()
        reconstructors = {
            # Named so that no path of the server gets into a visitor's files.
            name.upper(): Reconstructor(
                FaceEstimator.from_pretrained(released_checkpoint(name)), detector, name=name
            )
            for name in RELEASED
        }
    except (CheckpointError, DetectorError) as error:
        sys.exit(f"app.py: {error}")
    build(reconstructors).launch(
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"]),
        css=CSS,
        footer_links=["api", "gradio"],
        run_history=False,
        max_file_size="50mb",
        ssr_mode=False,
    )


if __name__ == "__main__":
    main()
