"""What figures share: style, the marks of methods, the page with heading and protocol line."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quantable.record import Record

STYLE: dict[str, Any] = {  # on matplotlib's defaults, so that no matplotlibrc changes a byte
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # Text stays text, which can be searched and read aloud; fonts that stand in are hardly wider.
    "svg.fonttype": "none",
    "svg.hashsalt": "quantable",
}
SMALL = 8  # points: layer names, protocol line
SHADES = "cividis"  # perceptually uniform, also in grey and for the colour-blind


@dataclass(frozen=True)
class Mark:
    """How a method looks in every figure."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]] = "-"  # of a line through its points


# Colours of Okabe and Ito (jfly.uni-koeln.de/color), chosen so that their greys differ as well.
MARKS: Mapping[str, Mark] = {
    "float": Mark("#000000", "o"),
    "uniform": Mark("#0072B2", "s"),
    "AD": Mark("#E69F00", "^"),
    "AD pruned": Mark("#F0E442", "D"),
    "AD joint": Mark("#009E73", "P"),
    "other": Mark("#FFFFFF", "X"),
}
# Metrics of a search, beside float and uniform: hues of Okabe and Ito, as light or dark as it takes
# for their greys to differ, and a neutral grey for chance.
SEARCH_MARKS: Mapping[str, Mark] = {
    "EAGL": Mark("#D55E00", "^", "-"),
    "ALPS": Mark("#5DB7EA", "v", (0, (6, 1.5))),
    "HAWQ trace": Mark("#CE7EAA", "D", (0, (6, 1.5, 1, 1.5))),
    "magnitude": Mark("#00654A", "P", (0, (3, 1.5))),
    "random": Mark("#444444", "*", (0, (1, 1.2))),
    "first to last": Mark("#D5CA3A", ">", (0, (9, 2))),
    "last to first": Mark("#432837", "<", (0, (3, 1.2, 1, 1.2, 1, 1.2))),
}


METHODS: Mapping[str, str] = {  # of the class that quantizes a run
    "quantable.quantize.Quantize": "uniform",
    "quantable.methods.activation_density.ActivationDensity": "AD",
    "quantable.methods.density_pruning.DensityPruning": "AD joint",
}
METRICS: Mapping[str, str] = {  # of the class that searches; of several, what it goes by
    "quantable.search.eagl.Eagl": "EAGL",
    "quantable.search.alps.Alps": "ALPS",
    "quantable.search.hessian.HessianTrace": "HAWQ trace",
    "quantable.search.magnitude.Magnitude": "magnitude",
    "random": "random",
    "first_to_last": "first to last",
    "last_to_first": "last to first",
}


def method_of_run(record: Record) -> str:
    """Name a run's method: a key of ``MARKS``, ``other`` for one without a mark of its own."""
    config, key = record.config, "quantizer.callback"
    if key in config:  # a leaf only where it is null
        return "float"
    method = METHODS.get(config[f"{key}._target_"], "other")
    if method == "AD joint" and max(config[f"{key}.inner"]) <= config[f"{key}.min_bits"]:
        return "AD pruned"  # the widths begin at their least
    return method


def metric_of_search(record: Record) -> str:
    """Name a search's metric: a key of ``SEARCH_MARKS``, ``other`` for one without a mark."""
    rule = record.config["search.rule._target_"]
    return METRICS.get(record.config.get("search.rule.by", rule), "other")


def protocol(records: Iterable[Record]) -> str:
    """One line: network, data, budget and seeds behind a figure."""
    kept = list(records)
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
