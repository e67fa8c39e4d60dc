"""Columns of analytical energy in 45 nm CMOS."""

from quantable.columns.facts import Column, cost, reduction
from quantable.cost.costs import COSTS


def _uj(name: str, title: str) -> Column:
    """Make a column of a cost in pJ."""
    model = COSTS[name].of
    return Column(title, "uJ", 3, False, cost(lambda *known: model(*known) * 1e-6))


def _ratio(name: str, title: str) -> Column:
    """Make a column of how much less a cost is than at 16 bit."""
    return Column(title, "x", 3, False, reduction(COSTS[name].of))


COLUMNS = {
    "energy_memory_uj": _uj("energy_memory", "45 nm memory energy"),
    "energy_mac_uj": _uj("energy_mac", "45 nm MAC energy"),
    "energy_uj": _uj("energy", "45 nm energy"),
    "mac_energy_ratio": _ratio("energy_mac", "MAC-energy reduction"),
    "energy_ratio": _ratio("energy", "45 nm energy reduction"),
}
