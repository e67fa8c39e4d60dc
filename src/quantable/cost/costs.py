"""Costs that can be a budget: each the sum over its layers, with its unit.

Columns show them, and a choice of bit-widths keeps within them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantable.base.bits import Bits
from quantable.cost.bops import bops
from quantable.cost.energy import energy_pj
from quantable.cost.hardware import Hardware
from quantable.cost.lookup import with_bits
from quantable.cost.memory import weight_bytes
from quantable.cost.pim import pim_energy_pj
from quantable.networks.layers import LayerShape

Shapes = Sequence[LayerShape]
Widths = Mapping[str, Bits]
CostModel = Callable[[Shapes, Widths, Hardware], float]


@dataclass(frozen=True)
class Cost:
    """A cost of layers at given bit-widths on one chip, in ``unit``."""

    unit: str
    of: CostModel


def compute(layers: Shapes, bits: Widths) -> float:
    """MACs times bits, the wider of a layer's two operands: compute at a rate of 1 / bits.

    >>> compute([LayerShape("fc", macs=10, weights=10, inputs=5)], {"fc": Bits(weight=8, act=4)})
    80
    """
    return sum(layer.macs * max(b.weight, b.act) for layer, b in with_bits(layers, bits))


COSTS: Mapping[str, Cost] = {
    "linear": Cost("MAC x bit", lambda layers, bits, hw: compute(layers, bits)),
    "bops": Cost("bit operation", lambda layers, bits, hw: bops(layers, bits)),
    "weights": Cost(
        "byte",
        lambda layers, bits, hw: weight_bytes(layers, bits, ends_bits=None, count_linear=True),
    ),
    "energy": Cost("pJ", lambda layers, bits, hw: sum(energy_pj(layers, bits, hw.energy).values())),
    "energy_memory": Cost(
        "pJ", lambda layers, bits, hw: energy_pj(layers, bits, hw.energy)["memory"]
    ),
    "energy_mac": Cost("pJ", lambda layers, bits, hw: energy_pj(layers, bits, hw.energy)["mac"]),
    "pim": Cost(
        "pJ",
        lambda layers, bits, hw: pim_energy_pj(layers, bits, hw.pim, rounding=hw.pim_rounding),
    ),
}
