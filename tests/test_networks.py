from itertools import pairwise

import pytest
import torch
from torch import nn

from cest.configuration import FaceEstimatorConfig
from cest.modeling import FaceEstimator
from cest.networks import Encoder, ReflectanceNetwork, count_parameters


def row_shapes(network: nn.Module, inputs: int, size: int) -> list[tuple[int, ...]]:
    """Output shapes (C, H, W) of every convolution and upsampling, in order of execution."""
    shapes = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.Upsample))
    ]
    network.eval()(torch.zeros(1, inputs, size, size))
    for hook in hooks:
        hook.remove()
    return shapes


def table_1(c: int, outputs: int) -> list[tuple[int, int, int]]:
    return [
        (c, 128, 128),
        (c, 64, 64),
        (2 * c, 32, 32),
        (2 * c, 16, 16),
        (2 * c, 16, 16),
        (2 * c, 16, 16),
        (4 * c, 8, 8),
        (4 * c, 8, 8),
        (4 * c, 8, 8),
        (4 * c, 4, 4),
        (outputs, 1, 1),
    ]


TABLE_2 = [
    *[(64, 128, 128), (64, 128, 128), (64, 64, 64), (64, 64, 64), (128, 32, 32), (128, 32, 32)],
    *[(128, 16, 16), (128, 16, 16), (256, 8, 8), (256, 8, 8), (256, 4, 4), (256, 4, 4)],
    *[(256, 8, 8), (256, 8, 8), (256, 8, 8)],
    *[(256, 16, 16), (128, 16, 16), (128, 16, 16)],
    *[(128, 32, 32), (128, 32, 32), (128, 32, 32)],
    *[(128, 64, 64), (64, 64, 64), (64, 64, 64)],
    *[(64, 128, 128), (64, 128, 128), (64, 128, 128)],
    *[(64, 256, 256), (3, 256, 256), (3, 256, 256)],
]


@pytest.mark.parametrize(
    ("inputs", "outputs", "channels"), [(3, 7, 32), (9, 9, 32), (3, 9, 32), (3, 228, 64)]
)
def test_every_row_of_table_1(inputs, outputs, channels):
    network = Encoder(inputs, outputs, channels)
    assert row_shapes(network, inputs, 256) == table_1(channels, outputs)


def test_every_row_of_table_2():
    assert row_shapes(ReflectanceNetwork(), 3, 256) == TABLE_2


def convolution(inputs: int, outputs: int, kernel: int) -> int:
    """Weights of one convolution with its batch normalisation."""
    return inputs * outputs * kernel**2 + 2 * outputs


def test_parameter_counts_follow_from_the_tables():
    for inputs, outputs, c in ((3, 7, 32), (9, 9, 32), (3, 228, 64)):
        expected = (
            convolution(inputs, c, 4)
            + convolution(c, c, 4)
            + convolution(c, 2 * c, 4)
            + convolution(2 * c, 2 * c, 4)
            + 2 * convolution(2 * c, 2 * c, 3)
            + convolution(2 * c, 4 * c, 4)
            + 2 * convolution(4 * c, 4 * c, 3)
            + convolution(4 * c, 4 * c, 4)
            + 4 * c * outputs * 16
            + outputs
        )
        assert count_parameters(Encoder(inputs, outputs, c)) == expected
    down, up = (3, 64, 64, 128, 128, 256, 256), (256, 256, 128, 128, 64, 64)
    expected = (
        sum(convolution(i, o, 4) + convolution(o, o, 3) for i, o in pairwise(down))
        + sum(convolution(i, o, 3) + convolution(o, o, 3) for i, o in pairwise(up))
        + convolution(64, 3, 3)
        + (3 * 3 * 9 + 3)
    )
    assert count_parameters(ReflectanceNetwork()) == expected


def test_parameters_of_cest_at_the_papers_size(face_model):
    counts = {
        conditioning: count_parameters(
            FaceEstimator(FaceEstimatorConfig(conditioning=conditioning), face_model)
        )
        for conditioning in ("cest", "iest")
    }
    # They differ by the six channels of T and A that CEST's illumination network sees.
    assert counts == {"cest": 11_934_222, "iest": 11_934_222 - 6 * 32 * 16}


@pytest.mark.parametrize("size", [64, 128, 192])
def test_small_variants(size):
    assert Encoder(3, 7, 32, width=0.25, size=size)(torch.zeros(2, 3, size, size)).shape == (2, 7)
    image = torch.zeros(2, 3, size, size)
    assert ReflectanceNetwork(0.25)(image).shape == (2, 3, size, size)
