"""Columns of accuracy: correct first answers, beside the float network's, and agreement with it."""

from quantable.columns.facts import Column, Facts, of_epoch


def _drop(facts: Facts) -> float | None:
    """Test accuracy that the row lacks at the end, of what the table's baseline has."""
    if facts.epoch is None or facts.baseline is None:
        return None
    own, whole = facts.epoch.test_top1_pct, facts.baseline.history[-1].test_top1_pct
    return None if own is None or whole is None else whole - own


COLUMNS = {
    "top1_pct": Column("top-1", "%", 2, True, of_epoch(lambda epoch: epoch.test_top1_pct)),
    "drop_pp": Column("drop", "pp", 2, True, _drop),
    "val_top1_pct": Column("held-out top-1", "%", 2, True, of_epoch(lambda e: e.val_top1_pct)),
    "val_loss": Column("held-out loss", "nat", 4, True, of_epoch(lambda epoch: epoch.val_loss)),
    "test_loss": Column("test loss", "nat", 4, True, of_epoch(lambda epoch: epoch.test_loss)),
    "agreement_pct": Column(
        "agreement with float", "%", 2, True, of_epoch(lambda epoch: epoch.agreement_pct)
    ),
}
