import torch
from torch import nn

from quantable.networks.counting import layer_shapes
from quantable.networks.squeezenext import STAGES, sqnxt23_w2
from quantable.networks.trace import activations


def test_sqnxt23_w2_has_the_papers_counts():
    # Schaefer et al., WACV 2024: weights with biases; 21 blocks, stem and head.
    net = sqnxt23_w2(1000, in_channels=3)
    shapes = layer_shapes(net, (3, 224, 224))
    assert sum(shape.weights + shape.bias for shape in shapes) == 2_560_648
    assert sum(shape.bias for shape in shapes) == 12_552
    assert sum(shape.inputs for shape in shapes[1:]) == 7_141_856
    assert max(shape.inputs for shape in shapes[1:]) == 387_200  # 128 x 55 x 55
    assert sum(blocks for _, blocks in STAGES) + 2 == 23


def test_a_block_runs_in_the_order_of_its_modules_and_every_relu_once():
    net = sqnxt23_w2(10, in_channels=1).eval()
    names = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    shapes = layer_shapes(net, (1, 64, 64))
    assert [shape.name for shape in shapes] == [*names, "fc"]
    behind = activations(net, (1, 64, 64)).relus  # raises where a ReLU runs twice
    assert list(behind) == names
    assert net(torch.zeros(2, 1, 64, 64)).shape == (2, 10)


def test_only_equal_blocks_have_an_identity_shortcut():
    net = sqnxt23_w2(10, in_channels=3)
    first = [isinstance(stage[0].shortcut, nn.Identity) for stage in net.stages]
    rest = [isinstance(b.shortcut, nn.Identity) for stage in net.stages for b in stage[1:]]
    assert first == [False] * 4
    assert all(rest)
