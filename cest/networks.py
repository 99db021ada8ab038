"""The networks of the paper's Tables 1 and 2, and a baseline's reflectance.

``width`` multiplies every hidden channel count and ``size`` is the side of the input; the paper's
are 1.0 and 256. Every convolution but the last is followed by batch normalisation and ReLU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """``Conv k/s,1`` + BN + ReLU; the normalisation makes a bias of the convolution idle."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """A bracketed pair of rows of Table 1: two 3/1,1 convolutions around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels, 3, 1), conv(channels, channels, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


class Encoder(nn.Sequential):
    """Table 1: an image to a vector.

    The last row of the table, ``4 × 4/2,1`` from 4 × 4 to 1 × 1, contradicts its own output
    shape (padding 1 would give 2 × 2); the shape is kept: no padding, and a kernel as large as
    what is left, which is 4 × 4 at 256 pixels.

    Args:
        inputs: channels of the image.
        outputs: d, 7 for the viewpoint, 9 for the illumination, 228 for the shape.
        channels: of the first row, 32 for viewpoint and illumination, 64 for the shape.
        width: multiplies the channels.
        size: side of the image, a multiple of 64.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: int, width: float = 1.0, size: int = 256
    ) -> None:
        a, b, c = (scaled(channels * factor, width) for factor in (1, 2, 4))
        super().__init__(
            conv(inputs, a, 4, 2),
            conv(a, a, 4, 2),
            conv(a, b, 4, 2),
            conv(b, b, 4, 2),
            Residual(b),
            conv(b, c, 4, 2),
            Residual(c),
            conv(c, c, 4, 2),
            nn.Conv2d(c, outputs, size // 64),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, inputs, size, size) in [-1, 1] -> (B, outputs)."""
        return super().forward(image).flatten(1)


class ReflectanceNetwork(nn.Module):
    """Table 2: a U-Net from an image or an illuminated texture to the reflectance map.

    Shortcuts are additions. Levels are named by the channels of the paper's table.
    """

    ENCODER = (64, 64, 128, 128, 256, 256)
    DECODER = (256, 128, 128, 64, 64)

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        down = [scaled(channels, width) for channels in self.ENCODER]
        up = [scaled(channels, width) for channels in self.DECODER]
        self.encoder = nn.ModuleList(
            nn.Sequential(conv(inputs, outputs, 4, 2), conv(outputs, outputs, 3, 1))
            for inputs, outputs in zip([3, *down[:-1]], down)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                conv(inputs, outputs, 3, 1),
                conv(outputs, outputs, 3, 1),
            )
            for inputs, outputs in zip([down[-1], *up[:-1]], up)
        )
        self.output = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            conv(up[-1], 3, 3, 1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Tanh(),
        )
        # The last two rows squeeze everything through three rectified channels: start them in
        # their linear range and the last row near the identity about mid grey, or the whole face
        # can sit where a channel is shut and learn nothing for long.
        normalisation, last = self.output[1][1], self.output[2]
        with torch.no_grad():
            normalisation.bias.fill_(2.0)
            last.weight.mul_(0.05)
            last.weight[range(3), range(3), 1, 1] += 0.5
            last.bias.fill_(-0.5 * 2.0)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> (B, 3, size, size) in [-1, 1]; size % 64 == 0."""
        levels = []
        for block in self.encoder:
            image = block(image)
            levels.append(image)
        image = levels.pop()
        for block in self.decoder:
            image = block(image) + levels.pop()
        return self.output(image)


class LinearReflectance(nn.Module):
    """A reflectance of few coefficients, as in MoFA and FML: for comparison, not of the paper.

    A = tanh(mean + basis · β), the mean and the basis a coarse UV map each, learnt with the
    encoder that gives β (Table 1).
    """

    COMPONENTS = 80
    SIDE = 64

    def __init__(self, width: float = 1.0, size: int = 256) -> None:
        super().__init__()
        self.size = size
        self.encoder = Encoder(3, self.COMPONENTS, 64, width, size)
        self.basis = nn.Linear(self.COMPONENTS, 3 * self.SIDE**2)
        start_near(self.basis, torch.zeros(3 * self.SIDE**2))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, size, size) in [-1, 1] -> (B, 3, size, size) in [-1, 1]."""
        coarse = self.basis(self.encoder(image)).unflatten(1, (3, self.SIDE, self.SIDE))
        return F.interpolate(coarse.tanh(), size=(self.size, self.size), mode="bilinear")


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def start_near(module: nn.Module, outputs: Tensor, gain: float = 0.05) -> None:
    """Shrinks a last layer's weights and sets its bias: the first outputs are near ``outputs``."""
    with torch.no_grad():
        module.weight.mul_(gain)
        module.bias.copy_(outputs)
