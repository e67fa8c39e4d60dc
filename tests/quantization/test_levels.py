"""Integers, scale and offset of weights, against hand counts."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.methods.dorefa import DoReFa
from quantable.methods.edge import StepAndClip
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.methods.pact import PACT
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Levels, Quantizer


def levels(quantizer: Quantizer, x: Tensor) -> Levels:
    found = quantizer.levels(x)
    assert found is not None
    return found


def filled(quantizer: Quantizer, **values: float | list[float]) -> Quantizer:
    """The quantizer with the learned parameters ``values``."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(quantizer, name).copy_(torch.tensor(value))
    quantizer.initialized = True
    return quantizer


X = torch.tensor([-9.0, -0.2, 0.3, 0.9, 9.0])
W = {"signed": True, "batched": False}
HALF = {"step": 0.5}


@pytest.mark.parametrize(
    ("quantizer", "integers", "scale", "offset"),
    [
        (filled(LSQ(3, **W), **HALF), [-4, 0, 1, 2, 3], 0.5, 0.0),
        (filled(LSQ(2, signed=False, batched=True), **HALF), [0, 0, 1, 2, 3], 0.5, 0.0),
        (filled(LSQ(1, **W), **HALF), [-1, -1, 1, 1, 1], 0.5, 0.0),
        (filled(StepAndClip(4, **W), step=0.5, clip=1.3), [-3, 0, 1, 2, 3], 0.5, 0.0),
        (MinMax(2, **W), [0, 1, 2, 2, 3], 6.0, -9.0),  # the levels -9, -3, 3 and 9
        (
            filled(PACT(2, signed=False, batched=True, clip_init=1.5)),
            [0, 0, 1, 2, 3],
            0.5,
            0.0,
        ),
        (
            filled(PACT(2, signed=True, batched=True, clip_init=1.5)),
            [0, 1, 2, 2, 3],
            1.0,
            -1.5,
        ),
        (DoReFa(2, signed=False, batched=True), [0, 0, 1, 3, 3], 1 / 3, 0.0),
        (DoReFa(2, signed=True, batched=True), [0, 1, 2, 3, 3], 2 / 3, -1.0),
        # tanh: -1, -0.197, 0.291, 0.716, 1; halved and raised: 0, 0.401, 0.646, 0.858, 1; times 3
        (DoReFa(2, **W), [0, 1, 2, 3, 3], 2 / 3, -1.0),
        (DoReFa(1, **W), [-1, -1, 1, 1, 1], 3.88, 0.0),  # the mean of 9, 0.2, 0.3, 0.9 and 9
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Quantizer) else "",
)
def test_integers_scale_and_offset_by_hand(
    quantizer: Quantizer, integers: list[int], scale: float, offset: float
) -> None:
    found = levels(quantizer, X)
    assert found.integers.tolist() == integers
    assert found.scale.item() == pytest.approx(scale)
    assert found.offset.item() == offset


@pytest.mark.parametrize("make", [LSQ, StepAndClip])
def test_multiples_of_a_step_are_exact(make: type[Quantizer]) -> None:
    x = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    for bits in range(2, 9):
        quantizer = make(bits, **W, per_channel=True, channels=6)
        quantizer(x)
        integers, scale, _ = levels(quantizer, x)
        assert torch.equal(scale * integers, quantizer(x))


def test_each_channel_has_its_own_scale() -> None:
    quantizer = filled(LSQ(4, **W, per_channel=True, channels=2), step=[0.5, 0.25])
    found = levels(quantizer, torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert found.integers.tolist() == [[2, -2], [4, -4]]
    assert found.scale.tolist() == [[0.5], [0.25]]


def test_half_precision_is_widened() -> None:
    x = X.to(torch.bfloat16)
    found = levels(filled(LSQ(3, **W), **HALF), x)
    assert (found.integers.tolist(), found.scale.dtype) == ([-4, 0, 1, 2, 3], torch.float32)


def test_looking_at_the_levels_changes_nothing() -> None:
    quantizer = LSQ(3, **W)
    quantizer.levels(X)
    assert quantizer.training
    assert not quantizer.initialized
    assert quantizer.step.item() == 1.0


def test_a_tensor_that_stays_as_it_is_has_no_levels() -> None:
    assert MinMax(16, **W).levels(X) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("bits", [1, 3, 16])
@pytest.mark.parametrize("method", [LSQ, MinMax, DoReFa])
def test_a_network_that_diverged_is_refused_by_the_layers_name(method, bits, value) -> None:
    made = net()
    quantize = Quantize(
        weight=partial(method, batched=False),
        act=partial(method, batched=True),
        inner=[bits, 8],
        ends=None,
        layers={},
    )
    quantize.attach(made, (1, 3, 3))
    with torch.no_grad():
        made[3].parametrizations.weight.original[0, 0] = value
    message = rf"{method.__name__}, weight of layer '3': a value is not finite: .* diverged"
    with pytest.raises(UserError, match=message):
        list(quantize.final_layers())


def net() -> nn.Sequential:
    """A convolution, a ReLU and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))


def test_final_layers_say_all_that_an_integer_network_needs() -> None:
    made = net()
    quantize = Quantize(
        weight=partial(LSQ, batched=False),
        act=partial(LSQ, batched=True),
        inner=[4, 5],
        ends=None,
        layers={"0": [3, 32]},
    )
    quantize.attach(made, (1, 3, 3))
    made(torch.randn(4, 1, 3, 3))
    first, last = quantize.final_layers()
    assert (first.name, first.kind, first.weight_bits, first.input_bits) == ("0", "conv", 3, 32)
    assert (last.name, last.kind, last.weight_bits, last.input_bits) == ("3", "linear", 4, 5)
    assert (first.input_signed, last.input_signed) == (True, False)
    assert first.bias is None
    assert torch.equal(last.bias, made[3].bias)
    assert not last.bias.requires_grad
    for layer, of_net in ((first, made[0]), (last, made[3])):
        assert torch.equal(layer.scale * layer.integers + layer.offset, of_net.weight)


def test_layers_with_float_weights_are_left_out() -> None:
    quantize = Quantize(
        weight=partial(MinMax, batched=False),
        act=partial(MinMax, batched=True),
        inner=[4, 4],
        ends=None,
        layers={"0": [32, 4], "3": [16, 16]},
    )
    quantize.attach(net(), (1, 3, 3))
    assert list(quantize.final_layers()) == []
