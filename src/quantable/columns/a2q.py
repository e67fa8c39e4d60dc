"""Column of weights whose sums are limited: how near to the limit they came."""

from quantable.columns.facts import Column, Facts


def _l1_limit_pct(facts: Facts) -> float | None:
    """Largest of the limited layers, at the phase's end."""
    by_layer = facts.epoch.by_layer("l1_limit_pct") if facts.epoch is not None else None
    return max(by_layer.values()) if by_layer else None


COLUMNS = {
    "l1_limit_pct": Column("largest l1 norm of a channel", "% of its limit", 1, True, _l1_limit_pct)
}
