"""Columns of what an Arm vector instruction does with sums of the declared accumulator."""

from collections.abc import Callable

from quantable.base.bits import FLOAT_BITS
from quantable.columns.facts import Column, Facts, Value
from quantable.cost.neon import macs_per_instruction

WIDEST = 32  # sums that a smaller accumulator is compared with


def _of_sums(number: Callable[[int, int], float]) -> Value:
    """Make a column's function of accumulator and widest operand; None where one is float."""

    def value(facts: Facts) -> float | None:
        if facts.accumulator is None or facts.bits is None:
            return None
        operand = max(max(b.weight, b.act) for b in facts.bits.values())
        return None if operand == FLOAT_BITS else number(facts.accumulator, operand)

    return value


def _macs(*, dotprod: bool) -> Value:
    return _of_sums(lambda p, operand: macs_per_instruction(p, operand, dotprod=dotprod))


def _speedup(*, dotprod: bool) -> Value:
    """Ceiling of the speedup over sums of 32 bit."""

    def ratio(p: int, operand: int) -> float:
        of = [macs_per_instruction(bits, operand, dotprod=dotprod) for bits in (p, WIDEST)]
        return of[0] / of[1]

    return _of_sums(ratio)


COLUMNS = {
    "neon_macs": Column("NEON", "MAC/instruction", 0, False, _macs(dotprod=False)),
    "neon_speedup": Column("NEON against 32-bit sums", "x", 2, False, _speedup(dotprod=False)),
    "dotprod_macs": Column("with SDOT", "MAC/instruction", 0, False, _macs(dotprod=True)),
    "dotprod_speedup": Column(
        "with SDOT against 32-bit sums", "x", 2, False, _speedup(dotprod=True)
    ),
}
