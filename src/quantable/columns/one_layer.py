"""Columns of rows that show one layer of a run (``layer`` of the row)."""

from collections.abc import Callable

from quantable.columns.facts import Column, Facts, Value


def _of_layer(number: Callable[[Facts, str], float | None]) -> Value:
    """Make a column's function of the row's layer."""
    return lambda facts: None if facts.layer is None else number(facts, facts.layer)


def _weights(facts: Facts) -> dict[str, int]:
    return {layer.name: layer.weights for layer in facts.now or ()}


def _bits(facts: Facts, layer: str) -> float | None:
    return None if facts.bits is None else facts.bits[layer].weight


def _bits_share(facts: Facts, layer: str) -> float | None:
    """Share of the layer's weights in the bits of all weights."""
    if facts.bits is None or facts.now is None:
        return None
    sizes = {name: n * facts.bits[name].weight for name, n in _weights(facts).items()}
    return 100 * sizes[layer] / sum(sizes.values())


def _real_bits(facts: Facts, layer: str) -> float | None:
    """The width that descent found, before it was rounded: the end of the run's first phase."""
    if facts.record is None:
        return None
    first = facts.record.phases[0]
    last = facts.record.history[first.first_epoch + first.epochs - 1]
    return (last.by_layer("real_bits") or {}).get(layer)


COLUMNS = {
    "layer_weights": Column(
        "weights of the layer", "1", 0, False, _of_layer(lambda f, name: _weights(f).get(name))
    ),
    "layer_real_bits": Column("real bits", "bit", 2, True, _of_layer(_real_bits)),
    "layer_bits": Column("rounded bits", "bit", 2, False, _of_layer(_bits)),
    "layer_bits_share_pct": Column("share of all bits", "%", 1, False, _of_layer(_bits_share)),
}
