"""Columns of selecting layers for fewer bits: what a search took, and what its choice costs."""

from collections.abc import Callable

from quantable.columns.facts import Column, Facts, Value
from quantable.cost.costs import COSTS
from quantable.networks.layers import uniform
from quantable.store.record import Scores


def _searched(number: Callable[[Scores], float]) -> Value:
    """Make a column's function of what a search took."""

    def value(facts: Facts) -> float | None:
        if facts.record is None or facts.record.scores is None:
            return None
        return number(facts.record.scores)

    return value


def _of_4bit(name: str) -> Value:
    """Make a column's function of the inner layers' cost over that with every width at 4 bit."""

    def share(facts: Facts) -> float | None:
        if facts.now is None or facts.bits is None:
            return None
        inner = facts.now[1:-1]  # the first and the last layer are no subject of a selection
        if not inner:
            return None
        model, hw = COSTS[name].of, facts.hardware
        return 100 * model(inner, facts.bits, hw) / model(inner, uniform(inner, 4), hw)

    return share


COLUMNS = {
    "search_seconds": Column("search time", "s", 2, True, _searched(lambda s: s.seconds)),
    "search_images": Column("images searched", "1", 0, True, _searched(lambda s: s.images)),
    "search_epochs": Column("epochs searched", "1", 0, True, _searched(lambda s: s.epochs)),
    "compute_of_4bit": Column("compute of 4 bit's", "%", 1, False, _of_4bit("linear")),
    "bops_of_4bit": Column("BOPs of 4 bit's", "%", 1, False, _of_4bit("bops")),
}
