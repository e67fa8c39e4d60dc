"""A row whose search found no bit-widths is not run, and says which layers are to blame."""

from pathlib import Path

import pytest

from quantable.config.signature import portable
from quantable.executor.board import Work
from quantable.executor.inline import run_inline
from quantable.report.reporter import Reporter
from quantable.store.record import DataFacts, Provenance, Record, Scores
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import Table, load_table

WHY = "infeasible: ACQ has no bit-widths for layer conv5, conv7"
ROWS = ("known_8_search", "known_8", "known_8_tuned")


@pytest.fixture(scope="module")
def table() -> Table:
    return load_table("acq_allcnnc")


def searched(cell: Cell) -> Record:
    """The record of a search without a pair of widths for two layers."""
    scores = Scores(
        **{"rule": "ACQ", "unit": "pp", "greedy": False, "items": [], "seconds": 1.0},
        **{"images": 0, "epochs": 0, "infeasible": ["conv5", "conv7"]},
    )
    return Record(
        signature=cell.signature,
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        budget="cpu",
        config=portable(cell.config),
        data=DataFacts(title="CIFAR-10", variant="", sizes={}, sha256=""),
        **{"metrics": {}, "phases": [], "costs": {}, "history": [], "scores": scores},
        provenance=Provenance(
            **{"commit": "0" * 40, "clean": True, "command": "", "versions": {}, "device": "none"},
            **{"threads": 1, "wall_seconds": 1.0, "resumed": 0},
            finished="2026-01-01T00:00:00+00:00",
        ),
    )


def test_rows_that_need_its_bits_are_left_out_and_say_why(table: Table, tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = Asked(budget="cpu", seeds=(0,), rows=ROWS, stores=(store,))
    before = {cell.row: cell for cell in asked.cells(table)}
    assert list(before) == ["float", *ROWS]
    assert before["known_8_tuned"].needs[0] == before["known_8_search"].signature
    store.add(searched(before["known_8_search"]))

    work = Work(table, asked, [])
    for row in ROWS[1:]:
        assert work.again(before[row]).impossible == WHY
    fresh = Asked(budget="cpu", seeds=(0,), rows=ROWS, stores=(store,))
    assert [cell.row for cell in fresh.cells(table)] == ["float", "known_8_search"]

    reporter = Reporter(table, fresh, [store])
    assert {row: reporter.entry(row, "top1_pct").reason for row in ROWS[1:]} == {
        "known_8": WHY,
        "known_8_tuned": WHY,
    }
    assert reporter.entry("known_8", "mean_bits").measured is None
    assert reporter.impossible("known_8")
    assert not reporter.impossible("known_10")


def test_a_runner_settles_them(table: Table, tmp_path: Path, capsys) -> None:
    store = Store(tmp_path)
    asked = Asked(budget="cpu", seeds=(0,), rows=ROWS, stores=(store,))
    search, *waiting = (cell for cell in asked.cells(table) if cell.row in ROWS)
    store.add(searched(search))
    assert run_inline(Work(table, asked, waiting), store) == {}
    said = capsys.readouterr().err
    assert f"known_8 seed 0: {WHY}" in said
    assert f"known_8_tuned seed 0: {WHY}" in said
