"""Layers in integers: what they answer is what the fake-quantized layer answers, in exact sums."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.integers.answers import exact, in_integers
from quantable.integers.view import IntegerLayer, integer_layers
from quantable.methods.dorefa import DoReFa
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.methods.pact import PACT
from quantable.quantization.quantize import Quantize
from quantable.training.calibration import calibrate

SIZE = (3, 9, 9)
WEIGHT = {"lsq": LSQ, "minmax": MinMax, "dorefa": DoReFa}
ACT: dict[str, Callable] = {
    "lsq": LSQ,
    "minmax": MinMax,
    "dorefa": DoReFa,
    "pact": partial(PACT, clip_init=1.3),
}


class Net(nn.Module):
    """A signed image, strides, padding, dilation, groups, a depthwise layer, biases, tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.deep = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.tokens = nn.Linear(8, 6)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.wide(x) + x  # signed
        x = self.deep(x).relu()
        return self.head(self.tokens(x.flatten(2).mT)).mean(1)


def quantized(
    weight: str, act: str, bits: tuple[int, int], *, per_channel: bool = False
) -> tuple[Net, Quantize]:
    torch.manual_seed(0)
    net = Net()
    quantize = Quantize(
        weight=partial(WEIGHT[weight], batched=False, per_channel=per_channel),
        act=partial(ACT[act], batched=True, per_channel=False),
        inner=bits,
        ends=None,
        layers={},
    )
    quantize.attach(net, SIZE)
    calibrate(net, [(torch.randn(16, *SIZE), None)])
    return net, quantize


def images() -> Tensor:
    return torch.randn(5, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [(1, 1), (2, 3), (4, 4), (8, 8)])
@pytest.mark.parametrize("act", ACT)
@pytest.mark.parametrize("weight", WEIGHT)
def test_a_layer_answers_as_its_fake_quantized_self(weight, act, bits, per_channel) -> None:
    net, quantize = quantized(weight, act, bits, per_channel=per_channel)
    inputs: dict[str, Tensor] = {}
    for name in quantize.bits:
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0]}), prepend=True
        )
    with torch.no_grad():
        net(images())
        layers = integer_layers(net, quantize)
        assert [layer.name for layer in layers] == list(quantize.bits)
        for layer in layers:
            x = inputs[layer.name]
            fake = _in_float64(layer.layer, layer.act(x))
            own = layer.answer(x, exact)
            assert own.dtype == torch.float32
            torch.testing.assert_close(own.double(), fake, rtol=1e-5, atol=1e-5 * fake.abs().max())


def _in_float64(layer: nn.Module, x: Tensor) -> Tensor:
    """Output for the fake-quantized input, summed so that nothing is lost."""
    weight, bias = layer.weight.double(), None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        return F.linear(x.double(), weight, bias)
    return F.conv2d(
        x.double(), weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )


@pytest.mark.parametrize("weight", WEIGHT)
def test_integers_are_of_the_declared_bits_in_twos_complement(weight) -> None:
    net, quantize = quantized(weight, "minmax", (4, 3))
    for layer in integer_layers(net, quantize):
        assert layer.weight.min() >= -8
        assert layer.weight.max() <= 7
        low, high = (-4, 3) if layer.input_signed else (0, 7)
        assert (layer.data.low, layer.data.high) == (low, high)


def test_the_network_is_as_it_was_behind_the_block() -> None:
    net, quantize = quantized("minmax", "lsq", (4, 4))
    layers = integer_layers(net, quantize)
    with torch.no_grad():
        before, state = net(images()), {k: v.clone() for k, v in net.state_dict().items()}
        with in_integers(layers, exact):
            own = net(images())
        after = net(images())
    torch.testing.assert_close(own, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())


def test_an_error_within_the_block_leaves_the_network_whole() -> None:
    net, quantize = quantized("lsq", "lsq", (4, 4))
    with torch.no_grad():
        before = net(images())
        with pytest.raises(ZeroDivisionError), in_integers(integer_layers(net, quantize), _fails):
            net(images())
        assert torch.equal(net(images()), before)


def _fails(layer: IntegerLayer, q: Tensor) -> Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("bits", "act_per_channel", "message"),
    [
        ((4, 32), False, "layer 'stem' has no integers: its input is float"),
        ((32, 4), False, "layer 'stem' has no integers: its weight is float"),
        ((4, 16), False, "layer 'stem' has no integers: its input is left in float at 16 bits"),
        ((16, 4), False, "layer 'stem' has no integers: its weight is left in float"),
        ((4, 4), True, "layer 'stem' has no integers: its input has a scale for each channel"),
    ],
)
def test_what_no_integer_stands_for_is_refused_by_name(bits, act_per_channel, message) -> None:
    net = Net()
    quantize = Quantize(
        weight=partial(MinMax, batched=False),
        act=partial(MinMax, batched=True, per_channel=act_per_channel),
        inner=bits,
        ends=None,
        layers={},
    )
    quantize.attach(net, SIZE)
    calibrate(net, [(torch.randn(16, *SIZE), None)])
    with pytest.raises(UserError, match=message):
        integer_layers(net, quantize)


def test_a_layer_that_computes_in_a_way_of_its_own_is_refused() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    net = nn.Sequential(Doubled(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 2))
    quantize = Quantize(
        weight=partial(LSQ, batched=False),
        act=partial(LSQ, batched=True),
        inner=(4, 4),
        ends=None,
        layers={},
    )
    quantize.attach(net, SIZE)
    calibrate(net, [(torch.randn(4, *SIZE), None)])
    with pytest.raises(UserError, match="layer '0' has no integers: Doubled"):
        integer_layers(net, quantize)
