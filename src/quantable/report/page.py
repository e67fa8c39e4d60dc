"""What figures share: style, the page with heading and protocol line."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quantable.store.record import Record

STYLE: dict[str, Any] = {  # on matplotlib's defaults, so that no matplotlibrc changes a byte
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,  # the grid behind lines and marks
    "axes.formatter.useoffset": False,  # a tick says its whole value
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # TrueType: type 3, the default, is refused by some publishers
    # Text stays text, which can be searched and read aloud.
    "svg.fonttype": "none",
    "svg.hashsalt": "quantable",
}
SMALL = 8  # points: layer names, protocol line
SHADES = "cividis"  # perceptually uniform, also in grey and for the colour-blind


def protocol(records: Iterable[Record]) -> str:
    """One line: network, data, budget and seeds behind a figure; none where no run is."""
    kept = list(records)
    if not kept:
        return ""
    networks = ", ".join(dict.fromkeys(str(r.config["model.name"]) for r in kept))
    data = ", ".join(dict.fromkeys(r.data.title for r in kept))
    budgets = ", ".join(dict.fromkeys(r.budget for r in kept))
    seeds = sorted({r.seed for r in kept})
    word = "seeds" if len(seeds) > 1 else "seed"
    return f"{networks}; data {data}; budget {budgets}; {word} {', '.join(map(str, seeds))}."


def page(ratios: Sequence[float], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a page of ``width`` x ``height`` inches with axes below each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=list(ratios))
    return figure, list(axes[:, 0])


def caption(figure: Figure, head: str, foot: str) -> None:
    """Write heading and protocol line, wrapped to the width."""
    width = figure.get_figwidth()
    figure.suptitle(fill(head, int(width * 12)), x=0.01, ha="left", fontsize=10)
    figure.supxlabel(fill(foot, int(width * 15)), x=0.01, ha="left", fontsize=SMALL)


def whole(axes: Axes, *, x: bool, y: bool) -> None:
    """Put ticks at whole numbers only."""
    for axis, wanted in ((axes.xaxis, x), (axes.yaxis, y)):
        if wanted:
            axis.set_major_locator(MaxNLocator(integer=True))


def settle(figure: Figure) -> None:
    """Make the layout final, as places of labels depend on it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
