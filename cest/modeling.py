"""CEST and IEST: from an image to viewpoint, shape, reflectance and illumination (eqs. 3-4)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cest.checkpoint import PretrainedModel
from cest.configuration import CheckpointError, FaceEstimatorConfig
from cest.face_model import FaceModel, load_face_model
from cest.geometry import ambient_illumination, canonical_crop, project, rotate
from cest.networks import Encoder, LinearReflectance, ReflectanceNetwork, start_near
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
    PretrainedModel,
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
            has loaded; `from_pretrained` takes it too. It is never saved with the weights.

    Raises:
        CheckpointError: the config was made with another face model than the one given.
    """

    config_class = FaceEstimatorConfig

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
        self.reflectance_network = (
            ReflectanceNetwork(width)
            if config.reflectance == "map"
            else LinearReflectance(width, size)
        )
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
            # What is made of the texture does not move the face: those gradients were noise to
            # viewpoint and shape, which became worse than IEST's by them (docs/training-log.md).
            texture, visibility = unwrap(
                image,
                projected.detach(),
                normals.detach(),
                surface.fragments,
                self.texel_map,
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
