"""Bit-widths by layer in each phase of a run, and output channels where the run cut any."""

from collections.abc import Iterator, Mapping, Sequence

from quantable.report.history import changes, first_runs, mean_bits, run_label
from quantable.report.reporter import Reporter
from quantable.report.shapes import Grid, Group, without_shared
from quantable.store.record import Phase, Record
from quantable.tables.schema import Figure


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Grid | str]]:
    """A grid for each run that is neither a search nor has bits that a search chose."""
    del asked
    for run, record in first_runs(reporter).items():
        if record.scores is None and reporter.table.rows[run].chosen is None:
            labels = phase_labels(reporter, run, record)
            title = f"Bits per layer and phase: {run_label(reporter, run)}"
            yield f"{name}_{run}", grid(record, title, labels)


def phase_labels(reporter: Reporter, run: str, record: Record) -> dict[int, str]:
    """Labels of the table's rows that show a phase of ``record``, by the phase's index."""
    labels: dict[int, list[str]] = {}
    for name, row in reporter.table.rows.items():
        if reporter.table.cell_of(name) == run and row.cost_bits is None:
            for facts in reporter.row_facts(name).facts:
                if facts.record == record and facts.phase is not None:
                    labels.setdefault(facts.phase.index, []).append(row.label)
    if sum(map(len, labels.values())) < 2:  # it is the run's own name
        return {}
    own = iter(without_shared([name for names in labels.values() for name in names]))
    return {index: " = ".join(next(own) for _ in names) for index, names in labels.items()}


def grid(record: Record, title: str, labels: Mapping[int, str]) -> Grid | str:
    """Layers in execution order; activations apart where their widths differ from the weights'."""
    inner = [pair for phase in record.phases for pair in list(phase.bits.values())[1:-1]]
    if len(set(inner)) < 2 and not changes(record):
        return "all inner layers keep the same bit-width"
    layers = list(record.phases[0].bits)
    weights, acts = (
        [{n: pair[i] for n, pair in phase.bits.items()} for phase in record.phases] for i in (0, 1)
    )
    parts: dict[str, Sequence[Mapping[str, int]]] = {"bits": weights}
    if weights != acts:
        parts = {"weights": weights, "activations": acts}
    if any(phase.channels for phase in record.phases):
        parts["output channels"] = [phase.channels or {} for phase in record.phases]
    names = [labels.get(phase.index, f"phase {phase.index}") for phase in record.phases]
    epochs = [_epochs(phase) for phase in record.phases]
    groups: list[Group] = []
    for part, values in parts.items():
        words = [f"{own}: {when}" for own, when in zip(names, epochs, strict=True)]
        if groups:
            words = [f"{own}, {part}" for own in names]
        rows = ([own.get(layer) for layer in layers] for own in values)
        groups.append(Group(part, dict(zip(words, rows, strict=True))))
    note = "Layers in execution order; the first seed's."
    return Grid(title, note, groups, layers, "layer, in execution order", records=[record])


def _epochs(phase: Phase) -> str:
    first, last = phase.first_epoch + 1, phase.first_epoch + phase.epochs
    return f"epochs {first} to {last}, mean {mean_bits(phase.bits):.2f} bit"
