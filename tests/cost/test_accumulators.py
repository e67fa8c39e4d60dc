"""Bits of sums: the budgets of standard networks and the limits of l1 norms, typed in by hand."""

from itertools import product

import pytest

from quantable.base.errors import UserError
from quantable.cost.accumulators import (
    bits_of,
    budget,
    centred_l1_limit,
    data_type_bits,
    l1_limit,
    tight_pairs,
)

P = (32, 24, 16, 12, 8)
# terms of a sum -> budgets of weight and data bits at 32, 24, 16, 12 and 8 bits, unsigned data
ALL_CNN_C = {
    27: (27, 19, 11, 7, 3),
    864: (22, 14, 6, 2, -2),
    1728: (21, 13, 5, 1, -3),
    192: (24, 16, 8, 4, 0),
}
ALEXNET_TWO_GROUPS = {
    363: (23, 15, 7, 3, -1),
    1200: (21, 13, 5, 1, -3),
    2304: (20, 12, 4, 0, -4),
    1728: (21, 13, 5, 1, -3),
    9216: (18, 10, 2, -2, -6),
    4096: (20, 12, 4, 0, -4),
}
# at 16 bits, in network order
ALEXNET = {363: 7, 1600: 5, 1728: 5, 3456: 4, 2304: 4, 9216: 2, 4096: 4}
LENET_5 = {25: 11, 500: 7, 800: 6}


@pytest.mark.parametrize(
    ("terms", "budgets"), [*ALL_CNN_C.items(), *ALEXNET_TWO_GROUPS.items()], ids=str
)
def test_budgets_of_a_layer(terms: int, budgets: tuple[int, ...]) -> None:
    assert tuple(budget(bits, terms, data_signed=False) for bits in P) == budgets
    assert tuple(budget(bits, terms, data_signed=True) - 1 for bits in P) == budgets


def test_budgets_at_16_bits() -> None:
    for network in (ALEXNET, LENET_5):
        assert {terms: budget(16, terms, data_signed=False) for terms in network} == network


def test_the_budget_is_the_largest_sum_of_widths_that_fits() -> None:
    """By the inequality; a power of two is the one case in which whole bits grant one more."""
    for terms, signed in product([1, 2, 3, 9, 25, 27, 64, 500, 1728, 4096, 9216], [False, True]):
        for weight, data in product(range(1, 9), repeat=2):
            bits = data_type_bits(terms, weight, data, data_signed=signed)
            largest = terms * 2 ** (weight - 1) * 2 ** (data - signed)
            assert largest <= 2 ** (bits - 1) - 1
            assert largest > 2 ** (bits - 2) - 1
            granted = budget(bits, terms, data_signed=signed) - weight - data
            assert granted == (terms.bit_count() == 1)


@pytest.mark.parametrize(("weight", "fits"), [(-4, False), (-3, True)])
def test_the_signed_corner_fits_with_symmetric_weights_only(weight: int, fits: bool) -> None:
    assert budget(17, 4096, data_signed=True) == 3 + 3
    assert (bits_of(4096 * weight * -4, 4096 * weight * 3) <= 17) is fits
    assert data_type_bits(4096, 3, 3, data_signed=True) == 18


def test_tight_pairs_fit_and_one_weight_bit_more_does_not() -> None:
    def fits(weight: int, data: int) -> bool:
        return data_type_bits(864, weight, data, data_signed=False) <= 16

    pairs = tight_pairs(fits, range(2, 9), range(2, 9))
    assert pairs == [(4, 2), (3, 3), (2, 4)]
    assert not any(fits(weight + 1, data) for weight, data in pairs)
    wide = tight_pairs(lambda weight, data: weight + data <= 12, range(2, 9), range(2, 9))
    assert wide == [(8, 2), (8, 3), (8, 4), (7, 5), (6, 6), (5, 7), (4, 8)]
    assert tight_pairs(lambda weight, data: False, range(2, 9), range(2, 9)) == []


# accumulator bits -> data bits -> limits of A2Q and A2Q+; as many digits as are printed
L1_LIMITS = {
    32: {
        4: ("134217727.94", "286331152.93"),
        6: ("33554431.98", "68174084.03"),
        8: ("8388607.996", "16843008.996"),
    },
    16: {4: ("2047.94", "4368.93"), 6: ("511.98", "1040.22"), 8: ("127.996", "256.996")},
    15: {4: ("1023.94", "2184.40"), 6: ("255.98", "520.10"), 8: ("63.996", "128.494")},
    14: {4: ("511.94", "1092.13"), 6: ("127.98", "260.03"), 8: ("31.996", "64.243")},
    13: {4: ("255.94", "546.00"), 6: ("63.98", "130.00"), 8: ("15.996", "32.118")},
    12: {4: ("127.94", "272.93"), 6: ("31.98", "64.98"), 8: ("7.996", "16.055")},
    8: {4: ("7.94", "16.93"), 6: ("1.98", "4.03"), 8: ("0.496", "0.996")},
}
RATIOS = {4: "2.1333", 6: "2.0317", 8: "2.0078"}


@pytest.mark.parametrize("bits", L1_LIMITS)
def test_limits_of_the_l1_norm(bits: int) -> None:
    for data_bits, (a2q, a2q_plus) in L1_LIMITS[bits].items():
        plain = l1_limit(bits, data_bits, data_signed=False)
        centred = centred_l1_limit(bits, data_bits)
        for limit, printed in ((plain, a2q), (centred, a2q_plus)):
            digits = len(printed.partition(".")[2])
            assert f"{float(limit):.{digits}f}" == printed
        assert f"{float(centred / plain):.4f}" == RATIOS[data_bits]
        assert l1_limit(bits, data_bits, data_signed=True) == 2 * plain


def test_a_norm_at_its_limit_fits_and_one_above_does_not() -> None:
    for bits, data_bits in product(range(4, 33), range(1, 9)):
        norm = int(l1_limit(bits, data_bits, data_signed=False))
        assert bits_of(0, norm * 2**data_bits) <= bits < bits_of(0, (norm + 1) * 2**data_bits)
        half = int(centred_l1_limit(bits, data_bits) / 2)  # weights above zero, or below
        largest = 2**data_bits - 1
        assert bits_of(-half * largest, half * largest) <= bits
        assert bits < bits_of(0, (half + 1) * largest)


def test_a_sum_without_terms_is_refused() -> None:
    with pytest.raises(UserError, match="terms=0: a sum has at least one term"):
        budget(16, 0, data_signed=False)
    with pytest.raises(UserError, match="terms=0"):
        data_type_bits(0, 4, 4, data_signed=False)
