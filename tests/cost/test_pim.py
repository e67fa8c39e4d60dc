"""PIM energies of the AD paper's Tables IV and V, and what follows from them."""

from pathlib import Path

import pytest
from hand_shapes import ends_at_16, resnet18, uniform, vgg19

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.cost.hardware import load_hardware
from quantable.cost.pim import pim_energy_pj, supported_bits
from quantable.networks.layers import LayerShape

PIM = load_hardware(Path(__file__).parents[2] / "conf/hardware/vasquez_pim.yaml")


def energy_uj(layers: list, bits: dict) -> float:
    return pim_energy_pj(layers, bits, PIM, rounding="up") / 1e6


def printed_like(value: float, printed: str) -> str:
    """``value`` with as many decimals as ``printed``."""
    return f"{value:.{len(printed.split('.')[1])}f}"


@pytest.mark.parametrize(
    ("layers", "printed_uj"),
    [(vgg19(), 110.154), (resnet18(classes=200), 159.501)],
    ids=["vgg19", "resnet18"],
)
def test_table_v_16_bit_networks(layers: list, printed_uj: float) -> None:
    assert energy_uj(layers, uniform(layers, 16)) == pytest.approx(printed_uj, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "card_uj"),
    [
        (vgg19(), "110.15476"),
        (resnet18(classes=None, all_shortcuts=False), "153.6707"),
        (resnet18(all_shortcuts=False), "153.6849"),
        (resnet18(), "159.4872"),
        (resnet18(classes=200), "159.50137"),
        (resnet18(side=64, classes=200), "637.920"),
        (vgg19(narrower=4), "6.977"),
        (resnet18(classes=10, narrower=4), "10.059"),
    ],
)
def test_16_bit_structures(layers: list, card_uj: str) -> None:
    assert printed_like(energy_uj(layers, uniform(layers, 16)), card_uj) == card_uj


@pytest.mark.parametrize(
    ("bits", "ratio", "vgg19_uj", "resnet18_uj"),
    [
        (2, "94.04", "1.171", "1.696"),
        (3, "16.31", "6.756", "9.782"),
        (4, "16.31", "6.756", "9.782"),
        (5, "4.147", "26.561", "38.460"),
        (8, "4.147", "26.561", "38.460"),
        (16, "1.00", "110.155", "159.501"),
    ],
)
def test_uniform_ladder(bits: int, ratio: str, vgg19_uj: str, resnet18_uj: str) -> None:
    vgg, resnet = vgg19(), resnet18(classes=200)
    assert f"{energy_uj(vgg, uniform(vgg, bits)):.3f}" == vgg19_uj
    assert f"{energy_uj(resnet, uniform(resnet, bits)):.3f}" == resnet18_uj
    for layers in (vgg, resnet):
        gain = energy_uj(layers, uniform(layers, 16)) / energy_uj(layers, uniform(layers, bits))
        assert printed_like(gain, ratio) == ratio


@pytest.mark.parametrize(
    ("narrower", "bits", "ratio"),
    [(1, 2, "66.48"), (1, 4, "15.26"), (1, 8, "4.090"), (4, 2, "35.7")],
)
def test_vgg19_with_ends_at_16(narrower: int, bits: int, ratio: str) -> None:
    layers = vgg19(narrower=narrower)
    gain = energy_uj(layers, uniform(layers, 16)) / energy_uj(layers, ends_at_16(layers, bits))
    assert printed_like(gain, ratio) == ratio


@pytest.mark.parametrize(
    ("rounding", "widths"),
    [
        # for 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16 bits
        ("up", [2, 2, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16, 16, 16]),
        ("nearest", [2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 16, 16, 16, 16]),
        ("down", [2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 16]),
    ],
)
def test_rounding_rules(rounding: str, widths: list[int]) -> None:
    asked = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 16]
    assert [supported_bits(b, [16, 2, 8, 4], rounding=rounding) for b in asked] == widths


@pytest.mark.parametrize("bits", [Bits(8, 2), Bits(2, 8)])
def test_the_wider_operand_decides(bits: Bits) -> None:
    layer = LayerShape("fc", macs=1000, weights=10, inputs=5)
    assert pim_energy_pj([layer], {"fc": bits}, PIM, rounding="up") == pytest.approx(66.714)


def test_float_network_has_no_pim_energy() -> None:
    with pytest.raises(UserError, match="bits=32: the PIM array has no MAC this wide"):
        energy_uj([LayerShape("fc", 1, 1, 1)], {"fc": Bits(32, 32)})


def test_wrong_names_are_errors() -> None:
    layer = LayerShape("fc", 1, 1, 1)
    with pytest.raises(UserError, match=r"unknown rounding 'upward'\. Nearest: .*up"):
        pim_energy_pj([layer], {"fc": Bits(2, 2)}, PIM, rounding="upward")
    with pytest.raises(UserError, match="unknown layer 'fc'"):
        pim_energy_pj([layer], {"head": Bits(2, 2)}, PIM, rounding="up")
