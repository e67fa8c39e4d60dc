"""Figures as SVG, PDF and PNG for paper, drawn from their descriptions.

This module loads matplotlib, so the commands import it only for ``format=figures``. The same
records give the same bytes; SVG and PDF hold the letters they use.
"""

import io
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import singledispatch
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from quantable.config.schema import Looks
from quantable.report.escape import slug
from quantable.report.kinds import described
from quantable.report.labels import LEADER, place_labels
from quantable.report.page import SHADES, SMALL, STYLE, caption, page, protocol, settle, whole
from quantable.report.reporter import Reporter
from quantable.report.shapes import Bars, Grid, Group, Level, Panel, Plot, Series, Shape

FILES: dict[str, dict[str, Any]] = {  # what would change from day to day is left out
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 150},
}
MOST_NAMED = 4  # figures that a reason lists
FONT = "DejaVu Sans"  # matplotlib brings it along


def write_figures(
    reporter: Reporter,
    folder: Path,
    kinds: Sequence[str] = tuple(FILES),
    only: str | None = None,
) -> list[str]:
    """Draw what the asked rows' records hold into ``folder``, each figure as each of ``kinds``.

    ``only`` is the one figure that is written. Returns lines for the user: the files written, and
    by reason the figures that are not drawn.
    """
    written, missing = [], dict[str, list[str]]()
    with style.context(STYLE, after_reset=True):
        for _, name, shape in described(reporter):
            if isinstance(shape, str):
                missing.setdefault(shape, []).append(name)
                continue
            if only not in (None, name):
                continue
            drawn = draw(shape, f"{reporter.table.id}: {reporter.table.title}")
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in kinds:
                path = folder / f"{slug(name)}.{suffix}"
                drawn.savefig(path, **FILES[suffix])
                if suffix == "svg":
                    path.write_text(with_font(path.read_text()))
                written.append(str(path))
    return written + [f"not drawn: {_several(names)}: {why}" for why, names in missing.items()]


def _several(names: Sequence[str]) -> str:
    """Names with commas; of many the first.

    >>> _several(["a", "b"]), _several(["a", "b", "c", "d", "e", "f"])
    ('a, b', 'a, b, c and 3 more')
    """
    if len(names) <= MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} more"


def with_font(svg: str) -> str:
    """Return ``svg`` with the letters it uses as an embedded font, so that it looks alike anywhere.

    Its text stays text, which can be searched and read aloud.
    """
    options = subset.Options(hinting=False, layout_features=[], notdef_outline=True)
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "MATH"]  # kerning, ligatures, ...
    font = TTFont(font_manager.findfont(FONT), recalcTimestamp=False)
    cut = subset.Subsetter(options)
    cut.populate(text="".join(sorted(set(re.sub(r"<[^>]*>", "", svg)))))
    cut.subset(font)
    kept = io.BytesIO()
    font.save(kept)
    source = f"url(data:font/ttf;base64,{b64encode(kept.getvalue()).decode()})"
    face = f"@font-face{{font-family:'{FONT}';src:{source}}}"
    return svg.replace('<style type="text/css">', f'<style type="text/css">{face}', 1)


@singledispatch
def draw(shape: Shape, of: str) -> Figure:
    """Draw a figure; ``of`` names the table it belongs to."""
    raise NotImplementedError(type(shape))


def _caption(figure: Figure, shape: Shape, of: str) -> None:
    caption(figure, f"{of}. {shape.title}", f"{protocol(shape.records)} {shape.note}".strip())


# Panels


@draw.register
def _(plot: Plot, of: str) -> Figure:
    """Panels below each other, the later ones lower where they share the first one's x."""
    ratios = [3.4 if i == 0 else 2 for i in range(len(plot.panels))]
    if len({panel.x for panel in plot.panels}) == len(plot.panels):
        ratios = [3.4] * len(ratios)
    figure, drawn = page(ratios, 8, 1.3 + 0.25 * len(_rows_of_keys(plot)) + sum(ratios))
    for axes, panel in zip(drawn, plot.panels, strict=True):
        _panel(axes, panel)
    for (axes, panel), (below, later) in pairwise(zip(drawn, plot.panels, strict=True)):
        if panel.x == later.x:
            below.sharex(axes)
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
    handles = [_key(one) for one in plot.keys.values()]
    if any(panel.best for panel in plot.panels):
        handles.append(Line2D([], [], color="0.4", lw=0.8, ls="--", label="frontier"))
    drawn[0].legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=min(4, len(handles)),
        borderaxespad=0,
        handlelength=4,
    )
    _caption(figure, plot, of)
    notes = [_margin(axes, panel.levels) for axes, panel in zip(drawn, plot.panels, strict=True)]
    settle(figure)
    for axes, panel, own in zip(drawn, plot.panels, notes, strict=True):
        _spread(axes, own)
        if panel.labelled:
            labels = [(p.label, (p.x, p.y)) for one in panel.series for p in one.points if p.label]
            place_labels(axes, _merged(labels), _covered(axes))
    return figure


def _rows_of_keys(plot: Plot) -> range:
    return range(-(-len(plot.keys) // 4))


def _merged(
    labels: Sequence[tuple[str, tuple[float, float]]],
) -> list[tuple[str, tuple[float, float]]]:
    """Points of several series at one place have one label."""
    places: dict[tuple[float, float], list[str]] = {}
    for words, at in labels:
        places.setdefault(at, []).append(words)
    return [
        (" =\n".join(dict.fromkeys(" = ".join(words).split(" = "))), at)
        for at, words in places.items()
    ]


SIDEWAYS = 5  # points between the marks of two series
BARS: dict[str, Any] = {"elinewidth": 0.9, "capsize": 2}


def _panel(axes: Axes, panel: Panel) -> None:
    for one, aside in zip(panel.series, panel.asides, strict=True):
        _series(axes, one, aside * SIDEWAYS)
    for level in panel.levels:
        axes.axhline(level.y, color=level.looks.colour, lw=0.9, ls="--", zorder=1)
    for at in panel.changes:
        axes.axvline(at, color="black", lw=1, ls=(0, (4, 2)))
    if panel.best:
        x, y = zip(*panel.best, strict=True)
        axes.plot(x, y, drawstyle="steps-post", color="0.4", lw=0.8, ls="--", zorder=1)
    axes.set_xlabel(panel.x.name + ", logarithmic" * panel.x.log)
    axes.set_ylabel(fill(panel.y.name + ", logarithmic" * panel.y.log, 26))
    if panel.x.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.y.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(0.1 if panel.labelled else 0.06, 0.14 if panel.labelled else 0.08)
    whole(axes, x=panel.x.whole, y=panel.y.whole)
    if panel.y.from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(lw=0.4, color="0.9")


def _dash(looks: Looks) -> Any:  # noqa: ANN401 - matplotlib's word or its pair
    return (0, looks.dash) if looks.dash else "-"


def _look(looks: Looks, *, small: bool = False) -> dict[str, Any]:
    """Keywords of a line with marks."""
    return {
        "color": looks.colour,
        "lw": 0.9 if small else 1.2,
        "marker": looks.marker,
        "markersize": 4 if small else 6.5,
        "markeredgecolor": looks.colour if small else "black",
        "markeredgewidth": 0.6,
    }


def _series(axes: Axes, one: Series, aside: float) -> None:
    """Draw a series, moved sideways on the page and not in its data."""
    assert axes.figure is not None
    looks, drawn = one.looks, []
    for hollow in (False, True):
        points = [point for point in one.points if point.hollow is hollow]
        if points:
            bars = axes.errorbar(
                [p.x for p in points],
                [p.y for p in points],
                [p.y_std for p in points] if any(p.y_std for p in points) else None,
                [p.x_std for p in points] if any(p.x_std for p in points) else None,
                ls="",
                markerfacecolor="none" if hollow else looks.colour,
                **_look(looks, small=one.small),
                **BARS,
            )
            drawn += bars.get_children()
    if one.line:
        x, y = zip(*one.line, strict=True)
        plain = not one.points
        drawn += axes.plot(
            x,
            y,
            color=looks.colour,
            ls="--" if one.dashed else _dash(looks),
            lw=0.9 if one.small or one.dashed else 1.2,
            marker=looks.marker if plain and not one.dashed else None,
            markevery=max(1, len(x) // 12),
            markersize=4,
            markeredgecolor="black",
            markeredgewidth=0.4,
            zorder=1.5,
        )
    if aside:
        moved = ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        for artist in drawn:
            artist.set_transform(artist.get_transform() + moved)


def _key(one: Series) -> Line2D:
    ls = _dash(one.looks) if one.line else ""
    return Line2D([], [], ls=ls, label=one.name, **_look(one.looks))


def _margin(axes: Axes, levels: Sequence[Level]) -> list[Annotation]:
    """Write a level's words to the right of the axes; a thin line leads to it."""
    where = axes.get_yaxis_transform()
    return [
        axes.annotate(
            fill(level.label, 20),
            (1.0, level.y),
            xycoords=where,
            xytext=(1.02, level.y),
            textcoords=where,
            va="center",
            fontsize=SMALL,
            arrowprops=LEADER,
        )
        for level in levels
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


def _covered(axes: Axes) -> list[Bbox]:
    """Pixels that marks, lines and error bars cover, in small boxes."""
    boxes = []
    for line in axes.lines:
        places = np.asarray(line.get_xydata(), dtype=float)  # (n, 2)
        if line.get_drawstyle() == "steps-post":
            between = np.column_stack([places[1:, 0], places[:-1, 1]])
            places = np.insert(places, range(1, len(places)), between, axis=0)
        corners = line.get_transform().transform(places)
        if line.get_marker() not in (None, "None", ""):
            boxes += [Bbox([at, at]).padded(6) for at in corners]
        if line.get_linestyle() != "None":
            for ends in pairwise(corners):
                count = int(np.hypot(*np.subtract(*ends)) / 8) + 2
                boxes += [Bbox([at, at]).padded(3) for at in np.linspace(*ends, count)]
    for bars in axes.collections:
        for path in bars.get_paths():
            boxes.append(Bbox(bars.get_transform().transform(path.vertices)).padded(3))
    return boxes


# Grids

CELL = 0.19  # inches of a cell with one or two digits


@draw.register
def _(grid: Grid, of: str) -> Figure:
    if isinstance(grid.columns, int):
        return _heat_map(grid, grid.columns, of)
    lines = sum(len(group.rows) for group in grid.groups) + 0.5 * (len(grid.groups) - 1)
    names = [name for group in grid.groups for name in group.rows]
    widest = max((v for g in grid.groups for row in g.rows.values() for v in row if v), default=0)
    side = CELL if widest < 100 else 0.3
    width = max(8, 1.2 + 0.075 * max(map(len, names)) + side * len(grid.columns))
    figure, (axes,) = page([1], width, 2.7 + CELL * lines)
    top, ticks = 0.0, dict[float, str]()
    for group in grid.groups:
        _cells(axes, group, top, len(grid.columns))
        ticks |= {top + i: name for i, name in enumerate(group.rows)}
        top += len(group.rows) + 0.5
    axes.set_ylim(lines - 0.5, -0.5)
    axes.set_yticks(list(ticks), list(ticks.values()), fontsize=SMALL)
    axes.set_xticks(
        range(len(grid.columns)), list(grid.columns), rotation="vertical", fontsize=SMALL
    )
    parts = list(dict.fromkeys(group.name for group in grid.groups))
    axes.set_xlabel(f"{grid.x_name}; {', then '.join(parts)}")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _caption(figure, grid, of)
    return figure


def _cells(axes: Axes, group: Group, top: float, columns: int) -> None:
    """Shade a group's cells, more is darker, and write each number into its own."""
    values = sorted({v for row in group.rows.values() for v in row if v is not None})
    shades = mpl.colormaps[SHADES](np.linspace(1, 0.1, len(values)))
    blank = np.array([1.0, 1.0, 1.0, 0.0])
    colours = [
        [blank if v is None else shades[values.index(v)] for v in row]
        for row in group.rows.values()
    ]
    axes.pcolormesh(
        np.arange(columns + 1) - 0.5,
        top + np.arange(len(group.rows) + 1) - 0.5,
        np.array(colours),  # (rows, columns, 4)
        edgecolor="white",
        linewidth=0.6,
    )
    for i, row in enumerate(group.rows.values()):
        for j, value in enumerate(row):
            if value is not None:
                dark = values.index(value) > 0.4 * (len(values) - 1)
                axes.text(
                    j,
                    top + i,
                    f"{value:g}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color="white" if dark and len(values) > 1 else "black",
                )


def _heat_map(grid: Grid, epochs: int, of: str) -> Figure:
    """Numbers by row and epoch; a dashed line where something changes, and words above."""
    (group,) = grid.groups
    names, last = list(group.rows), epochs + 0.5
    values = np.array([[np.nan if v is None else v for v in row] for row in group.rows.values()])
    figure, (heat,) = page([1], 8, 1.9 + 0.17 * len(names))
    image = heat.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        cmap=SHADES,
        extent=(0.5, last, len(names) - 0.5, -0.5),
    )
    heat.set_yticks(range(len(names)), names, fontsize=SMALL)
    figure.colorbar(image, ax=heat, label=grid.scale, pad=0.02)
    heat.set_xlabel(grid.x_name)
    whole(heat, x=True, y=False)
    _mark_changes(heat, grid.changes or {}, epochs)
    _caption(figure, grid, of)
    return figure


def _mark_changes(heat: Axes, changes: Mapping[int, str], epochs: int) -> None:
    begins = [*changes, epochs]
    narrow = min((b - a for a, b in pairwise(begins)), default=epochs) < 0.12 * epochs
    for at, until in pairwise(begins):
        if at:
            heat.axvline(at + 0.5, color="white", lw=2.2)  # keeps it visible on dark cells
            heat.axvline(at + 0.5, color="black", lw=1, ls=(0, (4, 2)), gid=f"change_{at}")
        heat.text(
            at + 0.5 + (until - at) / 2,
            1.01,
            changes[at],
            transform=heat.get_xaxis_transform(),
            ha="center",
            va="bottom",
            rotation="vertical" if narrow else "horizontal",
        )


# Bars


@draw.register
def _(shape: Bars, of: str) -> Figure:
    figure, (axes,) = page([1], 8, 1.6 + 0.19 * len(shape.bars))
    places = range(len(shape.bars))
    axes.barh(
        places,
        list(shape.bars.values()),
        color=shape.looks.colour,
        edgecolor="black",
        linewidth=0.6,
    )
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(places, list(shape.bars), fontsize=SMALL)
    axes.set_ylim(len(shape.bars) - 0.4, -0.6)  # the first on top
    axes.set_xlabel(shape.axis)
    axes.grid(axis="x", lw=0.4, color="0.85")
    _caption(figure, shape, of)
    return figure
