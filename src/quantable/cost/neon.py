"""Multiply-accumulates that one Arm vector instruction does, by the width of its sums.

Arm Architecture Reference Manual: a 128-bit register has 8 lanes of 16 bit or 4 of 32, and an
instruction adds one product to each lane; SDOT adds four products of bytes to each lane of 32 bit.
Loads, and what widens operands first, are not counted: it is the ceiling of a kernel.
"""

from dataclasses import dataclass

from quantable.base.errors import UserError

SUMS = (16, 32)  # widths of lanes that accumulate


@dataclass(frozen=True)
class MultiplyAdd:
    """One instruction on 128 bit: widths of operands and sums, and products that it adds up.

    ``dotprod``: it needs the dot-product extension (Armv8.2, as in Cortex-A76).
    """

    name: str  # in Armv7, and in Armv8 where another
    operand_bits: int
    sum_bits: int
    macs: int
    dotprod: bool = False


INSTRUCTIONS = (
    MultiplyAdd("VMLA.I16 / MLA .8h", 16, 16, 8),
    MultiplyAdd("VMLAL.S8 / SMLAL .8h", 8, 16, 8),
    MultiplyAdd("VMLAL.S16 / SMLAL .4s", 16, 32, 4),
    MultiplyAdd("SDOT .4s", 8, 32, 16, dotprod=True),
)


def macs_per_instruction(accumulator_bits: int, operand_bits: int, *, dotprod: bool) -> int:
    """The most products that an instruction adds to sums of the next width of lanes.

    >>> [macs_per_instruction(bits, 8, dotprod=False) for bits in (16, 32)]
    [8, 4]
    >>> [macs_per_instruction(bits, 8, dotprod=True) for bits in (16, 32)]
    [8, 16]
    """
    if not 2 <= accumulator_bits <= max(SUMS) or not 1 <= operand_bits <= 16:
        raise UserError(
            f"sums of {accumulator_bits} bits, operands of {operand_bits}: a vector instruction "
            f"has sums of at most {max(SUMS)} bits and operands of at most 16"
        )
    lanes = min(bits for bits in SUMS if bits >= accumulator_bits)
    return max(
        one.macs
        for one in INSTRUCTIONS
        if one.sum_bits == lanes and one.operand_bits >= operand_bits and one.dotprod <= dotprod
    )
