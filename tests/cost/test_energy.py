"""The 45 nm energies of the AD card"""

from pathlib import Path

import pytest
import torch
from hand_shapes import ends_at_16, resnet18, uniform, vgg19

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.cost.energy import OpEnergy, energy_pj
from quantable.cost.hardware import load_hardware
from quantable.networks.layers import LayerShape

OP = load_hardware(Path(__file__).parents[2] / "conf/hardware/vasquez_45nm.yaml")


def ratios(layers: list, bits: dict) -> tuple[str, str, str]:
    """Efficiency of the MACs, of the memory and of both against 16 bit, as worked out by hand."""
    base, ours = energy_pj(layers, uniform(layers, 16), OP), energy_pj(layers, bits, OP)
    mac, memory = base["mac"] / ours["mac"], base["memory"] / ours["memory"]
    return f"{mac:.3f}", f"{memory:.3f}", f"{sum(base.values()) / sum(ours.values()):.3f}"


@pytest.mark.parametrize(
    ("layers", "memory_uj", "mac_uj", "total_uj"),
    [
        (vgg19(), "809.459", "656.925", "1466.384"),
        (resnet18(), "496.730", "951.127", "1447.856"),
        (resnet18(side=64, classes=200), "601.382", "3804.337", "4405.720"),
    ],
)
def test_16_bit_networks(layers: list, memory_uj: str, mac_uj: str, total_uj: str) -> None:
    parts = energy_pj(layers, uniform(layers, 16), OP)
    assert f"{parts['memory'] / 1e6:.3f}" == memory_uj
    assert f"{parts['mac'] / 1e6:.3f}" == mac_uj
    assert f"{sum(parts.values()) / 1e6:.3f}" == total_uj


@pytest.mark.parametrize("layers", [vgg19(), resnet18(classes=200)], ids=["vgg19", "resnet18"])
@pytest.mark.parametrize(
    ("bits", "mac_pj", "mac_ratio", "memory_ratio"),
    [
        (2, 0.29375, "5.617", "8.000"),
        (3, 0.390625, "4.224", "5.333"),
        (4, 0.4875, "3.385", "4.000"),
        (5, 0.584375, "2.824", "3.200"),
        (8, 0.875, "1.886", "2.000"),
        (16, 1.65, "1.000", "1.000"),
    ],
)
def test_uniform_ladder(
    layers: list, bits: int, mac_pj: float, mac_ratio: str, memory_ratio: str
) -> None:
    one_mac = energy_pj([LayerShape("mac", 1, 0, 0)], {"mac": Bits(bits, bits)}, OP)
    assert one_mac == {"memory": 0, "mac": pytest.approx(mac_pj, rel=1e-12)}
    assert ratios(layers, uniform(layers, bits))[:2] == (mac_ratio, memory_ratio)


@pytest.mark.parametrize(
    ("bits", "mac_ratio", "total_ratio"),
    [(2, "5.504", "6.638"), (4, "3.349", "3.677"), (8, "1.878", "1.943")],
)
def test_vgg19_with_ends_at_16(bits: int, mac_ratio: str, total_ratio: str) -> None:
    layers = vgg19()
    mac, _, total = ratios(layers, ends_at_16(layers, bits))
    assert (mac, total) == (mac_ratio, total_ratio)


@pytest.mark.parametrize(("weight", "act"), [(8, 4), (4, 8)])
def test_unequal_widths_read_each_at_its_own_and_multiply_at_the_wider(
    weight: int, act: int
) -> None:
    layer = LayerShape("conv", macs=1000, weights=90, inputs=100)
    parts = energy_pj([layer], {"conv": Bits(weight, act)}, OP)
    assert parts["memory"] == pytest.approx(2.5 * (90 * weight + 100 * act))
    assert parts["mac"] == pytest.approx(1000 * 0.875)


def test_memory_gradient_by_the_weight_width() -> None:
    width = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    op = OpEnergy(memory_pj_per_bit=2.5, mult_32bit_pj=3.1, add_pj=0.1)
    layer = LayerShape("conv", macs=1000, weights=90, inputs=100)
    energy_pj([layer], {"conv": Bits(width, 2)}, op)["memory"].backward()
    assert width.grad == 2.5 * 90


def test_missing_layer_is_an_error() -> None:
    with pytest.raises(UserError, match=r"unknown layer 'conv2'\. Nearest: conv1"):
        energy_pj([LayerShape("conv2", 1, 1, 1)], {"conv1": Bits(2, 2)}, OP)
