"""Columns of what a training took, against the table's baseline or its epochs at 16 bit."""

from collections.abc import Mapping, Sequence

from quantable.base.bits import Bits
from quantable.columns.facts import REFERENCE_BITS, Column, Facts, has_float
from quantable.cost.costs import COSTS
from quantable.cost.hardware import Hardware
from quantable.cost.macs import macs
from quantable.cost.training import training_complexity
from quantable.networks.layers import LayerShape, uniform
from quantable.store.record import Phase

# (epochs, bit-widths, layer shapes) of a phase
Stretch = tuple[int, Mapping[str, Bits], Sequence[LayerShape]]


def complexity(
    phases: Sequence[Stretch],
    shapes: Sequence[LayerShape],
    hardware: Hardware,
    baseline_epochs: int,
) -> float:
    """Training complexity of phases; efficiency is the MAC energy against ``shapes`` at 16 bit."""
    mac_pj = COSTS["energy_mac"].of
    whole = mac_pj(shapes, uniform(shapes, REFERENCE_BITS), hardware)
    rated = [(epochs, whole / mac_pj(now, bits, hardware)) for epochs, bits, now in phases]
    return training_complexity(rated, baseline_epochs=baseline_epochs)


def _phases_counted(facts: Facts) -> list[Phase]:
    """Phases a row's training went through: to its own, or all where the row is a run's result."""
    if facts.record is None or facts.phase is None:
        return []
    if facts.cost_bits is not None:
        return [facts.phase]
    return facts.record.phases[: None if facts.whole_run else facts.phase.index + 1]


def _complexity(facts: Facts) -> float | None:
    record, shapes = facts.record, facts.shapes
    if record is None or shapes is None:
        return None
    fixed = uniform(shapes, facts.cost_bits) if facts.cost_bits is not None else None
    phases = [(p.epochs, fixed or p.bit_map, p.shapes or shapes) for p in _phases_counted(facts)]
    if not phases or any(has_float(bits) for _, bits, _ in phases):
        return None
    if not (epochs := record.config["recipe.epochs"]):  # nothing was trained
        return None
    return complexity(phases, shapes, facts.hardware, epochs)


def _macs(facts: Facts) -> float | None:
    """MACs of the epochs trained, at any width, over those of the baseline's epochs."""
    record, shapes = facts.record, facts.shapes
    if record is None or shapes is None or facts.phase is None:
        return None
    spent = [p.epochs * macs(p.shapes or shapes, count_linear=True) for p in _phases_counted(facts)]
    epochs: int = record.config["recipe.epochs"]
    if facts.baseline is not None:
        epochs = len(facts.baseline.history)
    if not epochs:  # nothing was trained
        return None
    return sum(spent) / (epochs * macs(shapes, count_linear=True))


def _time(facts: Facts) -> float | None:
    """Seconds of the epochs trained, with their evaluations, over the baseline run's."""
    if facts.record is None or facts.phase is None or facts.baseline is None:
        return None
    epochs = sum(phase.epochs for phase in _phases_counted(facts))
    seconds = sum(epoch.seconds for epoch in facts.record.history[:epochs])
    return seconds / sum(epoch.seconds for epoch in facts.baseline.history)


def _retrained_epochs(facts: Facts) -> float | None:
    """Epochs that are not the next one of a single run from untrained weights to its end."""
    if facts.record is None:
        return None
    if facts.record.config.get("model.net.weights_sha256"):  # every epoch trains a trained network
        return len(facts.record.history)
    breaks = sum(epoch.epoch != i for i, epoch in enumerate(facts.record.history))
    return breaks + abs(len(facts.record.history) - sum(p.epochs for p in facts.record.phases))


COLUMNS = {
    "epochs": Column("epochs", "1", 0, True, lambda f: f.phase.epochs if f.phase else None),
    "training_complexity": Column("training complexity", "1", 3, True, _complexity),
    "training_macs": Column("training MACs, of baseline's", "1", 3, True, _macs),
    "training_time": Column("training time, of baseline's", "1", 3, True, _time),
    "retrained_epochs": Column("epochs outside the one run", "1", 0, True, _retrained_epochs),
}
