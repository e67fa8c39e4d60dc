"""Verdicts from hand-made numbers."""

import statistics
from typing import Any

import numpy as np
import pytest

from quantable.report.verdict import COMPUTED, Measured, at_most, holds, judge
from quantable.tables.claims import Bound
from quantable.tables.schema import Published, Tolerance

PUBLISHED = Published(value=90.0, source="Table 1", confidence="published")
HALF = Tolerance(abs=0.5)


def ours(*values: float, budget: str = "paper", **kw: Any) -> Measured:
    return Measured(values, budget=budget, data="CIFAR-10", **kw)


@pytest.mark.parametrize(
    ("measured", "tolerance", "word"),
    [
        (ours(90.1, 90.2, 90.3), HALF, "match"),
        (ours(90.4, 90.5, 90.6), HALF, "match"),  # exactly at the edge
        (ours(89.4, 89.5, 89.6), HALF, "match"),
        (ours(90.5, 90.6, 90.7), HALF, "above"),
        (ours(89.3, 89.4, 89.5), HALF, "below"),
        (ours(99.0, 99.0, 99.0), Tolerance(rel=0.1), "match"),
        (ours(81.0, 81.0, 81.0), Tolerance(rel=0.1), "match"),
        (ours(99.1, 99.1, 99.1), Tolerance(rel=0.1), "above"),
        (ours(80.9, 80.9, 80.9), Tolerance(rel=0.1), "below"),
        (ours(80.0, 90.0, 100.0), HALF, "match"),  # the mean decides
        (ours(90.0, 90.0), HALF, "incomplete"),
        (ours(90.0), HALF, "incomplete"),
        (Measured((90.0,), COMPUTED, None), HALF, "match"),  # arithmetic needs no seeds
        (ours(90.0, 90.0, 90.0, budget="gpu"), HALF, "not comparable"),
        (ours(90.0, 90.0, 90.0, budget="cpu"), HALF, "not comparable"),
        (ours(90.0, 90.0, 90.0, budget="smoke"), HALF, "not comparable"),
        (ours(90.0, 90.0, 90.0, original_data=False), HALF, "not comparable"),
        (ours(90.0, 90.0, 90.0), None, "not judged"),
        (None, HALF, "not run"),
    ],
)
def test_words(measured: Measured | None, tolerance: Tolerance | None, word: str) -> None:
    assert judge(PUBLISHED, measured, tolerance, seeds_needed=3).word == word


def test_a_number_with_a_tolerance_of_its_own_is_judged_by_that() -> None:
    wide = PUBLISHED.model_copy(update={"tolerance": Tolerance(abs=1.5)})
    words = [
        judge(wide, ours(value), column, seeds_needed=1).word
        for column in (HALF, None)
        for value in (91.5, 91.6)
    ]
    assert words == ["match", "above"] * 2


@pytest.mark.parametrize(
    ("published", "measured", "reason"),
    [
        (None, ours(1.0), None),
        (Published(value=None, reason="page lost"), ours(1.0), "page lost"),
        (
            Published(value=1.0, source="Table 4", confidence="recollected"),
            ours(1.0),
            "only recollected: Table 4",
        ),
        (
            Published(value=1.0, source="from Table 4", confidence="derived"),
            ours(1.0),
            "only derived: from Table 4",
        ),
    ],
)
def test_without_a_published_value_there_is_no_verdict(published, measured, reason) -> None:
    verdict = judge(published, measured, HALF, seeds_needed=1)
    assert (verdict.word, verdict.reason) == ("no published value", reason)


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (ours(90.0, budget="cpu"), "budget cpu is not the paper's size"),
        (ours(90.0, original_data=False), "CIFAR-10 is not an exact copy of the paper's data"),
        (ours(90.0), "1 of 3 seeds"),
    ],
)
def test_what_cannot_be_compared_says_why(measured: Measured, reason: str) -> None:
    assert judge(PUBLISHED, measured, HALF, seeds_needed=3).reason == reason


@pytest.mark.parametrize("value", [67.6, 110.154, 0.1, 4.5])
@pytest.mark.parametrize("width", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("sign", [1, -1])
def test_decimal_edges_match(value: float, width: float, sign: int) -> None:
    published = Published(value=value, source="Table 1", confidence="proved")
    edge = Measured((value + sign * width,), COMPUTED, None)
    beyond = Measured((value + sign * width * 1.0001,), COMPUTED, None)
    assert judge(published, edge, Tolerance(abs=width), 1).word == "match"
    assert judge(published, beyond, Tolerance(abs=width), 1).word in ("above", "below")
    assert at_most(abs(edge.mean - value), width)


def test_mean_and_standard_deviation_are_those_of_a_sample() -> None:
    values = (92.1, 91.7, 92.6)
    measured = ours(*values)
    assert measured.mean == pytest.approx(np.mean(values))
    assert measured.std == pytest.approx(np.std(values, ddof=1))
    assert measured.std == pytest.approx(statistics.stdev(values))
    assert measured.n == 3
    assert ours(92.1).std is None


@pytest.mark.parametrize(
    ("values", "value", "bound", "expected"),
    [
        ([2.0], 2.0, Bound(min=2.0), True),
        ([1.99], 1.99, Bound(min=2.0), False),
        ([2.0], 2.0, Bound(max=2.0), True),
        ([2.01], 2.01, Bound(max=2.0), False),
        ([0.5], 0.5, Bound(min=0.4, max=0.6), True),
        ([0.7], 0.7, Bound(min=0.4, max=0.6), False),
        ([0.3], 0.1 + 0.2, Bound(max=0.3), True),
        ([1.0, 2.0, 3.0], 3.0, Bound(min=1.8, rising=True), True),
        ([1.0, 2.0, 2.0], 2.0, Bound(min=1.8, rising=True), False),  # equal is not rising
        ([1.0, 3.0, 2.0], 3.0, Bound(min=1.8, rising=True), False),
        ([1.0, 1.5], 1.5, Bound(min=1.8, rising=True), False),
        ([2.0], 2.0, Bound(rising=True), True),
        ([-5.0], -5.0, Bound(max=1.0), True),
    ],
)
def test_bounds_are_closed_and_rising_is_strict(values, value, bound, expected) -> None:
    assert holds(values, value, bound) == expected
