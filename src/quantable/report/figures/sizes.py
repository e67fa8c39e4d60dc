"""Sizes that a run learns, with their targets, penalty and accuracy by epoch (Schaefer 2024)."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from quantable.columns.edge import targets_kb
from quantable.config.schema import Looks
from quantable.networks.layers import LayerShape
from quantable.report.history import first_runs, number_of, run_label
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Level, Panel, Place, Plot, Point, Series
from quantable.store.record import Epoch, Record
from quantable.tables.schema import Figure

WEIGHTS = Looks(short="weights", colour="#0072B2", marker="s")
ACTS = Looks(short="activations", colour="#D55E00", marker="^", dash=(6, 1.5))
PENALTY = Looks(short="penalty", colour="#000000", marker="o")
HELD_OUT = Looks(short="held-out", colour="#009E73", marker="D")
TRAINING = Looks(short="training", colour="#888888", marker="X")
PHASES = ("fixed bits", "search", "fine-tuning")


def describe(reporter: Reporter, name: str, asked: Figure) -> Iterator[tuple[str, Plot | str]]:
    """A plot for each run that writes its sizes down."""
    del asked
    for run, record in first_runs(reporter).items():
        if record.history and record.history[-1].number("weight_kb") is not None:
            shapes = reporter.asked.shapes(reporter.cell(run, reporter.budget, 0).config)
            title = f"Sizes over the training: {run_label(reporter, run)}"
            yield f"{name}_{run}", plot(record, shapes, title)


def plot(record: Record, shapes: Sequence[LayerShape] | None, title: str) -> Plot | str:
    """Three panels over epochs, as in the published trace."""
    known = [epoch for epoch in record.history if epoch.number("weight_kb") is not None]
    targets = targets_kb(record, shapes) if shapes is not None else None
    if len(known) < 2 or targets is None:
        return "the run learned no sizes"
    phases = [next(group) for _, group in groupby(known, key=lambda epoch: epoch.phase)]
    changes = [first.epoch + 0.5 for first in phases[1:]]
    sizes = [_series(WEIGHTS, known, "weight_kb"), _series(ACTS, known, "act_kb")]
    levels = [
        Level(f"target of {looks.short}", f"{target:.2f} kB", target, looks)
        for looks, target in zip((WEIGHTS, ACTS), targets, strict=True)
    ]
    strength = float(record.config["quantizer.callback.strength"])
    penalty = Series(PENALTY.short, PENALTY, *_marked(_penalties(known, targets, strength)))
    accuracies = [
        _series(HELD_OUT, known, "val_top1_pct"),
        _series(TRAINING, known, "train_top1_pct"),
    ]
    epochs = Axis("epoch", whole=True)
    panels = [
        Panel(epochs, Axis("size [kB]"), sizes, levels, changes=changes),
        Panel(epochs, Axis("size penalty, full weight"), [penalty], changes=changes),
        Panel(epochs, Axis("top-1 [%]"), accuracies, changes=changes),
    ]
    note = f"Dashed: from one phase to the next ({', '.join(PHASES[p.phase] for p in phases)})."
    return Plot(title, note, panels, [record])


def _series(looks: Looks, epochs: Sequence[Epoch], name: str) -> Series:
    values = [(epoch.epoch + 1.0, number_of(epoch, name)) for epoch in epochs]
    return Series(looks.short, looks, *_marked([(x, y) for x, y in values if y is not None]))


def _marked(line: Sequence[Place]) -> tuple[list[Point], Sequence[Place]]:
    return [Point("", f"epoch {x:g}: {y:.4g}", x, y) for x, y in line], line


def _penalties(
    epochs: Sequence[Epoch], targets: tuple[float, float], strength: float
) -> list[Place]:
    """Penalty of each epoch's last sizes; at fixed bits and in fine-tuning it is in no loss."""
    return [
        (
            epoch.epoch + 1.0,
            strength
            * sum(
                _excess(epoch.number(name) or 0.0, most) ** 2
                for name, most in zip(("weight_kb", "act_kb"), targets, strict=True)
            ),
        )
        for epoch in epochs
    ]


def _excess(size: float, most: float) -> float:
    """What is above the target; the rounding of a sum in single precision is not."""
    return size - most if size > most * (1 + 1e-6) else 0.0
