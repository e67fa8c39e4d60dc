"""Figures as inline SVG for a page, drawn from their descriptions. No matplotlib, no torch."""

from collections.abc import Iterator, Mapping, Sequence
from functools import singledispatch
from itertools import groupby, pairwise
from math import hypot

from markupsafe import Markup

from quantable.report.shapes import (
    Axis,
    Bars,
    Grid,
    Group,
    Level,
    Panel,
    Place,
    Plot,
    Point,
    Series,
    Shape,
)
from quantable.report.svg import (
    LETTER,
    SMALL_LETTER,
    Range,
    around,
    colour_of,
    frame,
    marker,
    round_steps,
    svg,
    text,
)

WIDTH, HEIGHT = 420, 280  # user units: one is one pixel where the chart has its own width
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42
MOST_POINTS = 80  # of a curve, which is as many as its width shows
SHADES = 9  # steps of a heat map


@singledispatch
def charts(shape: Shape) -> list[Markup]:
    """Draw a figure as one picture, or as several below each other."""
    raise NotImplementedError(type(shape))


# Panels


@charts.register
def _(plot: Plot) -> list[Markup]:
    return [_panel(panel, f"{plot.title}: {panel.y.name}") for panel in plot.panels]


def _panel(panel: Panel, name: str) -> Markup:
    """Lines, points with error bars and levels; names where there is room.

    The first point can be focused; the page's script moves on by arrow keys.
    """
    ends = _line_ends(panel)
    room = max((len(words) for words in ends), default=0) * LETTER + 16 * bool(ends)
    right = (
        WIDTH - RIGHT - max(room, max((len(_short(v)) for v in panel.levels), default=0) * LETTER)
    )
    points = [point for one in panel.series for point in one.points]
    lines = [place for one in panel.series for place in one.line]
    across = [p.x for p in points] + [x for x, _ in lines] + list(panel.changes)
    up = [p.y + side * p.y_std for p in points for side in (-1, 1)] + [y for _, y in lines]
    up += [level.y for level in panel.levels]
    x = _range_of(panel.x, across, LEFT, right, tight=not points)
    y = _range_of(panel.y, up, HEIGHT - BOTTOM, TOP)
    parts = [frame(x, y, *(axis.name + ", logarithmic" * axis.log for axis in (panel.x, panel.y)))]
    parts += [_level(level, x, y) for level in panel.levels]
    for at in panel.changes:
        line = Markup('<path class="change" d="M{:.1f} {:g}V{:g}"/>')
        parts.append(line.format(x.at(at), y.start, y.end))
    if panel.best:
        steps = "".join(
            f"{'H' if i else 'M'}{x.at(a):.1f}{'V' if i else ' '}{y.at(b):.1f}"
            for i, (a, b) in enumerate(panel.best)
        )
        parts.append(Markup('<path class="frontier" d="{}"/>').format(steps))
    asides = [SIDEWAYS * aside for aside in panel.asides]
    lined = [(one, aside) for one, aside in zip(panel.series, asides, strict=True) if one.line]
    parts += [_line(one, aside, x, y) for one, aside in lined]
    placed = [
        (p, one, aside) for one, aside in zip(panel.series, asides, strict=True) for p in one.points
    ]
    for i, (point, one, aside) in enumerate(sorted(placed, key=lambda at: (at[0].x, at[0].y))):
        parts.append(_mark(point, one, (x.at(point.x) + aside, y.at(point.y)), x, y, first=not i))
    if panel.labelled:
        across_all = [[(x.low, level.y), (x.high, level.y)] for level in panel.levels]
        drawn = [*across_all, panel.best, *(one.line for one, _ in lined)]
        parts.append(_labels(points, drawn, x, y))
    if ends:
        parts.append(_ends([one for one in panel.series if not one.dashed], x, y))
    return svg(Markup("").join(parts), name, WIDTH, HEIGHT, "chart points" if points else "chart")


SIDEWAYS = 4  # between the marks of two series


def _range_of(
    axis: Axis, values: Sequence[float], start: float, end: float, *, tight: bool = False
) -> Range:
    if tight:
        low = min(values)
        return Range(low, max(*values, low + 1), start, end, axis.log)
    low, high = around(values, log=axis.log)
    return Range(0 if axis.from_zero else low, high, start, end, axis.log)


def _short(level: Level) -> str:
    return _cut(level.label, 21)


def _level(level: Level, x: Range, y: Range) -> Markup:
    """A line across with its words beside it."""
    at = y.at(level.y)
    return Markup(
        '<g class="tip level" style="--c:{}"><title>{}</title>'
        '<path class="line" d="M{:g} {:.1f}H{:g}"/></g>{}'
    ).format(
        colour_of(level.looks),
        level.tip,
        x.start,
        at,
        x.end,
        text(_short(level), x.end + 4, at + 4, "label", "start"),
    )


def _line(one: Series, aside: float, x: Range, y: Range) -> Markup:
    step = -(-len(one.line) // MOST_POINTS)
    kept = [p for i, p in enumerate(one.line) if i % step == 0 or i == len(one.line) - 1]
    places = " ".join(f"{x.at(px) + aside:.1f},{y.at(py):.1f}" for px, py in kept)
    dash = "5 3" if one.dashed else " ".join(f"{2 * length:g}" for length in one.looks.dash)
    css = " dashed" * one.dashed + " thin" * bool(one.points)
    return Markup(
        '<g class="tip curve{}" role="img" style="--c:{}"><title>{}</title>'
        '<polyline class="under" points="{}"/>'
        '<polyline class="line" stroke-dasharray="{}" points="{}"/></g>'
    ).format(css, colour_of(one.looks), one.tip or one.name, places, dash or "none", places)


def _mark(
    point: Point, one: Series, at: tuple[float, float], x: Range, y: Range, *, first: bool
) -> Markup:
    bars = Markup("")
    if point.y_std:
        low, high = y.at(point.y - point.y_std), y.at(point.y + point.y_std)
        bars += Markup('<path class="bar" d="M0 {:.1f}V{:.1f}"/>').format(low - at[1], high - at[1])
    if point.x_std and point.x_std < point.x:
        middle = x.at(point.x)
        low, high = x.at(point.x - point.x_std), x.at(point.x + point.x_std)
        bars += Markup('<path class="bar" d="M{:.1f} 0H{:.1f}"/>').format(
            low - middle, high - middle
        )
    return Markup(
        '<g class="tip" role="img" tabindex="{}" transform="translate({:.1f} {:.1f})">'
        '<title>{}</title>{}<circle r="11" class="hit"/>{}</g>'
    ).format(
        0 if first else -1,
        *at,
        point.tip,
        bars,
        marker(one.looks, hollow=point.hollow, small=one.small),
    )


Box = tuple[float, float, float, float]


def _labels(
    points: Sequence[Point], lines: Sequence[Sequence[Place]], x: Range, y: Range
) -> Markup:
    """Names beside the points where they cover neither a point, a line nor another name."""
    taken: list[Box] = [_box(x.at(p.x), y.at(p.y), 6, 6) for p in points]
    taken += [_box(*at, 1, 1) for line in lines for at in _along(line, x, y)]
    parts = []
    for point in points:
        half = len(point.label) * LETTER / 2
        at_x, at_y = x.at(point.x), y.at(point.y)
        for dx, dy in (
            (half + 9, 0),
            (-half - 9, 0),
            (0, -14),
            (0, 15),
            (half + 5, -13),
            (-half - 5, -13),
            (half + 5, 13),
            (-half - 5, 13),
        ):
            box = _box(at_x + dx, at_y + dy, half, 7)
            inside = x.start < box[0] and box[2] < x.end and y.end - 4 < box[1] and box[3] < y.start
            if inside and not any(_overlap(box, other) for other in taken):
                parts.append(text(point.label, at_x + dx, at_y + dy + 4, "label"))
                taken.append(box)
                break
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("").join(parts))


def _along(line: Sequence[Place], x: Range, y: Range) -> Iterator[Place]:
    """Places on the page that a line passes, each a few pixels from the one before."""
    ends = [(x.at(a), y.at(b)) for a, b in line]
    for (left, low), (right, high) in pairwise(ends):
        steps = int(hypot(right - left, high - low) / 6) + 1
        for i in range(steps + 1):
            yield left + (right - left) * i / steps, low + (high - low) * i / steps


def _box(x: float, y: float, half_width: float, half_height: float) -> Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


MOST_ENDS = 9  # lines that are named at their ends


def _line_ends(panel: Panel) -> list[str]:
    """Names for the ends of lines, where there are lines without points and room for all."""
    named = [_cut(one.label) for one in panel.series if one.label and not one.dashed]
    return named if len(named) <= MOST_ENDS else []


def _ends(series: Sequence[Series], x: Range, y: Range) -> Markup:
    """Names at the ends of lines, moved apart, each with its mark."""
    ends = sorted(((y.at(one.line[-1][1]), one) for one in series), key=lambda end: end[0])
    places: list[float] = []
    for at, _ in ends:
        places.append(max(at, places[-1] + 14) if places else at)
    excess = max(0.0, places[-1] - (y.start - 4)) if places else 0.0
    parts = []
    for place, (_, one) in zip(places, ends, strict=True):
        at = place - excess
        parts.append(
            Markup('<g transform="translate({:.1f} {:.1f})">{}</g>').format(
                x.end + 10, at, marker(one.looks)
            )
        )
        parts.append(text(_cut(one.label), x.end + 19, at + 4, "label", "start"))
    return Markup('<g aria-hidden="true">{}</g>').format(Markup("").join(parts))


def _cut(words: str, letters: int = 22) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"


# Grids


@charts.register
def _(grid: Grid) -> list[Markup]:
    if isinstance(grid.columns, int):
        return [_heat(grid.groups[0], grid.changes or {}, grid.title, grid.x_name)]
    return [_strips(grid.groups, grid.columns, grid.title)]


def _strips(groups: Sequence[Group], columns: Sequence[str], name: str) -> Markup:
    """Groups of rows below each other: one square a column, with the number in it."""
    labels = [label for group in groups for label in group.rows]
    values = [v for group in groups for row in group.rows.values() for v in row if v is not None]
    side = 21 if max(values) < 100 else 27
    left, top = 8 + max(len(label) for label in labels) * LETTER, 6.0
    foot = 12 + max(len(column) for column in columns) * SMALL_LETTER
    parts, y = [], top
    for group in groups:
        most = max(v for row in group.rows.values() for v in row if v is not None)
        for label, row in group.rows.items():
            parts.append(text(label, left - 8, y + 15, "label", "end"))
            for j, value in enumerate(row):
                if value is not None:
                    at, shade = (
                        left + j * side,
                        _shade_of(value if most <= 32 else 32 * value / most),
                    )
                    parts.append(
                        Markup(
                            '<g class="tip"><title>{}\n{}, {}: {:g}</title>'
                            '<rect class="w{}" x="{:.1f}" y="{:g}" width="{}" height="21"/>'
                        ).format(label, columns[j], group.name, value, shade, at, y, side - 1)
                    )
                    parts.append(text(f"{value:g}", at + (side - 1) / 2, y + 15, "num in"))
                    parts.append(Markup("</g>"))
            y += 24
        y += 10 if len(groups) > 1 else 0
    for j, column in enumerate(columns):
        parts.append(
            Markup(
                '<text class="small" text-anchor="end" transform="translate({:.1f} {:g}) '
                'rotate(-90)">{}</text>'
            ).format(left + j * side + 14, y + 6, column)
        )
    right = left + len(columns) * side + 4
    return svg(Markup("").join(parts), name, right, y + foot, "chart grid")


def _shade_of(value: float) -> int:
    """Step of shade for a bit-width: 1 to 6.

    >>> [_shade_of(bits) for bits in (1, 2, 3, 4, 8, 16, 32)]
    [1, 1, 2, 3, 4, 5, 6]
    """
    return next((i for i, most in enumerate((2, 3, 4, 8, 16), 1) if value <= most), 6)


def _heat(group: Group, changes: Mapping[int, str], name: str, x_name: str) -> Markup:
    """Numbers by row and epoch: one line a row, darker is more.

    ``changes``: words to write above an epoch (from 0) where a phase begins.
    """
    rows = group.rows
    epochs = max(len(values) for values in rows.values())
    cell = max(3.0, min(24.0, 380 / epochs))
    left, top = 8 + max(len(row) for row in rows) * SMALL_LETTER, 20
    bottom, right = top + len(rows) * HIGH, left + epochs * cell
    known = [v for values in rows.values() for v in values if v is not None]
    parts = [text(row, left - 6, top + i * HIGH + 11, "small", "end") for i, row in enumerate(rows)]
    parts.append(_shades(rows, min(known), max(known), (left, top, cell)))
    free = 0.0
    for epoch, words in changes.items():
        at = left + epoch * cell
        if epoch:
            line = Markup('<path class="change" d="M{:.1f} {}V{}"/>')
            parts.append(line.format(at, top - 4, bottom))
        if at >= free:
            parts.append(text(words, at + 2, top - 7, "small", "start"))
            free = at + (len(words) + 1) * SMALL_LETTER
    for tick in round_steps(1, max(epochs, 2)):
        if 1 <= tick <= epochs and tick.is_integer():
            parts.append(text(f"{tick:g}", left + (tick - 0.5) * cell, bottom + 14, "num small"))
    parts.append(text(x_name, (left + right) / 2, bottom + 30, "name"))
    parts.append(_shade_key(min(known), max(known), right + 16, top))
    height = max(bottom + 36, top + SHADES * 12 + 8)
    return svg(Markup("").join(parts), name, right + 66, height, "chart grid")


HIGH = 15  # of a layer's line in a heat map


def _shades(
    layers: Mapping[str, Sequence[float | None]],
    low: float,
    high: float,
    place: tuple[float, float, float],
) -> Markup:
    """Rectangles of a heat map, all of one shade in one path; neighbours are one rectangle."""
    left, top, cell = place
    paths: dict[int, list[str]] = {}
    for i, values in enumerate(layers.values()):
        j = 0
        for step, group in groupby(None if v is None else _step_of(v, low, high) for v in values):
            n = len(list(group))
            if step is not None:
                start = f"M{left + j * cell:.1f} {top + i * HIGH}"
                paths.setdefault(step, []).append(f"{start}h{n * cell:.1f}v14h-{n * cell:.1f}z")
            j += n
    return Markup("").join(
        Markup('<path class="d{}" d="{}"/>').format(step, "".join(drawn))
        for step, drawn in sorted(paths.items())
    )


def _shade_key(low: float, high: float, x: float, top: float) -> Markup:
    squares = [
        Markup('<rect class="d{}" x="{:.1f}" y="{}" width="12" height="12"/>').format(
            step, x, top + (SHADES - 1 - step) * 12
        )
        for step in range(SHADES)
    ]
    squares.append(text(f"{high:.3g}", x + 17, top + 10, "num small", "start"))
    squares.append(text(f"{low:.3g}", x + 17, top + SHADES * 12, "num small", "start"))
    return Markup("").join(squares)


def _step_of(value: float, low: float, high: float) -> int:
    """Step of shade, 0 to 8.

    >>> _step_of(0.1, 0.1, 1.0), _step_of(1.0, 0.1, 1.0)
    (0, 8)
    """
    return min(SHADES - 1, int(SHADES * (value - low) / ((high - low) or 1)))


# Bars


@charts.register
def _(shape: Bars) -> list[Markup]:
    """A line for each name, from zero to its value."""
    left, top = 8 + max(len(name) for name in shape.bars) * SMALL_LETTER, 6
    values = [*shape.bars.values(), 0.0]
    x = Range(min(values), max(values), left, left + 320)
    bottom = top + len(shape.bars) * HIGH
    parts = []
    for i, (name, value) in enumerate(shape.bars.items()):
        y, ends = top + i * HIGH, sorted((x.at(0), x.at(value)))
        parts.append(text(name, left - 6, y + 11, "small", "end"))
        parts.append(
            Markup(
                '<g class="tip" style="--c:{}"><title>{}: {:.4g}</title>'
                '<rect class="bars" x="{:.1f}" y="{:g}" width="{:.1f}" height="{}"/></g>'
            ).format(colour_of(shape.looks), name, value, ends[0], y, ends[1] - ends[0], HIGH - 3)
        )
    axis = Markup('<path class="axis" d="M{:.1f} {:g}V{:g}"/>')
    parts.append(axis.format(x.at(0), top, bottom))
    if min(values) < max(values):
        for tick in round_steps(x.low, x.high):
            parts.append(text(f"{tick:g}", x.at(tick), bottom + 14, "num small"))
    parts.append(text(shape.axis, left - 6, bottom + 31, "name", "start"))
    return [svg(Markup("").join(parts), shape.title, left + 350, bottom + 40, "chart")]
