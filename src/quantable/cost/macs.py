"""Multiply-accumulates of a network, and the average bit-width of their operands."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.cost.lookup import counted, with_bits
from quantable.networks.layers import LayerShape

WeightedBy = Literal["layers", "weights", "inputs", "macs"]

SHARE: Mapping[str, Callable[[LayerShape], int]] = {
    "layers": lambda layer: 1,
    "weights": lambda layer: layer.weights,
    "inputs": lambda layer: layer.inputs,
    "macs": lambda layer: layer.macs,
}


def macs(layers: Sequence[LayerShape], *, count_linear: bool) -> int:
    """MACs for one input; one MAC is one operation, not two.

    Batch norm, activation functions, pooling and additions are not counted.

    >>> conv = LayerShape("conv", macs=1000, weights=90, inputs=100)
    >>> head = LayerShape("fc", macs=50, weights=50, inputs=10, kind="linear")
    >>> macs([conv, head], count_linear=True), macs([conv, head], count_linear=False)
    (1050, 1000)
    """
    return sum(layer.macs for layer in counted(layers, count_linear=count_linear))


def mean_bits(
    layers: Sequence[LayerShape], bits: Mapping[str, Bits], *, weighted_by: WeightedBy
) -> float:
    """Mean bit-width of the weights; for a method with one width per layer, of both operands.

    >>> convs = [LayerShape("a", macs=900, weights=1, inputs=9), LayerShape("b", 100, 3, 1)]
    >>> bits = {"a": Bits(weight=8, act=4), "b": Bits(weight=4, act=2)}
    >>> mean_bits(convs, bits, weighted_by="layers"), mean_bits(convs, bits, weighted_by="weights")
    (6.0, 5.0)
    """
    widths = ((layer, width.weight) for layer, width in with_bits(layers, bits))
    return _mean(widths, weighted_by, where="mean_bits")


def mean_act_bits(
    layers: Sequence[LayerShape], bits: Mapping[str, Bits], *, weighted_by: WeightedBy
) -> float:
    """Mean bit-width of the input activations.

    >>> convs = [LayerShape("a", macs=900, weights=1, inputs=9), LayerShape("b", 100, 3, 1)]
    >>> bits = {"a": Bits(weight=8, act=4), "b": Bits(weight=4, act=2)}
    >>> mean_act_bits(convs, bits, weighted_by="inputs")
    3.8
    """
    widths = ((layer, width.act) for layer, width in with_bits(layers, bits))
    return _mean(widths, weighted_by, where="mean_act_bits")


def _mean(widths: Iterable[tuple[LayerShape, int]], weighted_by: str, *, where: str) -> float:
    if weighted_by not in SHARE:
        raise unknown("weighted_by", weighted_by, SHARE, where)
    share = SHARE[weighted_by]
    shares = [(share(layer), width) for layer, width in widths]
    total = sum(part for part, _ in shares)
    if total == 0:
        raise UserError(f"{where}: no layer has any {weighted_by}, so there is no mean")
    return sum(part * width for part, width in shares) / total
