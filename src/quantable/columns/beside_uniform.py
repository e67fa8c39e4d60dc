"""The column that sets a row beside uniform bits of the same size, which the row names."""

from quantable.columns.accuracy import COLUMNS as ACCURACY
from quantable.columns.facts import Column, Facts
from quantable.columns.size import COLUMNS as SIZE

Place = tuple[float, float]  # mean bits over weights, top-1


def _place(facts: Facts) -> Place | None:
    bits, top1 = SIZE["mean_bits_by_weights"].value(facts), ACCURACY["top1_pct"].value(facts)
    return None if bits is None or top1 is None else (bits, top1)


def _gap(facts: Facts) -> float | None:
    """The row's accuracy minus uniform bits' of its seed; of two rows, on the line through them."""
    own, others = _place(facts), [_place(one) for one in facts.uniform]
    known = [one for one in others if one is not None]
    if own is None or not known or len(known) < len(others):
        return None
    return own[1] - height(own[0], *known)


def height(x: float, first: Place, second: Place | None = None) -> float:
    """Height of a point, or at ``x`` of the straight line through two.

    >>> height(2.75, (3.0, 80.0)), height(2.75, (3.0, 80.0), (2.0, 60.0))
    (80.0, 75.0)
    """
    if second is None:
        return first[1]
    share = (x - first[0]) / (second[0] - first[0])
    return first[1] + share * (second[1] - first[1])


COLUMNS = {"uniform_gap_pp": Column("gap to uniform bits", "pp", 2, True, _gap)}
