r"""Rounding: real bit-widths and a budget to integers, by one offset and then single ones.

Operands :math:`i` with real widths :math:`b_i` get :math:`\lfloor b_i + d \rfloor`, within a range,
with the largest offset :math:`d` that keeps the budget. Then those that are below :math:`b_i + d`
get one bit more, the furthest below first, wherever the budget allows that.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

from quantable.base.errors import UserError

Operand = TypeVar("Operand", bound=Hashable)


def round_widths(
    real: Mapping[Operand, float],
    cost: Callable[[Mapping[Operand, int]], float],
    limit: float,
    *,
    least: int,
    most: int,
) -> dict[Operand, int]:
    """Integer widths from ``least`` to ``most`` that cost at most ``limit``.

    ``cost`` must not fall where a width rises. Raises UserError where ``least`` is too much.

    >>> def cost(bits):
    ...     return 10 * bits["large"] + bits["small"]
    >>> round_widths({"large": 3.6, "small": 4.2}, cost, limit=36, least=2, most=16)
    {'large': 3, 'small': 5}
    """
    exact = {operand: Fraction(width) for operand, width in real.items()}
    steps = _steps(exact, most - least)

    def rounded(offset: Fraction) -> dict[Operand, int]:
        return {
            operand: min(max(math.floor(width + offset), least), most)
            for operand, width in exact.items()
        }

    over = bisect_right(steps, 0, key=lambda offset: cost(rounded(offset)) > limit)
    if over == 0:
        raise UserError(
            f"budget {limit:g}: with all operands at {least} bits it takes "
            f"{cost(dict.fromkeys(real, least)):g}"
        )
    widths = rounded(steps[over - 1])
    # Up to the next step all widths stay, so that it is the bound of the offsets that fit.
    offset = steps[min(over, len(steps) - 1)]
    below = {operand: width + offset - widths[operand] for operand, width in exact.items()}
    for operand in sorted(exact, key=below.__getitem__, reverse=True):
        more = widths | {operand: widths[operand] + 1}
        if below[operand] > 0 and more[operand] <= most and cost(more) <= limit:
            widths = more
    return widths


def _steps(exact: Mapping[Operand, Fraction], span: int) -> list[Fraction]:
    """Offsets from ``-span`` to ``span`` at which a width steps up, and both ends, rising."""
    found = {Fraction(-span), Fraction(span)}
    for width in exact.values():
        first = math.ceil(width - span)
        found.update(Fraction(step) - width for step in range(first, math.floor(width + span) + 1))
    return sorted(found)
