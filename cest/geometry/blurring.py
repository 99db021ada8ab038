"""Gaussian blur of images and of UV maps."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, C, H, W), edges replicated; sigma in pixels."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    planes = padded.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, None]), kernel[None, None, :, None])
    return planes.view_as(image)


def blur_within(image: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) blurred, each pixel counting by its weight (B, 1, H, W).

    Nothing bleeds in from where the weight is 0; where none is near, the result is 0.
    """
    blurred = blur(torch.cat((image * weight, weight), dim=1), sigma)
    return blurred[:, :-1] / blurred[:, -1:].clamp(min=1e-6)
