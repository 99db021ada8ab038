"""A moving average of a model's weights, which is smoother than the last of them."""

import copy

import torch
from torch import nn


class MovingAverage(nn.Module):
    """A copy of a model whose weights follow it slowly.

    Args:
        model: is copied.
        decay: share that the average keeps at a step; less in the first steps, which would
            otherwise hold the random beginning for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the model after ``step`` steps; batch statistics are averaged, too."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self._tensors(self.model), self._tensors(model)))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*floats)), 1 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @staticmethod
    def _tensors(model: nn.Module) -> list[torch.Tensor]:
        return [*model.parameters(), *model.buffers()]
