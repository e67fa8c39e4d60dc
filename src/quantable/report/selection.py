"""Figures of a layer selection: scores, chosen bits, accuracy against compute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox, ScaledTranslation, Transform

from quantable.columns import COLUMNS
from quantable.report.labels import LEADER, place_labels
from quantable.report.marks import MARKS, SEARCH_MARKS, Mark, method_of_run, metric_of_search
from quantable.report.page import SHADES, SMALL, caption, page, protocol, settle
from quantable.report.render import heading
from quantable.report.reporter import Reporter
from quantable.report.verdict import Measured
from quantable.store.record import Record, Scores
from quantable.tables.schema import Chosen, Table

BASELINE = "random"  # the metric that others are compared with
Budget = tuple[tuple[str, float], ...]  # shares by cost


@dataclass(frozen=True)
class Spot:
    """A row: its mean compute over seeds, in percent of 4 bit's, and its accuracy."""

    label: str
    compute: float
    accuracy: Measured


@dataclass(frozen=True)
class Series:
    """What one search chose, by budget."""

    label: str
    metric: str
    spots: Mapping[Budget, Spot]


@dataclass(frozen=True)
class Selection:
    """Everything in the frontier of a table with chosen rows that has a record."""

    column: str  # compute
    series: Sequence[Series]
    uniform: Sequence[Spot]  # every inner layer alike
    floats: Sequence[tuple[str, Measured]]
    records: Sequence[Record]


def selection_of(reporter: Reporter) -> Selection:
    """Collect the asked rows; those a search chose by the search's row."""
    table = reporter.table
    chosen = [row.chosen for row in table.rows.values() if row.chosen is not None]
    column = _column(chosen[0])
    found: dict[str, dict[Budget, Spot]] = {}
    uniform, floats, records = [], [], dict[str, Record]()
    for name in reporter.asked.chosen_rows(table):
        row, accuracy = table.rows[name], reporter.measured(name, "top1_pct")
        if accuracy is None:
            continue
        known = [facts for facts, _ in reporter.known(name, "top1_pct")]
        behind = [facts.record for facts in known if facts.record is not None]
        # each seed has its own search, so its own bits
        compute = [c for c in map(COLUMNS[column].value, known) if c is not None]
        inner = {b for f in known if f.bits for b in list(f.bits.values())[1:-1]}
        if method_of_run(behind[0]) == "float":
            floats.append((row.label, accuracy))
        elif not compute:
            continue
        elif row.chosen is not None:
            spot = Spot(row.label, fmean(compute), accuracy)
            found.setdefault(row.chosen.by, {})[budget_of(row.chosen)] = spot
        elif len(inner) == 1:
            uniform.append(Spot(row.label, fmean(compute), accuracy))
        else:
            continue
        records |= {record.name: record for record in behind}
    series = [
        Series(_label_of(table, by), _metric_of(reporter, by), found[by])
        for by in table.rows
        if by in found
    ]
    return Selection(column, series, uniform, floats, list(records.values()))


def budget_of(chosen: Chosen) -> Budget:
    """Budgets as a key."""
    return tuple(sorted(chosen.budgets.items()))


def _column(chosen: Chosen) -> str:
    """Column of the compute that the first budget limits, or at least follows."""
    return "bops_of_4bit" if next(iter(chosen.budgets)) == "bops" else "compute_of_4bit"


def _label_of(table: Table, search: str) -> str:
    return table.rows[search].label.removesuffix(", the search")


def _metric_of(reporter: Reporter, search: str) -> str:
    """Name a search's metric: a key of ``SEARCH_MARKS``, or ``other``."""
    records = [facts.record for facts in reporter.row_facts(search).facts]
    return next(metric_of_search(record) for record in records if record is not None)


def selection_figure(reporter: Reporter) -> Figure | str:
    """Accuracy against compute, a line for each search, or the reason why there is none."""
    selection = selection_of(reporter)
    if sum(len(series.spots) for series in selection.series) < 2:
        return "fewer than two rows with chosen bits have a record"
    return draw_selection(selection, f"{reporter.table.id}: {reporter.table.title}")


def draw_selection(selection: Selection, title: str) -> Figure:
    """Means over seeds with their standard deviation; below, the difference to random's mean.

    Marks of several searches are set side by side; their data are not changed.
    """
    series = selection.series
    base = next((one for one in series if one.metric == BASELINE), None)
    if base is None:
        figure, drawn = page([1], 8, 4.6)
    else:
        figure, drawn = page([3.4, 2], 8, 6.8)
        _differences(drawn[1], series, base)
        drawn[1].sharex(drawn[0])
        drawn[0].tick_params(labelbottom=False)
    upper = drawn[0]
    _levels(upper, selection)
    drawn[-1].set_xlabel(f"{heading(selection.column)}, inner layers")
    for axes in drawn:
        axes.margins(0.06, 0.08)
        axes.grid(lw=0.4, color="0.9")
    upper.legend(
        handles=_keys(selection),
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=min(4, len(series)),
        borderaxespad=0,
        handlelength=4,
    )
    foot = protocol(selection.records)
    if any(spot.accuracy.std is not None for one in series for spot in one.spots.values()):
        foot += " Bars: standard deviation over seeds."
    if len(series) > 1:
        foot += " Marks at about the same compute stand side by side."
    caption(figure, title, foot)
    most = max(spot.compute for one in series for spot in one.spots.values())
    squares = [
        (_counted(spot.label, [spot.accuracy], selection), (spot.compute, spot.accuracy.mean))
        for spot in selection.uniform
    ]
    floats = [
        (_counted(f"{label} {m.mean:.2f}", [m], selection), (1.0, m.mean))
        for label, m in selection.floats
    ]
    beyond = [square for square in squares if square[1][0] > most]
    notes = _in_margin(upper, beyond, upper.transData)
    notes += _in_margin(upper, floats, upper.get_yaxis_transform())
    settle(figure)
    _spread(upper, notes)
    place_labels(upper, [s for s in squares if s not in beyond], _covered(upper))
    return figure


def _counted(words: str, numbers: Iterable[Measured], selection: Selection) -> str:
    """Add the number of seeds where others have more."""
    counts = sorted({number.n for number in numbers})
    if counts == [max(spot.accuracy.n for one in selection.series for spot in one.spots.values())]:
        return words
    return f"{words} (n={' or '.join(map(str, counts))})"


def _in_margin(
    axes: Axes, labels: Sequence[tuple[str, tuple[float, float]]], where: Transform
) -> list[Annotation]:
    """Write labels to the right of the axes; a thin line leads to each one's point."""
    return [
        axes.annotate(
            fill(words, 20),
            point,
            xycoords=where,
            xytext=(1.02, point[1]),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=SMALL,
            arrowprops=LEADER,
        )
        for words, point in labels
    ]


def _spread(axes: Axes, notes: Sequence[Annotation]) -> None:
    """Move labels in the margin up until none covers another."""
    free = -np.inf  # pixels above the labels so far
    for note in sorted(notes, key=lambda note: note.xyann[1]):
        height = Text.get_window_extent(note).height  # without the line
        _, at = axes.transData.transform((0, note.xyann[1]))
        middle = max(at, free + height / 2)
        note.xyann = (note.xyann[0], axes.transData.inverted().transform((0, middle))[1])
        free = middle + height / 2 + 3


def _levels(axes: Axes, selection: Selection) -> None:
    """Draw accuracies: searches, networks with every layer alike, float."""
    for i, one in enumerate(selection.series):
        _line(axes, one, i - (len(selection.series) - 1) / 2, {})
    mark = MARKS["uniform"]
    for spot in selection.uniform:
        accuracy = spot.accuracy
        axes.errorbar(spot.compute, accuracy.mean, accuracy.std, ls="", **_look(mark), **BARS)
    for _, accuracy in selection.floats:
        axes.axhline(accuracy.mean, color=MARKS["float"].colour, lw=0.9, ls="--", zorder=1)
    axes.set_ylabel(heading("top1_pct"))


def _differences(axes: Axes, series: Sequence[Series], base: Series) -> None:
    """Draw each accuracy minus the mean of ``base`` at the same budget, where it has one."""
    means = {budget: spot.accuracy.mean for budget, spot in base.spots.items()}
    for i, one in enumerate(series):
        _line(axes, one, i - (len(series) - 1) / 2, means)
    axes.axhline(0, color="0.5", lw=0.8, zorder=1)
    axes.set_ylabel(fill(f"minus the mean of {base.label} [pp]", 24))


SIDEWAYS = 5  # points between the marks of two searches
BARS: dict[str, Any] = {"elinewidth": 0.9, "capsize": 2}


def _line(axes: Axes, series: Series, place: float, minus: Mapping[Budget, float]) -> None:
    """Draw one search's line, its accuracies reduced by those of ``minus`` where there are any."""
    assert axes.figure is not None
    spots = {b: spot for b, spot in series.spots.items() if not minus or b in minus}
    shown = sorted(spots.items(), key=lambda item: item[1].compute)
    drawn = axes.errorbar(
        [spot.compute for _, spot in shown],
        [spot.accuracy.mean - minus.get(budget, 0) for budget, spot in shown],
        [spot.accuracy.std or 0 for _, spot in shown],
        ls=_mark(series).dash,
        label=series.label,
        **_look(_mark(series)),
        **BARS,
    )
    aside = ScaledTranslation(place * SIDEWAYS / 72, 0, axes.figure.dpi_scale_trans)
    for artist in drawn.get_children():  # moved on the page, not in its data
        artist.set_transform(artist.get_transform() + aside)


def _mark(series: Series) -> Mark:
    return SEARCH_MARKS.get(series.metric, MARKS["other"])


def _look(mark: Mark) -> dict[str, Any]:
    """Keywords of a line with marks."""
    return {
        "color": mark.colour,
        "lw": 1.2,
        "marker": mark.marker,
        "markersize": 6.5,
        "markeredgecolor": "black",
        "markeredgewidth": 0.6,
    }


def _keys(selection: Selection) -> list[Line2D]:
    """Legend: each search's line and mark."""
    keys = []
    for one in selection.series:
        mark, accuracies = _mark(one), [spot.accuracy for spot in one.spots.values()]
        words = _counted(one.label, accuracies, selection)
        keys.append(Line2D([], [], ls=mark.dash, label=words, **_look(mark)))
    return keys


def _covered(axes: Axes) -> list[Bbox]:
    """Pixels that marks, lines and error bars cover, in small boxes."""
    boxes = []
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        boxes += [Bbox([at, at]).padded(6) for at in corners]
        if line.get_linestyle() != "None":
            for ends in pairwise(corners):
                steps = int(np.hypot(*np.subtract(*ends)) / 5) + 2
                boxes += [Bbox([at, at]).padded(3) for at in np.linspace(*ends, steps)]
    for bars in axes.collections:
        for path in bars.get_paths():
            boxes.append(Bbox(bars.get_transform().transform(path.vertices)).padded(3))
    return boxes


# Scores


def scores_figure(record: Record, scores: Scores, title: str) -> Figure:
    """A bar for each item in execution order: what it alone loses at low bits.

    Of a rule that only orders the items, the place in its order; the smallest goes down first.
    """
    high, low = next(iter(scores.items[0].loss)), list(scores.items[0].loss)[-1]
    items = [" + ".join(item.layers) for item in scores.items]
    figure, (axes,) = page([1], 8, 1.6 + 0.19 * len(items))
    mark = SEARCH_MARKS.get(metric_of_search(record), MARKS["other"])
    axes.barh(
        range(len(items)),
        [item.loss[low] for item in scores.items],
        color=mark.colour,
        edgecolor="black",
        linewidth=0.6,
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(items)), items, fontsize=SMALL)
    axes.set_ylim(len(items) - 0.4, -0.6)  # the first on top
    if scores.greedy:
        words = f"from {high} to {low} bit (weight/activation) in this order"
    else:
        words = f"loss at {low} bit (weight/activation) against {high}"
    axes.set_xlabel(words if scores.unit == "1" else f"{words} [{scores.unit}]")
    axes.grid(axis="x", lw=0.4, color="0.85")
    axes.set_axisbelow(True)
    caption(figure, f"{scores.rule}: {title}", protocol([record]))
    return figure


# Bits


def chosen_bits_figure(table: Table, records: Mapping[str, Record]) -> Figure | str:
    """Bits of each layer (columns) in each row of ``records``, rows of one budget together."""
    if not records:
        return "no row with chosen bits has a record"
    bits = {name: record.phases[-1].bits for name, record in records.items()}
    layers = list(dict.fromkeys(layer for own in bits.values() for layer in own))
    groups: dict[Budget, list[str]] = {}
    for name in records:
        chosen = table.rows[name].chosen
        assert chosen is not None, "only chosen rows are given"
        groups.setdefault(budget_of(chosen), []).append(name)
    pairs = sorted({pair for own in bits.values() for pair in own.values()})
    shades = mpl.colormaps[SHADES](np.linspace(1, 0.1, len(pairs)))  # more bits are darker

    size = 0.19  # inches of a cell
    lines = len(records) + 0.5 * (len(groups) - 1)
    figure, (axes,) = page([1], max(8, 2.4 + size * len(layers)), 2.7 + size * lines)
    top, ticks = 0.0, dict[float, str]()
    for names in groups.values():
        grid = [[pairs.index(bits[n][layer]) for layer in layers] for n in names]
        axes.pcolormesh(
            np.arange(len(layers) + 1) - 0.5,
            top + np.arange(len(names) + 1) - 0.5,
            shades[np.array(grid)],  # (rows, layers, 4)
            edgecolor="white",
            linewidth=0.6,
        )
        ticks |= {top + i: table.rows[name].label for i, name in enumerate(names)}
        top += len(names) + 0.5
    axes.set_ylim(lines - 0.5, -0.5)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=SMALL)
    axes.set_xticks(range(len(layers)), layers, rotation="vertical", fontsize=SMALL)
    axes.set_xlabel("layer, in execution order")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    keys = [
        Patch(facecolor=tuple(shade), edgecolor="0.4", label=_bits_text(pair))
        for shade, pair in zip(shades, pairs, strict=True)
    ]
    axes.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(keys), borderaxespad=0
    )
    title = f"{table.id}, chosen bits: {table.title}"
    caption(figure, title, protocol(records.values()))
    return figure


def _bits_text(pair: tuple[int, int]) -> str:
    """Word the widths of a layer.

    >>> _bits_text((4, 4)), _bits_text((4, 8))
    ('4 bit', 'weights 4, activations 8 bit')
    """
    weight, act = pair
    return f"{weight} bit" if weight == act else f"weights {weight}, activations {act} bit"
