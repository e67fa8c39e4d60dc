"""Columns of how large a network is and how much it computes."""

from quantable.base.bits import FLOAT_BITS
from quantable.columns.facts import Column, Facts, Value, cost
from quantable.cost.costs import COSTS, Shapes, Widths
from quantable.cost.hardware import Hardware
from quantable.cost.macs import WeightedBy, macs, mean_bits
from quantable.cost.memory import Unit, batch_norm_bytes, to_unit
from quantable.networks.layers import LayerShape, uniform


def _weights_in(unit: Unit) -> Value:
    """Make a column's function of the weights' size; each layer counts at its own bits."""
    return cost(lambda *known: to_unit(COSTS["weights"].of(*known), unit))


def _compression(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    weights = COSTS["weights"].of
    return weights(layers, uniform(layers, FLOAT_BITS), hw) / weights(layers, bits, hw)


def _quantized(facts: Facts) -> list[LayerShape]:
    """Layers whose weights have fewer bits than float."""
    if facts.now is None or facts.bits is None:
        return []
    return [layer for layer in facts.now if facts.bits[layer.name].weight < FLOAT_BITS]


def _quantized_weights(facts: Facts) -> float | None:
    return None if facts.bits is None else sum(layer.weights for layer in _quantized(facts))


def _compression_quantized(facts: Facts) -> float | None:
    """32 over the mean width of the quantized weights; None where none are."""
    layers = _quantized(facts)
    return _compression(layers, facts.bits or {}, facts.hardware) if layers else None


def _compression_all(facts: Facts) -> float | None:
    """All layers with their biases, and both numbers of each batch norm, which stay in float."""
    channels = facts.network.batch_norm_channels if facts.network is not None else None
    if channels is None or facts.shapes is None or facts.bits is None:
        return None
    if facts.now is not facts.shapes:  # batch norms of a cut network are not known
        return None
    biases = sum(layer.bias for layer in facts.shapes)
    kept = FLOAT_BITS / 8 * biases + batch_norm_bytes(channels, bytes_per_channel=8)
    weights, hw = COSTS["weights"].of, facts.hardware
    whole = weights(facts.shapes, uniform(facts.shapes, FLOAT_BITS), hw)
    return (whole + kept) / (weights(facts.shapes, facts.bits, hw) + kept)


def _bops_g(layers: Shapes, bits: Widths, hw: Hardware) -> float:
    return COSTS["bops"].of(layers, bits, hw) * 1e-9


def _mean_bits(weighted_by: WeightedBy) -> Column:
    """Make a column of the weights' mean width; its title says what a layer counts by."""
    value = cost(lambda layers, bits, _: mean_bits(layers, bits, weighted_by=weighted_by))
    return Column(f"mean bits over {weighted_by}", "bit", 2, False, value)


COLUMNS = {
    "parameters": Column(
        "parameters", "1", 0, True, lambda f: f.phase.parameters if f.phase else None
    ),
    "mean_bits": _mean_bits("layers"),
    "mean_bits_by_weights": _mean_bits("weights"),
    "macs_m": Column("MACs", "M", 3, False, cost(lambda s, *_: macs(s, count_linear=True) * 1e-6)),
    "bops_g": Column("BOPs", "G", 1, False, cost(_bops_g)),
    "bops_m": Column("BOPs", "M", 1, False, cost(lambda *known: 1e3 * _bops_g(*known))),
    "bops_inner_g": Column(
        "inner BOPs", "G", 2, False, cost(lambda s, b, hw: _bops_g(s[1:-1], b, hw))
    ),
    "weights_mib": Column("weights", "MiB", 2, False, _weights_in("MiB")),
    "weights_mb": Column("weights", "MB", 2, False, _weights_in("MB")),
    "weights_kb": Column("weights", "kB", 1, False, _weights_in("kB")),
    "quantized_weights": Column("quantized weights", "1", 0, False, _quantized_weights),
    "weight_compression": Column("weight compression", "x", 2, False, cost(_compression)),
    "compression_quantized": Column(
        "compression of quantized weights", "x", 2, False, _compression_quantized
    ),
    "compression_all": Column(
        "compression with biases and batch norms", "x", 2, False, _compression_all
    ),
}
