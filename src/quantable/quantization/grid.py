"""Integer ranges of quantization grids, without torch."""

from quantable.base.bits import MAX_BITS
from quantable.base.errors import UserError

BINARY = (-1, 1)
"""Range of the signed 1-bit grid: its two levels are -1 and +1, there is no 0. No other grid has
this range."""


def check(bits: int) -> int:
    """Return ``bits``, which must be an integer from 1 to 16.

    >>> check(32)
    Traceback (most recent call last):
    quantable.base.errors.UserError: bits=32: a quantization grid has 1 to 16 bits
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise UserError(f"bits={bits}: a quantization grid has 1 to {MAX_BITS} bits")
    return bits


def int_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Integer levels of a ``bits``-wide grid: the least and the greatest.

    One signed bit means the levels -1 and +1 without 0 (``BINARY``).

    >>> int_range(3, signed=True), int_range(3, signed=False)
    ((-4, 3), (0, 7))
    >>> int_range(1, signed=True), int_range(1, signed=False)
    ((-1, 1), (0, 1))
    """
    check(bits)
    if not signed:
        return 0, 2**bits - 1
    return BINARY if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def intervals(bits: int) -> int:
    """Intervals between the ``2**bits`` levels of a grid.

    >>> intervals(4)
    15
    """
    return (1 << check(bits)) - 1
