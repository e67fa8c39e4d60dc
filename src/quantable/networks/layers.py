"""Plain facts about a layer, without torch: its shape, and the bit-widths of its operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantable.base.bits import Bits
from quantable.base.errors import UserError


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
    quantable.base.errors.UserError: a.yaml: 1 bit-widths for the network's 2 layers: a, b
    """
    names = [layer.name for layer in shapes]
    if len(widths) != len(names):
        raise UserError(
            f"{where}: {len(widths)} bit-widths for the network's {len(names)} layers: "
            f"{', '.join(names)}"
        )
    return {name: Bits(width, width) for name, width in zip(names, widths, strict=True)}
