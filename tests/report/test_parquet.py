"""Parquet: one line for each row, column and seed, read back by pyarrow."""

from pathlib import Path

import pytest
from hand_records import hand_table, keep, reporter
from pyarrow import parquet as pq

from quantable.cli import report_main
from quantable.report.parquet import SCHEMA, write_parquet

LABEL = "=float \x1b[31m\n<b>"


def test_each_seed_has_its_line(tmp_path: Path) -> None:
    rows = {
        "float": {
            "label": LABEL,
            "overrides": ["quantizer=none"],
            "published": {
                "top1_pct": {"value": 92.0, "source": "Table 9", "confidence": "recollected"}
            },
        },
        "bits16": {"label": "16 bit", "cell": "float", "cost_bits": 16},
    }
    about = reporter(tmp_path, hand_table(rows=rows, claims={}))
    kept = {
        seed: keep(about, "float", seed, (32, [(91.0, test)] * 5))
        for seed, test in ((0, 91.8), (2, 92.5))
    }
    table = pq.read_table(write_parquet(about, tmp_path / "reports"))
    assert table.schema.equals(SCHEMA)  # types; metadata aside
    lines = table.to_pylist()
    own = [line for line in lines if (line["row"], line["column"]) == ("float", "top1_pct")]
    assert [(line["seed"], line["value"]) for line in own] == [(0, 91.8), (2, 92.5)]
    assert [line["record"] for line in own] == [kept[seed].name for seed in (0, 2)]
    assert {line["label"] for line in own} == {LABEL}  # data stay what they are
    assert {(line["published"], line["published_confidence"]) for line in own} == {
        (92.0, "recollected")
    }
    assert {line["data"] for line in own} == {"Fashion-MNIST mini"}
    ratio = [line for line in lines if (line["row"], line["column"]) == ("bits16", "pim_ratio")]
    assert [(line["seed"], line["value"], line["data"]) for line in ratio] == [(None, 1.0, None)]
    none = [line for line in lines if (line["row"], line["column"]) == ("float", "pim_ratio")]
    assert [(line["seed"], line["value"]) for line in none] == [(None, None)]
    assert table.schema.metadata[b"title"] == b"made by hand"


def test_the_command_says_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_main(["+table=ad_pim", "format=parquet", f"store={tmp_path}"]) == 0
    path = tmp_path / "reports" / "ad_pim.parquet"
    assert capsys.readouterr().out == f"{path}\n"
    assert [p.name for p in path.parent.iterdir()] == ["ad_pim.parquet"]
