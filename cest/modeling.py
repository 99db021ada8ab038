"""CEST and IEST: from an image to viewpoint, shape, reflectance and illumination (eqs. 3-4)."""

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cest.configuration import CheckpointError, FaceEstimatorConfig
from cest.face_model import FaceModel, load_face_model
from cest.geometry import ambient_illumination, canonical_crop, project, rotate
from cest.networks import Encoder, ReflectanceNetwork, start_near
from cest.rendering import (
    Surface,
    TexelMap,
    rasterize_surface,
    unwrap,
    vertex_normals,
)

CARD = """---
{{ card_data }}
---

# A {{ conditioning | upper }} checkpoint

Estimates viewpoint, shape, reflectance and illumination of a face from one photo, after
[Self-Supervised 3D Face Reconstruction via Conditional Estimation]({{ paper_url }}).

```python
from cest import Reconstructor

(face,) = Reconstructor.from_pretrained("this repository or folder").reconstruct("photo.jpg")
face.save("out")
```

Input {{ image_size }} × {{ image_size }} pixels, width {{ width }}, face model
{{ face_model }} (`{{ face_model_hash[:12] }}…`). Who trained it, and on what, its owner has to say.
"""


@dataclass(frozen=True, eq=False)
class FaceParameters:
    """What the estimator says of B images, and what follows from it.

    Attributes:
        viewpoint: v (B, 7), see `cest.geometry.viewpoint`.
        shape_coefficients: α (B, D), standard deviations, identity first.
        reflectance_map: A (B, 3, S, S) in [0, 1], a UV map of sRGB albedo.
        illumination: ℓ (B, 9), spherical harmonics of the irradiance, camera's axes.
        vertices: S (B, K, 3), face frame, decimetres (eq. 5).
        projected: Q (B, K, 3), image frame (A.2).
        surface: the face rasterised at the image's size.
        illuminated_texture: T (B, 3, S, S), the image in the UV plane, zero where invisible.
        texture_visibility: (B, 1, S, S), 1 where T was seen.
    """

    viewpoint: Tensor
    shape_coefficients: Tensor
    reflectance_map: Tensor
    illumination: Tensor
    vertices: Tensor
    projected: Tensor
    surface: Surface
    illuminated_texture: Tensor
    texture_visibility: Tensor


class FaceEstimator(
    nn.Module,
    ModelHubMixin,
    library_name="cest",
    license="apache-2.0",
    pipeline_tag="image-to-3d",
    tags=["3d-face-reconstruction", "relighting", "self-supervised"],
    paper_url="https://arxiv.org/abs/2110.04800",
    model_card_template=CARD,
):
    """The four estimators f_v, f_s, f_r, f_ℓ (eq. 4), conditional or independent.

    Args:
        config: sizes, conditioning and face model.
        face_model: to use instead of the one that the config names; a BFM or GNM that the user
            has loaded. It is never saved with the weights.

    Raises:
        CheckpointError: the config was made with another face model than the one given.
    """

    def __init__(
        self, config: FaceEstimatorConfig | None = None, face_model: FaceModel | None = None
    ) -> None:
        super().__init__()
        config = config or FaceEstimatorConfig()
        if face_model is None:
            try:
                face_model = load_face_model(config.face_model, level=config.face_model_level)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"The face model {config.face_model!r} does not ship with cest ({error}): load "
                    "its file with load_face_model and give it as face_model."
                ) from error
        if config.face_model_hash not in (None, face_model.content_hash):
            raise CheckpointError(
                f"The weights belong to face model {config.face_model!r} with hash "
                f"{config.face_model_hash[:12]}…, but the one at hand has hash "
                f"{face_model.content_hash[:12]}…: install the version of cest that made the "
                "checkpoint, or give its face model."
            )
        config = replace(
            config, face_model=face_model.name, face_model_hash=face_model.content_hash
        )
        self.config = self._hub_mixin_config = config
        self.face_model = face_model
        self._texel_map: TexelMap | None = None

        size, width = config.image_size, config.width
        self.viewpoint_network = Encoder(3, 7, 32, width, size)
        self.shape_network = Encoder(3, face_model.n_coefficients, 64, width, size)
        self.reflectance_network = ReflectanceNetwork(width)
        channels = 9 if config.conditioning == "cest" else 3
        self.illumination_network = Encoder(channels, 9, 32, width, size)
        # The first rendering is an upright frontal mean face under ambient light.
        start_near(self.viewpoint_network[-1], torch.zeros(7))
        start_near(self.shape_network[-1], torch.zeros(face_model.n_coefficients))
        start_near(self.illumination_network[-1], ambient_illumination())

    def _apply(self, fn, recurse: bool = True):
        """Moves the face model along with the weights, but never changes its indices' type."""
        super()._apply(fn, recurse)
        like = next(self.parameters())
        self.face_model = self.face_model.to(like.device, like.dtype)
        self._texel_map = None
        return self

    @property
    def texel_map(self) -> TexelMap:
        if self._texel_map is None:
            model = self.face_model
            self._texel_map = TexelMap.build(model.uv, model.triangles, self.config.image_size)
        return self._texel_map

    def forward(self, image: Tensor) -> FaceParameters:
        """Estimates every factor.

        Args:
            image: (B, 3, S, S) sRGB in [0, 1], S = config.image_size; the face upright-ish and
                its landmarks' box spanning about 60 % of the image.

        Raises:
            ValueError: an image of another shape.
        """
        size = self.config.image_size
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(
                f"The estimator takes images (B, 3, {size}, {size}) but got {tuple(image.shape)}."
            )
        conditional = self.config.conditioning == "cest"
        centred = 2 * image - 1

        viewpoint = self.viewpoint_network(centred)  # f_v(I)
        canonical = canonical_crop(centred, viewpoint) if conditional else centred
        coefficients = self.shape_network(canonical)  # f_s(I∘v)

        # Geometry stays in float32 whatever the networks run in.
        with torch.autocast(image.device.type, enabled=False):
            viewpoint, coefficients = viewpoint.to(image.dtype), coefficients.to(image.dtype)
            vertices = self.face_model.vertices(coefficients)
            projected = project(vertices, viewpoint)
            normals = rotate(vertex_normals(vertices, self.face_model.triangles), viewpoint)
            surface = rasterize_surface(
                projected, normals, self.face_model.triangles, self.face_model.uv, (size, size)
            )
            texture, visibility = unwrap(
                image, projected, normals, surface.fragments, self.texel_map
            )

        # Texels that were not seen are given as mid grey, the centre of the range.
        texture_input = (2 * texture - 1) * visibility
        reflectance = self.reflectance_network(texture_input if conditional else centred)  # f_r(T)
        illumination = self.illumination_network(  # f_ℓ(I, T, A)
            torch.cat((centred, texture_input, reflectance), dim=1) if conditional else centred
        )
        return FaceParameters(
            viewpoint=viewpoint,
            shape_coefficients=coefficients,
            reflectance_map=(reflectance.to(image.dtype) + 1) / 2,
            illumination=illumination.to(image.dtype),
            vertices=vertices,
            projected=projected,
            surface=surface,
            illuminated_texture=texture,
            texture_visibility=visibility,
        )

    # -- checkpoints -------------------------------------------------------------------------

    def generate_model_card(self, **details: object) -> ModelCard:
        """The card that save_pretrained writes where there is none."""
        return super().generate_model_card(**self.config.to_dict(), **details)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes model.safetensors and config.json, each whole or not at all.

        The mixin removes an old config.json before this, so a checkpoint that was being
        overwritten when the process died is refused as incomplete, not loaded half new.
        """
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        config = json.dumps(self.config.to_dict(), indent=2) + "\n"
        write_atomically(
            save_directory / constants.SAFETENSORS_SINGLE_FILE,
            lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        )
        write_atomically(
            save_directory / constants.CONFIG_NAME, lambda path: path.write_text(config)
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        face_model: FaceModel | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> "FaceEstimator":
        """Loads a folder or a Hub repository ("owner/name"), in evaluation mode on the CPU.

        Args:
            pretrained_model_name_or_path: folder with config.json and model.safetensors, or
                a Hub id.
            face_model: for checkpoints whose face model does not ship with cest.
            revision, cache_dir, force_download, local_files_only, token: as in huggingface_hub.

        Raises:
            CheckpointError: files missing or damaged, another architecture, another face model,
                weights missing, unexpected or of another shape. Never loads part of a model.
        """
        source = str(pretrained_model_name_or_path)
        config_path, weights_path = (
            _find(
                source,
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            for name in (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)
        )
        try:
            values = json.loads(config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{config_path} is not readable JSON ({error}): download the checkpoint again."
            ) from error
        model = cls(FaceEstimatorConfig.from_dict(values, str(config_path)), face_model=face_model)
        model.load_weights(weights_path)
        return model.eval()

    def load_weights(self, path: str | Path) -> None:
        """Loads a safetensors file strictly.

        Raises:
            CheckpointError: naming what is missing, unexpected or of another shape.
        """
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({error}): download it again."
            ) from error
        own = self.state_dict()
        problems = {
            "missing": sorted(own.keys() - tensors.keys()),
            "unexpected": sorted(tensors.keys() - own.keys()),
            "of another shape": sorted(
                name
                for name in own.keys() & tensors.keys()
                if own[name].shape != tensors[name].shape
            ),
        }
        found = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for kind, names in problems.items()
            if names
        ]
        if found:
            raise CheckpointError(
                f"{path} does not fit its config.json: {'; '.join(found)}. Nothing was loaded."
            )
        self.load_state_dict(tensors)


def _find(source: str, name: str, **download: object) -> Path:
    """A checkpoint's file, from a folder or the Hub."""
    if os.path.isdir(source):
        path = Path(source) / name
        if not path.is_file():
            raise CheckpointError(
                f"{source} has no {name}: give a folder that save_pretrained wrote."
            )
        return path
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{source} is neither a folder nor a Hub id such as owner/name: check the spelling."
        )
    try:
        return Path(hf_hub_download(source, name, **download))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise CheckpointError(
                f"{source} is not in the cache and the Hub cannot be reached: connect once, or "
                "give a local folder."
            ) from error
        raise CheckpointError(f"{source} has no {name} on the Hub: is it a CEST model?") from error
    except (HfHubHTTPError, ValueError) as error:
        raise CheckpointError(
            f"{source} could not be loaded from the Hub ({str(error).splitlines()[0]}): check "
            "the id and your token."
        ) from error


def write_atomically(path: Path, write) -> None:
    """Calls ``write(temporary)`` beside ``path`` and renames: a crash leaves the old file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(temporary)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["CheckpointError", "FaceEstimator", "FaceParameters", "write_atomically"]
