"""Verdicts on published numbers and claims: computed from measured ones, never stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import copysign, inf, isclose, nan, sqrt
from statistics import mean, stdev

from quantable.tables.claims import Bound
from quantable.tables.schema import Published, Tolerance

COMPUTED = "computed"  # the budget of a number that follows from shapes and bit-widths alone


@dataclass(frozen=True)
class Measured:
    """Our number over seeds, with its unit given by the column; ``std`` needs two of them."""

    values: tuple[float, ...]
    budget: str
    data: str | None  # title of the data set, with its variant; None where no data was needed
    original_data: bool = True

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds (n - 1)."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)


@dataclass(frozen=True)
class Verdict:
    """One word, and the reason where the word alone does not say it."""

    word: str
    reason: str | None = None


def judge(
    published: Published | None,
    measured: Measured | None,
    tolerance: Tolerance | None,
    seeds_needed: int,
) -> Verdict:
    """Set a measured number beside the published one.

    >>> known = Published(value=110.154, source="Table V", confidence="proved")
    >>> ours = Measured((110.155,), budget=COMPUTED, data=None)
    >>> judge(known, ours, Tolerance(rel=0.0002), seeds_needed=1).word
    'match'
    >>> judge(known, None, Tolerance(rel=0.0002), seeds_needed=1).word
    'not run'
    """
    if measured is None:
        return Verdict("not run")
    if published is None or published.value is None:
        return Verdict("no published value", published.reason if published else None)
    if not published.counts:
        return Verdict("no published value", f"only {published.confidence}: {published.source}")
    if obstacle := _obstacle(measured, seeds_needed):
        return obstacle
    tolerance = published.tolerance or tolerance
    if tolerance is None:
        return Verdict("not judged", "the column has no tolerance")
    difference = measured.mean - published.value
    if at_most(abs(difference), tolerance.around(published.value)):
        return Verdict("match")
    return Verdict("above" if difference > 0 else "below")


def _obstacle(measured: Measured, seeds_needed: int) -> Verdict | None:
    """Say why a measured number cannot be compared with a published one."""
    if measured.budget not in (COMPUTED, "paper"):
        return Verdict("not comparable", f"budget {measured.budget} is not the paper's size")
    if not measured.original_data:
        return Verdict(
            "not comparable", f"{measured.data} is not an exact copy of the paper's data"
        )
    if measured.budget == "paper" and measured.n < seeds_needed:
        return Verdict("incomplete", f"{measured.n} of {seeds_needed} seeds")
    return None


def at_most(value: float, limit: float) -> bool:
    """Whether ``value <= limit``; the rounding of decimal fractions does not decide.

    >>> 67.9 - 67.6 <= 0.3, at_most(67.9 - 67.6, 0.3)
    (False, True)
    """
    return value <= limit or isclose(value, limit, rel_tol=1e-9)


def holds(values: Sequence[float], value: float, bound: Bound) -> bool:
    """Whether ``value`` lies within the bound, and the rows' ``values`` rise, or are above 0.

    >>> holds([2.0, 3.0], 3.0, Bound(min=1.8, rising=True))
    True
    >>> holds([2.0, 1.9], 2.0, Bound(rising=True))
    False
    >>> holds([0.4, -0.2], -0.2, Bound(min=-0.3, positive=1))
    True
    """
    if bound.rising and any(b <= a for a, b in pairwise(values)):
        return False
    if bound.positive is not None and sum(number > 0 for number in values) < bound.positive:
        return False
    low = bound.min if bound.min is not None else float("-inf")
    high = bound.max if bound.max is not None else float("inf")
    return at_most(low, value) and at_most(value, high)


def paired_t(differences: Sequence[float]) -> float:
    """Mean of the differences over its standard error; two or more, else it is not a number.

    >>> round(paired_t([1.0, 2.0, 3.0]), 4)
    3.4641
    """
    if len(differences) < 2:
        return nan
    error = stdev(differences) / sqrt(len(differences))
    return mean(differences) / error if error else copysign(inf, mean(differences))
