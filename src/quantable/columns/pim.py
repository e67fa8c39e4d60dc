"""Columns of energy on a processing-in-memory array, empty for float.

The arrays multiply integers of at most 16 bit.
"""

from quantable.columns.facts import Column, Value, cost, has_float, reduction
from quantable.cost.costs import COSTS, Shapes, Widths
from quantable.cost.hardware import Hardware
from quantable.cost.macs import macs


def _uj(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    return COSTS["pim"].of(layers, bits, hw) * 1e-6


def _mac_fj(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    return _uj(layers, bits, hw) * 1e9 / macs(layers, count_linear=True)


def _of_integers(value: Value) -> Value:
    return lambda facts: None if facts.bits is None or has_float(facts.bits) else value(facts)


COLUMNS = {
    "pim_energy_uj": Column("PIM energy", "uJ", 3, False, _of_integers(cost(_uj))),
    "pim_mac_fj": Column("PIM energy per MAC", "fJ", 3, False, _of_integers(cost(_mac_fj))),
    "pim_ratio": Column("PIM reduction", "x", 3, False, _of_integers(reduction(_uj))),
}
