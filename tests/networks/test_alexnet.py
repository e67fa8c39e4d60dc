"""AlexNet and LeNet-5 have the public shapes, layer by layer."""

import torch
from torch import nn

from quantable.networks.alexnet import alexnet_groups
from quantable.networks.lenet import lenet5
from quantable.networks.shapes import PACKAGED, read_shapes

# Counted by hand from the public shapes: terms of a sum, weights, MACs of each layer.
ALEXNET = [
    (11 * 11 * 3, 34_848, 105_415_200),
    (5 * 5 * 96 // 2, 307_200, 223_948_800),
    (3 * 3 * 256, 884_736, 149_520_384),
    (3 * 3 * 384 // 2, 663_552, 112_140_288),
    (3 * 3 * 384 // 2, 442_368, 74_760_192),
    (256 * 6 * 6, 37_748_736, 37_748_736),
    (4096, 16_777_216, 16_777_216),
    (4096, 4_096_000, 4_096_000),
]


def test_alexnet_with_two_groups_has_the_counts_of_its_layers() -> None:
    shapes = read_shapes("alexnet_groups-classes=1000-in_channels=3-3x227x227", [PACKAGED])
    assert shapes is not None
    assert [(shape.terms, shape.weights, shape.macs) for shape in shapes] == ALEXNET
    assert sum(shape.weights for shape in shapes) == 60_954_656
    assert sum(shape.macs for shape in shapes) == 724_406_816


def test_torchvisions_alexnet_has_its_own() -> None:
    shapes = read_shapes("alexnet_torchvision-classes=1000-3x224x224", [PACKAGED])
    assert shapes is not None
    assert [s.terms for s in shapes] == [363, 1600, 1728, 3456, 2304, 9216, 4096, 4096]
    assert sum(shape.weights for shape in shapes) == 61_090_496
    assert sum(shape.macs for shape in shapes) == 714_188_480
    # torchvision says 61,100,840 parameters: biases are the rest.
    assert sum(shape.weights + shape.bias for shape in shapes) == 61_100_840


def test_lenet5_has_caffes_counts() -> None:
    shapes = read_shapes("lenet5-classes=10-in_channels=1-1x28x28", [PACKAGED])
    assert shapes is not None
    assert [shape.terms for shape in shapes] == [25, 500, 800, 500]
    assert [shape.weights for shape in shapes] == [500, 25_000, 400_000, 5_000]
    assert [shape.macs for shape in shapes] == [288_000, 1_600_000, 400_000, 5_000]


def test_a_group_reads_its_own_half_of_the_channels() -> None:
    conv = alexnet_groups(10, in_channels=3).conv2
    assert isinstance(conv, nn.Conv2d)
    x = torch.zeros(1, 96, 5, 5)
    x[:, 48:] = 1.0
    change = (conv(x) - conv(torch.zeros_like(x))).abs().sum(dim=(0, 2, 3))  # (256,)
    assert not change[:128].any()
    assert change[128:].all()


def test_lenet5_takes_the_bundled_images() -> None:
    assert lenet5(10, in_channels=1)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
