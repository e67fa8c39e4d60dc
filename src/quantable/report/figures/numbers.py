"""A method's own numbers over epochs: by layer a heat map for each run, the others as lines."""

from collections.abc import Iterable, Iterator

from quantable.report.figures.epochs import lines_of
from quantable.report.history import (
    Heading,
    changes,
    check_names,
    declared,
    first_runs,
    mean_bits,
    numbers_in,
    run_label,
)
from quantable.report.reporter import Reporter
from quantable.report.shapes import Grid, Group, Plot
from quantable.store.record import Record
from quantable.tables.schema import Figure


def describe(
    reporter: Reporter, name: str, asked: Figure
) -> Iterator[tuple[str, Grid | Plot | str]]:
    """Every number that a run has, or those that the table asks for (``of``)."""
    check_names(asked.of, f"conf/table/{reporter.table.id}.yaml: figures.{name}.of", own=True)
    runs = first_runs(reporter)
    shapes: dict[str, Grid | Plot] = {}
    for run, record in runs.items():
        known = declared(reporter, run)
        for number in _asked(numbers_in(record, by_layer=True), asked):
            about = known.get(number, Heading(number))
            title = f"{about.title}: {run_label(reporter, run)}"
            shapes[f"{number}_{run}"] = heat_map(record, number, about, title)
    single = dict.fromkeys(n for r in runs.values() for n in numbers_in(r, by_layer=False))
    for number in _asked(single, asked):
        if (plot := lines_of(reporter, [number])) is not None:
            shapes[number] = plot
    yield from shapes.items()
    if not shapes:
        yield name, "no run has numbers of its method's own that change"


def _asked(numbers: Iterable[str], asked: Figure) -> list[str]:
    return [number for number in numbers if not asked.of or number in asked.of]


def heat_map(record: Record, number: str, about: Heading, title: str) -> Grid:
    """Layers in execution order by epoch; above, the mean bit-width that each change leaves."""
    seen = {name for epoch in record.history for name in epoch.by_layer(number) or ()}
    order = [name for name in record.phases[0].bits if name in seen]
    order += sorted(seen - set(order))
    rows = {name: [(e.by_layer(number) or {}).get(name) for e in record.history] for name in order}
    begun = record.phases[:1] + changes(record)
    words = {phase.first_epoch: f"{mean_bits(phase.bits):.2f} bit" for phase in begun}
    note = "Dashed where bit-widths change; above, the mean of each phase. The first seed's."
    group = Group(about.words, rows)
    epochs = len(record.history)
    return Grid(title, note, [group], epochs, "epoch", about.words, words, records=[record])
