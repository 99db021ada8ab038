"""Looking up images at points of the image frame."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(points: Tensor, width: int, height: int) -> Tensor:
    """Image frame (..., 2) [-1, 1] y up -> pixel-edge coordinates (..., 2), y down."""
    x = (points[..., 0] + 1) * (width / 2)
    y = (1 - points[..., 1]) * (height / 2)
    return torch.stack((x, y), dim=-1)


def from_pixels(points: Tensor, width: int, height: int) -> Tensor:
    """Pixel-edge coordinates (..., 2), y down -> image frame (..., 2) [-1, 1] y up."""
    x = points[..., 0] * (2 / width) - 1
    y = 1 - points[..., 1] * (2 / height)
    return torch.stack((x, y), dim=-1)


def sample_image(image: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """Bilinear look-up (A.1, A.4); outside the image the nearest edge pixel answers.

    Args:
        image: (B, C, H, W).
        points: (B, h, w, 2) or (B, n, 2), image frame.
        mode: "bilinear" or "nearest".

    Returns:
        (B, C, h, w) or (B, C, n); differentiable in both arguments.
    """
    flat = points.ndim == 3
    grid = points.unsqueeze(1) if flat else points
    grid = torch.stack((grid[..., 0], -grid[..., 1]), dim=-1)  # grid_sample's y points down
    # On the CPU torch's backward leaves the image, and the process, at a coordinate that is NaN.
    grid = grid.nan_to_num()
    values = F.grid_sample(image, grid, mode=mode, padding_mode="border", align_corners=False)
    return values.squeeze(2) if flat else values
