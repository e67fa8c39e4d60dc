"""Accuracy against memory, published and ours on one picture: a convex hull for each series."""

from collections.abc import Iterator, Sequence

from quantable.report.figures import frontier
from quantable.report.reporter import Reporter
from quantable.report.shapes import Place, Plot, Point
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Plot | str]]:
    """The frontier's points with hulls, in which doubtful ones have no part."""
    yield from frontier.describe(reporter, name, asked, hull)


def hull(points: Sequence[Point]) -> list[Place]:
    """Places on the upper convex hull of accuracy over memory, up to the best accuracy.

    >>> hull([Point("", "", x, y) for x, y in [(1, 50), (2, 51), (3, 60), (4, 62), (5, 61)]])
    [(1, 50), (3, 60), (4, 62)]
    """
    kept: list[Place] = []
    for at in sorted(((p.x, p.y) for p in points), key=lambda at: (at[0], -at[1])):
        if kept and at[1] <= kept[-1][1]:
            continue  # larger and no better
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-1], at):
            kept.pop()
        kept.append(at)
    return kept


def _slope(a: Place, b: Place) -> float:
    return (b[1] - a[1]) / (b[0] - a[0]) if b[0] > a[0] else 0.0
