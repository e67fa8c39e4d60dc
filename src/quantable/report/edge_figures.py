"""Figures of learned bit-widths: accuracy against memory with hulls, sizes over the training."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quantable.columns.edge import targets_kb
from quantable.networks.layers import LayerShape
from quantable.report.marks import Mark
from quantable.report.page import caption, page, protocol, whole
from quantable.report.render import heading
from quantable.report.reporter import Reporter
from quantable.store.record import Epoch, Record

# Series by the beginning of their rows' names, the longer first. Colours of Okabe and Ito.
SERIES: dict[str, tuple[str, Mark]] = {
    "granular_surrogate": ("full method", Mark("#D55E00", "^", "-")),
    "granular": ("a step per channel", Mark("#56B4E9", "v", (0, (6, 1.5)))),
    "surrogate": ("EWGS / InvTanh", Mark("#CC79A7", "D", (0, (3, 1.5)))),
    "mixed": ("mixed", Mark("#00654A", "o", (0, (1, 1.2)))),
    "uniform": ("uniform", Mark("#000000", "s", (0, (6, 1.5, 1, 1.5)))),
    "float": ("float", Mark("#888888", "*")),
}
ACCURACIES = (("held-out", "val_top1_pct", "o"), ("training", "train_top1_pct", "x"))
LOOKS = {"weights": ("#0072B2", "s", "-"), "activations": ("#D55E00", "^", "--")}
PHASES = ("fixed bits", "search", "fine-tuning")


@dataclass(frozen=True)
class Spot:
    """A row's memory in MB and its accuracy in percent."""

    series: str  # a key of SERIES
    total_mb: float
    top1_pct: float
    std: float | None = None  # of the accuracy, over seeds
    doubtful: bool = False  # published, and no basis for a verdict


def series_of(row: str) -> str | None:
    """Series of a row, by its name.

    >>> series_of("granular_surrogate_2.975"), series_of("w3a3_ste_ste")
    ('granular_surrogate', None)
    """
    return next((name for name in SERIES if re.match(rf"{name}(_|$)", row)), None)


def published_spots(reporter: Reporter) -> list[Spot]:
    """Rows whose memory and accuracy are both published."""
    found = []
    for name in reporter.asked.chosen_rows(reporter.table):
        series, known = series_of(name), reporter.table.rows[name].published
        top1, total = known.get("top1_pct"), known.get("total_mb")
        if series is None or top1 is None or total is None:
            continue
        if top1.value is not None and total.value is not None:
            found.append(Spot(series, total.value, top1.value, doubtful=not top1.counts))
    return found


def our_spots(reporter: Reporter) -> tuple[list[Spot], list[Record]]:
    """Rows with runs of ours, means over seeds, and the records behind them."""
    found, records = [], dict[str, Record]()
    for name in reporter.asked.chosen_rows(reporter.table):
        series = series_of(name)
        top1, total = reporter.measured(name, "top1_pct"), reporter.measured(name, "total_mb")
        if series is None or series == "float" or top1 is None or total is None:
            continue
        behind = [f.record for f, _ in reporter.known(name, "top1_pct") if f.record is not None]
        records |= {record.name: record for record in behind}
        found.append(Spot(series, total.mean, top1.mean, top1.std))
    return found, list(records.values())


def hull(spots: Iterable[Spot]) -> list[Spot]:
    """Points on the upper convex hull of accuracy over memory, up to the best accuracy.

    >>> [spot.total_mb for spot in hull([Spot("mixed", x, y) for x, y in
    ...     [(1, 50), (2, 51), (3, 60), (4, 62), (5, 61)]])]
    [1, 3, 4]
    """
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.total_mb, -s.top1_pct)):
        if kept and spot.top1_pct <= kept[-1].top1_pct:
            continue  # larger and no better
        while len(kept) > 1 and _slope(kept[-2], kept[-1]) <= _slope(kept[-1], spot):
            kept.pop()
        kept.append(spot)
    return kept


def _slope(a: Spot, b: Spot) -> float:
    return (b.top1_pct - a.top1_pct) / (b.total_mb - a.total_mb) if b.total_mb > a.total_mb else 0.0


def memory_figure(reporter: Reporter) -> Figure | str:
    """Accuracy against memory, published and ours on one picture, or why there is none."""
    published, (ours, records) = published_spots(reporter), our_spots(reporter)
    if len(published) + len(ours) < 2:
        return "fewer than two rows have both accuracy and memory"
    return draw_memory(published, ours, records, f"{reporter.table.id}: {reporter.table.title}")


def draw_memory(
    published: Sequence[Spot], ours: Sequence[Spot], records: Sequence[Record], title: str
) -> Figure:
    """Small marks and thin hulls are published, large ones with black edges and thick hulls ours.

    Hollow marks are published and doubtful; no hull rests on them.
    """
    figure, (axes,) = page([1], 8, 5.2)
    for spots, own in ((published, False), (ours, True)):
        for name in SERIES:
            of_series = [spot for spot in spots if spot.series == name]
            if of_series:
                _draw_series(axes, of_series, SERIES[name][1], own=own)
    axes.set_xlabel(heading("total_mb"))
    axes.set_ylabel(heading("top1_pct"))
    axes.margins(0.04, 0.06)
    axes.grid(lw=0.4, color="0.9")
    used = {spot.series for spot in (*published, *ours)}
    keys = [
        Line2D([], [], color=mark.colour, ls=mark.dash, marker=mark.marker, mec="black", label=name)
        for key, (name, mark) in SERIES.items()
        if key in used
    ]
    axes.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=len(keys),
        borderaxespad=0,
        handlelength=4,
    )
    foot = "Lines: convex hulls."
    if published:
        foot += " Small marks: published."
    if any(spot.doubtful for spot in published):
        foot += " Hollow: doubtful, in no hull."
    if ours:
        foot += f" Large marks with black edges: ours; {protocol(records)}"
    if any(spot.std is not None for spot in ours):
        foot += " Bars: standard deviation over seeds."
    caption(figure, title, foot)
    return figure


def _draw_series(axes: Axes, spots: Sequence[Spot], mark: Mark, *, own: bool) -> None:
    size, edge = (8, "black") if own else (4, mark.colour)
    for spot in spots:
        axes.errorbar(
            spot.total_mb,
            spot.top1_pct,
            spot.std,
            fmt=mark.marker,
            markersize=size,
            markerfacecolor="none" if spot.doubtful else mark.colour,
            markeredgecolor=edge,
            ecolor="black",
            elinewidth=0.8,
            capsize=2,
        )
    best = hull(spot for spot in spots if not spot.doubtful)
    axes.plot(
        [spot.total_mb for spot in best],
        [spot.top1_pct for spot in best],
        color=mark.colour,
        ls=mark.dash,
        lw=1.8 if own else 0.9,
        zorder=1,
    )


# Sizes over the training


def sizes_figure(record: Record, shapes: Sequence[LayerShape] | None, title: str) -> Figure | str:
    """Sizes and their targets, penalty and accuracy by epoch, as in the published trace."""
    known = [epoch for epoch in record.history if epoch.number("weight_kb") is not None]
    targets = targets_kb(record, shapes) if shapes is not None else None
    if len(known) < 2 or targets is None:
        return "the run learned no sizes"
    figure, drawn = page([2, 1, 1], 8, 6.4)
    at = [epoch.epoch + 1 for epoch in known]
    for (name, (colour, marker, dash)), target, values in zip(
        LOOKS.items(), targets, _sizes(known), strict=True
    ):
        drawn[0].plot(at, values, color=colour, marker=marker, ls=dash, label=name)
        drawn[0].axhline(target, color=colour, lw=0.9, ls=":", label=f"target of {name}")
    drawn[0].set_ylabel("size [kB]")
    drawn[0].legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0)
    strength = float(record.config["quantizer.callback.strength"])
    drawn[1].plot(at, _penalties(known, targets, strength), color="black", marker="o")
    drawn[1].set_ylabel("size penalty,\nfull weight")
    for name, key, marker in ACCURACIES:
        values = [getattr(epoch, key) for epoch in known]
        drawn[2].plot(at, values, color="0.3", marker=marker, ls="none", label=name)
    drawn[2].legend(ncols=2, loc="lower right", borderaxespad=0)
    drawn[2].set_ylabel("top-1 [%]")
    drawn[2].set_xlabel("epoch")
    phases = [next(group) for _, group in groupby(known, key=lambda epoch: epoch.phase)]
    for axes in drawn:
        axes.grid(lw=0.4, color="0.9")
        axes.set_xlim(at[0] - 0.5, at[-1] + 0.5)
        axes.tick_params(labelbottom=axes is drawn[-1])
        whole(axes, x=True, y=False)
        for first in phases[1:]:
            axes.axvline(first.epoch + 0.5, color="black", lw=1, ls=(0, (4, 2)))
    foot = f"Dashed: from one phase to the next ({', '.join(PHASES[p.phase] for p in phases)}). "
    caption(figure, title, foot + protocol([record]))
    return figure


def _sizes(epochs: Sequence[Epoch]) -> tuple[list[float], list[float]]:
    weights, acts = ([e.number(name) or np.nan for e in epochs] for name in ("weight_kb", "act_kb"))
    return weights, acts


def _penalties(
    epochs: Sequence[Epoch], targets: tuple[float, float], strength: float
) -> list[float]:
    """Penalty of each epoch's last sizes; at fixed bits and in fine-tuning it is in no loss."""
    both = zip(*_sizes(epochs), strict=True)
    return [
        strength * sum(max(size - most, 0) ** 2 for size, most in zip(sizes, targets, strict=True))
        for sizes in both
    ]
