"""Batch normalisation over the batch of all processes, so that their number changes nothing."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for the CPU, where torch has none; equal shares a process."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; in training, statistics are of all processes' B."""
        if not self.training:
            return super().forward(x)
        processes = torch.distributed.get_world_size()
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = all_reduce(values.mean((0, 2, 3))) / processes
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / processes
        with torch.no_grad():
            count = processes * x.numel() / x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Makes a model's batch normalisation count over all processes."""
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm
    return model
