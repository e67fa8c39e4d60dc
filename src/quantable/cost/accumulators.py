r"""Bits that a layer's sums need, in exact integers, before its weights are known.

A sum adds K ``terms``, products of a weight and a datum: ``c_in / groups`` times the kernel's
elements. Its accumulator has P bits, two's complement. The bound by data type needs widths alone.
It is that of A2Q (Colbert et al., ICCV 2023), whose closed form for s = 1 with signed and 0 with
unsigned data is

.. math:: P \ge \alpha + \phi(\alpha) + 1, \quad \alpha = \log_2 K + B_d + B_w - 1 - s, \quad
    \phi(\alpha) = \log_2(1 + 2^{-\alpha})

which is :math:`K\,2^{B_w - 1}\,2^{B_d - s} \le 2^{P-1} - 1`. De Bruin et al. (Microprocessors and
Microsystems 72, 2020) search among the widths that just fit. Known weights need fewer bits
(``integers/emulation.py``). No float takes part: float32 rounds :math:`2^{31} - 1` already.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

from quantable.base.errors import UserError


def bits_of(low: int, high: int) -> int:
    """Least width of a two's-complement number that can hold both values.

    >>> bits_of(-8, 7), bits_of(-8, 8), bits_of(0, 255), bits_of(-9, 0)
    (4, 5, 9, 5)
    """
    return 1 + max((value if value >= 0 else ~value).bit_length() for value in (low, high))


def data_type_bits(terms: int, weight_bits: int, data_bits: int, *, data_signed: bool) -> int:
    r"""Least P of sums of any weights and data: :math:`K 2^{B_w-1} 2^{B_d-s} \le 2^{P-1} - 1`.

    No bias is in it. A weight's magnitude is at most :math:`2^{B_w-1}`; with one bit the levels are
    {-1, +1}, so that this magnitude, 1, is that of every weight. Unsigned data are taken as
    :math:`2^{B_d}`, one more than there is.

    >>> data_type_bits(1728, 4, 4, data_signed=False)
    19
    >>> data_type_bits(4096, 3, 3, data_signed=True)  # 4096 products of -4 and -4 are 2^16
    18
    """
    largest = _terms(terms) << (weight_bits - 1 + data_bits - data_signed)
    return bits_of(0, largest)


def budget(accumulator_bits: int, terms: int, *, data_signed: bool) -> int:
    r"""Largest :math:`B_w + B_d` whose sums fit P bits: :math:`P + s - \lceil \log_2 K \rceil`.

    The bound by data type in whole bits, which may be negative. Where K is a power of two it grants
    one bit more than :func:`data_type_bits`. Sums of unsigned data fit all the same; sums of signed
    data do unless every product is that of the two least values, :math:`2^{B_w-1} 2^{B_d-1}`.
    Symmetric weights, :math:`\pm(2^{B_w-1} - 1)`, make no such product; one-bit weights do.

    >>> budget(16, 1728, data_signed=False), budget(16, 27, data_signed=True)
    (5, 12)
    """
    return accumulator_bits + data_signed - (_terms(terms) - 1).bit_length()


def tight_pairs(
    fits: Callable[[int, int], bool], weight_bits: Sequence[int], data_bits: Sequence[int]
) -> list[tuple[int, int]]:
    """For each width of the data the widest weights that fit, as (weight, data) bits.

    Only these use the accumulator fully. A width of the data that fits with none is left out.

    >>> in_budget = lambda weight, data: weight + data <= budget(16, 1728, data_signed=False)
    >>> tight_pairs(in_budget, range(2, 9), range(2, 9))
    [(3, 2), (2, 3)]
    """
    pairs = []
    for data in data_bits:
        fitting = [weight for weight in weight_bits if fits(weight, data)]
        if fitting:
            pairs.append((max(fitting), data))
    return pairs


def l1_limit(accumulator_bits: int, data_bits: int, *, data_signed: bool) -> Fraction:
    r"""Largest :math:`\sum_i |q_i|` of a channel's integers, A2Q's :math:`(2^{P-1}-1) 2^{s-N}`.

    Colbert et al., ICCV 2023, with N-bit data; s is 1 if they are signed, else 0.

    >>> l1_limit(12, 4, data_signed=False)
    Fraction(2047, 16)
    """
    return Fraction(2 ** (accumulator_bits - 1) - 1, 2 ** (data_bits - data_signed))


def centred_l1_limit(accumulator_bits: int, data_bits: int) -> Fraction:
    r"""The same where a channel's weights sum to zero, A2Q+'s :math:`(2^P - 2) / (2^N - 1)`.

    Colbert et al., ICML 2024 (arXiv 2401.10432): weights above and below zero have half of the norm
    each, so that no sum leaves :math:`\pm(2^N - 1) / 2` times the norm.

    >>> centred_l1_limit(12, 4)
    Fraction(4094, 15)
    """
    return Fraction(2**accumulator_bits - 2, 2**data_bits - 1)


def _terms(terms: int) -> int:
    """The number of a sum's terms, which is 1 at least."""
    if terms < 1:
        raise UserError(f"terms={terms}: a sum has at least one term")
    return terms
