"""Figures from records: densities and bit-widths by layer, accuracy against energy.

This module loads matplotlib, so the commands import it only for ``format=figures``. The same
records give the same bytes, in SVG, PDF and PNG; the first two hold the letters they use.
"""

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from fontTools import subset
from fontTools.ttLib import TTFont
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from quantable.columns.facts import Facts
from quantable.report.edge_figures import memory_figure, sizes_figure
from quantable.report.labels import place_labels
from quantable.report.marks import MARKS, method_of_run
from quantable.report.page import SHADES, SMALL, STYLE, caption, page, protocol, settle, whole
from quantable.report.render import heading
from quantable.report.reporter import Reporter
from quantable.report.selection import chosen_bits_figure, scores_figure, selection_figure
from quantable.report.verdict import Measured
from quantable.store.record import Phase, Record

FILES: dict[str, dict[str, Any]] = {  # what would change from day to day is left out
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "pdf": {"metadata": {"CreationDate": None, "Creator": None, "Producer": None}},
    "png": {"metadata": {"Software": None}, "dpi": 150},
}
FONT = "DejaVu Sans"  # matplotlib brings it along
ENERGIES = ("pim_energy_uj", "energy_uj")


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
        for name, drawn in _figures(reporter):
            if isinstance(drawn, str):
                missing.setdefault(drawn, []).append(name)
                continue
            if only not in (None, name):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for suffix in kinds:
                path = folder / f"{name}.{suffix}"
                drawn.savefig(path, **FILES[suffix])
                if suffix == "svg":
                    path.write_text(with_font(path.read_text()))
                written.append(str(path))
    return written + [f"not drawn: {', '.join(names)}: {why}" for why, names in missing.items()]


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


def _figures(reporter: Reporter) -> Iterator[tuple[str, Figure | str]]:
    """Name and figure, or the reason why there is none."""
    table = reporter.table
    rows = reporter.asked.chosen_rows(table)
    mixed: dict[str, Record] = {}  # rows whose bit-widths a search chose
    for cell in dict.fromkeys(table.cell_of(row) for row in rows):
        record = first_record(reporter, cell)
        title = f"{table.id}, run {cell}: {table.title}"
        if record is None:
            yield f"run {cell}", f"no record at budget {reporter.budget}"
        elif record.scores is not None:
            yield f"scores_{cell}", scores_figure(record, record.scores, title)
        elif table.rows[cell].chosen is not None:
            mixed[cell] = record
        else:
            yield f"density_{cell}", density_figure(record, title)
            yield f"bits_{cell}", bits_figure(record, title, phase_labels(reporter, cell, record))
            if record.history[-1].number("weight_kb") is not None:
                shapes = reporter.asked.shapes(reporter.cell(cell, reporter.budget, 0).config)
                yield f"sizes_{cell}", sizes_figure(record, shapes, title)
    if any(row.chosen for row in table.rows.values()):
        yield "bits_chosen", chosen_bits_figure(table, mixed)
        yield "frontier", selection_figure(reporter)
    elif "total_mb" in table.columns:
        yield "memory", memory_figure(reporter)
    else:
        yield "frontier", frontier_figure(reporter)


# What is drawn


def first_record(reporter: Reporter, cell: str) -> Record | None:
    """Return the record of a cell's first seed that has one."""
    found = (reporter.find(reporter.cell(cell, reporter.budget, s)) for s in reporter.seeds)
    return next((record for record in found if record is not None), None)


def phase_labels(reporter: Reporter, cell: str, record: Record) -> dict[int, str]:
    """Labels of the table's rows that show a phase of ``record``, by the phase's index."""
    labels: dict[int, list[str]] = {}
    for name, row in reporter.table.rows.items():
        if reporter.table.cell_of(name) == cell and row.cost_bits is None:
            for facts in reporter.row_facts(name).facts:
                if facts.record == record and facts.phase is not None:
                    labels.setdefault(facts.phase.index, []).append(row.label)
    return {index: " = ".join(names) for index, names in labels.items()}


def changes(record: Record) -> list[Phase]:
    """Phases that begin with other bit-widths or channels than the one before had."""
    return [
        after
        for before, after in pairwise(record.phases)
        if before.bits != after.bits or before.channels != after.channels
    ]


def method_of(facts: Facts) -> str:
    """Name the method behind a row's number: a key of ``MARKS``."""
    assert facts.record is not None, "only trained rows are drawn"
    return "uniform" if facts.cost_bits is not None else method_of_run(facts.record)


# Densities


def density_figure(record: Record, title: str) -> Figure | str:
    """Activation density by layer and epoch as a heat map, with total AD as a line below.

    Dashed lines mark the ``changes``; the mean bit-width over layers stands above each phase.
    """
    measured = [epoch for epoch in record.history if epoch.by_layer("density") is not None]
    if not measured:
        return "the run has no activation densities"
    seen = {name for epoch in measured for name in epoch.by_layer("density") or ()}
    layers = [name for name in record.phases[0].bits if name in seen]
    grid = np.array(
        [
            [(e.by_layer("density") or {}).get(name, np.nan) for e in record.history]
            for name in layers
        ]
    )  # (layers, epochs)
    least, most = np.floor(np.nanmin(grid) * 10) / 10, np.ceil(np.nanmax(grid) * 10) / 10
    last = len(record.history) + 0.5

    figure, (heat, line) = page([0.17 * len(layers), 1.3], 8, 2.9 + 0.17 * len(layers))
    image = heat.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap=SHADES,
        vmin=least,
        vmax=most,
        extent=(0.5, last, len(layers) - 0.5, -0.5),
    )
    heat.set_yticks(range(len(layers)), layers, fontsize=SMALL)
    heat.tick_params(labelbottom=False)
    figure.colorbar(image, ax=heat, label="activation density", pad=0.02)

    mark = MARKS[method_of_run(record)]
    epochs = [epoch.epoch + 1 for epoch in record.history]
    total = [np.nan if (n := e.number("total_density")) is None else n for e in record.history]
    line.plot(
        epochs,
        total,
        color="black",
        lw=0.8,
        marker=mark.marker,
        markerfacecolor=mark.colour,
        markersize=5,
        markevery=max(1, len(epochs) // 25),
    )
    line.set_ylabel(heading("total_density"))
    line.set_xlabel("epoch")
    line.set_xlim(0.5, last)
    for axes in (heat, line):
        whole(axes, x=True, y=False)
    _mark_changes(record, heat, line)
    caption(figure, title, protocol([record]))
    return figure


def _mark_changes(record: Record, heat: Axes, line: Axes) -> None:
    """Draw a line where a phase begins with a change, and write each phase's mean bit-width."""
    for phase in changes(record):
        for axes in (heat, line):
            at = phase.first_epoch + 0.5
            if axes is heat:  # a white edge keeps it visible on dark cells
                axes.axvline(at, color="white", lw=2.2)
            axes.axvline(at, color="black", lw=1, ls=(0, (4, 2)), gid=f"change_{phase.index}")
    narrow = min(phase.epochs for phase in record.phases) < 0.06 * len(record.history)
    for phase in record.phases:
        heat.text(
            phase.first_epoch + 0.5 + phase.epochs / 2,
            1.01,
            f"{mean_bits(phase):.2f}",
            transform=heat.get_xaxis_transform(),
            ha="center",
            va="bottom",
            rotation="vertical" if narrow else "horizontal",
        )
    heat.text(-0.01, 1.01, "mean bits", transform=heat.transAxes, ha="right", va="bottom")


def mean_bits(phase: Phase) -> float:
    """Mean width of the weights over layers, as in the column of that name."""
    return fmean(weight for weight, _ in phase.bits.values())


# Bit-widths


def bits_figure(record: Record, title: str, labels: Mapping[int, str]) -> Figure | str:
    """Bit-widths by layer in execution order, a line of steps for each phase.

    Activations get axes of their own where their widths differ from the weights', and so do output
    channels where the run cut any. ``labels`` names phases by their index.
    """
    inner = [pair for phase in record.phases for pair in list(phase.bits.values())[1:-1]]
    if len(set(inner)) < 2 and not changes(record):
        return "all inner layers keep the same bit-width"
    layers = list(record.phases[0].bits)
    panels: dict[str, list[dict[str, int]]] = {}
    weights = [{name: pair[0] for name, pair in p.bits.items()} for p in record.phases]
    acts = [{name: pair[1] for name, pair in p.bits.items()} for p in record.phases]
    if weights == acts:
        panels["bit-width [bit]"] = weights
    else:
        panels |= {"weight bits [bit]": weights, "activation bits [bit]": acts}
    if any(phase.channels for phase in record.phases):
        panels["output channels"] = [phase.channels or {} for phase in record.phases]

    width, legend = max(8, 2 + 0.17 * len(layers)), 0.17 * len(record.phases)
    figure, drawn = page([1] * len(panels), width, 2.1 + legend + 2.1 * len(panels))
    for axes, (name, series) in zip(drawn, panels.items(), strict=True):
        _steps(axes, record.phases, labels, [[s.get(n, np.nan) for n in layers] for s in series])
        axes.set_ylabel(name)
        axes.set_xticks(range(len(layers)), [])
    drawn[0].legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)
    drawn[-1].set_xticks(range(len(layers)), layers, rotation="vertical", fontsize=SMALL)
    drawn[-1].set_xlabel("layer, in execution order")
    caption(figure, title, protocol([record]))
    return figure


DASHES, SIGNS = ("-", "--", "-.", ":"), "osD^vP"  # from the last phase backwards


def _steps(
    axes: Axes, phases: Sequence[Phase], labels: Mapping[int, str], series: list[list[float]]
) -> None:
    """Draw a line of steps for each phase; earlier ones are wider, so that none hides another."""
    shades = mpl.colormaps[SHADES](np.linspace(0, 0.75, len(phases)))
    later = range(len(phases) - 1, -1, -1)  # phases after this one
    for phase, values, after in zip(phases, series, later, strict=True):
        own = labels.get(phase.index, f"phase {phase.index}")
        first, last = phase.first_epoch + 1, phase.first_epoch + phase.epochs
        axes.plot(
            range(len(values)),
            values,
            drawstyle="steps-mid",
            color=tuple(shades[after]),
            linestyle=DASHES[after % len(DASHES)],
            linewidth=1.3 + 3 * after / len(phases),
            marker=SIGNS[after % len(SIGNS)],
            markersize=4,
            label=f"{own}: epochs {first} to {last}, mean {mean_bits(phase):.2f} bit",
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(-0.6, max(len(values) for values in series) - 0.4)
    axes.grid(axis="y", lw=0.4, color="0.85")
    whole(axes, x=False, y=True)


# Accuracy against energy


@dataclass(frozen=True)
class Point:
    """One row of the table, or several with the same numbers."""

    label: str
    method: str
    energy: Measured
    accuracy: Measured

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Ends of the error bars: least and greatest energy, least and greatest accuracy."""
        x, y = self.energy.std or 0, self.accuracy.std or 0
        left, low = self.energy.mean - x, self.accuracy.mean - y
        return left, self.energy.mean + x, low, self.accuracy.mean + y


def points(reporter: Reporter, column: str) -> tuple[list[Point], list[Record]]:
    """Rows that have both accuracy and the energy of ``column``, and the records behind them."""
    found: dict[tuple[str, tuple[float, ...], tuple[float, ...]], Point] = {}
    records: dict[str, Record] = {}
    for name in reporter.asked.chosen_rows(reporter.table):
        energy, accuracy = reporter.measured(name, column), reporter.measured(name, "top1_pct")
        if energy is None or accuracy is None:
            continue
        behind = [facts for facts, _ in reporter.known(name, "top1_pct")]
        records |= {f.record.name: f.record for f in behind if f.record is not None}
        method, label = method_of(behind[0]), reporter.table.rows[name].label
        key = (method, energy.values, accuracy.values)
        label = f"{found[key].label} = {label}" if key in found else label
        found[key] = Point(label, method, energy, accuracy)
    return list(found.values()), list(records.values())


def frontier(shown: Sequence[Point]) -> list[Point]:
    """Points that no other beats in both energy and accuracy, by rising energy."""
    best: list[Point] = []
    for point in sorted(shown, key=lambda p: (p.energy.mean, -p.accuracy.mean)):
        if not best or point.accuracy.mean > best[-1].accuracy.mean:
            best.append(point)
    return best


def frontier_figure(reporter: Reporter) -> Figure | str:
    """Accuracy against energy (logarithmic), one point a row, for each energy that rows have.

    Means over seeds, with the standard deviation as error bars where there are several.
    """
    found = {column: points(reporter, column) for column in ENERGIES}
    panels = {column: both for column, both in found.items() if len(both[0]) > 1}
    if not panels:
        return "fewer than two rows have both accuracy and energy"
    figure, drawn = page([1] * len(panels), 8, 1.1 + 3.4 * len(panels))
    for axes, (column, (shown, _)) in zip(drawn, panels.items(), strict=True):
        _scatter(axes, shown)
        axes.set_xlabel(f"{heading(column)} for one image, logarithmic")
        axes.set_ylabel(heading("top1_pct"))
    records = {r.name: r for _, kept in panels.values() for r in kept}.values()
    used = dict.fromkeys(p.method for shown, _ in panels.values() for p in shown)
    keys = [
        Line2D([], [], ls="", marker=mark.marker, mfc=mark.colour, mec="black", label=name)
        for name, mark in MARKS.items()
        if name in used
    ]
    keys.append(Line2D([], [], color="0.4", lw=0.8, ls="--", label="frontier"))
    drawn[0].legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=len(keys), borderaxespad=0
    )
    foot = protocol(records)
    if any(p.accuracy.std is not None for shown, _ in panels.values() for p in shown):
        foot += " Bars: standard deviation over seeds."
    caption(figure, f"{reporter.table.id}: {reporter.table.title}", foot)
    settle(figure)
    for axes, (shown, _) in zip(drawn, panels.values(), strict=True):
        _label(axes, shown)
    return figure


def _scatter(axes: Axes, shown: Sequence[Point]) -> None:
    """Draw the points with their error bars, and the frontier as thin steps."""
    for point in shown:
        mark = MARKS[point.method]
        axes.errorbar(
            point.energy.mean,
            point.accuracy.mean,
            xerr=point.energy.std or None,
            yerr=point.accuracy.std or None,
            fmt=mark.marker,
            markersize=7,
            markerfacecolor=mark.colour,
            markeredgecolor="black",
            ecolor="black",
            elinewidth=0.8,
            capsize=2,
        )
    best = frontier(shown)
    axes.plot(
        [p.energy.mean for p in best],
        [p.accuracy.mean for p in best],
        drawstyle="steps-post",
        color="0.4",
        lw=0.8,
        ls="--",
        zorder=1,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(0.12, 0.18)
    axes.grid(lw=0.4, color="0.9")


def _label(axes: Axes, shown: Sequence[Point]) -> None:
    """Name each point, with its number of seeds where others have more."""
    assert axes.figure is not None
    radius = 5 * axes.figure.dpi / 72  # of a mark, in pixels
    taken = [_mark_box(axes, point, radius) for point in shown] + _step_boxes(axes, shown)
    most = max(point.accuracy.n for point in shown)
    shared = _shared([point.label for point in shown])
    labels: dict[tuple[float, float], list[str]] = {}  # points of several methods may be one
    for point in shown:
        n, own = point.accuracy.n, point.label.replace(shared, "") if shared else point.label
        words = own if n == most else f"{own} (n={n})"
        labels.setdefault((point.energy.mean, point.accuracy.mean), []).append(words)
    lines = {at: " = ".join(words).replace(" = ", " =\n") for at, words in labels.items()}
    place_labels(axes, [(words, at) for at, words in lines.items()], taken)


def _shared(labels: Sequence[str]) -> str:
    """Words that all labels begin with, such as the network's name.

    >>> _shared(["VGG19, AD, 1st update", "VGG19, AD, final"]), _shared(["4 bit", "2 bit"])
    ('VGG19, AD, ', '')
    """
    parts = zip(*(label.split(", ") for label in labels), strict=False)
    return "".join(f"{part[0]}, " for part in takewhile(lambda part: len({*part}) == 1, parts))


def _step_boxes(axes: Axes, shown: Sequence[Point]) -> list[Bbox]:
    """Pixels that the frontier's steps cover."""
    corners = axes.transData.transform([(p.energy.mean, p.accuracy.mean) for p in frontier(shown)])
    boxes = []
    for (left, low), (right, high) in pairwise(corners):
        boxes += [Bbox([[left, low], [right, low]]), Bbox([[right, low], [right, high]])]
    return [box.padded(1) for box in boxes]


def _mark_box(axes: Axes, point: Point, radius: float) -> Bbox:
    """Pixels that a point and its error bars cover."""
    left, right, low, high = point.box
    left = max(left, point.energy.mean / 100)  # a logarithm is drawn
    corners = axes.transData.transform([(left, low), (right, high)])
    return Bbox(corners).padded(radius)
