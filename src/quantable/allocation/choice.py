"""From a finished search to bit-widths: its scores, budgets and layer shapes to a bits file.

A training that finds bit-widths itself ends in one too (``learned``).

Budgets are shares of what the searched layers cost before the search; layers outside it (the first,
the last, exceptions by name) keep their bits and are counted on neither side.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from quantable.allocation.knapsack import Budget, allocate, check_losses
from quantable.base.bits import Bits, bit_map
from quantable.base.errors import UserError, unknown
from quantable.cost.costs import COSTS, Shapes
from quantable.cost.hardware import Hardware
from quantable.store.bits_file import BitsFile, Choice, Spent, network_name
from quantable.store.record import Item, Record, Scores


def choose(
    record: Record,
    shapes: Shapes,
    budgets: Mapping[str, float],
    hardware: Hardware,
    config: Mapping[str, Any],
) -> BitsFile:
    """Choose bits for every item of the search ``record`` within ``budgets`` (shares by cost).

    ``config`` is of the run that will have them: its other layers get the bits it says.
    A rule that chooses itself has chosen, and takes no budgets.
    Raises UserError where nothing meets the budgets, with what is feasible.
    """
    scores, start = record.scores, record.config["start"]
    if scores is None:
        raise UserError(f"record {record.name}: row '{record.row}' is no search")
    if scores.why_nothing is not None:
        raise UserError(f"search {record.name}: {scores.why_nothing}")
    _check_budgets(scores, budgets)
    by_name = {shape.name: shape for shape in shapes}
    for item in scores.items:
        for name in item.layers:
            if name not in by_name:
                raise unknown("layer", name, by_name, f"record {record.name}: scores")
    options = [pair_of(key) for key in scores.items[0].loss]
    high = Bits(*config["bits"]["inner"]) if scores.chooses else options[0]
    searched = [by_name[name] for item in scores.items for name in item.layers]
    limits = {
        name: _limit(share, COSTS[name].of(searched, _all(searched, high), hardware))
        for name, share in budgets.items()
    }
    costs = {
        name: {
            layer.name: {
                bits: COSTS[name].of([layer], {layer.name: bits}, hardware) for bits in options
            }
            for layer in searched
        }
        for name in budgets
    }
    limited = [Budget(name, COSTS[name].unit, costs[name], limits[name]) for name in budgets]
    select = _taken if scores.chooses else _go_down if scores.greedy else _solve
    bits, objective, bound, solver = select(scores, limited)
    others = bit_map(
        by_name,
        inner=high,
        ends=Bits(*config["bits"]["ends"]) if config["bits"]["ends"] else None,
        layers={name: Bits(*pair) for name, pair in config["bits"]["layers"].items()},
    )
    return BitsFile(
        network=network_name(config["model"]),
        source=f"{scores.rule} (search {record.name}, {record.provenance.commit[:12]})",
        layers={name: (b.weight, b.act) for name, b in (others | bits).items()},
        accumulator=config["bits"]["accumulator"],
        choice=Choice(
            rule=scores.rule,
            run=record.signature,
            start=start,
            loss={"+".join(item.layers): counted(item) for item in scores.items},
            budgets={
                budget.name: Spent(unit=budget.unit, limit=budget.limit, spent=budget.spent(bits))
                for budget in limited
            },
            solver=solver,
            objective=objective,
            bound=bound,
        ),
    )


def _check_budgets(scores: Scores, budgets: Mapping[str, float]) -> None:
    if scores.chooses and budgets:
        raise UserError(f"chosen.budgets: {scores.rule} chooses itself, and takes none")
    if not scores.chooses and not budgets:
        raise UserError(f"chosen.budgets: {scores.rule} needs one at least, such as linear: 0.8")


def learned(record: Record, config: Mapping[str, Any]) -> BitsFile:
    """The bit-widths that a training has found: of the ``record`` of a run with this ``config``."""
    method = config["quantizer"]["looks"]["short"]
    return BitsFile(
        network=network_name(config["model"]),
        source=f"{method} (run {record.name}, {record.provenance.commit[:12]})",
        layers=record.phases[-1].bits,
    )


def word_of(bits: Bits) -> str:
    """Key of a choice in the scores.

    >>> word_of(Bits(4, 8)), pair_of("4/8")
    ('4/8', Bits(weight=4, act=8))
    """
    return f"{bits.weight}/{bits.act}"


def pair_of(word: str) -> Bits:
    """Undo ``word_of``."""
    weight, _, act = word.partition("/")
    return Bits(int(weight), int(act))


def _all(layers: Shapes, bits: Bits) -> dict[str, Bits]:
    return {layer.name: bits for layer in layers}


def _limit(share: float, whole: float) -> float:
    """Return ``share``, as written (0.8 is 4/5), of ``whole``; of a whole number a whole one."""
    exact = Fraction(str(share)) * Fraction(whole)
    return float(int(exact) if float(whole).is_integer() else exact)


def counted(item: Item) -> dict[str, float]:
    """Losses of an item as a selection adds them up: an estimate's is at least its standard error.

    What cannot be told from 0, or came out below it, may lose as much as its error.

    >>> counted(Item(layers=["fc"], loss={"4/4": 0.0, "2/2": -1.5}, error={"2/2": 7.3}))
    {'4/4': 0.0, '2/2': 7.3}
    """
    return {word: max(loss, item.error.get(word, loss)) for word, loss in item.loss.items()}


Found = tuple[dict[str, Bits], float, float | None, str]


def _solve(scores: Scores, budgets: Sequence[Budget]) -> Found:
    """Least sum of losses; the loss of an item is that of its first layer, the others add none."""
    loss = {
        name: {pair_of(word): value if i == 0 else 0.0 for word, value in counted(item).items()}
        for item in scores.items
        for i, name in enumerate(item.layers)
    }
    found = allocate(loss, budgets, ties=[item.layers for item in scores.items])
    return found.bits, found.loss, found.bound, found.status


def _taken(scores: Scores, budgets: Sequence[Budget]) -> Found:
    """What the rule has taken, with the sum of losses that it saw."""
    del budgets
    bits = {name: pair_of(str(item.taken)) for item in scores.items for name in item.layers}
    return bits, sum(item.loss[str(item.taken)] for item in scores.items), None, "by the rule"


def _go_down(scores: Scores, budgets: Sequence[Budget]) -> Found:
    """Items go to fewer bits, that of the smallest loss first, until every budget is met."""
    high, low = (pair_of(word) for word in scores.items[0].loss)
    check_losses({item.layers[0]: {low: item.loss[word_of(low)]} for item in scores.items})
    bits = {name: high for item in scores.items for name in item.layers}

    def over() -> list[str]:
        return [budget.name for budget in budgets if not budget.keeps(bits)]

    spent = 0.0
    for item in sorted(scores.items, key=lambda item: item.loss[word_of(low)]):
        if not over():
            break
        bits |= dict.fromkeys(item.layers, low)
        spent += item.loss[word_of(low)]
    if left := over():
        raise UserError(f"budget {left[0]}: not even every item at {word_of(low)} bits meets it")
    return bits, spent, None, "in order, until the budgets were met"
