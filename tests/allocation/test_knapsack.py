"""The allocator against brute force and a dynamic program (test_program.py: published programs)."""

import itertools
import math
import random

import pytest

from quantable.allocation.knapsack import Budget, allocate
from quantable.base.bits import Bits
from quantable.base.errors import UserError

FOUR, EIGHT = Bits(4, 4), Bits(8, 8)


def brute_force(loss: dict, budgets: list[Budget]) -> float | None:
    """Least loss of all policies within the budgets; None where there is none."""
    names = list(loss)
    found = []
    for choice in itertools.product(*(loss[name] for name in names)):
        policy = list(zip(names, choice, strict=True))
        if all(sum(b.cost[n][bits] for n, bits in policy) <= b.limit for b in budgets):
            found.append(math.fsum(loss[n][bits] for n, bits in policy))
    return min(found, default=None)


def instance(seed: int) -> tuple[dict, list[Budget]]:
    """A random program: whole losses make ties, some costs are zero, some budgets too small."""
    draw = random.Random(seed)
    names = [f"layer{i}" for i in range(draw.randint(1, 6))]
    options = [Bits(b, b) for b in draw.sample([2, 3, 4, 6, 8], draw.randint(1, 4))]
    loss = {n: {b: float(draw.randint(0, 5)) for b in options} for n in names}
    budgets = []
    for k in range(draw.randint(1, 3)):
        cost = {n: {b: draw.choice([0.0, draw.randint(0, 40)]) for b in options} for n in names}
        most = sum(max(cost[n].values()) for n in names)
        budgets.append(Budget(f"budget{k}", "unit", cost, limit=draw.uniform(-0.1, 1) * most))
    return loss, budgets


@pytest.mark.parametrize("seed", range(300))
def test_the_optimum_is_that_of_brute_force(seed: int) -> None:
    loss, budgets = instance(seed)
    expected = brute_force(loss, budgets)
    if expected is None:
        with pytest.raises(UserError, match="no bit-widths meet the budgets"):
            allocate(loss, budgets)
        return
    found = allocate(loss, budgets)
    assert found.loss == pytest.approx(expected, abs=1e-9)
    assert found.gap == pytest.approx(0, abs=1e-6)
    for budget in budgets:
        spent = sum(budget.cost[name][bits] for name, bits in found.bits.items())
        assert spent == found.spent[budget.name] <= budget.limit + 1e-9


def test_instances_have_every_kind() -> None:
    found = [brute_force(*instance(seed)) for seed in range(300)]
    assert 20 < sum(loss is None for loss in found) < 200
    assert any(len(instance(seed)[1]) == 3 for seed in range(300))


def dynamic_program(gains: list[float], costs: list[int], limit: int) -> float:
    """Greatest gain of a 0-1 knapsack with whole costs (Bellman)."""
    best = [0.0] * (limit + 1)
    for gain, cost in zip(gains, costs, strict=True):
        for room in range(limit, cost - 1, -1):
            best[room] = max(best[room], best[room - cost] + gain)
    return best[limit]


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.9])
def test_a_large_knapsack_equals_the_dynamic_program(share: float) -> None:
    draw = random.Random(7)
    costs = [draw.randint(1, 40) for _ in range(99)]
    gains = [draw.random() for _ in costs]
    limit = int(share * sum(costs))
    loss = {f"l{i}": {FOUR: gain, EIGHT: 0.0} for i, gain in enumerate(gains)}
    cost = {f"l{i}": {FOUR: 0.0, EIGHT: float(c)} for i, c in enumerate(costs)}
    found = allocate(loss, [Budget("size", "unit", cost, limit)])
    assert math.fsum(gains) - found.loss == pytest.approx(dynamic_program(gains, costs, limit))


def test_tied_layers_get_equal_widths() -> None:
    loss = {name: {FOUR: at_4, EIGHT: 0.0} for name, at_4 in (("a", 3.0), ("b", 1.0), ("c", 2.5))}
    cost = {name: {FOUR: 1.0, EIGHT: 2.0} for name in loss}
    budget = Budget("size", "byte", cost, limit=5)  # two of the three may have 8 bit
    assert list(allocate(loss, [budget]).bits.values()) == [EIGHT, FOUR, EIGHT]
    assert list(allocate(loss, [budget], [["b", "c"]]).bits.values()) == [FOUR, EIGHT, EIGHT]


def test_an_infinite_loss_forbids_an_option() -> None:
    loss = {"a": {FOUR: math.inf, EIGHT: 5.0}}
    cost = {"a": {FOUR: 1.0, EIGHT: 2.0}}
    assert allocate(loss, [Budget("size", "byte", cost, limit=2)]).bits == {"a": EIGHT}


def test_errors_name_what_is_wrong() -> None:
    loss = {"conv1": {FOUR: 1.0, EIGHT: 0.0}}
    cost = {"conv1": {FOUR: 4.0, EIGHT: 8.0}}
    with pytest.raises(UserError, match="size at most 3 byte, the least is 4 byte"):
        allocate(loss, [Budget("size", "byte", cost, limit=3)])
    with pytest.raises(UserError, match=r"'conv2'.*conv1"):
        allocate(loss, [Budget("size", "byte", cost, limit=8)], ties=[["conv1", "conv2"]])
    with pytest.raises(UserError, match="no cost of layer 'conv1'"):
        allocate(loss, [Budget("size", "byte", {"conv1": {FOUR: 4.0}}, limit=8)])
