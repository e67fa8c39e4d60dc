r"""Multiple-choice knapsack in whole numbers, by a dynamic program that knows when it is exact.

Groups are decided in order. A state is what some policies of the groups so far have in common: loss
and costs. It is left out where another is as good in all of them, where its costs leave no room for
the rest, or where its bound exceeds the loss of a policy that is known. The bound is Lagrange's,
with the budgets priced at :math:`\lambda \ge 0`,

.. math:: \sum_g \min_o \left( \Omega_{go} + \lambda c_{go} \right) - \lambda C \le \min \Omega

and holds at any price: prices are guessed in floats, all sums are exact. Of more states than a
sweep may keep, those with the best bounds stay, and the least bound of the others is remembered: if
that exceeds the loss found, the policy is the best all the same.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations
from math import ceil, lcm
from operator import add, gt

WIDTHS = (10, 100, 1_000, 20_000)  # states kept at once: a good policy makes the next sweep small
RELAXED = 1_000  # the width from which prices of several budgets are those of the linear relaxation
CLIPPED = 10**6  # greatest loss shown to the solver; 1 is a group's share of the budgets' worth
ROUNDS = 8  # in which each budget gets its price in turn

# Loss, costs, picks as the digits of a number, loss at the prices: sorted, the best comes first.
State = tuple[int, tuple[int, ...], int, int]


@dataclass(frozen=True)
class Option:
    """What one choice for a group loses, and what it costs of each budget."""

    loss: int
    cost: tuple[int, ...]


Groups = Sequence[Sequence[Option]]


@dataclass(frozen=True)
class Solution:
    """The best policy found, one option's index a group, and its loss.

    Its ``bound``: none within the limits has a smaller loss; None where no policy is feasible.
    """

    picks: list[int] | None
    loss: int | None
    bound: int | None


def solve(groups: Groups, limits: Sequence[int]) -> Solution:
    """Least loss within ``limits``; of equals the least costs, in order, then the first options.

    >>> keep, lower = Option(loss=0, cost=(8,)), Option(loss=3, cost=(4,))
    >>> solve([[keep, lower], [keep, lower]], [12])
    Solution(picks=[0, 1], loss=3, bound=3)
    """
    prices = _prices(groups, limits)
    best: State | None = None
    for width in WIDTHS:
        if width == RELAXED and len(limits) > 1:
            candidates = (prices, _relaxed_prices(groups, limits, prices))
            prices = max(candidates, key=lambda prices: _bound(groups, limits, prices))
        priced, unit = _priced(groups, prices)
        free = _value(limits, prices)
        most = None if best is None else int((best[0] + free) * unit)
        found, left_out = _sweep(groups, priced, limits, most, width)
        best = min((state for state in (best, found) if state), default=None)
        bound = None if left_out is None else ceil(Fraction(left_out, unit) - free)
        if bound is None or (best is not None and bound > best[0]):
            break
    if best is None:
        return Solution(None, None, bound)
    loss, _, picks, _ = best
    return Solution(_digits(picks, groups), loss, loss if bound is None else min(bound, loss))


def _value(limits: Sequence[int], prices: Sequence[Fraction]) -> Fraction:
    return sum((price * limit for price, limit in zip(prices, limits, strict=True)), Fraction(0))


def _bound(groups: Groups, limits: Sequence[int], prices: Sequence[Fraction]) -> Fraction:
    priced, unit = _priced(groups, prices)
    return Fraction(sum(map(min, priced)), unit) - _value(limits, prices)


def _sweep(
    groups: Groups,
    priced: Sequence[Sequence[int]],
    limits: Sequence[int],
    most: int | None,
    width: int,
) -> tuple[State | None, int | None]:
    """Best policy of at most ``most`` at the prices, and the least bound of the states left out."""
    least = [tuple(map(min, zip(*(o.cost for o in group), strict=True))) for group in groups]
    room = tuple(limit - sum(low[k] for low in least) for k, limit in enumerate(limits))
    rest, left_out = sum(map(min, priced)), None
    states: list[State] = [(0, (0,) * len(limits), 0, 0)]
    for group, at_prices, low in zip(groups, priced, least, strict=True):
        rest -= min(at_prices)
        room = tuple(map(add, room, low))
        top = None if most is None else most - rest
        states = _undominated(_grown(states, group, at_prices, room, top))
        if len(states) > width:
            states.sort(key=lambda state: state[3])
            bound = states[width][3] + rest
            left_out = bound if left_out is None else min(left_out, bound)
            del states[width:]
    return min(states, default=None), left_out


def _grown(
    states: Sequence[State],
    group: Sequence[Option],
    priced: Sequence[int],
    room: tuple[int, ...],
    most: int | None,
) -> list[State]:
    """Each state with each option that leaves room for the other groups."""
    grown = []
    choices = sorted(zip(priced, range(len(group)), group, strict=True), key=lambda c: c[0])
    for loss, cost, picks, at_prices in states:
        for price, pick, option in choices:
            total = at_prices + price
            if most is not None and total > most:
                break
            spent = tuple(map(add, cost, option.cost))
            if not any(map(gt, spent, room)):
                grown.append((loss + option.loss, spent, picks * len(group) + pick, total))
    return grown


def _undominated(states: list[State]) -> list[State]:
    """States that none before them in order is as good as; costs but two must be equal for it."""
    states.sort()
    kept: list[State] = []
    stairs: dict[tuple[int, ...], tuple[list[int], list[int]]] = {}
    for state in states:
        first, second, *others = (*state[1], 0, 0)
        firsts, seconds = stairs.setdefault(tuple(others), ([], []))
        place = bisect_right(firsts, first)
        if place and seconds[place - 1] <= second:
            continue
        kept.append(state)
        start = end = bisect_left(firsts, first)
        while end < len(firsts) and seconds[end] >= second:
            end += 1
        firsts[start:end], seconds[start:end] = [first], [second]
    return kept


def _digits(picks: int, groups: Groups) -> list[int]:
    digits = []
    for group in reversed(groups):
        picks, digit = divmod(picks, len(group))
        digits.append(digit)
    return digits[::-1]


def _priced(groups: Groups, prices: Sequence[Fraction]) -> tuple[list[list[int]], int]:
    """Loss of every option at ``prices``, in whole numbers of 1 / the unit returned."""
    unit = lcm(*(price.denominator for price in prices))
    whole = [int(price * unit) for price in prices]
    return [
        [o.loss * unit + sum(map(lambda p, c: p * c, whole, o.cost)) for o in group]
        for group in groups
    ], unit


def _prices(groups: Groups, limits: Sequence[int]) -> list[Fraction]:
    """Prices that raise the bound: each in turn is the least at which its limit is kept."""
    prices = [Fraction(0)] * len(limits)
    for _ in range(ROUNDS if len(limits) > 1 else 1):
        before = list(prices)
        for k, limit in enumerate(limits):
            prices[k] = Fraction(0)
            priced, unit = _priced(groups, prices)
            costs = [[option.cost[k] for option in group] for group in groups]
            prices[k] = _price(priced, costs, limit) / unit
        if prices == before:
            break
    return prices


def _price(losses: Sequence[Sequence[int]], costs: Sequence[Sequence[int]], limit: int) -> Fraction:
    """Least price of one cost at which the cheapest options of all groups keep ``limit``."""
    lost = [[loss - min(row) for loss in row] for row in losses]
    size, most = (max([1, *(abs(x) for row in rows for x in row)]) for rows in (lost, costs))
    groups = [
        [(loss / size, cost / most, cost) for loss, cost in zip(*rows, strict=True)]
        for rows in zip(lost, costs, strict=True)
    ]
    slopes = {
        (b[0] - a[0]) / (a[1] - b[1])
        for group in groups
        for a, b in permutations(group, 2)
        if b[1] < a[1] and b[0] > a[0]
    }
    rising = sorted({0.0, *slopes})

    def spent(price: float) -> int:
        return sum(
            min((loss + price * part, cost) for loss, part, cost in row)[1] for row in groups
        )

    place = bisect_left(rising, -limit, key=lambda price: -spent(price))
    return Fraction(rising[min(place, len(rising) - 1)]) * Fraction(size, most)


def _relaxed_prices(
    groups: Groups, limits: Sequence[int], guess: Sequence[Fraction]
) -> list[Fraction]:
    """Prices of the linear relaxation: one at a time, they may stop short of the best bound."""
    import numpy as np  # SciPy only where something is hard
    from scipy.optimize import linprog

    size = _value([max(1, abs(limit)) for limit in limits], guess) / len(groups) or Fraction(1)
    options = [option for group in groups for option in group]
    costs = [[option.cost[k] for option in options] for k in range(len(limits))]
    scale = [max([1, abs(limit), *map(abs, row)]) for row, limit in zip(costs, limits, strict=True)]
    lost = [(o.loss - min(other.loss for other in group)) / size for group in groups for o in group]
    one_each = np.zeros((len(groups), len(lost)))
    ends = np.cumsum([len(group) for group in groups])
    for row, group, end in zip(one_each, groups, ends, strict=True):
        row[end - len(group) : end] = 1
    result = linprog(
        [float(min(loss, Fraction(CLIPPED))) for loss in lost],
        A_ub=[[cost / most for cost in row] for row, most in zip(costs, scale, strict=True)],
        b_ub=[limit / most for limit, most in zip(limits, scale, strict=True)],
        A_eq=one_each,
        b_eq=np.ones(len(groups)),
        method="highs",
    )
    if result.x is None:
        return list(guess)
    prices = np.maximum(0, -result.ineqlin.marginals)
    return [Fraction(float(x)) * size / most for x, most in zip(prices, scale, strict=True)]
