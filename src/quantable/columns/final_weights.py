"""Columns of the integers that a run's final weights are, for every method's rows."""

from quantable.columns.facts import Column, Facts


def _zero_weights_pct(facts: Facts) -> float | None:
    """Share of zeros among all weights on a grid; None where no record says it."""
    if facts.phase is None or facts.now is None:
        return None
    by_layer = (facts.phase.layers or {}).get("zero_pct")
    if by_layer is None:
        return None
    weights = {shape.name: shape.weights for shape in facts.now if shape.name in by_layer}
    zeros = sum(by_layer[name] * count for name, count in weights.items())
    return zeros / sum(weights.values())


COLUMNS = {"zero_weights_pct": Column("weights at zero", "%", 2, True, _zero_weights_pct)}
