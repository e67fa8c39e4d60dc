"""Bit-widths of a layer's two operands, without torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantable.base.errors import UserError, unknown


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
