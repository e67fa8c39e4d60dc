"""Numbers of every run over its epochs (``of``): a line for each run, the second number dashed."""

from collections.abc import Iterator, Sequence

from quantable.report.history import (
    EVERY_RUN,
    Heading,
    check_names,
    declared,
    first_runs,
    mean_widths,
    number_of,
    run_label,
)
from quantable.report.looks import looks_of
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Panel, Place, Plot, Series, asks_for_log, without_shared
from quantable.store.record import Record
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Plot | str]]:
    """One panel; a run without the number, or one in which it never changes, has no line."""
    check_names(asked.of, f"conf/table/{reporter.table.id}.yaml: figures.{name}.of", own=False)
    plot = lines_of(reporter, asked.of)
    yield name, plot if plot is not None else f"no run in which {' or '.join(asked.of)} changes"


def lines_of(reporter: Reporter, names: Sequence[str]) -> Plot | None:
    """The first seed of each run; None where there is no line."""
    drawn: dict[str, list[Series]] = {}
    headings: dict[str, Heading] = {}
    records = []
    for run, record in first_runs(reporter).items():
        known = {**EVERY_RUN, **declared(reporter, run)}
        for i, name in enumerate(names):
            about = known.get(name, Heading(name))
            line = _places(record, name)
            if len({y for _, y in line}) > 1:
                headings[name] = about
                tip = f"{run_label(reporter, run)}, seed {record.seed}\n{about.title}: "
                tip += f"{line[-1][1]:.{about.decimals}f} at the end"
                one = Series(
                    looks_of(reporter, run).short,
                    looks_of(reporter, run),
                    line=line,
                    dashed=i > 0,
                    label=run_label(reporter, run),
                    tip=tip,
                )
                drawn.setdefault(name, []).append(one)
                records.append(record)
    if not drawn:
        return None
    series = [one for name in names for one in _named_apart(drawn.get(name, []))]
    values = [y for one in series for _, y in one.line]
    zero = names[0] == "mean_bits"
    first = next(iter(headings.values()))
    y = Axis(
        first.words if len(headings) == 1 else " and ".join(h.title for h in headings.values()),
        log=asks_for_log(values) and not zero,
        from_zero=zero,
    )
    note = "The first seed of each run."
    if len(headings) > 1:
        note = f"Solid: {'; dashed: '.join(h.title for h in headings.values())}. {note}"
    title = f"{' and '.join(h.title for h in headings.values())} over epochs"
    panel = Panel(Axis("epoch", whole=True), y, series)
    kept = list({record.name: record for record in records}.values())
    return Plot(title[0].upper() + title[1:], note, [panel], kept)


def _places(record: Record, name: str) -> list[Place]:
    if name == "mean_bits":
        return mean_widths(record)
    known = ((epoch.epoch + 1.0, number_of(epoch, name)) for epoch in record.history)
    return [(x, y) for x, y in known if y is not None]


def _named_apart(series: Sequence[Series]) -> list[Series]:
    """Lines of one key with what tells their names apart."""
    found = list(series)
    for name in dict.fromkeys(one.name for one in series):
        own = [i for i, one in enumerate(series) if one.name == name]
        for i, label in zip(own, without_shared([series[i].label for i in own]), strict=True):
            found[i] = Series(**vars(series[i]) | {"label": label})
    return found
