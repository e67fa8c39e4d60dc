"""Bytes of a network's weights and activations; every convention of a paper is a keyword."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quantable.base.bits import Bits
from quantable.base.errors import unknown
from quantable.cost.lookup import counted, with_bits
from quantable.networks.layers import LayerShape

Unit = Literal["MB", "MiB", "kB", "KiB"]

UNIT_BYTES: Mapping[str, int] = {"MB": 1000**2, "MiB": 1024**2, "kB": 1000, "KiB": 1024}


def weight_bytes(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    *,
    ends_bits: int | None,
    count_linear: bool,
    count_bias: bool = False,
) -> float:
    """Bytes of all weights: elements times bit-width over 8; no scales or padding.

    Args:
        layers: the network's layers, in network order.
        bits: bit-widths by layer name.
        ends_bits: width counted for the network's first and last layer whatever ``bits`` says;
            ``None`` takes ``bits`` for them too.
        count_linear: whether linear layers count. "Last" is meant before any is left out.
        count_bias: whether biases count, at the width of their layer's weights.

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
    bits_of_all = sum(
        (layer.weights + count_bias * layer.bias) * widths[layer.name].weight for layer in chosen
    )
    return bits_of_all / 8


def activation_bytes(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    *,
    reduction: Literal["sum", "max"],
    count_linear: bool,
    count_first: bool = True,
) -> float:
    """Bytes of the layers' input activations for one input: of all, or of the largest.

    A tensor that feeds two layers counts once for each. ``max`` is the largest single input, not
    the peak of inputs and outputs held together. Without ``count_first`` the network's first layer,
    whose input is the image, does not count.

    >>> convs = [LayerShape("a", macs=900, weights=1, inputs=64), LayerShape("b", 100, 3, 16)]
    >>> bits = {"a": Bits(weight=8, act=4), "b": Bits(weight=8, act=2)}
    >>> activation_bytes(convs, bits, reduction="sum", count_linear=True)
    36.0
    >>> activation_bytes(convs, bits, reduction="max", count_linear=True)
    32.0
    """
    if reduction not in ("sum", "max"):
        raise unknown("reduction", reduction, ("sum", "max"), "activation_bytes")
    chosen = counted(layers if count_first else layers[1:], count_linear=count_linear)
    sizes = [layer.inputs * width.act / 8 for layer, width in with_bits(chosen, bits)]
    return sum(sizes) if reduction == "sum" else max(sizes, default=0.0)


def batch_norm_bytes(channels: int, *, bytes_per_channel: int) -> float:
    """Bytes of all batch norms; scale and shift in 32 bit each would be 8 for a channel.

    >>> batch_norm_bytes(21_008, bytes_per_channel=4)
    84032.0
    """
    return float(channels * bytes_per_channel)


@dataclass(frozen=True)
class Accounting:
    """What a network's memory is taken to be; weights count with all biases.

    ``activations``: inputs of all layers but the first, summed, or the largest of them.
    ``batch_norm_bytes_per_channel``: 4 is one 32-bit number for scale and shift together.
    """

    activations: Literal["sum", "max"]
    batch_norm_bytes_per_channel: int


# edge: Schaefer et al., WACV 2024. The others correct it: both numbers of a batch norm count; and
# a network that runs layer by layer holds one activation at a time.
ACCOUNTINGS: Mapping[str, Accounting] = {
    "edge": Accounting("sum", 4),
    "edge_both_bn": Accounting("sum", 8),
    "edge_largest": Accounting("max", 8),
}


def memory_bytes(
    layers: Sequence[LayerShape],
    bits: Mapping[str, Bits],
    *,
    batch_norm_channels: int,
    accounting: str,
) -> dict[str, float]:
    """Bytes for one input: parts ``activations``, ``weights`` and ``batch_norm``.

    Args:
        layers: the network's layers, in network order.
        bits: bit-widths by layer name.
        batch_norm_channels: of all batch norms together.
        accounting: a name of ``ACCOUNTINGS``.

    >>> first = LayerShape("first", macs=1, weights=20, inputs=48)
    >>> head = LayerShape("fc", macs=1, weights=6, inputs=100, kind="linear", bias=2)
    >>> bits = {"first": Bits(weight=4, act=8), "fc": Bits(weight=4, act=2)}
    >>> memory_bytes([first, head], bits, batch_norm_channels=5, accounting="edge")
    {'activations': 25.0, 'weights': 14.0, 'batch_norm': 20.0}
    """
    if accounting not in ACCOUNTINGS:
        raise unknown("accounting", accounting, ACCOUNTINGS, "memory_bytes")
    rule = ACCOUNTINGS[accounting]
    return {
        "activations": activation_bytes(
            layers, bits, reduction=rule.activations, count_linear=True, count_first=False
        ),
        "weights": weight_bytes(layers, bits, ends_bits=None, count_linear=True, count_bias=True),
        "batch_norm": batch_norm_bytes(
            batch_norm_channels, bytes_per_channel=rule.batch_norm_bytes_per_channel
        ),
    }


def kb_targets(
    layers: Sequence[LayerShape],
    target: Sequence[float],
    *,
    kb_per_bit: Sequence[float] | None,
    accounting: str,
) -> tuple[float, float]:
    """Budgets in kB of weights and activations: ``target`` times ``kb_per_bit``, pair by pair.

    With ``None`` a target is in bits per element: a network's own size at 1 bit is taken. Papers
    print rounded ones. With ``[1, 1]`` a target is in kB.

    >>> fc = LayerShape("fc", macs=8000, weights=16000, inputs=80)
    >>> kb_targets([fc, fc], [3.0, 2.0], kb_per_bit=None, accounting="edge")
    (12.0, 0.02)
    """
    if kb_per_bit is None:
        ones = {layer.name: Bits(1, 1) for layer in layers}
        parts = memory_bytes(layers, ones, batch_norm_channels=0, accounting=accounting)
        kb_per_bit = parts["weights"] / 1000, parts["activations"] / 1000
    return target[0] * kb_per_bit[0], target[1] * kb_per_bit[1]


def to_unit(n_bytes: float, unit: Unit) -> float:
    """Bytes in a larger unit: MB and kB are powers of 1000, MiB and KiB of 1024.

    >>> to_unit(3 * 1024**2, "MiB"), to_unit(2_500_000, "MB")
    (3.0, 2.5)
    """
    if unit not in UNIT_BYTES:
        raise unknown("unit", unit, UNIT_BYTES, "to_unit")
    return n_bytes / UNIT_BYTES[unit]
