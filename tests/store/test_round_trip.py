"""What the suite writes, it reads: values drawn from the types of all that it keeps."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import drawn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantable.config.composition import compose_run
from quantable.executor.frozen import freeze, thaw
from quantable.executor.status import Status, read_status, write_status
from quantable.networks.layers import Network
from quantable.networks.shapes import read_network, write_network
from quantable.report.compare import FORMATS as COMPARISONS
from quantable.report.compare import Comparison
from quantable.report.render import FORMATS
from quantable.report.schema import Report
from quantable.store.bits_file import BitsFile, Choice, read_bits, write_bits
from quantable.store.record import DataFacts, Head, Record, Scores, read_head, read_record
from quantable.store.store import Store
from quantable.tables.cells import Cell

some = settings(max_examples=15, deadline=None)
DATA = drawn.of(DataFacts, variant=st.from_regex("([a-z]+[0-9]*)?", fullmatch=True))
RECORDS = drawn.of(
    Record, signature=drawn.SIGNATURES, data=DATA, scores=st.none() | drawn.of(Scores)
)
LAYERS = st.dictionaries(st.text(), st.tuples(drawn.WIDTHS, drawn.WIDTHS), min_size=1, max_size=2)
BITS_FILES = drawn.of(BitsFile, schema_version=st.just(1), layers=LAYERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("kept")


@given(record=RECORDS)
@some
def test_a_record(folder: Path, record: Record) -> None:
    path = Store(folder).add(record)
    assert read_record(path) == record
    assert Store(folder).find(record.signature, record.data.variant) == record
    assert read_head(path) == Head.model_validate(record, from_attributes=True)
    assert Record.model_validate_json(record.model_dump_json()) == record


@given(file=BITS_FILES)
@some
def test_a_bits_file(folder: Path, file: BitsFile) -> None:
    write_bits(file, folder / "bits.json")
    assert read_bits(folder / "bits.json") == file


def test_a_bits_file_of_a_search_from_first_weights_without_a_bound(folder: Path) -> None:
    choice = Choice(rule="order", run="0" * 12, loss={}, budgets={}, solver="", objective=0.0)
    file = BitsFile(network="a", source="b", layers={"fc": (4, 4)}, choice=choice)
    write_bits(file, folder / "bits.json")
    assert '"bound"' not in (folder / "bits.json").read_text()
    assert read_bits(folder / "bits.json") == file


@given(network=drawn.of(Network))
@some
def test_shapes(folder: Path, network: Network) -> None:
    write_network("net", network, folder)
    assert read_network("net", [folder]) == network


@given(report=drawn.of(Report), comparison=drawn.of(Comparison))
@some
def test_json_of_reports(report: Report, comparison: Comparison) -> None:
    assert Report.model_validate_json(FORMATS["json"](report)) == report
    assert Comparison.model_validate_json(COMPARISONS["json"](comparison)) == comparison


@given(status=drawn.of(Status))
@some
def test_a_status(folder: Path, status: Status) -> None:
    write_status(Store(folder), "cell", status)
    found = read_status(Store(folder), "cell")
    assert found is not None
    assert replace(found, updated=status.updated) == status


@given(
    about=st.fixed_dictionaries(
        {
            "table": drawn.of(str | None),
            "row": drawn.of(str),
            "overrides": drawn.of(tuple[str, ...]),
            "budgets": drawn.of(dict[str, float] | None),
            "layers": drawn.of(dict[str, Any] | None),
        }
    ),
    keywords=drawn.of(dict[str, Any]),
)
@some
def test_a_frozen_cell(folder: Path, about: dict[str, Any], keywords: dict[str, Any]) -> None:
    config = compose_run(["seed=3"])
    net = {"_target_": "mine.net", **keywords}
    cell = Cell(
        seed=3, config=config | {"model": {"name": "mine", "net": net}}, search=None, **about
    )
    path = freeze(cell, "", Store(folder), "source/0", threads=1)
    again = thaw(path).cell
    assert again.signature == cell.signature
    assert again.config["model"] == cell.config["model"]
    assert {name: getattr(again, name) for name in about} == about
