"""Records, locks and damage: what a store promises."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hand_records import hand_table, record_of

from quantable.base.errors import UserError
from quantable.base.files import write_json
from quantable.store.record import read_record
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell

PHASES = [(16, [(90.0, 89.0), (91.25, 90.5)]), (8, [(90.5, 90.0)])]
HOLD = """
import sys, time
from pathlib import Path
from quantable.store.store import Store
with Store(Path(sys.argv[1])).claim("cell") as claimed:
    print(claimed, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def cell() -> Cell:
    return Asked(budget="paper").cells(hand_table())[0]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_record_comes_back_as_it_was(tmp_path: Path, cell: Cell) -> None:
    record = record_of(cell, *PHASES)
    path = Store(tmp_path).add(record)
    assert path.name == f"{cell.signature}.json"
    assert read_record(path) == record
    assert Store(tmp_path).find(cell.signature, "") == record
    assert Store(tmp_path).records() == [record]
    content = json.loads(path.read_text())
    assert content["history"][1]["test_top1_pct"] == 90.5
    assert content["phases"][1] | {"bits": None} == {
        "index": 1,
        "first_epoch": 2,
        "epochs": 1,
        "bits": None,
        **dict.fromkeys(("channels", "parameters", "shapes")),  # of cut networks only
        "layers": None,  # of quantized weights only
    }
    assert content["config"]["recipe.epochs"] == 5


def test_adding_a_record_drops_the_checkpoint_behind_it(tmp_path: Path, cell: Cell) -> None:
    store = Store(tmp_path)
    record = record_of(cell, *PHASES)
    for name in (record.name, "another"):
        store.cell(name).mkdir(parents=True)
        (store.cell(name) / "last.ckpt").touch()
    store.add(record)
    assert not store.cell(record.name).exists()
    assert store.cell("another").exists()


def test_the_original_data_comes_before_a_copy(tmp_path: Path, cell: Cell) -> None:
    store = Store(tmp_path)
    copy = record_of(cell, *PHASES, variant="jpeg")
    store.add(copy)
    assert store.find(cell.signature, None) == copy
    assert store.find(cell.signature, "") is None
    original = record_of(cell, *PHASES)
    store.add(original)
    assert store.find(cell.signature, None) == original
    assert store.find(cell.signature, "jpeg") == copy
    assert store.find(cell.signature, "sample") is None
    store.add(record_of(cell, *PHASES, variant="jpeg121"))
    assert store.variants(cell.signature) == ["", "jpeg121", "jpeg"]
    assert store.variants("0123456789ab") == []


def test_a_crash_while_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    target = tmp_path / "records" / "a.json"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no space left"):
            write_json(target, {"a": 1})
    assert files(tmp_path) == []
    write_json(target, {"a": 1})
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="no space left"):
            write_json(target, {"a": 2})
    assert files(tmp_path) == ["a.json"]
    assert json.loads(target.read_text()) == {"a": 1}


def test_a_number_that_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert files(tmp_path) == []


def test_a_record_of_a_network_whose_answers_are_not_finite_is_no_record(
    tmp_path: Path, cell: Cell
) -> None:
    record = record_of(cell, (8, [(90.0, 89.0)]))
    record.history[0].test_loss = float("nan")
    with pytest.raises(UserError, match=rf"record {record.name}: a number of the run is not fini"):
        Store(tmp_path).add(record)
    assert not any((tmp_path / "records").iterdir())


def test_a_lock_holds_while_its_process_lives_and_is_taken_over_after_a_kill(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    assert not store.running("cell")
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            assert store.running("cell")
            with store.claim("cell") as claimed:
                assert not claimed
            with store.claim("another cell") as claimed:
                assert claimed
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (tmp_path / "cells" / "cell.lock").exists()
    assert not store.running("cell")
    with store.claim("cell") as claimed:
        assert claimed
        assert store.running("cell")
    assert files(tmp_path) == []


def test_a_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.claim("cell"):
        raise RuntimeError
    assert not store.running("cell")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"seed"', '"sed"', 1),
        lambda text: text.replace('"top1"', "1").replace("90.5", '"high"'),
        lambda text: json.dumps(json.loads(text) | {"extra": 1}),
    ],
    ids=["half", "empty", "wrong key", "wrong type", "extra key"],
)
def test_a_damaged_record_is_named(tmp_path: Path, cell: Cell, damage) -> None:
    store = Store(tmp_path)
    path = store.add(record_of(cell, *PHASES))
    path.write_text(damage(path.read_text()))
    for read in (store.records, lambda: store.find(cell.signature, ""), lambda: read_record(path)):
        with pytest.raises(UserError, match=f"{path}: not a record: "):
            read()
