"""The columns a table may have: each a function of what is known about a run, with its unit.

Costs follow from shapes and bit-widths alone, so they are known before (and without) any training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantable.config import CONF
from quantable.cost.energy import OpEnergy, energy_pj
from quantable.cost.hardware import load_hardware
from quantable.cost.macs import macs, mean_bits
from quantable.cost.pim import PimEnergy, Rounding, pim_energy_pj
from quantable.cost.training import training_complexity
from quantable.layers import FLOAT_BITS, Bits, LayerShape
from quantable.names import UserError
from quantable.record import Epoch, Phase, Record

REFERENCE_BITS = 16  # efficiencies are ratios to the same network with every layer at 16 bit


@dataclass(frozen=True)
class Hardware:
    """Constants the cost columns use."""

    energy: OpEnergy
    pim: PimEnergy
    pim_rounding: Rounding


def hardware_of(config: Mapping[str, Any]) -> Hardware:
    """Load the constants that a run config names."""
    names = config["hardware"]
    energy = load_hardware(CONF / "hardware" / f"{names['energy']}.yaml")
    pim = load_hardware(CONF / "hardware" / f"{names['pim']}.yaml")
    if not isinstance(energy, OpEnergy) or not isinstance(pim, PimEnergy):
        raise UserError(
            f"hardware.energy={names['energy']}, hardware.pim={names['pim']}: of the wrong kind; "
            "the first holds energies per operation, the second energies per PIM MAC"
        )
    return Hardware(energy, pim, names["pim_rounding"])


@dataclass(frozen=True)
class Facts:
    """What is known about one row and seed; ``None`` is not known (yet)."""

    shapes: Sequence[LayerShape] | None
    bits: Mapping[str, Bits] | None
    hardware: Hardware
    record: Record | None = None
    phase: Phase | None = None  # of the record; the row's accuracy is that of its last epoch
    cost_bits: int | None = None
    whole_run: bool = False  # whether the training complexity is the whole run's, not the phase's

    @property
    def epoch(self) -> Epoch | None:
        """The phase's last epoch in the record's history."""
        if self.record is None or self.phase is None:
            return None
        return self.record.history[self.phase.first_epoch + self.phase.epochs - 1]

    @property
    def best_epoch(self) -> Epoch | None:
        """The phase's epoch with the highest held-out accuracy; the earliest of equals."""
        if self.record is None or self.phase is None:
            return None
        first = self.phase.first_epoch
        epochs = self.record.history[first : first + self.phase.epochs]
        return max(epochs, key=lambda epoch: epoch.val_top1_pct)


def _cost(
    value: Callable[[Sequence[LayerShape], Mapping[str, Bits], Hardware], float],
) -> Callable[[Facts], float | None]:
    """Make a column of a cost model: known as soon as shapes and bit-widths are."""

    def column(facts: Facts) -> float | None:
        if facts.shapes is None or facts.bits is None:
            return None
        return value(facts.shapes, facts.bits, facts.hardware)

    return column


def uniform(layers: Sequence[LayerShape], bits: int) -> dict[str, Bits]:
    """Give every layer the same width.

    >>> uniform([LayerShape("fc", 1, 1, 1)], 16)
    {'fc': Bits(weight=16, act=16)}
    """
    return {layer.name: Bits(bits, bits) for layer in layers}


def _mac_ratio(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    reference = energy_pj(layers, uniform(layers, REFERENCE_BITS), hw.energy)["mac"]
    return reference / energy_pj(layers, bits, hw.energy)["mac"]


def _energy_ratio(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    reference = energy_pj(layers, uniform(layers, REFERENCE_BITS), hw.energy)
    return sum(reference.values()) / sum(energy_pj(layers, bits, hw.energy).values())


def _pim_uj(layers: Sequence[LayerShape], bits: Mapping[str, Bits], hw: Hardware) -> float:
    return pim_energy_pj(layers, bits, hw.pim, rounding=hw.pim_rounding) * 1e-6


def _has_float(bits: Mapping[str, Bits]) -> bool:
    return any(FLOAT_BITS in (b.weight, b.act) for b in bits.values())


def _pim(facts: Facts) -> float | None:
    # The arrays multiply integers of at most 16 bit: a float network has no PIM energy.
    if facts.shapes is None or facts.bits is None or _has_float(facts.bits):
        return None
    return _pim_uj(facts.shapes, facts.bits, facts.hardware)


def _pim_mac_fj(facts: Facts) -> float | None:
    total_uj = _pim(facts)
    if total_uj is None or facts.shapes is None:
        return None
    return total_uj * 1e9 / macs(facts.shapes, count_linear=True)


def _pim_ratio(facts: Facts) -> float | None:
    own = _pim(facts)
    if own is None or facts.shapes is None:
        return None
    return _pim_uj(facts.shapes, uniform(facts.shapes, REFERENCE_BITS), facts.hardware) / own


def complexity(
    phases: Sequence[tuple[int, Mapping[str, Bits]]],
    shapes: Sequence[LayerShape],
    hardware: Hardware,
    baseline_epochs: int,
) -> float:
    """Training complexity of ``(epochs, bits)`` phases; efficiency is the MAC-energy ratio."""
    rated = [(epochs, _mac_ratio(shapes, bits, hardware)) for epochs, bits in phases]
    return training_complexity(rated, baseline_epochs=baseline_epochs)


def _complexity(facts: Facts) -> float | None:
    record, phase, shapes = facts.record, facts.phase, facts.shapes
    if record is None or phase is None or shapes is None:
        return None
    if facts.cost_bits is not None:
        phases = [(phase.epochs, uniform(shapes, facts.cost_bits))]
    else:
        last = None if facts.whole_run else phase.index + 1
        phases = [(p.epochs, p.bit_map) for p in record.phases[:last]]
    if any(_has_float(bits) for _, bits in phases):
        return None
    return complexity(phases, shapes, facts.hardware, record.config["recipe.epochs"])


@dataclass(frozen=True)
class Column:
    """Heading, unit, decimals shown, whether a run is needed, and the function."""

    title: str
    unit: str
    decimals: int
    trained: bool
    value: Callable[[Facts], float | None]


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
    "total_density": Column(
        "total AD", "1", 3, True, lambda f: f.epoch.total_density if f.epoch else None
    ),
    "epochs": Column("epochs", "1", 0, True, lambda f: f.phase.epochs if f.phase else None),
    "training_complexity": Column("training complexity", "1", 3, True, _complexity),
    "mean_bits": Column(
        "mean bits", "bit", 2, False, _cost(lambda s, b, _: mean_bits(s, b, weighted_by="layers"))
    ),
    "macs_m": Column("MACs", "M", 3, False, _cost(lambda s, *_: macs(s, count_linear=True) * 1e-6)),
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
        _cost(lambda s, b, hw: energy_pj(s, b, hw.energy)["mac"] * 1e-6),
    ),
    "energy_uj": Column(
        "45 nm energy",
        "uJ",
        3,
        False,
        _cost(lambda s, b, hw: sum(energy_pj(s, b, hw.energy).values()) * 1e-6),
    ),
    "mac_energy_ratio": Column("MAC-energy reduction", "x", 3, False, _cost(_mac_ratio)),
    "energy_ratio": Column("45 nm energy reduction", "x", 3, False, _cost(_energy_ratio)),
    "pim_energy_uj": Column("PIM energy", "uJ", 3, False, _pim),
    "pim_mac_fj": Column("PIM energy per MAC", "fJ", 3, False, _pim_mac_fj),
    "pim_ratio": Column("PIM reduction", "x", 3, False, _pim_ratio),
}
