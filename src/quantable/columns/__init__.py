"""The columns a table may have: each a function of what is known about a run, with its unit.

Costs follow from shapes and bit-widths alone, so they are known before (and without) any training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantable.allocation.program import Comparison
from quantable.base.bits import FLOAT_BITS, Bits
from quantable.cost.bops import bops
from quantable.cost.energy import energy_pj
from quantable.cost.hardware import Hardware
from quantable.cost.macs import macs, mean_bits
from quantable.cost.memory import (
    ACCOUNTINGS,
    Unit,
    batch_norm_bytes,
    kb_targets,
    memory_bytes,
    to_unit,
    weight_bytes,
)
from quantable.cost.pim import pim_energy_pj
from quantable.cost.training import training_complexity
from quantable.networks.layers import LayerShape, Network, uniform
from quantable.store.record import Epoch, Phase, Record, Scores

SIZES = ("act_kb", "act_max_kb", "weight_kb")  # from them and batch norms, totals follow
REFERENCE_BITS = 16  # efficiencies are ratios to the same network with every layer at 16 bit


@dataclass(frozen=True)
class Facts:
    """What is known about one row and seed; ``None`` is not known (yet)."""

    shapes: Sequence[LayerShape] | None  # of the whole network, before any channel is cut
    bits: Mapping[str, Bits] | None
    hardware: Hardware
    record: Record | None = None
    phase: Phase | None = None  # of the record; the row's accuracy is that of its last epoch
    cost_bits: int | None = None
    whole_run: bool = False  # whether the training complexity is the whole run's, not the phase's
    baseline: Record | None = None  # the table's baseline run of the same seed
    network: Network | None = None  # whole, as kept: also what feeds what, and what is added
    sizes: Mapping[str, float] | None = None  # published kB by column, where bits are not known
    policy: Comparison | None = None  # the row's bits beside the table's program solved again

    @property
    def now(self) -> Sequence[LayerShape] | None:
        """Shapes in the row's phase, where channels may have been cut."""
        if self.phase is not None and self.phase.shapes is not None:
            return self.phase.shapes
        return self.shapes

    @property
    def _epochs(self) -> list[Epoch]:
        """The phase's lines in the record's history; a run without training has one."""
        if self.record is None or self.phase is None:
            return []
        first = self.phase.first_epoch
        return self.record.history[first : first + max(self.phase.epochs, 1)]

    @property
    def epoch(self) -> Epoch | None:
        """The phase's last epoch in the record's history."""
        return self._epochs[-1] if self._epochs else None

    @property
    def best_epoch(self) -> Epoch | None:
        """The phase's epoch with the highest held-out accuracy; the earliest of equals."""
        return max(self._epochs, key=lambda epoch: epoch.held_out_pct, default=None)


def _cost(
    value: Callable[[Sequence[LayerShape], Mapping[str, Bits], Hardware], float],
) -> Callable[[Facts], float | None]:
    """Make a column of a cost model: known as soon as shapes and bit-widths are."""

    def column(facts: Facts) -> float | None:
        if facts.now is None or facts.bits is None:
            return None
        return value(facts.now, facts.bits, facts.hardware)

    return column


def _reduction(
    value: Callable[[Sequence[LayerShape], Mapping[str, Bits], Hardware], float],
) -> Callable[[Facts], float | None]:
    """Make a column of the whole network's cost at 16 bit over the row's."""

    def column(facts: Facts) -> float | None:
        if facts.shapes is None or facts.now is None or facts.bits is None:
            return None
        whole = value(facts.shapes, uniform(facts.shapes, REFERENCE_BITS), facts.hardware)
        return whole / value(facts.now, facts.bits, facts.hardware)

    return column


def _mac_pj(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    return energy_pj(layers, bits, hw.energy)["mac"]


def _energy_pj(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    return sum(energy_pj(layers, bits, hw.energy).values())


def _pim_uj(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    return pim_energy_pj(layers, bits, hw.pim, rounding=hw.pim_rounding) * 1e-6


def _has_float(bits: Mapping[str, Bits]) -> bool:
    return any(FLOAT_BITS in (b.weight, b.act) for b in bits.values())


def _unless_float(column: Callable[[Facts], float | None]) -> Callable[[Facts], float | None]:
    """Leave a PIM column empty for float: the arrays multiply integers of at most 16 bit."""
    return lambda facts: None if facts.bits is None or _has_float(facts.bits) else column(facts)


def _pim_mac_fj(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    return _pim_uj(layers, bits, hw) * 1e9 / macs(layers, count_linear=True)


# (epochs, bit-widths, layer shapes) of a phase
Stretch = tuple[int, Mapping[str, Bits], Sequence[LayerShape]]


def complexity(
    phases: Sequence[Stretch],
    shapes: Sequence[LayerShape],
    hardware: Hardware,
    baseline_epochs: int,
) -> float:
    """Training complexity of phases; efficiency is the MAC energy against ``shapes`` at 16 bit."""
    whole = _mac_pj(shapes, uniform(shapes, REFERENCE_BITS), hardware)
    rated = [(epochs, whole / _mac_pj(now, bits, hardware)) for epochs, bits, now in phases]
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
    if not phases or any(_has_float(bits) for _, bits, _ in phases):
        return None
    if not (epochs := record.config["recipe.epochs"]):  # nothing was trained
        return None
    return complexity(phases, shapes, facts.hardware, epochs)


def _training_macs(facts: Facts) -> float | None:
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


def _training_time(facts: Facts) -> float | None:
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


def _miscounted(facts: Facts) -> float | None:
    """Activations counted wrongly, over the first batches of all epochs."""
    counts = [epoch.number("miscounted") for epoch in facts.record.history] if facts.record else []
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _weights_in(unit: Unit) -> Callable[[Facts], float | None]:
    """Make a column of the weights' size; each layer counts at its own bits."""
    return _cost(
        lambda s, b, _: to_unit(weight_bytes(s, b, ends_bits=None, count_linear=True), unit)
    )


def _memory(accounting: str) -> Callable[[Facts], Mapping[str, float] | None]:
    """Make a function of the parts of a row's memory, in bytes."""

    def parts(facts: Facts) -> Mapping[str, float] | None:
        channels = facts.network.batch_norm_channels if facts.network is not None else None
        if channels is None or facts.now is not facts.shapes:  # a cut network's are not known
            return None
        rule = ACCOUNTINGS[accounting]
        if facts.sizes is not None:
            activations = facts.sizes.get("act_kb" if rule.activations == "sum" else "act_max_kb")
            if activations is None:
                return None
            per_channel = rule.batch_norm_bytes_per_channel
            return {
                "activations": 1000 * activations,
                "weights": 1000 * facts.sizes["weight_kb"],
                "batch_norm": batch_norm_bytes(channels, bytes_per_channel=per_channel),
            }
        if facts.shapes is None or facts.bits is None:
            return None
        found = memory_bytes(
            facts.shapes, facts.bits, batch_norm_channels=channels, accounting=accounting
        )
        if (kb := _learned_weight_kb(facts)) is not None:
            found["weights"] = 1000 * kb
        return found

    return parts


def _learned_weight_kb(facts: Facts) -> float | None:
    """Weights with every channel at its own learned width, where the run's bits are the widest."""
    return (
        None
        if facts.epoch is None or facts.cost_bits is not None
        else facts.epoch.number("weight_kb")
    )


def targets_kb(record: Record, shapes: Sequence[LayerShape]) -> tuple[float, float] | None:
    """Budgets in kB, of weights and of activations, that a run was given; None without any."""
    method = "quantizer.callback"
    if record.config.get(f"{method}.target") is None:
        return None
    return kb_targets(
        shapes,
        record.config[f"{method}.target"],
        kb_per_bit=record.config[f"{method}.kb_per_bit"],
        accounting=record.config[f"{method}.accounting"],
    )


def _off_target(
    of: Callable[[Sequence[float], Sequence[float]], float],
) -> Callable[[Facts], float | None]:
    """Make a column of how far a run's last sizes lie from its targets; above 0 is too large."""

    def column(facts: Facts) -> float | None:
        record, epoch, shapes = facts.record, facts.epoch, facts.shapes
        if record is None or epoch is None or shapes is None:
            return None
        targets = targets_kb(record, shapes)
        sizes = [epoch.number(name) for name in ("weight_kb", "act_kb")]
        known = [size for size in sizes if size is not None]
        return None if targets is None or len(known) < 2 else of(known, targets)

    return column


def _off_pct(size: float, target: float) -> float:
    return 100 * (size / target - 1)


def _farther_pct(sizes: Sequence[float], targets: Sequence[float]) -> float:
    return max(map(_off_pct, sizes, targets), key=abs)


def _compression(layers: Sequence[LayerShape], bits: Mapping[str, Bits], _: Hardware) -> float:
    sizes = (
        weight_bytes(layers, widths, ends_bits=None, count_linear=True)
        for widths in (uniform(layers, FLOAT_BITS), bits)
    )
    return next(sizes) / next(sizes)


def _of_4bit(
    operations: Callable[[Bits], float],
) -> Callable[[Facts], float | None]:
    """Make a column of the inner layers' operations over those with every width at 4 bit."""

    def share(layers: Sequence[LayerShape], bits: Mapping[str, Bits], _: Hardware) -> float:
        inner = layers[1:-1]  # the first and the last layer are no subject of a selection
        spent = sum(layer.macs * operations(bits[layer.name]) for layer in inner)
        return 100 * spent / (operations(Bits(4, 4)) * macs(inner, count_linear=True))

    return _cost(share)


def _searched(value: Callable[[Scores], float]) -> Callable[[Facts], float | None]:
    """Make a column of what a search took."""

    def column(facts: Facts) -> float | None:
        if facts.record is None or facts.record.scores is None:
            return None
        return value(facts.record.scores)

    return column


@dataclass(frozen=True)
class Column:
    """Heading, unit, decimals shown, whether a run is needed, and the function."""

    title: str
    unit: str
    decimals: int
    trained: bool
    value: Callable[[Facts], float | None]
    reason: Callable[[Facts], str | None] = lambda facts: None  # what the number does not say


def _policy(count: Callable[[Comparison], int], title: str) -> Column:
    """Make a column of layers whose published bits a program's solution shares."""
    return Column(
        title,
        "layers",
        0,
        False,
        lambda f: count(f.policy) if f.policy else None,
        lambda f: f.policy.reason if f.policy else "not the solution of a program",
    )


def _memory_part(accounting: str, part: str, title: str) -> Column:
    """Make a column of a part of the memory; published sizes are not repeated as ours."""
    memory = _memory(accounting)

    def column(facts: Facts) -> float | None:
        parts = memory(facts) if facts.sizes is None or part == "batch_norm" else None
        return None if parts is None else to_unit(parts[part], "kB")

    return Column(title, "kB", 2, False, column)


def _memory_total(accounting: str, title: str) -> Column:
    """Make a column of the whole memory."""
    memory = _memory(accounting)

    def column(facts: Facts) -> float | None:
        parts = memory(facts)
        return None if parts is None else to_unit(sum(parts.values()), "MB")

    return Column(title, "MB", 2, False, column)


COLUMNS: dict[str, Column] = {
    "top1_pct": Column("top-1", "%", 2, True, lambda f: f.epoch.test_top1_pct if f.epoch else None),
    "best_top1_pct": Column(
        "top-1, best held-out epoch",
        "%",
        2,
        True,
        lambda f: f.best_epoch.test_top1_pct if f.best_epoch else None,
    ),
    "val_top1_pct": Column(
        "held-out top-1", "%", 2, True, lambda f: f.epoch.val_top1_pct if f.epoch else None
    ),
    "agreement_pct": Column(
        "agreement with float", "%", 2, True, lambda f: f.epoch.agreement_pct if f.epoch else None
    ),
    "total_density": Column(
        "total AD", "1", 3, True, lambda f: f.epoch.number("total_density") if f.epoch else None
    ),
    "epochs": Column("epochs", "1", 0, True, lambda f: f.phase.epochs if f.phase else None),
    "training_complexity": Column("training complexity", "1", 3, True, _complexity),
    "training_macs": Column("training MACs, of baseline's", "1", 3, True, _training_macs),
    "training_time": Column("training time, of baseline's", "1", 3, True, _training_time),
    "retrained_epochs": Column("epochs outside the one run", "1", 0, True, _retrained_epochs),
    "miscounted": Column("activations miscounted", "1", 0, True, _miscounted),
    "parameters": Column(
        "parameters", "1", 0, True, lambda f: f.phase.parameters if f.phase else None
    ),
    "search_seconds": Column("search time", "s", 2, True, _searched(lambda s: s.seconds)),
    "search_images": Column("images searched", "1", 0, True, _searched(lambda s: s.images)),
    "search_epochs": Column("epochs searched", "1", 0, True, _searched(lambda s: s.epochs)),
    "compute_of_4bit": Column(
        "compute of 4 bit's", "%", 1, False, _of_4bit(lambda b: max(b.weight, b.act))
    ),
    "bops_of_4bit": Column("BOPs of 4 bit's", "%", 1, False, _of_4bit(lambda b: b.weight * b.act)),
    "mean_bits": Column(
        "mean bits", "bit", 2, False, _cost(lambda s, b, _: mean_bits(s, b, weighted_by="layers"))
    ),
    "macs_m": Column("MACs", "M", 3, False, _cost(lambda s, *_: macs(s, count_linear=True) * 1e-6)),
    "bops_g": Column("BOPs", "G", 1, False, _cost(lambda s, b, _: bops(s, b) * 1e-9)),
    "bops_inner_g": Column(
        "inner BOPs",
        "G",
        2,
        False,
        _cost(lambda s, b, _: bops(s[1:-1], b) * 1e-9),
    ),
    "weights_mib": Column("weights", "MiB", 2, False, _weights_in("MiB")),
    "weights_mb": Column("weights", "MB", 2, False, _weights_in("MB")),
    "weight_compression": Column("weight compression", "x", 2, False, _cost(_compression)),
    "act_kb": _memory_part("edge", "activations", "activations"),
    "act_max_kb": _memory_part("edge_largest", "activations", "largest activation"),
    "weight_kb": _memory_part("edge", "weights", "weights and biases"),
    "target_off_pct": Column(
        "memory off its target",
        "%",
        2,
        True,
        _off_target(lambda sizes, targets: _off_pct(sum(sizes), sum(targets))),
    ),
    "farther_off_pct": Column(
        "weights or activations off theirs, the farther", "%", 2, True, _off_target(_farther_pct)
    ),
    "bn_kb": _memory_part("edge", "batch_norm", "batch norm"),
    "total_mb": _memory_total("edge", "total"),
    "total_both_bn_mb": _memory_total("edge_both_bn", "total, both BN numbers"),
    "total_largest_mb": _memory_total("edge_largest", "total, both BN numbers, largest activation"),
    "policy": _policy(lambda found: found.both, "policy"),
    "policy_weights": _policy(lambda found: found.weight, "policy, weights"),
    "policy_acts": _policy(lambda found: found.act, "policy, activations"),
    "energy_memory_uj": Column(
        "45 nm memory energy",
        "uJ",
        3,
        False,
        _cost(lambda s, b, hw: energy_pj(s, b, hw.energy)["memory"] * 1e-6),
    ),
    "energy_mac_uj": Column(
        "45 nm MAC energy",
        "uJ",
        3,
        False,
        _cost(lambda s, b, hw: _mac_pj(s, b, hw) * 1e-6),
    ),
    "energy_uj": Column(
        "45 nm energy",
        "uJ",
        3,
        False,
        _cost(lambda s, b, hw: _energy_pj(s, b, hw) * 1e-6),
    ),
    "mac_energy_ratio": Column("MAC-energy reduction", "x", 3, False, _reduction(_mac_pj)),
    "energy_ratio": Column("45 nm energy reduction", "x", 3, False, _reduction(_energy_pj)),
    "pim_energy_uj": Column("PIM energy", "uJ", 3, False, _unless_float(_cost(_pim_uj))),
    "pim_mac_fj": Column("PIM energy per MAC", "fJ", 3, False, _unless_float(_cost(_pim_mac_fj))),
    "pim_ratio": Column("PIM reduction", "x", 3, False, _unless_float(_reduction(_pim_uj))),
}
