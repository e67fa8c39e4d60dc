"""Counts of products, against hand counts, fvcore and torch's own counter, and what stops them."""

import logging
import warnings

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F

from quantable.networks.cifar import resnet8_cifar
from quantable.networks.counting import count, layer_shapes
from quantable.networks.trace import activations, linked_layers, signed_inputs


def shape_of(layer, input_size):
    (shape,) = layer_shapes(nn.Sequential(layer), input_size)
    return shape


# Hand counts: MACs = output elements x weights per output element.


def test_depthwise_convolution_counts_one_input_channel():
    shape = shape_of(nn.Conv2d(32, 32, 3, padding=1, groups=32), (32, 8, 8))
    assert (shape.macs, shape.weights, shape.inputs) == (32 * 8 * 8 * 9, 32 * 9, 32 * 8 * 8)
    assert (shape.c_in, shape.c_out, shape.groups) == (32, 32, 32)


def test_grouped_convolution_counts_its_group():
    shape = shape_of(nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 5, 5))
    assert (shape.macs, shape.weights) == (12 * 5 * 5 * 2 * 9, 12 * 2 * 9)
    assert (shape.c_in, shape.c_out, shape.groups) == (8, 12, 4)


def test_strided_dilated_rectangular_convolution():
    conv = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    shape = shape_of(conv, (3, 9, 11))  # h: (9 + 2 - 3) // 2 + 1 = 5; w: 11 - 8 = 3
    assert (shape.macs, shape.weights) == (4 * 5 * 3 * 3 * 15, 4 * 3 * 15)
    assert shape.inputs == 3 * 9 * 11
    assert (shape.c_in, shape.c_out, shape.groups) == (3, 4, 1)
    assert (shape.kernel, shape.stride, shape.output) == ((3, 5), (2, 1), (5, 3))


def test_same_padding_of_timm_counts_the_larger_map():
    shape = shape_of(Conv2dSame(3, 4, 3, stride=2), (3, 7, 7))  # ceil(7 / 2) = 4
    assert shape.macs == 4 * 4 * 4 * 27
    assert (shape.kind, shape.output) == ("conv", (4, 4))


def test_linear_on_tokens_counts_each_token():
    net = nn.Sequential(nn.Flatten(2), nn.Linear(16, 10))  # (1, 3, 4, 4) -> (1, 3, 16)
    (shape,) = layer_shapes(net, (3, 4, 4))
    assert (shape.macs, shape.weights, shape.inputs) == (3 * 16 * 10, 160, 48)
    assert (shape.kind, shape.c_in, shape.c_out, shape.groups) == ("linear", 16, 10, 1)
    assert (shape.kernel, shape.stride, shape.output) == ((1, 1), (1, 1), (1, 3))


def test_convolution_in_one_dimension_has_a_height_of_one():
    net = nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 8, 5, stride=2, padding=1, groups=2))
    (shape,) = layer_shapes(net, (6, 4, 4))  # (16 + 2 - 5) // 2 + 1 = 7
    assert (shape.macs, shape.weights, shape.inputs) == (8 * 7 * 3 * 5, 8 * 3 * 5, 6 * 16)
    assert (shape.kind, shape.c_in, shape.c_out, shape.groups) == ("conv", 6, 8, 2)
    assert (shape.kernel, shape.stride, shape.output) == ((1, 5), (1, 2), (1, 7))


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution_counts_every_weight_for_every_input(groups):
    conv = nn.ConvTranspose2d(4, 6, (3, 2), 2, padding=1, output_padding=1, groups=groups)
    shape = shape_of(conv, (4, 5, 7))  # h: 4 * 2 - 2 + 3 + 1 = 10; w: 6 * 2 - 2 + 2 + 1 = 13
    assert (shape.macs, shape.weights) == (4 * 5 * 7 * 6 // groups * 6, 4 * 6 // groups * 6)
    assert (shape.kind, shape.c_in, shape.c_out, shape.groups) == ("conv", 4, 6, groups)
    assert (shape.kernel, shape.stride, shape.output) == ((3, 2), (2, 2), (10, 13))
    assert shape.bias == 6


def test_transposed_convolution_in_one_dimension():
    net = nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(2, 3, 4, stride=3, bias=False))
    (shape,) = layer_shapes(net, (2, 3, 3))  # 8 * 3 + 4 = 28
    assert (shape.macs, shape.weights, shape.bias) == (2 * 9 * 3 * 4, 24, 0)
    assert (shape.kernel, shape.stride, shape.output) == ((1, 4), (1, 3), (1, 28))


def test_network_that_is_one_layer_goes_by_its_class():
    assert layer_shapes(nn.Conv2d(3, 2, 1), (3, 4, 4))[0].name == "Conv2d"


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 2, 1)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.last(self.relu(self.conv(self.relu(self.conv(x)))))


def test_layer_that_runs_twice_counts_macs_twice_and_weights_once():
    conv, last = layer_shapes(Twice(), (3, 4, 4))
    assert (conv.name, last.name) == ("conv", "last")  # execution order, not definition order
    assert (conv.macs, conv.weights, conv.inputs) == (2 * 3 * 16 * 3, 9, 2 * 48)


def test_output_of_a_layer_that_runs_twice_is_that_of_its_first_run():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2))
    net.append(net[0])
    (conv,) = layer_shapes(net, (3, 4, 4))
    assert (conv.macs, conv.output) == ((16 + 4) * 9, (4, 4))


# What stops the count.


@pytest.mark.parametrize(
    "layer", [nn.Conv3d(2, 2, 1), nn.LSTM(4, 4), nn.Embedding(4, 4), nn.Bilinear(4, 4, 4)]
)
def test_module_with_parameters_and_no_rule_stops(layer):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Sequential(layer))
    message = (
        rf"layer '1\.0' \({type(layer).__name__}\) has parameters and is no layer that is counted, "
        r"which are nn\.Linear, nn\.Conv1d, .*: replace it by such layers"
    )
    for function in (layer_shapes, signed_inputs, activations, linked_layers):
        with pytest.raises(NotImplementedError, match=message):
            function(net, (3, 4, 4))


class FunctionalConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.kernel = nn.Parameter(torch.ones(3, 3, 1, 1))

    def forward(self, x):
        return F.conv2d(self.conv(x), self.kernel)


class FunctionalLinear(FunctionalConv):
    def forward(self, x):
        return F.linear(self.conv(x).transpose(1, 3), self.kernel.squeeze())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = self.conv(x).flatten(2).mT
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(FunctionalConv()), r"layer '0' \(FunctionalConv\) runs convolution outside"),
        (nn.Sequential(FunctionalLinear()), r"layer '0' \(FunctionalLinear\) runs \w*mm outside"),
        (Attention(), r"layer 'attention' \(MultiheadAttention\) runs \w+ outside"),
        (timm.create_model("resnetblur50"), r"layer 'maxpool\.1' \(BlurPool2d\) runs convolution"),
    ],
    ids=["conv", "linear", "attention", "blur"],
)
def test_product_outside_counted_layers_stops_with_its_module(net, message):
    with pytest.raises(NotImplementedError, match=message):
        layer_shapes(net, (3, 32, 32))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layer_that_never_runs_stops():
    net = resnet8_cifar(10, 3, 0.5, "plain")
    net.head = nn.Linear(4, 4)
    for function in (layer_shapes, linked_layers):
        with pytest.raises(NotImplementedError, match=r"layer 'head' \(Linear\) does not run"):
            function(net, (3, 32, 32))


class Hidden(nn.Module):
    """A layer, and a product that is none's, of its tokens (1, 16, 4) with what ``make`` makes."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)
        self.vector, self.matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))
        self.register_buffer("table", torch.ones(4, 4))

    def forward(self, x):
        tokens = self.conv(x).flatten(2).mT
        return self.fc(tokens).sum() + self.make(self, tokens).sum()


def written_into_a_constant(net, x):
    joined = torch.zeros(1, 16, 8)
    joined[..., :4] = x
    return joined[..., :4] @ net.matrix


def read_by_a_query(net, x):
    query = net.vector.expand(1, 1, 1, 4)
    return F.scaled_dot_product_attention(query, x[None], x[None])


WITH_CONSTANTS = {
    "mv": lambda net, x: x @ net.vector,
    "dot": lambda net, x: x[0, 0] @ net.vector,
    "addmv": lambda net, x: torch.addmv(x[0, :, 0], x[0], net.vector),
    "mm": lambda net, x: x[0] @ net.matrix,
    "addmm": lambda net, x: torch.addmm(x[0], x[0], net.matrix),
    "bmm": lambda net, x: torch.bmm(x, net.matrix[None]),
    "baddbmm": lambda net, x: torch.baddbmm(x, x, net.matrix[None]),
    "addbmm": lambda net, x: torch.addbmm(x[0], x, net.matrix[None]),
    "einsum": lambda net, x: torch.einsum("btc,cd->btd", x, net.matrix),
    "einsum with a vector": lambda net, x: torch.einsum("btc,c->bt", x, net.vector),
    "tensordot": lambda net, x: torch.tensordot(x, net.matrix, 1),
    "on the left": lambda net, x: net.matrix @ x.mT,
    "functional linear": lambda net, x: F.linear(x, net.matrix),
    "functional convolution": lambda net, x: F.conv1d(x.mT, net.matrix[..., None]),
    "bilinear": lambda net, x: F.bilinear(x, x, net.matrix[None]),
    "distance": lambda net, x: torch.cdist(
        x, net.matrix[None], compute_mode="use_mm_for_euclid_dist"
    ),
    "a learned query": read_by_a_query,
    "a layer's weight": lambda net, x: x @ net.fc.weight,
    "a part of a weight": lambda net, x: F.linear(x[..., :2], net.fc.weight[:, :2]),
    "a view": lambda net, x: x @ net.matrix.t().reshape(2, 8).view(4, 4)[:, 1:],
    "a cast": lambda net, x: x.double() @ net.matrix.double(),
    "made of parameters": lambda net, x: x @ (net.matrix.exp() * net.vector + net.table),
    "a product of parameters": lambda net, x: x @ (net.matrix @ net.matrix),
    "a buffer": lambda net, x: x @ net.table,
    "a constant": lambda net, x: x @ torch.eye(4),
    "written into a constant": written_into_a_constant,
}


@pytest.mark.parametrize("make", WITH_CONSTANTS.values(), ids=WITH_CONSTANTS.keys())
def test_product_of_an_activation_with_a_parameter_or_constant_stops(make):
    net = nn.Sequential(Hidden(make))
    message = r"layer '0' \(Hidden\) runs \w+ outside convolutions and linear layers.*: make that"
    with pytest.raises(NotImplementedError, match=message):
        count(net, (3, 4, 4))


class Pool(nn.Module):
    """Attention pooling with a learned query."""

    def __init__(self):
        super().__init__()
        self.conv, self.query = nn.Conv2d(1, 8, 3, 2), nn.Parameter(torch.ones(8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        tokens = self.conv(x).relu().flatten(2).transpose(1, 2)
        weights = (tokens @ self.query).softmax(1)
        return self.fc((weights.unsqueeze(-1) * tokens).sum(1))


def test_learned_query_of_a_pooling_stops():
    with pytest.raises(NotImplementedError, match=r"layer 'Pool' \(Pool\) runs mv outside"):
        count(Pool(), (1, 28, 28))


BETWEEN_ACTIVATIONS = {  # of (1, 16, 4) with itself, by hand
    "mm": (lambda net, x: x[0] @ x[0].t(), 16 * 4 * 16),
    "bmm": (lambda net, x: x @ x.mT, 16 * 4 * 16),
    "baddbmm": (lambda net, x: torch.baddbmm(x.mean(), x, x.mT), 16 * 4 * 16),
    "einsum": (lambda net, x: torch.einsum("btc,bsc->bts", x, x), 16 * 4 * 16),
    "mv": (lambda net, x: x[0] @ x[0, 0], 16 * 4),
    "dot": (lambda net, x: x[0, 0] @ x[0, 1], 4),
    "attention": (
        lambda net, x: F.scaled_dot_product_attention(x[None], x[None], x[None, ..., :2]),
        16 * 16 * (4 + 2),
    ),
    "a scaled one": (lambda net, x: (x * net.vector) @ x.mT, 16 * 4 * 16),
    "kernels made of the image": (
        lambda net, x: F.conv1d(x.mT, x[:, :4].mean(0)[..., None]),
        16 * 4 * 4,
    ),
    "constants alone": (lambda net, x: x + net.matrix @ net.vector, 0),
    "a parameter added": (lambda net, x: x + net.vector, 0),
}


@pytest.mark.parametrize(
    ("make", "macs"), BETWEEN_ACTIVATIONS.values(), ids=BETWEEN_ACTIVATIONS.keys()
)
def test_products_of_two_activations_are_counted_apart(make, macs):
    found = count(Hidden(make), (3, 4, 4))
    assert found.activation_macs == macs
    assert [layer.macs for layer in found.layers] == [16 * 3 * 4, 16 * 4 * 4]


def test_attention_of_a_vision_transformer_by_hand():
    found = count(timm.create_model("vit_tiny_patch16_224"), (3, 224, 224))
    tokens, width, blocks = 14 * 14 + 1, 192, 12
    assert found.activation_macs == blocks * 2 * tokens**2 * width
    assert sum(layer.macs for layer in found.layers) == (
        14**2 * 16**2 * 3 * width + blocks * tokens * 12 * width**2 + width * 1000
    )


@pytest.mark.parametrize("tie", [lambda weight: weight, lambda weight: nn.Parameter(weight.data)])
def test_tied_weights_stop(tie):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    net[2].weight = tie(net[0].weight)
    with pytest.raises(NotImplementedError, match="layers '0' and '2' have one parameter between"):
        count(net, (3, 4, 4))


class Low(nn.Conv2d):
    """A convolution that adds a second one."""

    def forward(self, x):
        return super().forward(x) + F.conv2d(x, self.weight.relu())


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(input=x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Low(3, 3, 1), r"layer 'Low' \(Low\) runs 2 products in 1 call"),
        (ByKeyword(), r"layer 'conv' \(Conv2d\) gets its input by keyword"),
    ],
)
def test_layer_that_is_not_one_product_of_its_input_stops(net, message):
    with pytest.raises(NotImplementedError, match=message):
        count(net, (3, 4, 4))


# An outside reference: fvcore's count of convolution and linear operators.
FVCORE = [
    ("resnet18", 64),
    ("resnet50", 64),
    ("mobilenetv2_100", 64),
    ("mobilenetv3_large_100", 64),
    ("efficientnet_lite0", 64),
    ("tf_efficientnet_lite0", 65),
    ("regnetx_002", 64),
    ("seresnet50", 64),
    ("densenet121", 64),
    ("convnextv2_atto", 64),
    ("vgg11_bn", 32),
    ("ghostnet_100", 64),
    ("inception_v3", 96),
    ("mobilevit_xxs", 64),
    ("edgenext_xx_small", 64),
    ("poolformer_s12", 64),
    ("vit_tiny_patch16_224", 224),
    ("swin_tiny_patch4_window7_224", 224),
    ("resmlp_12_224", 224),
]


@pytest.mark.parametrize(("name", "size"), FVCORE, ids=[name for name, _ in FVCORE])
def test_macs_are_fvcores(name, size):
    net = timm.create_model(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's: deprecated, and on the networks' own code
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        operators = FlopCountAnalysis(net, torch.zeros(1, 3, size, size)).by_operator()
    shapes = layer_shapes(net, (3, size, size))
    assert sum(s.macs for s in shapes if s.kind == "conv") == operators["conv"]
    assert sum(s.macs for s in shapes if s.kind == "linear") == operators["linear"]


def test_macs_of_transposed_and_one_dimensional_convolutions_are_fvcores():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, groups=4),
        nn.ConvTranspose2d(12, 4, 3, dilation=2),
        nn.Flatten(2),
        nn.Conv1d(4, 6, 5, stride=3, groups=2),
        nn.ConvTranspose1d(6, 2, 3, stride=2),
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        found = FlopCountAnalysis(net, torch.zeros(1, 3, 17, 17)).by_module()
    shapes = layer_shapes(net, (3, 17, 17))
    assert {shape.name: shape.macs for shape in shapes} == {s.name: found[s.name] for s in shapes}
    assert len(shapes) == 5
