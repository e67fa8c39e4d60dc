"""What an epoch's line says: numbers of every run, and those that a method declares as its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from quantable.base.errors import unknown
from quantable.config.numbers import every_methods_numbers, own_numbers
from quantable.report.reporter import Reporter
from quantable.store.record import Epoch, Phase, Record


@dataclass(frozen=True)
class Heading:
    """Title, unit and decimals of a number that epochs have."""

    title: str
    unit: str = "1"
    decimals: int = 4

    @property
    def words(self) -> str:
        """Title with the unit."""
        return self.title if self.unit == "1" else f"{self.title} [{self.unit}]"


EVERY_RUN: Mapping[str, Heading] = {
    "epoch": Heading("epoch", decimals=0),
    "phase": Heading("phase", decimals=0),
    "learning_rate": Heading("learning rate", decimals=6),
    "train_loss": Heading("training loss", "nat"),
    "train_top1_pct": Heading("training top-1", "%", 2),
    "val_top1_pct": Heading("held-out top-1", "%", 2),
    "val_loss": Heading("held-out loss", "nat"),
    "test_loss": Heading("test loss", "nat"),
    "test_top1_pct": Heading("test top-1", "%", 2),
    "agreement_pct": Heading("agreement", "%", 2),
    "mean_bits": Heading("mean weight bits over layers", "bit", 2),
    "training_complexity": Heading("training complexity"),
    "seconds": Heading("seconds", decimals=1),
}


def declared(reporter: Reporter, run: str) -> dict[str, Heading]:
    """Headings of a run's own numbers, as its method's YAML declares them."""
    config = reporter.cell(run, reporter.budget, reporter.seeds[0]).config
    return {
        name: Heading(number.title, number.unit, number.decimals)
        for name, number in own_numbers(config).items()
    }


def check_names(names: Iterable[str], where: str, *, own: bool) -> None:
    """Refuse names of no number: of no method's own, or of none that any run has."""
    known = [*(() if own else EVERY_RUN), *every_methods_numbers()]
    for name in names:
        if name not in known:
            raise unknown("number", name, known, where)


def numbers_in(record: Record, *, by_layer: bool) -> list[str]:
    """Names of the method's own numbers: those by layer, or the others."""
    own = (item for epoch in record.history for item in epoch.own.items())
    return list(dict.fromkeys(name for name, value in own if isinstance(value, dict) == by_layer))


def number_of(epoch: Epoch, name: str) -> float | None:
    """A number of an epoch: one of every run's, or the method's own."""
    value: float | None = getattr(epoch, name, epoch.number(name))
    return value


def first_runs(reporter: Reporter) -> dict[str, Record]:
    """Record of the first seed that has one, by the run's row; of the asked rows."""
    found = {}
    rows = reporter.asked.chosen_rows(reporter.table)
    for run in dict.fromkeys(map(reporter.table.cell_of, rows)):
        cells = (reporter.cell(run, reporter.budget, seed) for seed in reporter.seeds)
        record = next((r for r in map(reporter.find, cells) if r is not None), None)
        if record is not None:
            found[run] = record
    return found


def run_label(reporter: Reporter, run: str) -> str:
    """Name of a run; where rows show its phases, what comes before the phase."""
    rows = reporter.table.rows
    phases = any(row.cell == run and row.cost_bits is None for row in rows.values())
    return (phases and rows[run].label.rpartition(",")[0]) or rows[run].label


def mean_bits(bits: Mapping[str, tuple[int, int]]) -> float:
    """Mean width of the weights over layers, as in the column `mean_bits`."""
    return fmean(weight for weight, _ in bits.values())


def mean_widths(record: Record) -> list[tuple[float, float]]:
    """Mean weight bits as steps: the ends (epoch, from 0) of each stretch with the same mean."""
    means = []
    for i, epoch in enumerate(record.history):
        own = (p for p in record.phases if p.first_epoch <= i < p.first_epoch + p.epochs)
        phase = next(own, None)
        bits = epoch.bits or (phase.bits if phase is not None else None)
        means.append(mean_bits(bits) if bits else None)
    found, start = [], 0.0
    for mean, group in groupby(means):
        end = start + len(list(group))
        if mean is not None:
            found += [(start, mean), (end, mean)]
        start = end
    return found


def changes(record: Record) -> list[Phase]:
    """Phases that begin with other bit-widths or channels than the one before had."""
    pairs = zip(record.phases, record.phases[1:], strict=False)
    return [b for a, b in pairs if a.bits != b.bits or a.channels != b.channels]
