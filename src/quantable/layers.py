"""Plain facts about a layer, without torch: its shape, and the bit-widths of its operands."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantable.names import UserError, unknown


@dataclass(frozen=True)
class LayerShape:
    """Shape of one multiply-accumulate layer, for one input.

    ``macs``: multiply-accumulates (one MAC is one operation, not two); ``weights``: weight
    elements, biases not counted; ``inputs``: input activation elements; ``kind``: convolution or
    linear; ``bias``: bias elements.
    """

    name: str
    macs: int
    weights: int
    inputs: int
    kind: Literal["conv", "linear"] = "conv"
    bias: int = 0


@dataclass(frozen=True)
class Bits:
    """Bit-widths of a layer's two operands: 1 to 16, or 32 for float."""

    weight: int
    act: int

    def __post_init__(self) -> None:
        for bits in (self.weight, self.act):
            if bits != FLOAT_BITS and not 1 <= bits <= MAX_BITS:
                raise UserError(
                    f"bits={bits}: a quantization grid has 1 to {MAX_BITS} bits; "
                    "use `quantizer=none` for full precision"
                )


MAX_BITS = 16
FLOAT_BITS = 32


def bit_map(
    names: Iterable[str],
    *,
    inner: Bits,
    ends: Bits | None,
    layers: Mapping[str, Bits],
) -> dict[str, Bits]:
    """Bit-widths of every layer: ``ends`` for the first and the last, exceptions by name.

    ``ends=None`` treats the first and the last layer like the others. A name in ``layers`` that is
    no layer raises ``UserError``.

    >>> bit_map(["a", "b", "c"], inner=Bits(4, 4), ends=Bits(8, 8), layers={"b": Bits(2, 4)})["b"]
    Bits(weight=2, act=4)
    """
    order: Sequence[str] = list(names)
    for name in layers:
        if name not in order:
            raise unknown("layer", name, order, "bits.layers")
    bits = dict.fromkeys(order, inner)
    if ends is not None:
        bits[order[0]] = bits[order[-1]] = ends
    return bits | dict(layers)


def uniform(layers: Sequence[LayerShape], bits: int) -> dict[str, Bits]:
    """Give every layer the same width.

    >>> uniform([LayerShape("fc", 1, 1, 1)], 16)
    {'fc': Bits(weight=16, act=16)}
    """
    return {layer.name: Bits(bits, bits) for layer in layers}


def in_order(shapes: Sequence[LayerShape], widths: Sequence[int], where: str) -> dict[str, Bits]:
    """Give each layer, in execution order, one width for its weights and activations.

    >>> in_order([LayerShape("a", 1, 1, 1), LayerShape("b", 1, 1, 1)], [4], "a.yaml")
    Traceback (most recent call last):
    quantable.names.UserError: a.yaml: 1 bit-widths for the network's 2 layers: a, b
    """
    names = [layer.name for layer in shapes]
    if len(widths) != len(names):
        raise UserError(
            f"{where}: {len(widths)} bit-widths for the network's {len(names)} layers: "
            f"{', '.join(names)}"
        )
    return {name: Bits(width, width) for name, width in zip(names, widths, strict=True)}
