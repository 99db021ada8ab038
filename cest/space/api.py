"""The same actions for programs: named endpoints, described in docs/api.md.

Each takes the photo itself, so that a call stands alone. The components say what goes in and what
comes out; none of them is seen.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from PIL import Image

from cest.space.answers import RequestError, answered
from cest.space.downloads import write_downloads
from cest.space.sessions import Sessions
from cest.space.studio import Light, Result, Studio, expression_amounts, square_on, within

ANSWERS_KEPT = 12
"""Of a client: they are fetched at once."""
VIDEOS_KEPT = 2
"""Of a client. Counted apart: while a video is written, other answers may come and go."""


class Api:
    """The endpoints; each public method is one, and its docstring what a program reads of it."""

    def __init__(self, studio: Studio, sessions: Sessions) -> None:
        self.studio, self.sessions = studio, sessions
        models = list(studio.reconstructors)

        def photo(label: str = "photo") -> gr.File:
            file = gr.File(label=label)
            file.preprocess = lambda given: given and given.path
            return file

        def model() -> gr.Radio:
            return gr.Radio(models, value=models[0], label="model")

        def face() -> gr.Number:
            return gr.Number(0, precision=0, label="face: its number, 0 is the largest")

        def detail() -> gr.Checkbox:
            return gr.Checkbox(True, label="detail: the photo's, in the albedo")

        def number(label: str, value: float = 0.0) -> gr.Number:
            return gr.Number(value, label=label)

        picture = {"type": "filepath", "format": "png"}
        with gr.Column(visible=False):
            self._endpoint(self.find_faces, [photo()], [gr.JSON(label="faces")])
            self._endpoint(
                self.reconstruct,
                [
                    photo(),
                    model(),
                    face(),
                    gr.JSON(label="crop: center_x, center_y, size, angle"),
                    detail(),
                ],
                [
                    gr.JSON(label="parameters"),
                    gr.Image(label="overlay", **picture),
                    gr.File(label="files", file_count="multiple"),
                ],
            )
            self._endpoint(
                self.refine,
                [photo(), model(), gr.Number(100, precision=0, label="steps"), face(), detail()],
                [
                    gr.JSON(label="parameters"),
                    gr.Image(label="overlay", **picture),
                    gr.File(label="files", file_count="multiple"),
                ],
                concurrency_id="refinements",
            )
            self._endpoint(
                self.relight,
                [
                    photo(),
                    model(),
                    number("azimuth, degrees: -90 left, 90 right"),
                    number("elevation, degrees: -90 below, 90 above"),
                    number("strength: 1 is as bright as the photo's light", 1.0),
                    face(),
                ],
                [gr.Image(label="relit photo", **picture)],
            )
            self._endpoint(
                self.borrow_light,
                [photo(), photo("second photo, whose light is taken"), model(), face()],
                [gr.Image(label="relit photo", **picture)],
            )
            self._endpoint(
                self.pose,
                [
                    photo(),
                    model(),
                    gr.JSON(label="expression: actions and amounts, such as {'jawOpen': 0.5}"),
                    number("yaw, degrees: positive to the right of the picture"),
                    number("pitch, degrees: positive is up"),
                    face(),
                ],
                [gr.Image(label="posed photo", **picture)],
            )
            self._endpoint(
                self.video,
                [
                    photo("clip"),
                    model(),
                    number("azimuth, degrees: -90 left, 90 right"),
                    number("elevation, degrees: -90 below, 90 above"),
                    number("strength: 1 is as bright as the clip's light", 1.0),
                ],
                [gr.File(label="video")],
                concurrency_id="clips",
            )

    def _endpoint(
        self,
        function: Callable,
        inputs: Sequence[gr.components.Component],
        outputs: Sequence[gr.components.Component],
        concurrency_id: str = "photos",
    ) -> None:
        gr.Button().click(
            answered(function),
            inputs,
            outputs,
            api_name=function.__name__,
            concurrency_id=concurrency_id,
        )

    # -- endpoints -----------------------------------------------------------------------------

    def find_faces(self, photo: str | None) -> list[dict]:
        """Find the faces of a photo: box (left, top, right, bottom in pixels), score and crop of
        each, the largest first. Pixels are those of the photo scaled to at most 2048 a side.

        Args:
            photo: a picture file.
        """
        pixels = self.studio.read(_given(photo))
        return [
            {"box": list(found.box), "score": found.score, "crop": vars(found.crop)}
            for found in self.studio.find(pixels)
        ]

    def reconstruct(
        self,
        photo: str | None,
        model: str = "CEST",
        face: int = 0,
        crop: dict | None = None,
        detail: bool = True,
        request: gr.Request = None,
    ) -> tuple[dict, str, list[str]]:
        """Reconstruct a face in 3D from one photo: its parameters, the photo with the face drawn
        over it, and the files (GLB, OBJ, textures, parameters, everything).

        Args:
            photo: a picture file.
            model: CEST or IEST.
            face: its number, 0 is the largest.
            crop: instead of searching, a square: center_x, center_y, size in pixels.
            detail: whether the albedo has the photo's fine detail, which no model estimates.
        """
        result = self._face(photo, model, face, crop, detail)
        return self._everything(result, model, request)

    def refine(
        self,
        photo: str | None,
        model: str = "CEST",
        steps: int = 100,
        face: int = 0,
        detail: bool = True,
        request: gr.Request = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[dict, str, list[str]]:
        """Reconstruct a face and fit it further to the photo; answers as reconstruct does.

        Args:
            photo: a picture file.
            model: CEST or IEST.
            steps: how many, 1 to 300; some tenths of a second for ten.
            face: its number, 0 is the largest.
            detail: whether the albedo has the photo's fine detail, which no model estimates.
        """
        if not within(steps, 1, 300):
            raise RequestError("Steps are a number from 1 to 300.")
        result = self._face(photo, model, face, detail=detail)
        with self.sessions.visit(request.session_hash) as session:

            def told(share: float) -> bool:
                progress(share)
                return not session.over

            refined = self.studio.refine(result, int(steps), told)
        if refined is None:
            raise RequestError("Stopped.")
        return self._everything(refined, model, request)

    def relight(
        self,
        photo: str | None,
        model: str = "CEST",
        azimuth: float = 0.0,
        elevation: float = 0.0,
        strength: float = 1.0,
        face: int = 0,
        request: gr.Request = None,
    ) -> str:
        """Draw the photo with its face under a light of your own.

        Args:
            photo: a picture file.
            model: CEST or IEST.
            azimuth: degrees, -90 is left of the picture, 0 the viewer, 90 right.
            elevation: degrees, -90 is below, 90 above.
            strength: 1 is as bright as the photo's own light.
            face: its number, 0 is the largest.
        """
        result = self._face(photo, model, face).faces[model]
        light = Light(azimuth, elevation, strength).on(result)
        return self._kept(lambda: result.relight(light), request)

    def borrow_light(
        self,
        photo: str | None,
        donor: str | None,
        model: str = "CEST",
        face: int = 0,
        request: gr.Request = None,
    ) -> str:
        """Draw the photo with its face under the light of a second photo's largest face.

        Args:
            photo: a picture file.
            donor: a second picture file, whose light is taken.
            model: CEST or IEST.
            face: its number in the first photo, 0 is the largest.
        """
        result = self._face(photo, model, face).faces[model]
        lender = self._face(donor, model, 0, detail=False).faces[model]
        return self._kept(lambda: result.relight(lender.illumination), request)

    def pose(
        self,
        photo: str | None,
        model: str = "CEST",
        expression: dict | None = None,
        yaw: float = 0.0,
        pitch: float = 0.0,
        face: int = 0,
        request: gr.Request = None,
    ) -> str:
        """Draw the photo with its face turned and with another expression; skin and light stay.

        Args:
            photo: a picture file.
            model: CEST or IEST.
            expression: ARKit names of actions and their amounts, added to the photo's expression.
            yaw: degrees, positive to the right of the picture.
            pitch: degrees, positive is up.
            face: its number, 0 is the largest.
        """
        actions = expression_amounts(expression or {}, self.studio.actions)
        if not (within(yaw, -180, 180) and within(pitch, -180, 180)):
            raise RequestError("Yaw and pitch are degrees from -180 to 180.")
        result = self._face(photo, model, face).faces[model]
        # Degrees about x are positive where the head nods down.
        return self._kept(lambda: result.posed(actions, (-pitch, yaw, 0.0)).overlay(), request)

    def video(
        self,
        clip: str | None,
        model: str = "CEST",
        azimuth: float = 0.0,
        elevation: float = 0.0,
        strength: float = 1.0,
        request: gr.Request = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Any:
        """Reconstruct every frame of a short clip with one reflectance for all: an MP4 of the
        clip, the face drawn over it, and the face relit.

        Args:
            clip: a video file of at most 10 seconds.
            model: CEST or IEST.
            azimuth: degrees, -90 is left of the picture, 0 the viewer, 90 right.
            elevation: degrees, -90 is below, 90 above.
            strength: 1 is as bright as the clip's own light.
        """
        light = Light(azimuth, elevation, strength)
        with self.sessions.visit(request.session_hash) as session:
            output = session.new_folder("videos", keep=VIDEOS_KEPT) / "clip.mp4"
            work = self.studio.reconstruct_clip(_given(clip), self._known(model), light, output)
            for share in work:
                progress(share)
                yield None
            yield str(output)

    # -- their parts ---------------------------------------------------------------------------

    def _face(
        self,
        photo: str | None,
        model: str,
        face: int,
        crop: dict | None = None,
        detail: bool = True,
    ) -> Result:
        pixels = self.studio.read(_given(photo))
        square = None if crop is None else square_on(pixels, crop)
        name = self._known(model)
        return self.studio.reconstruct_photo(pixels, face or 0, square, [name], detail)

    def _everything(
        self, result: Result, model: str, request: gr.Request
    ) -> tuple[dict, str, list[str]]:
        """Parameters with the seconds that were spent, overlay, files."""
        face, start = result.faces[model], time.perf_counter()
        with self.sessions.visit(request.session_hash) as session, self.studio.turn:
            files = write_downloads(face, session.new_folder("answers", keep=ANSWERS_KEPT))
        seconds = {
            "estimate": result.seconds[model],
            "draw and write files": time.perf_counter() - start,
        }
        overlay = files[0].with_name("overlay.png")
        return face.describe() | {"seconds": seconds}, str(overlay), [str(f) for f in files]

    def _known(self, model: str) -> str:
        if model not in self.studio.reconstructors:
            known = " or ".join(self.studio.reconstructors)
            raise RequestError(f"There is no model {str(model)[:40]!r}; say {known}.")
        return model

    def _kept(self, draw: Callable[[], Image.Image], request: gr.Request) -> str:
        """A picture that is drawn now, as a file of the session."""
        with self.sessions.visit(request.session_hash) as session:
            with self.studio.turn:
                picture = draw()
            path = session.new_folder("answers", keep=ANSWERS_KEPT) / "picture.png"
            picture.save(path, compress_level=1)
        return str(path)


def _given(photo: str | None) -> str:
    if photo is None:
        raise RequestError("Give a file first.")
    return photo
