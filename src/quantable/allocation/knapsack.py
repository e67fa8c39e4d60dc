r"""Multiple-choice knapsack: one option for every layer, least loss within budgets, solved exactly.

.. math:: \min \sum_l \Omega_l(b_l) \quad \text{s.t.} \quad \sum_l c_{kl}(b_l) \le C_k

All numbers are the rationals that their floats stand for, so that no spread of the losses hides a
small one. Of policies of equal loss, that which spends least of the first budget is chosen, then of
the second and so on; then the one with more bits in the first layer where they differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quantable.allocation.exact import Option, solve
from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown

Numbers = Mapping[str, Mapping[Bits, float]]  # layer -> bit-widths -> number

OPTIMAL, NOT_PROVED = "Optimal", "Not proved to be optimal"
ROUNDING = Fraction(1, 10**12)  # of a limit: what sums of floats that are not whole may be off


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of costs: MACs x bits, bit operations, bytes, energy or milliseconds.

    Sums of whole costs keep it exactly, others up to ``ROUNDING``.
    """

    name: str
    unit: str
    cost: Numbers
    limit: float

    def spent(self, bits: Mapping[str, Bits]) -> float:
        """What a policy costs."""
        return float(self._sum(bits))

    def keeps(self, bits: Mapping[str, Bits]) -> bool:
        """Whether a policy is within the limit."""
        return self._sum(bits) <= self.most

    def _sum(self, bits: Mapping[str, Bits]) -> Fraction:
        return sum((Fraction(self.cost[name][b]) for name, b in bits.items()), Fraction(0))

    @property
    def most(self) -> Fraction:
        """The greatest sum of costs that keeps the limit."""
        whole = all(float(cost).is_integer() for of in self.cost.values() for cost in of.values())
        limit = Fraction(self.limit)
        return limit if whole else limit + ROUNDING * abs(limit)


@dataclass(frozen=True)
class Allocation:
    """A policy, its loss, what it spends of each budget, and whether it is proved to be best."""

    bits: dict[str, Bits]
    loss: float
    spent: dict[str, float]
    bound: float  # no policy within the budgets has a smaller loss
    status: str

    @property
    def gap(self) -> float:
        """Loss above the bound."""
        return self.loss - self.bound


def allocate(
    loss: Numbers, budgets: Sequence[Budget], ties: Sequence[Sequence[str]] = ()
) -> Allocation:
    """Choose bit-widths for every layer of ``loss``; tied layers get the same ones.

    An infinite loss forbids an option.
    Raises UserError where a loss, cost or limit is no number, a budget lacks a layer or option, a
    tie names no layer, or no policy meets the budgets: then with the least that is feasible for
    each budget alone.
    """
    check_losses(loss)
    for budget in budgets:
        _check_budget(budget)
    groups = _groups(loss, ties)
    options = [_options(group, loss, budgets) for group in groups]

    def totals(numbers: Numbers) -> list[list[Fraction]]:
        return [
            [sum((Fraction(numbers[name][bits]) for name in group), Fraction(0)) for bits in found]
            for group, found in zip(groups, options, strict=True)
        ]

    losses, unit = _whole(totals(loss))
    costs = [_whole(totals(budget.cost)) for budget in budgets]
    solution = solve(
        [
            [Option(row[0], row[1:]) for row in zip(*rows, strict=True)]
            for rows in zip(losses, *(cost for cost, _ in costs), strict=True)
        ],
        [math.floor(b.most / size) for b, (_, size) in zip(budgets, costs, strict=True)],
    )
    if solution.picks is None or solution.loss is None or solution.bound is None:
        raise _infeasible(budgets, groups, options, proved=solution.bound is None)
    widths = {
        name: found[pick]
        for group, found, pick in zip(groups, options, solution.picks, strict=True)
        for name in group
    }
    bits = {name: widths[name] for name in loss}
    return Allocation(
        bits=bits,
        loss=float(solution.loss * unit),
        spent={budget.name: budget.spent(bits) for budget in budgets},
        bound=float(solution.bound * unit),
        status=OPTIMAL if solution.bound == solution.loss else NOT_PROVED,
    )


def check_losses(loss: Numbers) -> None:
    """Raise where a loss is NaN, or one that no sum can hold."""
    for name, options in loss.items():
        for bits, value in options.items():
            if math.isnan(value) or value == -math.inf:
                raise UserError(f"loss of layer '{name}' at {_words(bits)}: {value} is no number")


def _check_budget(budget: Budget) -> None:
    for name, options in budget.cost.items():
        for bits, value in options.items():
            if not math.isfinite(value):
                raise UserError(
                    f"budget {budget.name}: cost of layer '{name}' at {_words(bits)}: "
                    f"{value} is no number"
                )
    if not math.isfinite(budget.limit):
        raise UserError(f"budget {budget.name}: limit: {budget.limit} is no number")


def _words(bits: Bits) -> str:
    return f"{bits.weight}/{bits.act} bits"


def _whole(numbers: Sequence[Sequence[Fraction]]) -> tuple[list[list[int]], Fraction]:
    """Whole numbers without a common divisor, and the unit they are counts of.

    >>> _whole([[Fraction(3, 2)], [Fraction(3), Fraction(0)]])
    ([[1], [2, 0]], Fraction(3, 2))
    """
    flat = [number for row in numbers for number in row]
    parts = math.lcm(*(number.denominator for number in flat))
    unit = Fraction(math.gcd(*(int(number * parts) for number in flat)) or 1, parts)
    return [[int(number / unit) for number in row] for row in numbers], unit


def _groups(loss: Numbers, ties: Sequence[Sequence[str]]) -> list[list[str]]:
    """Layers that are decided together, each in one group, in the order of ``loss``."""
    groups = {name: [name] for name in loss}
    for tie in ties:
        for name in tie:
            if name not in loss:
                raise unknown("layer", name, loss, "ties")
        united = [other for name in tie for other in groups[name]]
        united = list(dict.fromkeys(united))
        for name in united:
            groups[name] = united
    return list({id(group): group for group in groups.values()}.values())


def _options(group: Sequence[str], loss: Numbers, budgets: Sequence[Budget]) -> list[Bits]:
    """Bit-widths that every layer of a group may have, most bits first."""
    options = [
        bits
        for bits in sorted(loss[group[0]], key=lambda b: (-b.weight - b.act, -b.weight))
        if all(loss[name].get(bits, math.inf) < math.inf for name in group)
    ]
    if not options:
        raise UserError(f"ties: {', '.join(group)} have no bit-widths in common")
    for budget in budgets:
        for name in group:
            if missing := [b for b in options if b not in budget.cost.get(name, {})]:
                raise UserError(f"budget {budget.name}: no cost of layer '{name}' at {missing[0]}")
    return options


def _infeasible(
    budgets: Sequence[Budget],
    groups: Sequence[Sequence[str]],
    options: Sequence[Sequence[Bits]],
    *,
    proved: bool,
) -> UserError:
    least = [
        sum(
            min(sum(budget.cost[name][bits] for name in group) for bits in found)
            for group, found in zip(groups, options, strict=True)
        )
        for budget in budgets
    ]
    words = [
        f"{budget.name} at most {budget.limit:g} {budget.unit}, the least is {low:g} {budget.unit}"
        for budget, low in zip(budgets, least, strict=True)
    ]
    none = "no bit-widths meet the budgets" if proved else "found no bit-widths within the budgets"
    return UserError(f"{none}: {'; '.join(words)}")
