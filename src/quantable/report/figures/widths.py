"""Real bit-widths that a run searches, over epochs, and the integers that they are rounded to.

A line for each layer; layers of one stage, which is the first part of their names, look alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

from quantable.config.schema import Looks
from quantable.report.history import first_runs, numbers_in, run_label
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Panel, Plot, Point, Series
from quantable.store.record import Phase, Record
from quantable.tables.schema import Figure

OPERANDS = {"real_bits": (0, "weights"), "real_act_bits": (1, "activations")}
STYLES = [  # of the stages, which give their names
    Looks(short="", colour="#0072B2", marker="s"),
    Looks(short="", colour="#D55E00", marker="^", dash=(6, 1.5)),
    Looks(short="", colour="#009E73", marker="D", dash=(3, 1.5)),
    Looks(short="", colour="#CC79A7", marker="v", dash=(1, 1.2)),
    Looks(short="", colour="#000000", marker="o", dash=(6, 1.5, 1, 1.5)),
    Looks(short="", colour="#E69F00", marker="P", dash=(9, 2)),
]


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Plot | str]]:
    """A plot for each run that writes real widths down, with a panel for each operand."""
    del asked
    runs = first_runs(reporter)
    known = {run: record for run, record in runs.items() if _operands(record)}
    for run, record in known.items():
        yield f"{name}_{run}", plot(record, run_label(reporter, run))
    if not known:
        yield name, "no run has searched for real widths"


def _operands(record: Record) -> list[str]:
    return [number for number in numbers_in(record, by_layer=True) if number in OPERANDS]


def plot(record: Record, label: str) -> Plot:
    """The search, and behind it the widths of the phase that follows."""
    search, *later = record.phases
    panels = [_panel(record, number, search, later) for number in _operands(record)]
    note = "Dashed: the rounding; marks: integer widths from then on. The first seed's."
    return Plot(f"Real widths over epochs: {label}", note, panels, [record])


def _panel(record: Record, number: str, search: Phase, later: Sequence[Phase]) -> Panel:
    operand, words = OPERANDS[number]
    lines: dict[str, list[tuple[float, float]]] = {}
    for epoch in record.history[: search.epochs]:
        for layer, width in (epoch.by_layer(number) or {}).items():
            lines.setdefault(layer, []).append((epoch.epoch + 1.0, width))
    looks = looks_by_stage(list(lines))
    series = []
    for layer, line in lines.items():
        tip, marks = f"{layer}: {line[-1][1]:.2f} bit", []
        if later:
            integer = float(later[0].bits[layer][operand])
            tip = f"{tip}, rounded to {integer:g}"
            marks = [Point("", tip, search.epochs + 1.0, integer)]
            line = [*line, (search.epochs + 1.0, integer), (float(len(record.history)), integer)]
        own = looks[layer]
        series.append(Series(own.short, own, marks, line, tip=tip))
    changes = [search.epochs + 0.5] if later else []
    axis = Axis(f"bits of {words}")
    return Panel(Axis("epoch", whole=True), axis, series, changes=changes)


def looks_by_stage(layers: Sequence[str]) -> Mapping[str, Looks]:
    """Looks of each layer, the same for those of one stage.

    >>> found = looks_by_stage(["conv1", "layer1.0.conv1", "layer1.0.conv2"])
    >>> [(looks.short, looks.marker) for looks in found.values()]
    [('conv1', 's'), ('layer1', '^'), ('layer1', '^')]
    """
    stages = dict.fromkeys(layer.partition(".")[0] for layer in layers)
    made = {
        stage: style.model_copy(update={"short": stage})
        for stage, style in zip(stages, cycle(STYLES), strict=False)
    }
    return {layer: made[layer.partition(".")[0]] for layer in layers}
