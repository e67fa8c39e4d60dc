"""The figures that a table names, described one after the other by the modules of ``figures``."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from quantable.base.errors import unknown
from quantable.report import figures
from quantable.report.history import first_runs
from quantable.report.reporter import Reporter
from quantable.report.shapes import Shape


def kinds() -> list[str]:
    """Names of all kinds of figures: a module each."""
    return sorted(module.name for module in pkgutil.iter_modules(figures.__path__))


def described(reporter: Reporter) -> Iterator[tuple[str, str, Shape | str]]:
    """The table's name for a figure, the figure's own, and the figure or why there is none.

    One entry of a table stands for a figure of each run where its kind is about runs.
    """
    table = reporter.table
    if table.figures:
        have, rows = first_runs(reporter), reporter.asked.chosen_rows(table)
        for run in dict.fromkeys(map(table.cell_of, rows)):
            if run not in have:
                yield "", f"run {run}", f"no record at budget {reporter.budget}"
    for name, asked in table.figures.items():
        if asked.kind not in kinds():
            where = f"conf/table/{table.id}.yaml: figures.{name}"
            raise unknown("kind of figure", asked.kind, kinds(), where)
        describe = import_module(f"{figures.__name__}.{asked.kind}").describe
        for own, shape in describe(reporter, name, asked):
            yield name, own, shape
