"""From a photo to relightable 3D faces in the photo's own coordinates."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
import trimesh
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import interpolate

from cest import pictures
from cest.cropping import SquareCrop, covered, crop_from_landmarks, crop_image
from cest.detail import fine_detail, with_detail
from cest.detection import DetectedFace, FaceDetector
from cest.export import METRES_PER_UNIT, textured_mesh, write_glb, write_obj, write_ply
from cest.face_model import FaceModel, load_face_model
from cest.geometry import project, rotate, sh_basis
from cest.light_fit import settle_light
from cest.lighting import roll_light
from cest.modeling import FaceEstimator, FaceParameters
from cest.objective import photometric_error
from cest.photo import Photo, PhotoError, read_photo
from cest.refinement import refine, with_factors
from cest.rendering import TexelMap, rasterize_surface, shade_surface, vertex_normals, wrap

logger = logging.getLogger(__name__)

EXPORT_LEVEL = 1
"""Level of detail at which the package's face model is drawn on the photo and exported, unless the
estimator works with a finer one."""
LARGEST_RENDERING = 2048
"""Pixels: a face that spans more of the photo is rendered at this size and scaled up."""
DETAIL_SIZE = 512
"""Texels a side of a reflectance with the photo's fine detail."""
LARGEST_DETAIL = 1024
"""Pixels a side of the crop that it is taken from: a face has about so many to 512 texels."""
RESULT_FILES = (
    "face.glb",
    "face.obj",
    "face.mtl",
    "face.ply",
    "albedo.png",
    "overlay.png",
    "geometry.png",
    "strip.png",
    "parameters.json",
)
PANEL_SIZE = 256
"""Pixels: side of a picture in the strip."""


class NoFaceError(PhotoError):
    """No face, or not the one asked for, was found in a photo."""


@dataclass(frozen=True)
class Reconstruction:
    """One face of one photo.

    Attributes:
        photo: (H, W, 3) uint8 sRGB.
        crop: the square of the photo that the estimator saw.
        parameters: what it said, its light settled on the photo (`cest.light_fit`), a batch of one,
            on the CPU. Frames are the crop's.
        face_model: at the level that is drawn and exported.
        estimator_face_model: at the level that the estimator works with.
        model: where the estimator came from, for the record.
        conditioning: "cest" or "iest".
        index: of the face in the photo, 0 for the largest.
        refined: steps of the test-time fit that the parameters have been through.
        detail: (1, 3, N, N) factors, what the photo adds to the reflectance (`cest.detail`); None
            for the reflectance as it was estimated.
    """

    photo: np.ndarray = field(repr=False)
    crop: SquareCrop
    parameters: FaceParameters = field(repr=False)
    face_model: FaceModel = field(repr=False)
    estimator_face_model: FaceModel = field(repr=False)
    model: str
    conditioning: str
    index: int = 0
    refined: int = 0
    detail: Tensor | None = field(default=None, repr=False)

    @cached_property
    def vertices(self) -> Tensor:
        """(1, K, 3) face frame, decimetres, at the level of `face_model` (eq. 5)."""
        return self.face_model.vertices(self.parameters.shape_coefficients)

    @cached_property
    def vertices_photo(self) -> np.ndarray:
        """(K, 3): x and y in photo pixels (pixel-edge, y down); z in pixels, larger is nearer."""
        projected = project(self.vertices, self.parameters.viewpoint)[0].double().numpy()
        return np.column_stack(
            (self.crop.to_photo(projected[:, :2]), projected[:, 2] * self.crop.size / 2)
        )

    @property
    def landmarks_photo(self) -> np.ndarray:
        """(68, 2) iBUG points in photo pixels."""
        return self.vertices_photo[self.face_model.landmarks.numpy(), :2]

    @cached_property
    def image(self) -> Tensor:
        """(1, 3, S, S) in [0, 1]: the crop as the estimator saw it."""
        return _as_tensor(
            crop_image(self.photo, self.crop, self.parameters.reflectance_map.shape[-1])
        )

    @property
    def reflectance(self) -> Tensor:
        """(1, 3, N, N) in [0, 1]: what is drawn and exported, with the photo's detail if any."""
        estimated = self.parameters.reflectance_map
        return estimated if self.detail is None else with_detail(estimated, self.detail)

    @property
    def albedo(self) -> Image.Image:
        """`reflectance` as an RGB picture; its first row is at v = 1."""
        return _as_picture(self.reflectance[0])

    @property
    def illumination(self) -> Tensor:
        """(9,) spherical harmonics in the photo's axes, whatever the crop's angle."""
        return roll_light(self.parameters.illumination[0], self.crop.angle)

    @property
    def head_angles(self) -> dict[str, float]:
        """Degrees in the photo: where the face looks, and how far it is rolled about that.

        "yaw": positive to the picture's right; "pitch": positive up; "roll": positive
        counter-clockwise as seen. The rotation is yaw · pitch · roll, about the photo's axes
        (x right, y up, z to the viewer).
        """
        in_crop = Rotation.from_rotvec(self.parameters.viewpoint[0, 1:4].double().numpy())
        in_photo = Rotation.from_rotvec((0, 0, self.crop.angle)) * in_crop
        yaw, down, roll = in_photo.as_euler("YXZ", degrees=True).tolist()
        return {"yaw": yaw, "pitch": -down, "roll": roll}

    @property
    def exposure(self) -> float:
        """Shading of a surface that faces the viewer, under the estimated light.

        Albedo and light are known up to a common factor only; lights that are made up are
        multiplied by this, to be as bright as the photo's own.
        """
        facing = torch.tensor([0.0, 0.0, 1.0])
        return float(sh_basis(facing) @ self.parameters.illumination[0])

    @cached_property
    def photometric_error(self) -> float:
        """Mean |I - Î| over the pixels of the crop that the face covers; 0 to 255.

        Of the estimate at the estimator's size, without the photo's fine detail.
        """
        surface = self.parameters.surface
        rendered, _ = shade_surface(
            surface, self.parameters.reflectance_map, self.parameters.illumination
        )
        error = photometric_error(self.image, rendered.clamp(0, 1), surface.coverage)
        return 255 * float(error)

    def overlay(self) -> Image.Image:
        """The photo at full size with the face rendered over it."""
        return Image.fromarray(self._drawn(self.reflectance, self.illumination))

    def relight(self, illumination: Tensor) -> Image.Image:
        """The photo with the face rendered under another light: (9,), photo's axes."""
        return Image.fromarray(self._drawn(self.reflectance, illumination))

    def geometry(self, illumination: Tensor | None = None) -> Image.Image:
        """The photo with the face as white clay; under a fixed light unless one is given."""
        if illumination is None:
            illumination = torch.tensor(pictures.CLAY_LIGHT)
        return Image.fromarray(self._drawn(None, illumination))

    def error_map(self, size: int = PANEL_SIZE, overlay: Image.Image | None = None) -> Image.Image:
        """Mean |I - Î| of each pixel of the crop, four times as strong: black, red, yellow, white.

        At `size` pixels a side, and black where no face is drawn. overlay: what `overlay` returned,
        if it is at hand.
        """
        seen, drawn = (
            _as_tensor(crop_image(np.asarray(picture), self.crop, size))
            for picture in (self.photo, overlay or self.overlay())
        )
        return _as_picture(pictures.heat(4 * (seen - drawn).abs().mean(1, keepdim=True))[0])

    def posed(
        self,
        actions: Mapping[str, float] | None = None,
        turn: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> "Reconstruction":
        """The same person with another expression, or the head turned about its middle.

        actions: names of `face_model.actions` and how much of each is added to the expression that
        was estimated. turn: degrees about x (nods), y (shakes: positive to the picture's right) and
        z (counter-clockwise as seen), after the estimated rotation. Reflectance and light stay.
        Raises ValueError for an action that the face model does not have.
        """
        parameters, model = self.parameters, self.estimator_face_model
        coefficients, viewpoint = parameters.shape_coefficients, parameters.viewpoint
        for name, amount in (actions or {}).items():
            if name not in model.actions:
                known = ", ".join(model.actions) or "none"
                raise ValueError(
                    f"{name!r} is no action of this face model; its actions are: {known}."
                )
            added = torch.zeros_like(coefficients)
            added[:, model.n_identity :] = amount * model.actions[name]
            coefficients = coefficients + added
        if any(turn):
            # The image frame is (x right, y up, z to the viewer): a rotation vector's own axes.
            by = Rotation.from_euler("xyz", turn, degrees=True)
            turned = by * Rotation.from_rotvec(viewpoint[0, 1:4].double().numpy())
            vector = torch.from_numpy(turned.as_rotvec()).to(viewpoint)
            viewpoint = torch.cat((viewpoint[:, :1], vector[None], viewpoint[:, 4:]), dim=1)
        return self.with_factors(viewpoint=viewpoint, shape_coefficients=coefficients)

    def with_factors(self, **factors: Tensor) -> "Reconstruction":
        """The same with other values for some of the four factors, named as in `FaceParameters`.

        What follows from viewpoint and shape follows; the photo's own texture stays, and its detail
        unless the reflectance is another: that is then drawn as it is given.
        """
        parameters = with_factors(self.estimator_face_model, self.parameters, **factors)
        changed = self.without_detail() if "reflectance_map" in factors else self
        return replace(changed, parameters=parameters)

    def without_detail(self) -> "Reconstruction":
        """The same with the reflectance as it was estimated."""
        return replace(self, detail=None)

    def _drawn(self, reflectance_map: Tensor | None, illumination: Tensor) -> np.ndarray:
        """The photo with the face drawn where it is, antialiased. illumination: photo's axes."""
        height, width = self.photo.shape[:2]
        points = self.vertices_photo
        low = np.clip(np.floor(points[:, :2].min(0)), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(points[:, :2].max(0)), 0, (width, height)).astype(int)
        drawn = self.photo.copy()
        if (high <= low).any():
            return drawn
        (left, top), (right, bottom) = low, high
        size = high - low
        # Twice the photo's resolution, so that the outline is smooth.
        scale = min(2.0, LARGEST_RENDERING / size.max())
        columns, rows = np.maximum(np.round(size * scale), 1).astype(int).tolist()
        frame = np.column_stack(
            (
                (points[:, 0] - left) * (2 / size[0]) - 1,
                1 - (points[:, 1] - top) * (2 / size[1]),
                points[:, 2] / size.max(),
            )
        )
        triangles = self.face_model.triangles
        normals = rotate(vertex_normals(self.vertices, triangles), self.parameters.viewpoint)
        surface = rasterize_surface(
            torch.from_numpy(frame).float()[None],
            normals,
            triangles,
            self.face_model.uv,
            (rows, columns),
        )
        # Normals are in the crop's axes, so the light is turned into them.
        light = roll_light(illumination, -self.crop.angle)[None]
        colours, _ = shade_surface(surface, reflectance_map, light)
        layer = torch.cat((colours.clamp(0, 1) * surface.coverage, surface.coverage), 1)
        interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        layer = cv2.resize(
            layer[0].permute(1, 2, 0).numpy(), size.tolist(), interpolation=interpolation
        )
        below = drawn[top:bottom, left:right]
        below[:] = np.round(below * (1 - layer[..., 3:]) + 255 * layer[..., :3])
        return drawn

    def strip(self) -> Image.Image:
        """The paper's strip, labelled: one row of pictures of the crop."""
        panels = pictures.panels(self.image, self.parameters, self.estimator_face_model)
        named = [(name, _as_picture(panel[0])) for name, panel in panels.items()]
        named[-1] = (f"error x 4 (mean {self.photometric_error:.1f}/255)", named[-1][1])
        return labelled_row(named)

    def factors(self) -> dict:
        """What is the face's own, as plain numbers; `describe` says their frames and units.

        Without the reflectance, which is a picture.
        """
        p, n = self.parameters, self.face_model.n_identity
        crop = {
            name: getattr(self.crop, name) for name in ("center_x", "center_y", "size", "angle")
        }
        return {
            "crop": crop,
            "viewpoint": {
                "log_scale": float(p.viewpoint[0, 0]),
                "rotation": p.viewpoint[0, 1:4].tolist(),
                "translation": p.viewpoint[0, 4:7].tolist(),
            },
            "head_angles": self.head_angles,
            "identity_coefficients": p.shape_coefficients[0, :n].tolist(),
            "expression_coefficients": p.shape_coefficients[0, n:].tolist(),
            "illumination": self.illumination.tolist(),
            "landmarks_68": self.landmarks_photo.tolist(),
        }

    def describe(self) -> dict:
        """Everything the estimator said, as plain numbers with their frames and units."""
        said = self.factors()
        height, width = self.photo.shape[:2]
        return {
            "model": {
                "source": self.model,
                "conditioning": self.conditioning,
                "refinement_steps": self.refined,
                "detail_of_the_photo": self.detail is not None,
                "face_model": self.face_model.name,
                "face_model_hash": self.face_model.content_hash,
            },
            "photo": {
                "width": width,
                "height": height,
                "sha256_of_pixels": hashlib.sha256(self.photo).hexdigest(),
            },
            "face_index": self.index,
            "crop": {
                "about": "square in photo pixels (x right, y down, edges at integers); angle in "
                "radians, counter-clockwise as seen",
                **said["crop"],
            },
            "viewpoint": {
                "about": "Q = exp(log_scale) Rot(rotation) S + translation; S in decimetres (+x "
                "right, +y up, +z to the viewer), Q in the crop: [-1, 1], x right, y up; rotation "
                "vector in radians",
                **said["viewpoint"],
            },
            "head_angles": said["head_angles"],
            "head_angles_about": "degrees in the photo: yaw is positive to the picture's "
            "right, pitch up, roll counter-clockwise as seen; the rotation is yaw * pitch * roll",
            "identity_coefficients": said["identity_coefficients"],
            "expression_coefficients": said["expression_coefficients"],
            "coefficients_unit": "standard deviations of the face model",
            "illumination": said["illumination"],
            "illumination_about": "9 real spherical harmonics, orthonormal, order (0,0) (1,-1) "
            "(1,0) (1,1) (2,-2) (2,-1) (2,0) (2,1) (2,2), of the irradiance over the normal in the "
            "photo's axes (x right, y up, z to the viewer); pixel = sRGB albedo x shading",
            "landmarks_68": said["landmarks_68"],
            "landmarks_68_about": "iBUG order, photo pixels",
            "photometric_error": self.photometric_error,
            "photometric_error_about": "mean absolute difference over the face, 0 to 255, of the "
            "estimate without the photo's fine detail",
            "mesh": {
                "vertices": self.face_model.n_vertices,
                "triangles": len(self.face_model.triangles),
                "unit": "metre",
                "axes": "+x right, +y up, +z to the viewer",
                "metres_per_face_frame_unit": METRES_PER_UNIT,
            },
        }

    def mesh(self) -> trimesh.Trimesh:
        """In metres, with the albedo as its texture, for `cest.export` or anything of trimesh."""
        triangles = self.face_model.triangles
        return textured_mesh(
            vertices=self.vertices[0].numpy(),
            triangles=triangles.numpy(),
            normals=vertex_normals(self.vertices, triangles)[0].numpy(),
            uv=self.face_model.uv.numpy(),
            albedo=self.albedo,
        )

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write everything into a folder, which is made if need be; returns the files.

        face.glb (lit material), face.obj with face.mtl, face.ply (vertex colours), albedo.png (the
        texture, which face.mtl refers to), overlay.png, geometry.png, strip.png, parameters.json.
        Raises OSError.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        mesh = self.mesh()
        # Vertices lie some two texels of a detailed map apart: each speaks for those around it.
        size = min(self.reflectance.shape[-1], DETAIL_SIZE // 2)
        coarse = interpolate(self.reflectance, (size, size), mode="area")
        colours = wrap(coarse, self.face_model.uv)[0].T
        self.albedo.save(folder / "albedo.png")
        write_glb(mesh, folder / "face.glb")
        write_obj(mesh, folder / "face.obj", folder / "albedo.png")
        write_ply(mesh, folder / "face.ply", (colours.clamp(0, 1) * 255).round().byte().numpy())
        self.overlay().save(folder / "overlay.png")
        self.geometry().save(folder / "geometry.png")
        self.strip().save(folder / "strip.png")
        text = json.dumps(self.describe(), indent=1, allow_nan=False)
        (folder / "parameters.json").write_text(text + "\n", encoding="utf-8")
        return [folder / name for name in RESULT_FILES]


class Reconstructor:
    """Photos to reconstructions, with one estimator.

    Args:
        model: CEST or IEST, in evaluation mode.
        detector: by default `FaceDetector()`.
        device: of torch; by default a GPU if there is one.
        name: where the model came from, for the record.
        detail: whether reconstructions carry the photo's fine detail over into the reflectance
            (`cest.detail`); False for the reflectance as the model estimates it.
    """

    def __init__(
        self,
        model: FaceEstimator,
        detector: FaceDetector | None = None,
        device: str | torch.device | None = None,
        name: str = "",
        detail: bool = True,
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.name, self.detail = name, detail
        self._detector = detector
        self._coarse = model.face_model.to("cpu")
        # Levels are refinements of one model, so the coefficients mean the same in all: that of
        # the package has finer ones, those that a user supplied have one.
        self._fine = self._coarse
        if self._coarse.name == "open":
            finer = _finer_open_model()
            same = finer.content_hash == self._coarse.content_hash
            if same and finer.n_vertices > self._coarse.n_vertices:
                self._fine = finer

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        detector: FaceDetector | None = None,
        device: str | torch.device | None = None,
        face_model: FaceModel | None = None,
        detail: bool = True,
    ) -> "Reconstructor":
        """A folder or a Hub id, as `FaceEstimator.from_pretrained`.

        face_model: for a checkpoint whose face model does not ship with the package. Raises
        CheckpointError.
        """
        estimator = FaceEstimator.from_pretrained(model, face_model=face_model)
        return cls(estimator, detector, device, name=str(model), detail=detail)

    @property
    def face_model(self) -> FaceModel:
        """At the level that is drawn and exported."""
        return self._fine

    @cached_property
    def _texel_map(self) -> TexelMap:
        model = self._fine
        return TexelMap.build(model.uv, model.triangles, DETAIL_SIZE)

    @property
    def detector(self) -> FaceDetector:
        """Made when it is first needed: a crop that is given needs none, nor the Hub."""
        if self._detector is None:
            self._detector = FaceDetector()
        return self._detector

    def reconstruct(
        self,
        photo: Photo,
        face: str | int = "largest",
        *,
        crop: SquareCrop | None = None,
        faces: list[DetectedFace] | None = None,
        detail: bool | None = None,
    ) -> list[Reconstruction]:
        """Reconstruct faces of a photo.

        face: "largest", "all", or the number of one, 0 being the largest. crop: the square to look
            at instead of searching for faces; it is then used as it is. faces: what the detector
            said of this photo, so that several models need not ask it again. detail: as in
            `assemble`.
        Returns at least one reconstruction, the largest face first. Raises PhotoError (NoFaceError
        if the face is not there).
        """
        pixels = read_photo(photo)
        if crop is not None:
            return [self.assemble(pixels, crop, self.estimate(pixels, crop), detail=detail)]
        if faces is None:
            faces = self.detector.detect(pixels)
        results = []
        for index, found in choose_faces([found.crop for found in faces], face):
            better = self.second_look(pixels, found)
            parameters = self.estimate(pixels, better)
            results.append(self.assemble(pixels, better, parameters, index, detail))
        return results

    def second_look(self, photo: np.ndarray, crop: SquareCrop) -> SquareCrop:
        """The crop that the model's own landmarks ask for, upright: a second look.

        It puts right what a rolled face's first crop lacks; a third look was measured to add
        nothing.
        """
        _, said = self._said(photo, crop)
        return self.followed(crop, said) or crop

    def followed(self, crop: SquareCrop, parameters: FaceParameters) -> SquareCrop | None:
        """The crop that a crop's estimated landmarks ask for; None where the face was lost."""
        points = parameters.projected[0, self._coarse.landmarks, :2].double().numpy()
        better = crop_from_landmarks(crop.to_photo(points))
        apart = np.hypot(better.center_x - crop.center_x, better.center_y - crop.center_y)
        if 0.5 < better.size / crop.size < 2 and apart < crop.size / 2:
            return better
        logger.debug("The model lost the face.")
        return None

    def estimate(self, photo: np.ndarray, crop: SquareCrop) -> FaceParameters:
        """(H, W, 3) uint8 sRGB and a square of it -> what the model says, on the CPU.

        Its light is then settled on the photo (`cest.light_fit`).
        """
        image, said = self._said(photo, crop)
        return settle_light(image, said, self._coarse.landmarks)

    @torch.no_grad()
    def _said(self, photo: np.ndarray, crop: SquareCrop) -> tuple[Tensor, FaceParameters]:
        """The image (1, 3, S, S) that the networks see, and what they say, on the CPU."""
        image = _as_tensor(crop_image(photo, crop, self.model.config.image_size))
        return image, _to_cpu(self.model(image.to(self.device)))

    def refine(
        self, face: Reconstruction, steps: int, progress: Callable[[int, float], None] | None = None
    ) -> Reconstruction:
        """One of this model's reconstructions, fitted further to its photo (`cest.refinement`).

        progress: called after every step with its number, from 1, and the loss.
        """
        parameters = self.fit(face.photo, face.crop, face.parameters, steps, progress)
        return self.fitted(face, parameters, steps)

    def fit(
        self,
        photo: np.ndarray,
        crop: SquareCrop,
        parameters: FaceParameters,
        steps: int,
        progress: Callable[[int, float], None] | None = None,
    ) -> FaceParameters:
        """What `estimate` said of a crop, fitted further to it; on the CPU. See `refine`."""
        image = _as_tensor(crop_image(photo, crop, self.model.config.image_size))
        return _to_cpu(refine(self.model, image, parameters, steps=steps, progress=progress))

    def fitted(
        self, face: Reconstruction, parameters: FaceParameters, steps: int
    ) -> Reconstruction:
        """A reconstruction with what `fit` said of it."""
        detail = face.detail is not None
        result = self.assemble(face.photo, face.crop, parameters, face.index, detail)
        return replace(result, refined=face.refined + steps)

    def assemble(
        self,
        photo: np.ndarray,
        crop: SquareCrop,
        parameters: FaceParameters,
        index: int = 0,
        detail: bool | None = None,
    ) -> Reconstruction:
        """What `estimate` said of a crop, with what it takes to draw and export it.

        detail: whether with the photo's; by default as this reconstructor does.
        """
        factors = None
        if self.detail if detail is None else detail:
            pixels = round(min(max(crop.size, self.model.config.image_size), LARGEST_DETAIL))
            image = _as_tensor(crop_image(photo, crop, pixels))
            shown = torch.from_numpy(covered(photo, crop, pixels))[None, None].float()
            # Half precision is a tenth of a level, and half the memory of those who keep many.
            factors = fine_detail(image, shown, parameters, self._fine, self._texel_map).half()
        return Reconstruction(
            photo=photo,
            crop=crop,
            parameters=parameters,
            face_model=self._fine,
            estimator_face_model=self._coarse,
            model=self.name,
            conditioning=self.model.config.conditioning,
            index=index,
            detail=factors,
        )


@cache
def _finer_open_model() -> FaceModel:
    return load_face_model("open", level=EXPORT_LEVEL)


def choose_faces(crops: list[SquareCrop], face: str | int) -> list[tuple[int, SquareCrop]]:
    """ "largest", "all" or a number -> (number, crop) of those; raises NoFaceError."""
    if not crops:
        raise NoFaceError(
            "No face was found; give a photo in which a face is larger and less turned away."
        )
    if face == "all":
        return list(enumerate(crops))
    index = 0 if face == "largest" else int(face)
    if not 0 <= index < len(crops):
        raise NoFaceError(
            f"There is no face {index}: the photo has {len(crops)}, counted from 0, the largest."
        )
    return [(index, crops[index])]


def labelled_row(panels: list[tuple[str, Image.Image]], size: int = PANEL_SIZE) -> Image.Image:
    """Pictures scaled to `size` squares, side by side, each under its label."""
    label, gap = 26, 4
    row = Image.new("RGB", (len(panels) * (size + gap) - gap, size + label), "white")
    draw = ImageDraw.Draw(row)
    font = ImageFont.load_default(size=15)
    for i, (name, picture) in enumerate(panels):
        x = i * (size + gap)
        row.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (x, label))
        draw.text((x + size / 2, label / 2), name, fill="black", font=font, anchor="mm")
    return row


def _as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def _as_picture(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> RGB."""
    return Image.fromarray(pictures.to_uint8(image).numpy())


def _to_cpu(value):
    """Dataclasses, named tuples and tensors of them -> on the CPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, tuple):
        return type(value)(*map(_to_cpu, value))
    if hasattr(value, "__dataclass_fields__"):
        return type(value)(**{k: _to_cpu(getattr(value, k)) for k in value.__dataclass_fields__})
    return value
