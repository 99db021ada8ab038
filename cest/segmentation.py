"""f_seg: which pixels of a crop show the face, the mask M of the photometric loss (eq. 6).

Face is the skin of the face with brows, eyes, nose and mouth: what the renderer covers. Ears, neck,
hair, hats, hands and the frames and dark lenses of glasses are not.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cest.checkpoint import PretrainedModel
from cest.configuration import ModelConfig
from cest.networks import conv

CARD = """---
{{ card_data }}
---

# A face segmenter

Says which pixels of a square crop around a face show its skin, brows, eyes, nose or mouth.

```python
from cest.segmentation import FaceSegmenter

mask = FaceSegmenter.from_pretrained("this repository or folder").segment(crop)  # uint8, 255 = face
```

Who trained it, and on what, its owner has to say.
"""

STRIDE = 32
"""Of the coarsest level, in pixels."""


@dataclass(frozen=True)
class FaceSegmenterConfig(ModelConfig):
    """Configuration of a FaceSegmenter.

    Attributes:
        image_size: side in pixels at which it looks at a crop, a multiple of 32.
        width: channels at full resolution.
        architecture: constant; tells our config.json from anybody else's.
    """

    image_size: int = 128
    width: int = 12
    architecture: str = "cest-face-segmenter"

    def __post_init__(self) -> None:
        if self.image_size % STRIDE or self.image_size < STRIDE:
            raise ValueError(f"image_size is {self.image_size}; it must be a multiple of {STRIDE}.")
        if not 0 < self.width <= 64:
            raise ValueError(f"width is {self.width}; it must be above 0 and at most 64.")


class FaceSegmenter(
    PretrainedModel,
    library_name="cest",
    license="apache-2.0",
    pipeline_tag="image-segmentation",
    tags=["face-parsing"],
    model_card_template=CARD,
):
    """A U-Net of six levels, each half as large as the one before.

    Args:
        config: sizes.
    """

    config_class = FaceSegmenterConfig
    CHANNELS = (1, 2, 4, 6, 6, 6)
    """Of each level, in widths."""

    def __init__(self, config: FaceSegmenterConfig | None = None) -> None:
        super().__init__()
        self.config = config or FaceSegmenterConfig()
        channels = [factor * self.config.width for factor in self.CHANNELS]
        self.encoder = nn.ModuleList([conv(3, channels[0], 3, 1)])
        for coarser, finer in zip(channels[1:], channels):
            self.encoder.append(
                nn.Sequential(conv(finer, coarser, 4, 2), conv(coarser, coarser, 3, 1))
            )
        self.decoder = nn.ModuleList(
            nn.Sequential(conv(coarser + finer, finer, 3, 1), conv(finer, finer, 3, 1))
            for coarser, finer in zip(channels[:0:-1], channels[-2::-1])
        )
        self.output = nn.Conv2d(channels[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """The probability that a pixel shows the face.

        Args:
            image: (B, 3, S, S) sRGB in [0, 1], any S: it is brought to config.image_size and the
                answer back. A crop such as the estimators take, the face upright-ish.

        Returns:
            (B, 1, S, S) float32.

        Raises:
            ValueError: an image of another shape.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3]:
            raise ValueError(
                f"The segmenter takes square crops (B, 3, S, S) but got {tuple(image.shape)}: cut "
                "one around the face."
            )
        levels = [2 * _resized(image, self.config.image_size) - 1]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        features = levels.pop()
        for block in self.decoder:
            finer = levels.pop()
            features = _resized(features, finer.shape[-1])
            features = block(torch.cat((features, finer), dim=1))
        return _resized(self.output(features).float().sigmoid(), image.shape[-1])

    @torch.inference_mode()
    def segment(self, image: np.ndarray) -> np.ndarray:
        """The face's pixels of one crop.

        Args:
            image: (S, S, 3) uint8 sRGB.

        Returns:
            (S, S) uint8, 255 on the face and 0 elsewhere.

        Raises:
            ValueError: not a square colour image of bytes.
        """
        if image.ndim != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"The segmenter takes a crop (S, S, 3) uint8 but got {image.shape} {image.dtype}."
            )
        batch = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        face = self(batch.to(next(self.parameters()).device))[0, 0] > 0.5
        return face.cpu().numpy() * np.uint8(255)


def _resized(image: Tensor, size: int) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size), bilinear, without aliasing."""
    if image.shape[-1] == size:
        return image
    shrinks = image.shape[-1] > size
    return nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=shrinks)
