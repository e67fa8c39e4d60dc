"""The records this project vouches for stay current, and their networks can be built."""

import json
from pathlib import Path

import pytest
import torch

from quantable.base.places import ROOT
from quantable.config.targets import MOVED, make
from quantable.store.record import Record, read_record
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table
from quantable.training.finished import load_network, nested

EVIDENCE = ROOT / "reproduce" / "evidence"
RECORDS = [read_record(path) for path in sorted((EVIDENCE / "records").glob("*.json"))]


def test_every_record_answers_a_question_of_its_table_today() -> None:
    assert len(RECORDS) >= 187
    for variant in {record.data.variant for record in RECORDS}:
        records = [record for record in RECORDS if record.data.variant == variant]
        asked = Asked(stores=(Store(EVIDENCE),), variant=lambda _, name=variant: name)
        for table, budget, seed in {(r.table, r.budget, r.seed) for r in records}:
            rows = load_table(table)
            cells = [asked.cell(rows, row, budget, seed).signature for row in rows.rows]
            of_table = [r for r in records if (r.table, r.budget, r.seed) == (table, budget, seed)]
            assert {r.signature for r in of_table} <= set(cells), (table, budget, seed)


def built_of(record: Record) -> tuple[object, ...]:
    """What a record's network and its quantizers are built of: records alike in it load alike."""
    parts = ("model.net", "quantizer.callback", "data.input_size")
    named = ("_target_", "per_channel", "name", "width", "shortcuts", "input_size", "classes")
    return tuple(
        (key, str(value))
        for key, value in sorted(record.config.items())
        if key.startswith(parts) and key.rpartition(".")[2] in named
    )


NETWORKS = {built_of(record): record for record in RECORDS if record.scores is None}


@pytest.mark.slow
@pytest.mark.parametrize("record", NETWORKS.values(), ids=lambda r: f"{r.table}-{r.row}-{r.seed}")
def test_the_network_of_every_record_loads(record: Record, tmp_path: Path) -> None:
    config = nested(record.config)
    no_file = {"weights": None} if "weights_sha256" in config["model"]["net"] else {}
    net = make(config["model"]["net"] | no_file)
    if config["quantizer"]["callback"] is not None:
        make(config["quantizer"]["callback"]).attach(net, config["data"]["input_size"])
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    again = load_network(record, tmp_path / "weights.pt").state_dict()
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in net.state_dict().items())


def test_old_names_stand_for_what_is_there_today() -> None:
    signed = {
        value
        for path in (EVIDENCE / "records").glob("*.json")
        for key, value in json.loads(path.read_text())["config"].items()
        if key.endswith("_target_")
    }
    assert len(signed & set(MOVED)) >= 5  # several of the targets that moved stand in records
    for first, today in MOVED.items():
        assert callable(make({"_target_": first, "_partial_": True}).func), today
