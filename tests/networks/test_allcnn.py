import pytest
import torch

from quantable.networks.allcnn import allcnn_c
from quantable.networks.counting import layer_shapes
from quantable.networks.trace import signed_inputs

IMAGE = (3, 32, 32)


def terms(layer):
    return layer.c_in // layer.groups * layer.kernel[0] * layer.kernel[1]


def test_every_layer_counts_as_by_hand():
    layers = layer_shapes(allcnn_c(10, 3, width=1.0, dropout=True), IMAGE)
    assert [layer.name for layer in layers] == [f"conv{i}" for i in range(1, 10)]
    assert [(layer.weights, layer.macs, terms(layer)) for layer in layers] == [
        (2_592, 2_654_208, 27),
        (82_944, 84_934_656, 864),
        (82_944, 21_233_664, 864),
        (165_888, 42_467_328, 864),
        (331_776, 84_934_656, 1728),
        (331_776, 21_233_664, 1728),
        (331_776, 11_943_936, 1728),
        (36_864, 1_327_104, 192),
        (1_920, 69_120, 192),
    ]
    assert sum(layer.weights for layer in layers) == 1_368_480
    assert sum(layer.macs for layer in layers) == 270_798_336
    assert layers[-1].output == (6, 6)


def test_quarter_width():
    layers = layer_shapes(allcnn_c(10, 3, width=0.25, dropout=True), IMAGE)
    assert sum(layer.weights for layer in layers) == 86_376
    assert sum(layer.macs for layer in layers) == 17_435_520
    assert [terms(layer) for layer in layers] == [27, 216, 216, 216, 432, 432, 432, 48, 48]


def test_only_the_image_is_signed():
    net = allcnn_c(10, 3, width=0.25, dropout=True)
    assert signed_inputs(net, IMAGE) == {"conv1"}


def test_scores_are_means_of_what_the_last_relu_gives():
    net = allcnn_c(10, 3, width=0.25, dropout=True).eval()
    maps = []
    net.relu9.register_forward_hook(lambda *args: maps.append(args[-1]))
    scores = net(torch.randn(2, *IMAGE))
    assert maps[0].shape == (2, 10, 6, 6)
    torch.testing.assert_close(scores, maps[0].sum(dim=(2, 3)) / 36)


@pytest.mark.parametrize("training", [False, True])
def test_three_dropouts_and_they_are_off_in_evaluation(training):
    net = allcnn_c(10, 3, width=0.25, dropout=True).train(training)
    x = torch.randn(2, *IMAGE)
    assert torch.equal(net(x), net(x)) is not training
    rates = {name: m.p for name, m in net.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {"drop0": 0.2, "drop3": 0.5, "drop6": 0.5}
    without = allcnn_c(10, 3, width=0.25, dropout=False).train(training)
    assert torch.equal(without(x), without(x))
