r"""Multiple-choice knapsack: one option for every layer, least loss within budgets, solved exactly.

.. math:: \min \sum_l \Omega_l(b_l) \quad \text{s.t.} \quad \sum_l c_{kl}(b_l) \le C_k

Solved as an integer linear program by HiGHS through SciPy, with a relative gap of 0: at the default
gap (1e-4) the optimum of a published program is missed by several bits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown

Numbers = Mapping[str, Mapping[Bits, float]]  # layer -> bit-widths -> number


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of costs: MACs x bits, bit operations, bytes, energy or milliseconds."""

    name: str
    unit: str
    cost: Numbers
    limit: float


@dataclass(frozen=True)
class Allocation:
    """A policy, its loss, what it spends of each budget, and how sure the solver is."""

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
    Raises UserError where a budget lacks a layer or option, a tie names no layer, or no policy
    meets the budgets: then with the least that is feasible for each budget alone.
    """
    import numpy as np  # SciPy only where something is solved
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups = _groups(loss, ties)
    options = [_options(group, loss, budgets) for group in groups]
    chosen = [(g, bits) for g, found in enumerate(options) for bits in found]

    def totals(numbers: Numbers) -> list[float]:
        return [sum(numbers[name][bits] for name in groups[g]) for g, bits in chosen]

    one_each = np.zeros((len(groups), len(chosen)))
    for column, (g, _) in enumerate(chosen):
        one_each[g, column] = 1
    constraints = [LinearConstraint(one_each, 1, 1)]
    for budget in budgets:
        row, limit = _scaled(totals(budget.cost), budget.limit)
        constraints.append(LinearConstraint([row], -np.inf, limit))
    objective = np.array(totals(loss))
    scale = float(np.abs(objective).max()) or 1.0
    result = milp(
        objective / scale,
        integrality=np.ones(len(chosen)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0},
    )
    if result.x is None:
        raise _infeasible(budgets, groups, options)
    picks = [pair for pair, taken in zip(chosen, result.x, strict=True) if taken > 0.5]
    bits = {name: width for g, width in picks for name in groups[g]}
    return Allocation(
        bits={name: bits[name] for name in loss},
        loss=sum(loss[name][bits[name]] for name in loss),
        spent={b.name: sum(b.cost[name][bits[name]] for name in loss) for b in budgets},
        bound=float(result.mip_dual_bound) * scale,
        status=str(result.message),
    )


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
    """Bit-widths that every layer of a group may have."""
    options = [
        bits
        for bits in loss[group[0]]
        if all(loss[name].get(bits, math.inf) < math.inf for name in group)
    ]
    if not options:
        raise UserError(f"ties: {', '.join(group)} have no bit-widths in common")
    for budget in budgets:
        for name in group:
            if missing := [b for b in options if b not in budget.cost.get(name, {})]:
                raise UserError(f"budget {budget.name}: no cost of layer '{name}' at {missing[0]}")
    return options


def _scaled(costs: Sequence[float], limit: float) -> tuple[list[float], float]:
    """Whole numbers without a common divisor where the costs are whole; else divided by the limit.

    The solver accepts violations of about 1e-6, which is less than one unit of whole numbers.
    """
    if all(float(cost).is_integer() for cost in costs):
        unit = math.gcd(*(int(cost) for cost in costs)) or 1
        return [int(cost) // unit for cost in costs], float(Fraction(limit) // unit)
    size = abs(limit) or 1.0
    return [cost / size for cost in costs], limit / size


def _infeasible(
    budgets: Sequence[Budget], groups: Sequence[Sequence[str]], options: Sequence[Sequence[Bits]]
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
    return UserError(f"no bit-widths meet the budgets: {'; '.join(words)}")
