"""Columns of how large a network is and how much it computes."""

from quantable.base.bits import FLOAT_BITS
from quantable.columns.facts import Column, Value, cost
from quantable.cost.costs import COSTS, Shapes, Widths
from quantable.cost.hardware import Hardware
from quantable.cost.macs import macs, mean_bits
from quantable.cost.memory import Unit, to_unit
from quantable.networks.layers import uniform


def _weights_in(unit: Unit) -> Value:
    """Make a column's function of the weights' size; each layer counts at its own bits."""
    return cost(lambda *known: to_unit(COSTS["weights"].of(*known), unit))


def _compression(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    weights = COSTS["weights"].of
    return weights(layers, uniform(layers, FLOAT_BITS), hw) / weights(layers, bits, hw)


def _bops_g(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    return COSTS["bops"].of(layers, bits, hw) * 1e-9


COLUMNS = {
    "parameters": Column(
        "parameters", "1", 0, True, lambda f: f.phase.parameters if f.phase else None
    ),
    "mean_bits": Column(
        "mean bits", "bit", 2, False, cost(lambda s, b, _: mean_bits(s, b, weighted_by="layers"))
    ),
    "macs_m": Column("MACs", "M", 3, False, cost(lambda s, *_: macs(s, count_linear=True) * 1e-6)),
    "bops_g": Column("BOPs", "G", 1, False, cost(_bops_g)),
    "bops_inner_g": Column(
        "inner BOPs", "G", 2, False, cost(lambda s, b, hw: _bops_g(s[1:-1], b, hw))
    ),
    "weights_mib": Column("weights", "MiB", 2, False, _weights_in("MiB")),
    "weights_mb": Column("weights", "MB", 2, False, _weights_in("MB")),
    "weight_compression": Column("weight compression", "x", 2, False, cost(_compression)),
}
