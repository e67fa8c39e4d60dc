"""Bit operations of a network."""

from collections.abc import Mapping, Sequence

from quantable.base.bits import Bits
from quantable.cost.lookup import with_bits
from quantable.networks.layers import LayerShape


def bops(layers: Sequence[LayerShape], bits: Mapping[str, Bits]) -> float:
    r"""BOPs for one input, :math:`\sum_l \mathrm{MACs}_l \, b^w_l \, b^a_l`.

    Only products and sums: with tensors as bit-widths it is its own differentiable penalty.

    >>> conv = LayerShape("conv", macs=1000, weights=90, inputs=100)
    >>> bops([conv], {"conv": Bits(weight=2, act=4)})
    8000
    """
    return sum(layer.macs * width.weight * width.act for layer, width in with_bits(layers, bits))
