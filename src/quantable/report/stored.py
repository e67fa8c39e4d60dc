"""Records that were made without a table, of one or several stores, as one table."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.config.signature import MACHINE, belongs
from quantable.report.reporter import Reporter
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import SINGLE
from quantable.tables.sweep import fits, sweep_of

MOST_NAMED = 4


def stores_at(places: Iterable[str]) -> list[Store]:
    """Stores at or below folders.

    Raises UserError for a folder without one.
    """
    found: list[Store] = []
    for place in places:
        folder = ROOT / Path(place).expanduser()
        below = sorted({path.parent for path in folder.glob("**/records") if path.is_dir()})
        if not below:
            raise UserError(f"sweep: {place}: no store: no folder 'records' is in or below it")
        found += map(Store, below)
    return found


def without_table(stores: Iterable[Store], asked: Asked) -> list[Record]:
    """Records made without a table, that have the budget, seeds and words asked for."""
    kept = []
    for store in stores:
        for head in store.heads():
            if head.table not in (None, SINGLE):
                continue
            if asked.budget not in (None, head.budget):
                continue
            if asked.seeds is not None and head.seed not in asked.seeds:
                continue
            kept += [r for r in map(store.find, [head.signature], [None]) if r is not None]
    once = {record.name: record for record in kept}.values()
    in_time = sorted(once, key=lambda record: (record.provenance.finished, record.name))
    return [record for record in in_time if fits(job_of(record), asked.overrides)]


def job_of(record: Record) -> Asked:
    """What was asked for when a record was made, by its command."""
    words = shlex.split(record.provenance.command)[2:]
    own = (word for word in words if word.partition("=")[0] not in ("budget", "seed"))
    return Asked(overrides=tuple(own), budget=record.budget, seeds=(record.seed,))


def swept(places: Sequence[str], asked: Asked) -> Reporter:
    """Report all runs without a table in the stores at ``places``.

    Raises UserError where there are none, or none that fits what is asked.
    """
    stores = stores_at(places)
    records = without_table(stores, asked)
    if not records:
        raise UserError(f"sweep: {', '.join(places)}: no record that was made without a table fits")
    table, of_all = sweep_of(list(map(job_of, records)), stored=True)
    machine = (w for w in asked.overrides if belongs(w.lstrip("+").partition("=")[0], MACHINE))
    of_all = replace(of_all, overrides=(*of_all.overrides, *machine), rows=asked.rows)
    reporter = Reporter(table, of_all, stores)
    shown = {record.name for _, record in shown_in(reporter)}
    if left := [record.name for record in records if record.name not in shown]:
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        note = (
            f"Not shown, as they answer an older question (conf or the code has changed since) or "
            f"are of another copy of the images: {', '.join(left[:MOST_NAMED])}{more}."
        )
        table = table.model_copy(update={"notes": (*table.notes, note)})
        return Reporter(table, of_all, stores)
    return reporter


def shown_in(reporter: Reporter) -> list[tuple[str, Record]]:
    """Records that a report's numbers rest on, with their rows."""
    rows = reporter.asked.chosen_rows(reporter.table)
    found = ((row, facts.record) for row in rows for facts in reporter.row_facts(row).facts)
    return [(row, record) for row, record in found if record is not None]
