"""Plain facts about a layer, without torch: its shape, and the bit-widths of its operands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantable.base.bits import Bits
from quantable.base.errors import UserError

IMAGE = ""  # stands for the image where layers are named: no layer has this name


@dataclass(frozen=True)
class LayerShape:
    """Shape of one multiply-accumulate layer, for one input.

    ``macs``: multiply-accumulates (one MAC is one operation, not two); ``weights``: weight
    elements, biases not counted; ``inputs``: input activation elements; ``kind``: convolution or
    linear; ``bias``: bias elements; ``c_in``, ``c_out``: channels; ``kernel``, ``stride``,
    ``output``: height and width. From ``c_in`` on, None is what an older file or record does not
    say.

    A linear layer is a 1x1 convolution with an output of (1, positions): (1, 1) of a vector, (1, t)
    of t tokens. A convolution in one dimension has a height of 1. Of a transposed one, ``stride``
    is the distance of its inputs in the output. Of a layer that runs several times, ``macs`` and
    ``inputs`` are those of all runs, ``output`` is that of the first.
    """

    name: str
    macs: int
    weights: int
    inputs: int
    kind: Literal["conv", "linear"] = "conv"
    bias: int = 0
    c_in: int | None = None
    c_out: int | None = None
    groups: int | None = None
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    output: tuple[int, int] | None = None

    @property
    def terms(self) -> int | None:
        """Products in one sum, K: ``c_in / groups`` times the kernel; None where not known.

        Of a transposed convolution with a stride, no sum has more.

        >>> LayerShape("conv", 0, 0, 0, c_in=96, groups=2, kernel=(5, 5)).terms
        1200
        """
        if self.c_in is None or self.groups is None or self.kernel is None:
            return None
        return self.c_in // self.groups * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class Network:
    """What is known of a network at one input size; None is what an older file does not say.

    ``layers``: in execution order; ``batch_norm_channels``: of all batch norms, which are no layer.

    ``feeds``: for each layer, those whose results reach its input without passing another layer,
    and ``IMAGE`` where the image does. On the way there may be norms, nonlinearities, pooling,
    additions, products of activations and concatenations. A layer that reads constants has none.

    ``added``: for each addition of two or more results, the layers whose results reach it in the
    same way. A chain appears as ever longer lists: where ``a + b`` goes through ``c`` and is added
    to its result, that addition has ``a``, ``b`` and ``c``. Each list is in execution order, and
    the additions are in that of their last layers. None too where a change in place to a part of a
    tensor may hide one.

    ``activation_macs``: multiply-accumulates of products of two activations, as attention has, for
    one input. They have no weights and are no layer, and no cost has them. An older file does not
    say: it is 0 there.
    """

    layers: list[LayerShape]
    batch_norm_channels: int | None = None
    feeds: Mapping[str, Sequence[str]] | None = None
    added: Sequence[Sequence[str]] | None = None
    activation_macs: int = 0


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
