"""The number, or numbers, by which a sweeper such as Optuna's judges a run (``objective=``).

They are a run's at the end of its training: of images held out from it, or costs. One on test
images says so by its name, and every report of a run that was made for it says it too.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from quantable.base.errors import UserError, unknown
from quantable.columns import COLUMNS
from quantable.report.reporter import Reporter

HELD_OUT = ("val_top1_pct", "val_loss")
ON_TEST = {"test_top1_pct": "top1_pct", "test_loss": "test_loss"}  # columns by their names here


def names_of(config: Mapping[str, Any]) -> list[str]:
    """Names of a run config's objectives.

    Raises UserError for one that there is not, that does not say that it is on test images, or that
    the run will not have.
    """
    given = config["objective"]
    names = [given] if isinstance(given, str) else list(given)
    costs = [name for name, column in COLUMNS.items() if not column.trained]
    known = [*HELD_OUT, *ON_TEST, *costs]
    for name in names:
        if name == "top1_pct":
            raise UserError(
                "objective=top1_pct: this is the accuracy on test images; choose by those held "
                "out, val_top1_pct, or say test_top1_pct, and reports will say it too"
            )
        if name not in known:
            raise unknown("objective", name, known, "command line")
        if config["search"] is not None and name not in costs:
            raise UserError(f"objective={name}: a search trains nothing; only costs are known")
        if name in HELD_OUT and config["data"]["val_images"] == 0:
            raise UserError(f"objective={name}: no images are held out: data.val_images=0")
    return names


def directions(names: Sequence[str]) -> list[str]:
    """Whether more or less is better of each objective, in Optuna's words.

    >>> directions(["val_top1_pct", "bops_m", "weight_compression", "val_loss"])
    ['maximize', 'minimize', 'maximize', 'minimize']
    """
    more = (name.endswith("top1_pct") or COLUMNS[_column(name)].unit == "x" for name in names)
    return ["maximize" if better else "minimize" for better in more]


def values(reporter: Reporter, names: Sequence[str]) -> list[float]:
    """Each objective of the one row that was run, its mean over seeds.

    Raises UserError where there are several rows, or a number is not known.
    """
    rows = reporter.asked.chosen_rows(reporter.table)
    if len(rows) > 1:
        raise UserError(
            f"objective={','.join(names)}: a job has one such number, and this one runs "
            f"{len(rows)} rows: choose one by rows="
        )
    found = []
    for name in names:
        known = reporter.by_seed(rows[0], _column(name)).values()
        if not known:
            raise UserError(f"objective={name}: this run has no such number")
        found.append(fmean(known))
    return found


def _column(name: str) -> str:
    return ON_TEST.get(name, name)
