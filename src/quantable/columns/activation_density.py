"""Columns of activation density: the density itself, and whether its counts are right."""

from quantable.columns.facts import Column, Facts


def _miscounted(facts: Facts) -> float | None:
    """Activations counted wrongly, over the first batches of all epochs."""
    counts = [epoch.number("miscounted") for epoch in facts.record.history] if facts.record else []
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


COLUMNS = {
    "total_density": Column("total AD", "1", 3, True, lambda f: f.number("total_density")),
    "miscounted": Column("activations miscounted", "1", 0, True, _miscounted),
}
