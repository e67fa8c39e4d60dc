"""The road from a table's search rows to runs: what waits, what is chosen, what is shared."""

from pathlib import Path

import pytest
from hand_records import hand_table, record_of

from quantable import cli
from quantable.base.errors import UserError
from quantable.cli import parse, run
from quantable.config.composition import compose_run
from quantable.report.reporter import Reporter
from quantable.store.bits_file import write_bits
from quantable.store.record import Item, Record, Scores
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import Table, load_table

INNER = [f"layer{i}.0.conv{j}" for i in (1, 2, 3) for j in (1, 2)]
SHORTCUTS = [f"layer{i}.0.shortcut.conv" for i in (1, 2, 3)]


def selection(**changes: object) -> Table:
    """Float, its 4-bit network, two searches, and a row for each at 80 % of the compute."""
    search = {"start": "four", "overrides": ["quantizer=lsq", "search=first_to_last"]}
    mixed = {"start": "four", "overrides": ["quantizer=lsq"]}
    rows = {
        "float": {"label": "float", "overrides": []},
        "four": {"label": "4 bit", "start": "float", "overrides": ["quantizer=lsq"]},
        "first": {"label": "first", **search},
        "last": {"label": "last", **search, "overrides": ["quantizer=lsq", "search=last_to_first"]},
        "first_80": {"label": "80", **mixed, "chosen": {"by": "first", "budgets": {"linear": 0.8}}},
        "last_80": {"label": "80", **mixed, "chosen": {"by": "last", "budgets": {"linear": 0.8}}},
    }
    return hand_table(rows=rows | changes, claims={}, columns={"top1_pct": None})


def scored(cell: Cell, down: str) -> Record:
    """A finished search that would put ``down`` to 2 bit first."""
    names = INNER + SHORTCUTS
    items = [Item(layers=[n], loss={"4/4": 0.0, "2/2": float(n != down)}) for n in names]
    scores = Scores(
        rule="by hand", unit="1", greedy=False, items=items, seconds=1.0, images=0, epochs=0
    )
    changes = {"scores": scores, "history": [], "phases": [], "metrics": {}}
    return record_of(cell, (4, [(1.0, 1.0)])).model_copy(update=changes)


def test_starts_and_searches_come_before_what_needs_them(tmp_path: Path) -> None:
    asked = Asked(rows=("first_80",), seeds=(0,), stores=(Store(tmp_path),))
    cells = {cell.row: cell for cell in asked.cells(selection())}
    assert list(cells) == ["float", "four", "first", "first_80"]
    assert cells["four"].needs == [cells["float"].signature]
    assert cells["first"].needs == [cells["four"].signature]
    assert cells["first_80"].needs == [cells["first"].signature, cells["four"].signature]
    assert cells["first_80"].search == cells["first"].signature


def test_each_seed_begins_with_its_own_start(tmp_path: Path) -> None:
    cells = Asked(rows=("four",), seeds=(0, 1), stores=(Store(tmp_path),)).cells(selection())
    by = {(cell.row, cell.seed): cell for cell in cells}
    assert by["four", 1].config["start"] == by["float", 1].signature != by["float", 0].signature


def test_a_finished_search_decides_the_bits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = Asked(rows=("first_80",), seeds=(0,), stores=(store,))
    table = selection()
    search = asked.cells(table)[2]
    store.add(scored(search, "layer3.0.conv2"))
    cell = asked.cells(table)[3]
    assert cell.search is None
    assert cell.config["bits"]["layers"]["layer3.0.conv2"] == [2, 2]
    assert cell.config["quantizer"]["callback"]["layers"] == cell.config["bits"]["layers"]
    assert cell.bits is not None
    assert cell.bits.choice is not None
    assert cell.bits.choice.run == search.signature


@pytest.mark.parametrize("greedy", [True, False])
def test_a_run_takes_the_bits_file_that_a_search_has_ended_in(tmp_path: Path, greedy: bool) -> None:
    store, table = Store(tmp_path), selection()
    asked = Asked(rows=("first_80",), seeds=(0,), stores=(store,))
    record = scored(asked.cells(table)[2], "layer3.0.conv2")
    assert record.scores is not None
    scores = record.scores.model_copy(update={"greedy": greedy})
    store.add(record.model_copy(update={"scores": scores}))
    cell = asked.cells(table)[3]
    assert cell.bits is not None
    path = store.bits(cell.bits_name)
    write_bits(cell.bits, path)
    config = compose_run([*table.base, "quantizer=lsq", f"bits.file={path}"])
    assert config["bits"]["layers"] == cell.config["bits"]["layers"]


def test_a_search_on_another_variant_of_the_data_decides_nothing(tmp_path: Path) -> None:
    store, table, alone = Store(tmp_path / "both"), selection(), {}
    _, four, search, _ = Asked(rows=("first_80",), seeds=(0,)).cells(table)
    for variant, down in {"": "conv2", "jpeg": "conv1"}.items():
        record = scored(search, f"layer3.0.{down}")
        data = record.data.model_copy(update={"variant": variant})
        only = Store(tmp_path / f"only {variant}")
        for place in (store, only):
            place.add(record.model_copy(update={"data": data}))
        alone[variant] = Asked(stores=(only,)).cell(table, "first_80", "paper", 0)
    assert alone[""].signature != alone["jpeg"].signature

    def cell(word: str | None) -> Cell:
        return Asked(stores=(store,), variant=lambda _: word).cell(table, "first_80", "paper", 0)

    assert cell("").signature == cell(None).signature == alone[""].signature
    assert cell("jpeg").signature == alone["jpeg"].signature
    assert cell("webp").search == search.signature

    store.add(record_of(four, (4, [(1.0, 1.0)]), variant="jpeg"))
    report = Reporter(table, Asked(seeds=(0,), budget="paper"), [store])
    assert report.find(four) is None
    assert report.cell("first_80", "paper", 0).signature == alone[""].signature


def test_two_searches_with_one_result_share_a_run(tmp_path: Path) -> None:
    store, table = Store(tmp_path), selection()
    asked = Asked(seeds=(0,), stores=(store,))
    for cell in asked.cells(table):
        if cell.row in ("first", "last"):
            store.add(scored(cell, "layer3.0.conv2"))
    rows = [cell.row for cell in asked.cells(table)]
    assert rows == ["float", "four", "first", "last", "first_80"]
    assert asked.cell(table, "last_80", "paper", 0).signature == asked.cells(table)[-1].signature


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"early": {"label": "", "overrides": [], "start": "flaot"}}, "unknown row 'flaot'"),
        (
            {"float": {"label": "float", "overrides": [], "start": "four"}},
            "rows.float: row four, which it needs, stands below",
        ),
        (
            {
                "x": {
                    "label": "",
                    "overrides": [],
                    "chosen": {"by": "first", "budgets": {"linaer": 0.5}},
                }
            },
            "unknown cost 'linaer'. Nearest: linear",
        ),
        (
            {
                "x": {
                    "label": "",
                    "overrides": [],
                    "chosen": {"by": "first", "budgets": {"linear": 1.5}},
                }
            },
            "less than or equal to 1",
        ),
        ({"x": {"label": "", "cell": "float", "start": "four"}}, "belong to the row whose run"),
    ],
)
def test_wrong_rows_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        selection(**changes)


def test_chosen_by_a_row_that_does_not_search(tmp_path: Path) -> None:
    store = Store(tmp_path)
    wrong = {"label": "", "overrides": [], "chosen": {"by": "four", "budgets": {"linear": 0.8}}}
    table = selection(wrong=wrong)
    asked = Asked(rows=("wrong",), seeds=(0,), stores=(store,))
    store.add(record_of(asked.cells(table)[1], (4, [(1.0, 1.0)])))
    with pytest.raises(UserError, match="row 'four' is no search"):
        asked.cells(table)


def test_selection_cifar10_has_every_metric_at_four_budgets() -> None:
    rows = load_table("selection_cifar10").rows
    chosen = [row.chosen for row in rows.values() if row.chosen]
    assert len(chosen) == 28
    assert len({(c.by, c.budgets["linear"]) for c in chosen}) == 28
    starts = {row.start for row in rows.values() if row.chosen}
    tunings = {(row.overrides, tuple(row.budgets.items())) for row in rows.values() if row.chosen}
    assert (len(starts), len(tunings)) == (1, 1)


def test_a_start_that_fails_fails_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["data.train_images=64", "data.val_images=16", "data.test_images=16"]
    diverging = [*few, "recipe.optimizer.lr=1e30", "recipe.batch_size=32", "recipe.epochs=1"]
    table = selection(float={"label": "float", "overrides": diverging})
    words = parse(["rows=first_80", "seed=0", f"store={tmp_path}", "trainer.accelerator=cpu"])
    monkeypatch.setattr(cli, "asked_of", lambda words: [(table, words.asked)])
    with pytest.raises(UserError) as failed:
        run(words)
    own, *others = str(failed.value).splitlines()
    assert own.startswith("float seed 0: loss is not finite")
    assert [line.split(":")[0] for line in others] == [
        f"{row} seed 0" for row in ("four", "first", "first_80")
    ]
    assert all(line.endswith("which failed") for line in others)
    assert not list((tmp_path / "records").glob("*"))


def test_a_start_that_is_nowhere_is_an_error_at_once(tmp_path: Path) -> None:
    words = parse(["start=0123456789ab", f"store={tmp_path}"])
    with pytest.raises(UserError, match=r"begins with run 0123456789ab, which is not in"):
        run(words)
