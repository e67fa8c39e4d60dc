"""A report as a Parquet file: one line per row, column and seed, with types."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from quantable.columns import COLUMNS
from quantable.report.escape import slug
from quantable.report.reporter import Reporter
from quantable.report.schema import Entry

TEXT, REAL, WHOLE = pa.string(), pa.float64(), pa.int64()
SCHEMA = pa.schema(
    [
        pa.field("table", TEXT, nullable=False),
        pa.field("row", TEXT, nullable=False),
        pa.field("label", TEXT, nullable=False),
        pa.field("words", pa.map_(TEXT, TEXT)),  # of a sweep: what tells the row from the others
        pa.field("column", TEXT, nullable=False),
        pa.field("unit", TEXT, nullable=False),
        pa.field("budget", TEXT, nullable=False),
        pa.field("data", TEXT),  # null where the number needs none
        pa.field("seed", WHOLE),  # null where the number is arithmetic, or there is none
        pa.field("value", REAL),
        pa.field("record", TEXT),  # name of the record behind the value
        pa.field("signature", TEXT),
        pa.field("commit", TEXT),
        pa.field("published", REAL),
        pa.field("published_std", REAL),
        pa.field("published_n", WHOLE),
        pa.field("published_source", TEXT),
        pa.field("published_confidence", TEXT),  # of hints too: no verdict rests on those
        pa.field("verdict", TEXT, nullable=False),  # on the mean over seeds
        pa.field("reason", TEXT),
    ]
)


def write_parquet(reporter: Reporter, folder: Path) -> Path:
    """Write ``<folder>/<table>.parquet`` by rename and return its path."""
    report = reporter.report()
    words = report.words
    lines = [x for entry in report.rows for x in _lines(reporter, entry, words.get(entry.row))]
    about = {"title": report.title, "source": report.source, "paper": report.paper}
    table = pa.Table.from_pylist(lines, SCHEMA.with_metadata(about))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(report.table)}.parquet"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, part)
    os.replace(part, path)
    return path


def _lines(
    reporter: Reporter, entry: Entry, words: Mapping[str, str] | None
) -> Iterator[dict[str, Any]]:
    said = entry.published or entry.hint
    measured = entry.measured
    line: dict[str, Any] = {
        "table": reporter.table.id,
        **entry.model_dump(include={"row", "label", "column", "unit", "verdict", "reason"}),
        "words": list(words.items()) if words else None,
        "budget": measured.budget if measured else reporter.budget,
    }
    if said is not None:
        line["published"] = said.value
        for key in ("std", "n", "source", "confidence"):
            line[f"published_{key}"] = getattr(said, key)
    if measured is None or (measured.data is None and measured.n == 1):
        yield line | {"value": measured.mean if measured else None}
        return
    for seed, facts in sorted(reporter.row_facts(entry.row).by_seed.items()):
        value = COLUMNS[entry.column].value(facts)
        if value is None:
            continue
        own: dict[str, Any] = {"seed": seed, "value": value}
        if (record := facts.record) is not None:
            own |= {"record": record.name, "signature": record.signature}
            own |= {"commit": record.provenance.commit, "data": record.data.title}
        yield line | own
