"""Columns of accuracy: correct first answers, and agreement with the teacher."""

from quantable.columns.facts import Column, of_epoch

COLUMNS = {
    "top1_pct": Column("top-1", "%", 2, True, of_epoch(lambda epoch: epoch.test_top1_pct)),
    "val_top1_pct": Column("held-out top-1", "%", 2, True, of_epoch(lambda e: e.val_top1_pct)),
    "agreement_pct": Column(
        "agreement with float", "%", 2, True, of_epoch(lambda epoch: epoch.agreement_pct)
    ),
}
