r"""Analytical energy of a network in 45 nm CMOS, as in activation-density quantization.

Vasquez et al., DATE 2021, arXiv:2101.04354, Table I; k is the bit-width, I and O are the input and
output channels, N and M the sides of the input and output map, p the side of the kernel.

.. math:: E_\mathrm{mem} = 2.5\,k \text{ pJ}, \qquad N_\mathrm{mem} = N^2 I + p^2 I O
.. math:: E_\mathrm{MAC} = 3.1\,k / 32 + 0.1 \text{ pJ}, \qquad N_\mathrm{MAC} = M^2 I p^2 O
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantable.base.bits import Bits
from quantable.cost.lookup import with_bits
from quantable.networks.layers import LayerShape


@dataclass(frozen=True)
class OpEnergy:
    """Energies of single operations of one chip technology, in pJ."""

    memory_pj_per_bit: float  # one access, for each bit of the word
    mult_32bit_pj: float  # one 32-bit multiplication; proportional to the width
    add_pj: float  # one accumulation; the same at every width


def energy_pj(
    layers: Sequence[LayerShape], bits: Mapping[str, Bits], op: OpEnergy
) -> dict[str, float]:
    """Energy for one input, by part, in pJ: "memory" and "mac".

    Assumes: every weight and every input activation of a layer is read once, each at its own
    width; a MAC is as wide as the wider of its two operands. The paper has one width per layer, for
    which both are its Table I. Batch norm, activation functions, pooling and additions are free.

    >>> layer = LayerShape("fc", macs=10, weights=10, inputs=5)
    >>> op = OpEnergy(memory_pj_per_bit=2.5, mult_32bit_pj=3.2, add_pj=0.5)
    >>> energy_pj([layer], {"fc": Bits(weight=8, act=4)}, op)
    {'memory': 250.0, 'mac': 13.0}
    """
    parts = {"memory": 0.0, "mac": 0.0}
    for layer, width in with_bits(layers, bits):
        w, a = width.weight, width.act
        parts["memory"] += (layer.weights * w + layer.inputs * a) * op.memory_pj_per_bit
        parts["mac"] += layer.macs * (op.mult_32bit_pj * max(w, a) / 32 + op.add_pj)
    return parts
