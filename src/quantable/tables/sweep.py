"""Runs without a table, seen as one: a row for each combination of the words that differ.

A sweep's jobs, a store's records and a single run are all such runs, each by its words.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from quantable.config.composition import default_choices, written
from quantable.config.signature import MACHINE, belongs, flat
from quantable.tables.cells import Asked
from quantable.tables.schema import BUDGETS, SINGLE, Figure, Row, Table

NUMBERS = ("top1_pct", "val_top1_pct", "mean_bits", "bops_m", "weights_kb", "energy_uj")
MORE = ("pim_energy_uj", "training_complexity")  # of one run
FIGURES = {
    "frontier": Figure(kind="frontier", x=("bops_m", "weights_kb", "energy_uj")),
    "bits": Figure(kind="phases"),
    "numbers": Figure(kind="numbers"),
    "loss": Figure(kind="epochs", of=("train_loss", "val_loss")),
    "scores": Figure(kind="scores"),
}
CHOSEN_BY = "objective"  # no part of a run's name
BY_TEST = "test_"  # how objectives on test images begin


class Sweep(Table):
    """Runs without a table as a table."""

    words: dict[str, dict[str, str]]  # by row: the values of the words that differ, by key

    @property
    def kept_as(self) -> str:
        """What a record says that was made without a table."""
        return SINGLE


@dataclass(frozen=True)
class Job:
    """One run or a few seeds of it, by its words."""

    asked: Asked

    @property
    def budget(self) -> str:
        """Budget of its runs."""
        return self.asked.budget or "paper"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of its runs."""
        return self.asked.seeds if self.asked.seeds is not None else (0,)

    @cached_property
    def said(self) -> dict[str, str]:
        """Its words by their keys, the last of each; the budget is one of them."""
        own = {word.lstrip("+").partition("=")[0]: word for word in self.asked.overrides}
        return {"budget": f"budget={self.budget}"} | own

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        alone = _table({"run": Row(label="run", overrides=())}, self.budget, (0,))
        return self.asked.cell(alone, "run", self.budget, 0).config

    def value(self, key: str) -> str:
        """What a word says, or what the run has without it; a dash where it has no such key."""
        if key in self.said:
            return written(self.said[key])
        if key in default_choices():
            return default_choices()[key]
        known = dict(flat(dict(self._config)))
        if key not in known:
            return "–"
        value = known[key]
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def sweep_of(
    jobs: Sequence[Asked], *, named_by: Sequence[str] | None = None, stored: bool = False
) -> tuple[Sweep, Asked]:
    """The table of ``jobs``, and what to ask of it so that its cells are theirs.

    ``named_by``: keys that name the rows, instead of those whose words differ. ``stored``: the jobs
    are all that stores have, and no report of some of them is to be kept apart from others.
    """
    known = [Job(asked) for asked in jobs]
    keys = list(dict.fromkeys(key for job in known for key in job.said if key != CHOSEN_BY))
    groups = list(default_choices())  # first and in one order, however the words were given
    keys.sort(key=lambda key: groups.index(key) if key in groups else len(groups))
    if named_by is None:
        named_by = [key for key in keys if len({job.value(key) for job in known}) > 1]
    loose = [key for key in keys if len({job.said.get(key) for job in known}) > 1]
    loose += [CHOSEN_BY]
    rows: dict[str, Row] = {}
    words: dict[str, dict[str, str]] = {}
    for job in known:
        values = {key: job.value(key) for key in named_by}
        name = ", ".join(f"{key}={value}" for key, value in values.items()) or "run"
        own = tuple(job.said[key] for key in loose if key in job.said)
        rows.setdefault(name, Row(label=name, overrides=own))
        words.setdefault(name, values)
    first = known[0]
    budget = min((job.budget for job in known), key=BUDGETS.index)
    common = (word for key, word in first.said.items() if key not in [*loose, "budget"])
    seeds = tuple(sorted({seed for job in known for seed in job.seeds}))
    asked = replace(first.asked, overrides=tuple(common), budget=budget, seeds=seeds, _cells={})
    table = _table(rows, budget, seeds, words)
    kind, title = "single", "a single run"
    if len(rows) > 1 or stored:
        kind, title = "sweep", f"{len(rows)} combinations of {' and '.join(named_by) or 'no words'}"
    name = kind if stored else f"{kind} {_digest(table, asked)}"
    return table.model_copy(update={"id": name, "title": title, "notes": _notes(known)}), asked


def _table(
    rows: Mapping[str, Row],
    budget: str,
    seeds: Sequence[int],
    words: Mapping[str, Mapping[str, str]] | None = None,
) -> Sweep:
    numbers = [*NUMBERS, *(MORE if len(rows) == 1 else ())]
    return Sweep.model_validate(
        {
            "id": SINGLE,
            "paper": "none",
            "title": "a single run",
            "source": "no table",
            "budget": budget,
            "seeds": seeds,
            "base": (),
            "columns": dict.fromkeys(numbers),
            "figures": FIGURES,
            "rows": rows,
            "words": words or {},
        }
    )


def _digest(table: Table, asked: Asked) -> str:
    """Name of a set of runs: of one run its signature."""
    found = [cell.signature for cell in asked.cells(table)]
    if len(found) == 1:
        return found[0]
    return hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()[:12]


def _notes(jobs: Sequence[Job]) -> tuple[str, ...]:
    """Say which runs were chosen by test images."""
    by_test = {written(job.said[CHOSEN_BY]) for job in jobs if CHOSEN_BY in job.said}
    return tuple(
        f"Chosen by test images (objective={names}): the best of these accuracies is no estimate "
        "of what the network does on other images."
        for names in sorted(by_test)
        if BY_TEST in names
    )


def fits(job: Asked, words: Sequence[str]) -> bool:
    """Whether a run has what each of ``words`` says; those of the machine say nothing of it."""
    about = Job(job)
    asked = {w.lstrip("+").partition("=")[0]: w for w in words}
    return all(
        about.value(key) == written(word)
        for key, word in asked.items()
        if not belongs(key, MACHINE)
    )
