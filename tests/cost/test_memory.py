"""Weight and activation bytes under each convention, by hand."""

import pytest
from hand_shapes import resnet18, uniform, vgg19

from quantable.cost.memory import activation_bytes, to_unit, weight_bytes
from quantable.layers import Bits, LayerShape
from quantable.names import UserError

LAYERS = [
    LayerShape("first", macs=1, weights=80, inputs=24),
    LayerShape("inner", macs=1, weights=800, inputs=160),
    LayerShape("fc", macs=1, weights=40, inputs=16, kind="linear"),
]
BITS = {"first": Bits(4, 8), "inner": Bits(2, 4), "fc": Bits(4, 2)}


@pytest.mark.parametrize(
    ("ends_bits", "count_linear", "expected"),
    [
        (None, True, 40 + 200 + 20),
        (None, False, 40 + 200),
        (8, True, 80 + 200 + 40),
        (8, False, 80 + 200),  # the network's last layer is the linear one, which is left out
    ],
)
def test_weight_bytes_conventions(
    ends_bits: int | None, count_linear: bool, expected: float
) -> None:
    got = weight_bytes(LAYERS, BITS, ends_bits=ends_bits, count_linear=count_linear)
    assert got == expected


@pytest.mark.parametrize(
    ("layers", "weights"),
    [
        (vgg19(), 20_024_000),
        (vgg19(narrower=4), 1_252_784),
        (resnet18(classes=10, narrower=4), 721_072),
    ],
)
def test_weights_of_the_ad_networks(layers: list, weights: int) -> None:
    got = weight_bytes(layers, uniform(layers, 8), ends_bits=None, count_linear=True)
    assert got == weights


@pytest.mark.parametrize(
    ("reduction", "count_linear", "expected"),
    [("sum", True, 24 + 80 + 4), ("sum", False, 24 + 80), ("max", True, 80)],
)
def test_activation_bytes_conventions(reduction: str, count_linear: bool, expected: float) -> None:
    got = activation_bytes(LAYERS, BITS, reduction=reduction, count_linear=count_linear)
    assert got == expected


def test_units_are_decimal_or_binary() -> None:
    units = {"MB": 1e6, "MiB": 1_048_576, "kB": 1e3, "KiB": 1024}
    assert all(to_unit(size, unit) == 1 for unit, size in units.items())


def test_wrong_words_and_widths_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown unit 'Mb'.* MB"):
        to_unit(1, "Mb")
    with pytest.raises(UserError, match="unknown reduction 'mean'"):
        activation_bytes(LAYERS, BITS, reduction="mean", count_linear=True)
    with pytest.raises(UserError, match="unknown layer 'first'"):
        weight_bytes(LAYERS, {"inner": Bits(2, 2)}, ends_bits=8, count_linear=True)
    with pytest.raises(UserError, match="bits=0"):
        weight_bytes(LAYERS, BITS, ends_bits=0, count_linear=True)
