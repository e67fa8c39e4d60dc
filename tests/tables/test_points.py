"""The edge paper's published points: every one is shown, and its total follows from its parts."""

import csv
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from development_data import shared

import quantable.tables.points
from quantable.base.errors import UserError
from quantable.report.render import FORMATS
from quantable.report.reporter import Reporter
from quantable.report.schema import Entry, Report
from quantable.tables.cells import Asked
from quantable.tables.points import POINTS, points_names, read_points
from quantable.tables.schema import load_table

ROOT = Path(__file__).parents[2]
VARIANTS = ("mixed", "granular", "surrogate", "granular_surrogate")
# Points of each variant's sweep, as the authors' files have them: 315.
SWEEPS = {
    "lite0": (21, 22, 13, 61),
    "mobilenetv2": (13, 22, 16, 22),
    "squeezenext": (11, 19, 12, 14),
    "resnet18": (21, 11, 15, 22),
}
OTHERS = {  # measured again, on a subset, or in an older file
    "lite0": {"mixed_fulleval": 13, "granular_surrogate_older": 14},
    "mobilenetv2": {"surrogate_subset6144": 21, "granular_surrogate_subset6144": 21},
}
KILOBYTES = {"lite0": 84.032, "mobilenetv2": 68.224, "squeezenext": 46.208, "resnet18": 19.2}


def report_of(table: str) -> Report:
    return Reporter(load_table(table), Asked(), []).report()


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {network: report_of(f"edge_{network}") for network in SWEEPS}


def entries(report: Report, column: str) -> dict[str, Entry]:
    return {entry.row: entry for entry in report.rows if entry.column == column}


def test_every_point_of_the_files_is_a_row(reports: dict[str, Report]) -> None:
    assert sum(sum(counts) for counts in SWEEPS.values()) == 315
    assert points_names() == sorted(f"edge_{network}" for network in SWEEPS)
    for network, counts in SWEEPS.items():
        points = read_points(f"edge_{network}", "test")
        expected = dict(zip(VARIANTS, counts, strict=True)) | OTHERS.get(network, {})
        assert {name: len(series.points) for name, series in points.series.items()} == expected
        assert len(entries(reports[network], "total_mb")) == sum(expected.values())


@pytest.mark.parametrize("network", SWEEPS)
def test_every_total_and_every_batch_norm_is_a_match(
    network: str, reports: dict[str, Report]
) -> None:
    totals = entries(reports[network], "total_mb")
    assert {entry.verdict for entry in totals.values()} == {"match"}
    norms = entries(reports[network], "bn_kb")
    assert {entry.verdict for entry in norms.values()} == {"match"}
    means = {entry.measured.mean for entry in norms.values() if entry.measured is not None}
    (mean,) = means
    assert mean == pytest.approx(KILOBYTES[network])


@pytest.mark.parametrize(
    ("network", "row", "total", "top1", "parts"),
    [
        ("lite0", "granular_surrogate_2.975", "4.14", "67.66", (2486.63, 1572.26, 84.032)),
        ("mobilenetv2", "granular_surrogate_2.4_run2", "3.51", "65.39", (2383.93, 1054.01, 68.224)),
    ],
)
def test_the_abstracts_two_points(
    network: str,
    row: str,
    total: str,
    top1: str,
    parts: tuple[float, ...],
    reports: dict[str, Report],
) -> None:
    report = reports[network]
    found = entries(report, "total_mb")[row].measured
    assert found is not None
    assert f"{found.mean:.2f}" == total
    assert found.mean == pytest.approx(sum(parts) / 1000)
    shown = entries(report, "top1_pct")[row]
    assert shown.published is not None
    assert f"{shown.published.value:.2f}" == top1
    assert (shown.measured, shown.verdict) == (None, "not run")
    size, accuracy = report.claims
    assert (size.claimed, size.verdict) == (float(total), "holds")
    assert (accuracy.verdict, accuracy.reason) == ("not judged", "not run")


def test_corrected_totals_by_hand(reports: dict[str, Report]) -> None:
    row = "granular_surrogate_2.975"
    both = entries(reports["lite0"], "total_both_bn_mb")[row].measured
    largest = entries(reports["lite0"], "total_largest_mb")[row].measured
    assert both is not None
    assert largest is not None
    assert both.mean == pytest.approx((2486.63 + 1572.26 + 2 * 84.032) / 1000)
    assert largest.mean == pytest.approx((451.58 + 1572.26 + 2 * 84.032) / 1000)


def test_published_parts_are_not_repeated_as_ours(reports: dict[str, Report]) -> None:
    for column in ("act_kb", "act_max_kb", "weight_kb"):
        assert all(e.measured is None for e in entries(reports["lite0"], column).values())


def test_doubtful_numbers_are_shown_marked_and_never_judged(reports: dict[str, Report]) -> None:
    doubtful = {
        ("lite0", "mixed"): ("top1_pct",),
        ("mobilenetv2", "surrogate"): ("top1_pct", "act_kb", "act_max_kb", "weight_kb"),
        ("mobilenetv2", "surrogate_subset6144"): ("top1_pct",),
        ("mobilenetv2", "granular_surrogate_subset6144"): ("top1_pct",),
    }
    found = set()
    for network, report in reports.items():
        for entry in report.rows:
            if entry.hint is not None:
                series = re.split(r"_\d", entry.row)[0]
                if "subset6144" in entry.row:
                    series = entry.row.partition("_subset6144")[0] + "_subset6144"
                if entry.row.startswith("mixed_fulleval"):
                    series = "mixed_fulleval"
                found.add((network, series, entry.column))
                assert entry.hint.confidence == "doubtful"
                assert "doubtful" in str(entry.reason)
                assert entry.verdict == "not run"
                assert entry.published is None
    assert found == {(*key, column) for key, columns in doubtful.items() for column in columns}
    text = FORMATS["markdown"](reports["lite0"])
    assert "| mixed, 6,144 images, target 2 |" in text
    assert "top-1 49.01 % (doubtful)" in text
    assert "top-1: doubtful, measured on 6,144" in text


# Without points


def test_uniform_bits_have_the_papers_sizes() -> None:
    report = report_of("edge_uniform")
    weights, activations = entries(report, "weight_kb"), entries(report, "act_kb")
    assert len(weights) == 7
    assert {entry.verdict for entry in weights.values()} == {"match"}
    for entry in activations.values():  # derived: a hint, and the same number
        assert entry.hint is not None
        assert entry.measured is not None
        assert entry.measured.mean == pytest.approx(entry.hint.value, abs=0.05)
    four = activations["uniform4"].measured
    assert four is not None
    assert round(four.mean, 2) == 3338.13


def test_the_gradient_study_is_shown_with_spread_and_runs() -> None:
    report = report_of("edge_gradients")
    shown = entries(report, "top1_pct")
    assert len(shown) == 30
    assert {entry.verdict for entry in shown.values()} == {"not run"}
    best = shown["w3a3_ewgs_invtanh"].published
    assert best is not None
    assert (best.value, best.std, best.n) == (66.395, 0.279, 13)
    assert "top-1 66.39 ± 0.28 (n=13) %" in FORMATS["markdown"](report)
    head, *_ = FORMATS["csv"](report).splitlines()
    assert "published_std,published_n" in head


# What is wrong in a file

GOOD: dict[str, Any] = {
    "source": "somewhere",
    "columns": ["act_kb", "weight_kb"],
    "more": ["on_hull"],
    "series": {"a": {"label": "A", "source": "a.csv", "points": [[2, 1.5, 2.5, 1], [2, 3, 4, 0]]}},
}


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(quantable.tables.points, "POINTS", folder)
    (folder / "toy.json").write_text(json.dumps(GOOD | changes))


def test_repeated_targets_are_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, monkeypatch)
    rows = read_points("toy", "here").rows()
    assert {name: row["label"] for name, row in rows.items()} == {
        "a_2": "A, target 2",
        "a_2_run2": "A, target 2 (run 2)",
    }
    assert rows["a_2_run2"]["published"]["weight_kb"]["value"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colums": []}, "toy.json: unknown key 'colums'. Nearest: columns"),
        (
            {"series": {"a": {"label": "A", "source": "a", "points": [], "note": "x"}}},
            "toy.json: series.a: unknown key 'note'",
        ),
        (
            {"series": {"a": {"label": "A", "source": "a", "points": [[2, 1.5]]}}},
            "toy.json: series.a.points.0: 2 numbers for the 4 columns target_bits, act_kb",
        ),
        (
            {"series": {"a": GOOD["series"]["a"] | {"doubts": {"act_kB": "x"}}}},
            "toy.json: series.a.doubts: unknown column 'act_kB'. Nearest: act_kb",
        ),
        ({"series": 3}, "toy.json: series: "),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    written(tmp_path, monkeypatch, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        read_points("toy", "here")


def test_unknown_points_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"here: unknown points 'edge_lite'. Nearest: edge_lite0"):
        read_points("edge_lite", "here")


# Against the transcriptions (development data; skipped where they are absent)


@pytest.mark.data
def test_conf_equals_the_transcriptions() -> None:
    folder = shared("papers/edge")
    made = runpy.run_path(str(ROOT / "tools" / "make_edge_points.py"))["contents"](folder)
    found = {f"points/{path.name}": json.loads(path.read_text()) for path in POINTS.glob("*")}
    assert found == dict(made)


@pytest.mark.data
def test_the_gradient_study_equals_the_transcription() -> None:
    with (shared("papers/edge") / "gradient_study.csv").open(newline="") as file:
        expected = {
            f"w{line['bits']}a{line['bits']}_{line['weight_mod']}_{line['act_mod']}": (
                float(line["mean"]),
                float(line["std"]),
                int(line["n"]),
                line["source"],
            )
            for line in csv.DictReader(file)
        }
    rows = load_table("edge_gradients").rows
    found = {name: row.published["top1_pct"] for name, row in rows.items()}
    assert {n: (p.value, p.std, p.n, p.source) for n, p in found.items()} == expected
