"""Accuracy against a cost: a line through each series' points, and what nothing beats.

A table's entry names the costs (``x``), a panel each, and may name the row of a search (``base``)
whose accuracy at the same budget is subtracted in one more panel.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from quantable.columns import COLUMNS
from quantable.config.schema import Looks
from quantable.report.looks import in_float, looks_of
from quantable.report.render import heading, number, origin
from quantable.report.reporter import Reporter
from quantable.report.shapes import (
    Axis,
    Level,
    Panel,
    Place,
    Plot,
    Point,
    Series,
    asks_for_log,
    without_shared,
)
from quantable.store.record import Record
from quantable.tables.schema import Figure

Budget = tuple[tuple[str, float], ...]  # shares by cost


@dataclass(frozen=True)
class Spot:
    """A row with a place: its series, its point, and where it comes from."""

    looks: Looks
    point: Point
    n: int = 1  # seeds
    ours: bool = True
    budget: Budget = ()  # what a search could spend


def describe(
    reporter: Reporter, name: str, asked: Figure, join: "Join | None" = None
) -> Iterator[tuple[str, Plot | str]]:
    """A panel for each cost that rows have; float is a line across, as its cost is far away."""
    panels: list[Panel] = []
    shown: list[str] = []
    for x in asked.x:
        panel, spots = described_panel(reporter, x, asked.y, join or all_points)
        if len(spots) + len(panel.levels) < 2 or not spots:
            continue
        shown.append(x)
        panels.append(panel)
        if asked.base is not None and len(shown) == 1:
            panels += difference(panel, spots, looks_of(reporter, asked.base))
    if not panels:
        costs = " or ".join(COLUMNS[x].title for x in asked.x)
        yield name, f"fewer than two rows have both {COLUMNS[asked.y].title} and {costs}"
        return
    title = f"{heading(asked.y)} against {' and '.join(map(heading, shown))}"
    yield (
        name,
        Plot(
            title[0].upper() + title[1:],
            f"{towards(shown)} {said_below(panels, hulls=join is not None)}".rstrip(),
            panels,
            records_behind(reporter, asked.y),
        ),
    )


def towards(columns: Sequence[str]) -> str:
    """Say which corner is better: of what is saved, such as a compression, more is.

    >>> towards(["bops_g"]), towards(["weight_compression"])
    ('Up and to the left is better.', 'Up and to the right is better.')
    """
    sides = {"right" if is_saving(column) else "left" for column in columns}
    return f"Up and to the {sides.pop()} is better." if len(sides) == 1 else "Up is better."


def is_saving(column: str) -> bool:
    """Whether a column says how many times less there is than before."""
    return COLUMNS[column].unit == "x"


def said_below(panels: Sequence[Panel], *, hulls: bool = False) -> str:
    """What a reader must know of the marks that are there."""
    series = [one for panel in panels for one in panel.series]
    points = [point for one in series for point in one.points]
    words = ["Lines: convex hulls."] * hulls
    if any(panel.best for panel in panels):
        words.append("Dashed steps join what nothing beats.")
    if any(one.small for one in series):
        words.append("Small marks: published.")
    if any(point.hollow for point in points):
        words.append("Hollow: doubtful or not seen in print, in no line.")
    if any(point.y_std for point in points):
        words.append("Bars: standard deviation over seeds.")
    if any(one.aside for one in series):
        words.append("Marks at about the same cost stand side by side.")
    return " ".join(words)


def records_behind(reporter: Reporter, column: str) -> list[Record]:
    """Records that the asked rows' numbers rest on."""
    rows = reporter.asked.chosen_rows(reporter.table)
    found = (facts.record for row in rows for facts, _ in reporter.known(row, column))
    return list({record.name: record for record in found if record is not None}.values())


def described_panel(reporter: Reporter, x: str, y: str, join: "Join") -> tuple[Panel, list[Spot]]:
    """One cost's panel, and the rows in it."""
    rows = reporter.asked.chosen_rows(reporter.table)
    floats = [row for row in rows if in_float(reporter, row)]
    found = [s for row in rows if row not in floats and (s := spot(reporter, row, x, y))]
    spots = counted(merged(found))
    levels = [level for row in floats if (level := _level(reporter, row, y))]
    axis = Axis(heading(x), log=asks_for_log([s.point.x for s in spots]))
    searched = len({s.looks.short for s in spots if s.budget}) > 1
    stepless = join is not all_points or searched or is_saving(x)
    best = () if stepless else frontier([s.point for s in spots])
    series = series_from(spots, join)
    return Panel(axis, Axis(heading(y)), series, levels, best), spots


def spot(reporter: Reporter, row: str, x: str, y: str) -> Spot | None:
    """A row's place: by its own runs, or by what is published where it has none."""
    about, looks = reporter.table.rows[row], looks_of(reporter, row)
    budget = tuple(sorted(about.chosen.budgets.items())) if about.chosen is not None else ()
    ours, cost = reporter.measured(row, y), reporter.measured(row, x)
    if ours is not None:
        # over the seeds that have both: each seed's search has chosen its own bits
        costs = [
            c for facts, _ in reporter.known(row, y) if (c := COLUMNS[x].value(facts)) is not None
        ]
        if not costs:
            return None
        stds = (stdev(costs) if len(costs) > 1 else 0.0, ours.std or 0.0)
        point = Point(about.label, "", fmean(costs), ours.mean, *stds)
        return Spot(looks, _with_tip(point, x, y, origin(ours)), ours.n, budget=budget)
    said, priced = about.published.get(y), about.published.get(x)
    at = cost.mean if cost is not None else priced.value if priced is not None else None
    if said is None or said.value is None or at is None:
        return None
    point = Point(about.label, "", at, said.value, 0.0, said.std or 0.0, hollow=not said.counts)
    return Spot(looks, _with_tip(point, x, y, "published"), said.n or 1, ours=False)


def _with_tip(point: Point, x: str, y: str, source: str) -> Point:
    words = f"{_with_unit(point.y, y)}, {_with_unit(point.x, x)}"
    return replace(point, tip=f"{point.label}\n{words}\n{source}")


def _with_unit(value: float, column: str) -> str:
    about = COLUMNS[column]
    unit = "" if about.unit == "1" else f" {about.unit}"
    return f"{about.title} {number(value, about.decimals)}{unit}"


def _level(reporter: Reporter, row: str, y: str) -> Level | None:
    """Float's number: ours, or the published one."""
    about, ours = reporter.table.rows[row], reporter.measured(row, y)
    said = about.published.get(y)
    value = ours.mean if ours is not None else said.value if said is not None else None
    if value is None:
        return None
    std = (ours.std or 0.0) if ours is not None else 0.0
    label = f"{about.label} {number(value, COLUMNS[y].decimals)}"
    source = origin(ours) if ours is not None else "published"
    return Level(label, f"{label}\n{source}", value, looks_of(reporter, row), std)


def merged(spots: Sequence[Spot]) -> list[Spot]:
    """Rows of one series with the same numbers are one point of several names."""
    found: dict[tuple[str, bool, float, float], Spot] = {}
    for one in spots:
        key = (one.looks.short, one.ours, one.point.x, one.point.y)
        if key in found:
            label = f"{found[key].point.label} = {one.point.label}"
            tip = f"{label}\n{one.point.tip.partition(chr(10))[2]}"
            one = replace(one, point=replace(one.point, label=label, tip=tip))
        found[key] = one
    return list(found.values())


def counted(spots: Sequence[Spot]) -> list[Spot]:
    """Add the number of seeds to names where others have more."""
    most = max((one.n for one in spots if one.ours), default=1)
    return [
        replace(one, point=replace(one.point, label=f"{one.point.label} (n={one.n})"))
        if one.ours and one.n < most
        else one
        for one in spots
    ]


Join = Callable[[Sequence[Point]], list[Place]]


def all_points(points: Sequence[Point]) -> list[Place]:
    """Places of all points, by rising cost."""
    return sorted((point.x, point.y) for point in points)


def series_from(spots: Sequence[Spot], join: Join) -> list[Series]:
    """Spots of one look as a series; published ones, which are drawn small, apart from ours."""
    groups: dict[tuple[str, bool], list[Spot]] = {}
    for one in spots:
        groups.setdefault((one.looks.short, one.ours), []).append(one)
    short = dict(zip(spots, without_shared([s.point.label for s in spots]), strict=True))
    found = []
    for (name, ours), own in groups.items():
        labels = without_shared([short[one] for one in own])
        points = [replace(s.point, label=label) for s, label in zip(own, labels, strict=True)]
        line = join([point for point in points if not point.hollow])
        searched = bool(own[0].budget)
        found.append(Series(name, own[0].looks, points, line, small=not ours, aside=searched))
    return found


def frontier(points: Sequence[Point]) -> list[Place]:
    """Places that no other beats in both cost and accuracy, by rising cost."""
    best: list[Place] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1][1]:
            best.append((point.x, point.y))
    return best


def difference(panel: Panel, spots: Sequence[Spot], base: Looks) -> list[Panel]:
    """A panel of each search's accuracies minus the mean of ``base`` at the same budget."""
    chosen = [one for one in spots if one.budget]
    means = {one.budget: one.point.y for one in chosen if one.looks == base}
    less = [
        replace(one, point=replace(one.point, y=one.point.y - means[one.budget]))
        for one in chosen
        if one.budget in means
    ]
    axis = Axis(f"minus the mean of {base.short} [pp]")
    series = series_from(less, all_points)
    return [replace(panel, y=axis, series=series, levels=(), best=())] if less else []
