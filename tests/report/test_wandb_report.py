"""The W&B report of a table: built as an object, without a server."""

import json
import sys
from pathlib import Path

import pytest
from hand_records import LAYERS, keep, reporter

from quantable.base.errors import UserError
from quantable.report.reporter import Reporter
from quantable.report.wandb_report import build, records

# wandb-workspaces 0.4 defines its classes in pydantic's older way.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")


@pytest.fixture
def about(tmp_path: Path) -> Reporter:
    about = reporter(tmp_path)
    keep(about, "float", 0, (32, [(90.0, 91.0)] * 5))
    for seed in (0, 1):
        keep(about, "ad", seed, (16, [(90.0, 91.0)] * 3), (4, [(90.0, 90.5)] * 2))
    return about


def test_it_has_every_row_and_plots_over_the_tables_runs(about: Reporter) -> None:
    report, runs = about.report(), records(about)
    assert [run.name for run in runs] == [
        about.cell(*cell).signature
        for cell in (("float", "paper", 0), ("ad", "paper", 0), ("ad", "paper", 1))
    ]
    page = build(report, runs, "quantable", "")
    assert page.title == "hand: made by hand"
    # As it would be sent.
    sent = json.loads(page._to_model().model_dump_json(by_alias=True, exclude_none=True))
    blocks = {block["type"]: block for block in sent["spec"]["blocks"]}
    text = blocks["markdown-block"]["content"]
    assert {row.label for row in about.table.rows.values()} <= {
        line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")
    }
    assert "top-1 92.00 %" in text  # a published number

    grid = blocks["panel-grid"]["metadata"]
    (chosen,) = grid["runSets"][0]["filters"]["filters"]
    assert (chosen["key"], chosen["op"]) == ({"section": "run", "name": "name"}, "IN")
    assert chosen["value"] == [run.name for run in runs]
    panels = [panel["config"] for panel in grid["panelBankSectionConfig"]["panels"]]
    assert ("summary:cost/pim_ratio", "summary:last/test_top1_pct") in [
        (panel.get("xAxis"), panel.get("yAxis")) for panel in panels
    ]
    assert [f"bits/weight/{layer}" for layer in LAYERS] in [
        panel.get("metrics") for panel in panels
    ]
    assert "bits/weight/.*" in [panel.get("metricRegex") for panel in panels]


def test_without_runs_it_has_the_table_alone(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    assert records(about) == []
    assert [type(block).__name__ for block in build(about.report(), [], "p", "").blocks] == [
        "MarkdownBlock"
    ]


def test_without_the_package_the_message_says_what_to_do(
    about: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'quantable\[wandb\]'"):
        build(about.report(), [], "quantable", "")
