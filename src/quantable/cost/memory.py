"""Bytes of a network's weights and activations; every convention of a paper is a keyword."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from quantable.cost.lookup import counted, with_bits
from quantable.layers import Bits, LayerShape
from quantable.names import unknown

Unit = Literal["MB", "MiB", "kB", "KiB"]

UNIT_BYTES: Mapping[str, int] = {"MB": 1000**2, "MiB": 1024**2, "kB": 1000, "KiB": 1024}


def weight_bytes(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    *,
    ends_bits: int | None,
    count_linear: bool,
) -> float:
    """Bytes of all weights: elements times bit-width over 8; no biases, scales or padding.

    Args:
        layers: the network's layers, in network order.
        bits: bit-widths by layer name.
        ends_bits: width counted for the network's first and last layer whatever ``bits`` says;
            ``None`` takes ``bits`` for them too.
        count_linear: whether linear layers count. "Last" is meant before any is left out.

    >>> conv = LayerShape("conv", macs=1000, weights=80, inputs=100)
    >>> weight_bytes([conv], {"conv": Bits(weight=2, act=4)}, ends_bits=None, count_linear=True)
    20.0
    >>> weight_bytes([conv], {"conv": Bits(weight=2, act=4)}, ends_bits=8, count_linear=True)
    80.0
    """
    widths = {layer.name: width for layer, width in with_bits(layers, bits)}
    if ends_bits is not None:
        for end in (*layers[:1], *layers[-1:]):
            widths[end.name] = replace(widths[end.name], weight=ends_bits)
    chosen = counted(layers, count_linear=count_linear)
    return sum(layer.weights * widths[layer.name].weight for layer in chosen) / 8


def activation_bytes(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    *,
    reduction: Literal["sum", "max"],
    count_linear: bool,
) -> float:
    """Bytes of the layers' input activations for one input: of all, or of the largest.

    A tensor that feeds two layers counts once for each. ``max`` is the largest single input, not
    the peak of inputs and outputs held together.

    >>> convs = [LayerShape("a", macs=900, weights=1, inputs=64), LayerShape("b", 100, 3, 16)]
    >>> bits = {"a": Bits(weight=8, act=4), "b": Bits(weight=8, act=2)}
    >>> activation_bytes(convs, bits, reduction="sum", count_linear=True)
    36.0
    >>> activation_bytes(convs, bits, reduction="max", count_linear=True)
    32.0
    """
    if reduction not in ("sum", "max"):
        raise unknown("reduction", reduction, ("sum", "max"), "activation_bytes")
    chosen = counted(layers, count_linear=count_linear)
    sizes = [layer.inputs * width.act / 8 for layer, width in with_bits(chosen, bits)]
    return sum(sizes) if reduction == "sum" else max(sizes, default=0.0)


def to_unit(n_bytes: float, unit: Unit) -> float:
    """Bytes in a larger unit: MB and kB are powers of 1000, MiB and KiB of 1024.

    >>> to_unit(3 * 1024**2, "MiB"), to_unit(2_500_000, "MB")
    (3.0, 2.5)
    """
    if unit not in UNIT_BYTES:
        raise unknown("unit", unit, UNIT_BYTES, "to_unit")
    return n_bytes / UNIT_BYTES[unit]
