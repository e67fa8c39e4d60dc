"""MAC counts against the hand counts of the AD card; average bits by each weighting."""

import pytest
from hand_shapes import resnet18, vgg19

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.cost.macs import macs, mean_act_bits, mean_bits
from quantable.networks.layers import LayerShape

LAYERS = [
    LayerShape("a", macs=600, weights=10, inputs=30),
    LayerShape("b", macs=400, weights=90, inputs=10),
]
BITS = {"a": Bits(weight=16, act=8), "b": Bits(weight=2, act=4)}


def test_vgg19_layer_by_layer() -> None:
    millions = [1.769472, 37.748736, 18.874368, 37.748736, 18.874368]
    millions += [37.748736] * 3 + [18.874368] + [37.748736] * 3 + [9.437184] * 4 + [0.005120]
    assert [layer.macs for layer in vgg19()] == [round(value * 1e6) for value in millions]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (vgg19(), 398_136_320),
        (vgg19(narrower=4), 25_216_256),
        (resnet18(classes=10, narrower=4), 36_357_376),
        (resnet18(classes=None, all_shortcuts=False), 555_417_600),
        (resnet18(all_shortcuts=False), 555_468_800),
        (resnet18(), 576_440_320),
        (resnet18(classes=200), 576_491_520),
        (resnet18(side=64, classes=200), 2_305_658_880),
    ],
)
def test_totals(layers: list, expected: int) -> None:
    assert macs(layers, count_linear=True) == expected


def test_linear_layers_can_be_left_out() -> None:
    assert macs(resnet18(all_shortcuts=False), count_linear=False) == 555_417_600


@pytest.mark.parametrize(
    ("weighted_by", "weight", "act"),
    [("layers", 9.0, 6.0), ("weights", 3.4, 4.4), ("inputs", 12.5, 7.0), ("macs", 10.4, 6.4)],
)
def test_mean_bits_by_each_weighting(weighted_by: str, weight: float, act: float) -> None:
    assert mean_bits(LAYERS, BITS, weighted_by=weighted_by) == pytest.approx(weight)
    assert mean_act_bits(LAYERS, BITS, weighted_by=weighted_by) == pytest.approx(act)


def test_unknown_weighting_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown weighted_by 'weight'\. Nearest: weights"):
        mean_bits(LAYERS, BITS, weighted_by="weight")


def test_no_layers_have_no_mean() -> None:
    with pytest.raises(UserError, match="no layer has any macs"):
        mean_bits([], {}, weighted_by="macs")
