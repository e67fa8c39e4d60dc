r"""Energy of a network on a processing-in-memory (PIM) accelerator: its MACs alone.

Vasquez et al., DATE 2021, arXiv:2101.04354, Tables IV and V. The array multiplies at a few widths
only, each with its own energy per MAC; peripherals and memory are not counted.

.. math:: E = \sum_l \mathrm{MACs}_l \, E_\mathrm{MAC}(k_l), \qquad k_l \in \{2, 4, 8, 16\}
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.cost.lookup import with_bits
from quantable.networks.layers import LayerShape

Rounding = Literal["up", "nearest", "down"]

FJ_PER_PJ = 1000


@dataclass(frozen=True)
class PimEnergy:
    """Energy of one MAC in fJ for each bit-width that the array supports."""

    mac_fj: Mapping[int, float]


def pim_energy_pj(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    pim: PimEnergy,
    *,
    rounding: Rounding,
) -> float:
    """Energy of all MACs for one input, in pJ.

    A MAC is as wide as the wider of its two operands; ``supported_bits`` says at which width the
    array computes it.

    >>> layer = LayerShape("fc", macs=1000, weights=10, inputs=5)
    >>> pim = PimEnergy({2: 3.0, 4: 17.0})
    >>> pim_energy_pj([layer], {"fc": Bits(weight=3, act=2)}, pim, rounding="up")
    17.0
    """
    total_fj = 0.0
    for layer, width in with_bits(layers, bits):
        needed = max(width.weight, width.act)
        total_fj += layer.macs * pim.mac_fj[supported_bits(needed, pim.mac_fj, rounding=rounding)]
    return total_fj / FJ_PER_PJ


def supported_bits(bits: int, supported: Collection[int], *, rounding: Rounding) -> int:
    """The supported bit-width at which the array computes ``bits``.

    ``up`` takes the next greater one: a number of k bits needs hardware of at least k bits.
    ``nearest`` goes up from the middle (3 is 4). Below the least supported width every rule takes
    the least; above the greatest there is none, which is an error.

    >>> [supported_bits(5, [2, 4, 8, 16], rounding=rule) for rule in ("up", "nearest", "down")]
    [8, 4, 4]
    """
    if rounding not in ("up", "nearest", "down"):
        raise unknown("rounding", rounding, ("up", "nearest", "down"), "pim")
    if bits > max(supported):
        widths = ", ".join(str(width) for width in sorted(supported))
        raise UserError(f"bits={bits}: the PIM array has no MAC this wide; it supports {widths}")
    above = min(width for width in supported if width >= bits)
    below = max((width for width in supported if width <= bits), default=above)
    go_up = rounding == "up" or (rounding == "nearest" and above - bits <= bits - below)
    return above if go_up else below
