"""Columns of bit-widths learned under a memory budget: the memory, and how far it is off."""

from collections.abc import Callable, Mapping, Sequence

from quantable.columns.facts import Column, Facts, Value
from quantable.cost.memory import (
    ACCOUNTINGS,
    batch_norm_bytes,
    kb_targets,
    memory_bytes,
    to_unit,
)
from quantable.networks.layers import LayerShape
from quantable.store.record import Record

SIZES = ("act_kb", "act_max_kb", "weight_kb")  # from them and batch norms, totals follow
METHOD = "quantizer.callback"
LEARNED_BITS = "quantable.methods.edge.LearnedBits"  # as it is signed


def _memory(accounting: str) -> Callable[[Facts], Mapping[str, float] | None]:
    """Make a function of the parts of a row's memory, in bytes."""
    rule = ACCOUNTINGS[accounting]

    def of_sizes(sizes: Mapping[str, float], channels: int) -> Mapping[str, float] | None:
        activations = sizes.get("act_kb" if rule.activations == "sum" else "act_max_kb")
        if activations is None:
            return None
        per_channel = rule.batch_norm_bytes_per_channel
        return {
            "activations": 1000 * activations,
            "weights": 1000 * sizes["weight_kb"],
            "batch_norm": batch_norm_bytes(channels, bytes_per_channel=per_channel),
        }

    def parts(facts: Facts) -> Mapping[str, float] | None:
        channels = facts.network.batch_norm_channels if facts.network is not None else None
        if channels is None or facts.now is not facts.shapes:  # a cut network's are not known
            return None
        if facts.sizes is not None:
            return of_sizes(facts.sizes, channels)
        if facts.shapes is None or facts.bits is None:
            return None
        found = memory_bytes(
            facts.shapes, facts.bits, batch_norm_channels=channels, accounting=accounting
        )
        # Every channel of the weights at its own learned width, where the run's bits are the widest
        learned = facts.number("weight_kb") if facts.cost_bits is None else None
        return found if learned is None else found | {"weights": 1000 * learned}

    return parts


def targets_kb(record: Record, shapes: Sequence[LayerShape]) -> tuple[float, float] | None:
    """Budgets in kB, of weights and of activations, of a run that learned its bits under them.

    None for a run of any other method, whatever its keywords are called.
    """
    if record.config.get(f"{METHOD}._target_") != LEARNED_BITS:
        return None
    return kb_targets(
        shapes,
        record.config[f"{METHOD}.target"],
        kb_per_bit=record.config[f"{METHOD}.kb_per_bit"],
        accounting=record.config[f"{METHOD}.accounting"],
    )


def _off_target(of: Callable[[Sequence[float], Sequence[float]], float]) -> Value:
    """Make a column's function of how far sizes lie from targets; above 0 is too large."""

    def value(facts: Facts) -> float | None:
        if facts.record is None or facts.shapes is None:
            return None
        targets = targets_kb(facts.record, facts.shapes)
        sizes = [facts.number(name) for name in ("weight_kb", "act_kb")]
        known = [size for size in sizes if size is not None]
        return None if targets is None or len(known) < 2 else of(known, targets)

    return value


def _off_pct(size: float, target: float) -> float:
    return 100 * (size / target - 1)


def _farther_pct(sizes: Sequence[float], targets: Sequence[float]) -> float:
    return max(map(_off_pct, sizes, targets), key=abs)


def _part(accounting: str, part: str, title: str) -> Column:
    """Make a column of a part of the memory; published sizes are not repeated as ours."""
    memory = _memory(accounting)

    def value(facts: Facts) -> float | None:
        parts = memory(facts) if facts.sizes is None or part == "batch_norm" else None
        return None if parts is None else to_unit(parts[part], "kB")

    return Column(title, "kB", 2, False, value)


def _total(accounting: str, title: str) -> Column:
    """Make a column of the whole memory."""
    memory = _memory(accounting)

    def value(facts: Facts) -> float | None:
        parts = memory(facts)
        return None if parts is None else to_unit(sum(parts.values()), "MB")

    return Column(title, "MB", 2, False, value)


COLUMNS = {
    "act_kb": _part("edge", "activations", "activations"),
    "act_max_kb": _part("edge_largest", "activations", "largest activation"),
    "weight_kb": _part("edge", "weights", "weights and biases"),
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
    "bn_kb": _part("edge", "batch_norm", "batch norm"),
    "total_mb": _total("edge", "total"),
    "total_both_bn_mb": _total("edge_both_bn", "total, both BN numbers"),
    "total_largest_mb": _total("edge_largest", "total, both BN numbers, largest activation"),
}
