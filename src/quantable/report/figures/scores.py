"""What a search measured: a bar for each item in execution order."""

from collections.abc import Iterator

from quantable.config.schema import Looks
from quantable.report.history import first_runs
from quantable.report.looks import looks_of
from quantable.report.reporter import Reporter
from quantable.report.shapes import Bars
from quantable.store.record import Record, Scores
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Bars | str]]:
    """A figure for each search with a record."""
    del asked
    for run, record in first_runs(reporter).items():
        if record.scores is None:
            continue
        if record.scores.why_nothing is not None:
            yield f"{name}_{run}", record.scores.why_nothing
        else:
            yield f"{name}_{run}", bars(record, record.scores, looks_of(reporter, run))


def bars(record: Record, scores: Scores, looks: Looks) -> Bars:
    """What each item alone loses at low bits, or with the bits that the rule has taken.

    Of a rule that only orders the items, the place in its order; the smallest goes down first.
    """
    high, low = next(iter(scores.items[0].loss)), list(scores.items[0].loss)[-1]
    if scores.chooses:
        words = "loss with the bits that were taken"
    elif scores.greedy:
        words = f"from {high} to {low} bit (weight/activation) in this order"
    else:
        words = f"loss at {low} bit (weight/activation) against {high}"
    axis = words if scores.unit == "1" else f"{words} [{scores.unit}]"
    found = {" + ".join(item.layers): item.loss[item.taken or low] for item in scores.items}
    note = "Items in execution order; the first seed's."
    return Bars(f"Scores: {looks.short}", note, found, axis, looks, [record])
