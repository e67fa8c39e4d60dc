"""Figures and columns of learned bit-widths, from hand-made records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawings import check_legible, words
from hand_records import claim, hand_table, keep, reporter
from matplotlib import style

from quantable.report.draw_paper import draw, write_figures
from quantable.report.figures import memory, sizes
from quantable.report.kinds import described
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.shapes import Plot, Point
from quantable.store.record import Record
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

SEARCH = ["quantizer=edge", "bits.ends=null", "bits.inner=[5,5]"]
UNIFORM = ["quantizer=minmax", "bits.ends=null", "bits.inner=[3,3]"]
PHASES = ((5, [(50.0, 50.0)]), (4, [(55.0, 54.0), (58.0, 57.0)]), (3, [(60.0, 59.0)]))


@pytest.fixture(autouse=True)
def drawing() -> Iterator[None]:
    with style.context(STYLE, after_reset=True):
        yield


def about(folder: Path, *, seeds: int = 2, **more: Any) -> Reporter:
    """A float row, uniform 3 bit and a search for 3 bit; the search has records."""
    rows: dict[str, Any] = {
        "float": {"label": "float", "overrides": ["quantizer=none"]},
        "uniform_3": {"label": "3 bit", "series": "uniform", "overrides": UNIFORM},
        "mixed_3": {
            "label": "learned",
            "overrides": [*SEARCH, "quantizer.callback.target=[3,3]"],
        },
    }
    columns = dict.fromkeys(["top1_pct", "weight_kb", "total_mb", "target_off_pct"])
    figures = {
        "memory": {"kind": "memory", "x": ["total_mb"]},
        "bits": {"kind": "phases"},
        "sizes": {"kind": "sizes"},
    }
    table = hand_table(
        rows=rows | more,
        columns=columns,
        series={"uniform": {"short": "uniform", "colour": "#000000", "marker": "s"}},
        figures=figures,
        claims={},
        final_within_pp=None,
    )
    found = reporter(folder, table)
    for seed in range(seeds):
        keep(found, "uniform_3", seed, (3, [(50.0, 48.0 + seed)]))
        record = keep(found, "mixed_3", seed, *PHASES)
        sized(found, record)
    return found


def sized(found: Reporter, record: Record) -> None:
    """Write sizes into a record: 5, 4, 3.5 and 3.1 times what one bit takes."""
    weight_kb, act_kb = one_bit(found)
    for epoch, bits in zip(record.history, (5, 4, 3.5, 3.1), strict=True):
        epoch.own = {"weight_kb": bits * weight_kb, "act_kb": (bits - 0.15) * act_kb}
    found.stores[0].add(record)


def one_bit(found: Reporter) -> tuple[float, float]:
    shapes = found.asked.shapes(found.cell("mixed_3", "paper", 0).config)
    assert shapes is not None
    weights = sum(shape.weights + shape.bias for shape in shapes)
    return weights / 8000, sum(shape.inputs for shape in shapes[1:]) / 8000


def test_columns_take_sizes_from_the_runs_last_epoch(tmp_path: Path) -> None:
    found = about(tmp_path)
    weight_kb, act_kb = one_bit(found)
    values = {
        name: found.measured("mixed_3", name).mean
        for name in ("weight_kb", "act_kb", "target_off_pct", "farther_off_pct")
    }
    assert values["weight_kb"] == pytest.approx(3.1 * weight_kb)  # its widest channels have 3
    assert values["act_kb"] == pytest.approx(3 * act_kb)
    whole = (3.1 * weight_kb + 2.95 * act_kb) / (3 * weight_kb + 3 * act_kb)
    assert values["target_off_pct"] == pytest.approx(100 * (whole - 1))
    assert values["farther_off_pct"] == pytest.approx(100 * 0.1 / 3)
    assert found.measured("uniform_3", "target_off_pct") is None
    assert found.measured("uniform_3", "weight_kb").mean == pytest.approx(3 * weight_kb)


@pytest.mark.parametrize(("gains", "verdict"), [((2.0, 3.0, 1.0), "holds"), ((2, -1, 0.1), "not")])
def test_a_gain_holds_where_its_paired_t_does(tmp_path: Path, gains: Any, verdict: str) -> None:
    rows = {
        name: {"label": name, "overrides": ["quantizer=minmax", f"bits.inner=[{bits},{bits}]"]}
        for name, bits in (("a", 3), ("b", 4))
    }
    kind = {"kind": "drop", "rows": ["a"], "reference": "b"}
    holds = {"full": {"min": 0, "t": 2.92}}  # one-sided 5 % with two degrees of freedom
    claims = {"gain": claim(**kind, holds=holds)}
    found = reporter(tmp_path, hand_table(rows=rows, claims=claims, final_within_pp=None))
    for seed, gain in enumerate(gains):
        keep(found, "a", seed, (3, [(50.0, 50.0)]))
        if seed < 2:
            keep(found, "b", seed, (4, [(50.0, 50.0 + gain)]))
    (line,) = found.report().claims
    assert (line.verdict, line.reason) == ("not judged", "2 of 3 seeds")

    keep(found, "b", 2, (4, [(50.0, 50.0 + gains[2])]))
    (line,) = reporter(tmp_path, found.table).report().claims
    assert line.verdict.startswith(verdict if verdict == "holds" else "does not")
    assert line.bound == "at least 0, paired t at least 2.92"
    if verdict == "holds":  # mean 2, standard deviation 1, three seeds
        assert line.reason == "paired t = 3.46, 2 degrees of freedom"


def test_hull_by_hand() -> None:
    at = [(1, 50), (2, 60), (3, 61), (4, 68), (4, 60), (5, 67), (2, 55)]
    assert memory.hull([Point("", "", x, y) for x, y in at]) == [(1, 50), (2, 60), (4, 68)]


def plot_of(found: Reporter, name: str) -> Plot:
    (shape,) = (shape for _, own, shape in described(found) if own == name)
    assert isinstance(shape, Plot), shape
    return shape


def test_published_points_are_all_found_and_doubtful_ones_known() -> None:
    found = Reporter(load_table("edge_lite0"), Asked(), [])
    plot = plot_of(found, "memory")
    points = [(one.name, point) for one in plot.panels[0].series for point in one.points]

    def rows(of: list[tuple[str, Point]]) -> int:
        """Rows behind points: those with the same numbers are one."""
        return sum(point.tip.partition("\n")[0].count(" = ") + 1 for _, point in of)

    assert rows(points) == 117 + 13 + 14
    # mixed, on a subset of the images
    assert rows([one for one in points if one[1].hollow]) == 21
    assert all(name == "mixed" for name, point in points if point.hollow)
    assert all(one.small for one in plot.panels[0].series)
    assert set(plot.keys) == {one.short for one in found.table.series.values()}
    figure = draw(plot, "hand")
    check_legible(figure)
    assert any("published" in text for text in words(figure))


def test_ours_and_published_share_a_picture(tmp_path: Path) -> None:
    known = {"source": "a", "confidence": "published"}
    more = {
        f"paper_{i}": {
            "label": f"paper {i}",
            "overrides": [],
            "train": False,
            "published": {
                "top1_pct": {**known, "value": top1, "confidence": confidence, "reason": "one"},
                "total_mb": {**known, "value": 0.02 + i / 100},
            },
        }
        for i, (top1, confidence) in enumerate([(40.0, "published"), (60.0, "doubtful")])
    }
    found = about(tmp_path, **{name: row | {"overrides": SEARCH} for name, row in more.items()})
    plot = plot_of(found, "memory")
    (panel,) = plot.panels
    ours = {(one.name, p.y) for one in panel.series if not one.small for p in one.points}
    assert ours == {("uniform", 48.5), ("learned bits", 59.0)}
    assert [one.name for one in panel.series if one.small] == ["learned bits"]
    assert set(plot.keys) == {"uniform", "learned bits"}
    figure = draw(plot, "both")
    check_legible(figure)
    (foot,) = (" ".join(text.split()) for text in words(figure) if "Small" in text)
    assert "convex hulls" in foot
    assert "Small marks: published." in foot
    assert "doubtful" in foot
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert len(hollow) == 1
    (small,) = (one for one in panel.series if one.small)
    assert [y for _, y in small.line] == [40.0]  # no line rests on a doubtful number


def test_sizes_stand_over_their_targets(tmp_path: Path) -> None:
    found = about(tmp_path)
    weight_kb, act_kb = one_bit(found)
    plot = plot_of(found, "sizes_mixed_3")
    check_legible(draw(plot, "a run"))
    above, middle, below = plot.panels
    lines = {one.name: one.line for one in above.series}
    assert lines["weights"][-1][1] == pytest.approx(3.1 * weight_kb)
    levels = {level.label: level.y for level in above.levels}
    assert levels["target of activations"] == pytest.approx(3 * act_kb)
    strength = 1e-4
    excess = strength * ((0.1 * weight_kb) ** 2)  # activations are below theirs
    assert middle.series[0].line[-1][1] == pytest.approx(excess)
    assert [one.name for one in below.series] == ["held-out", "training"]
    record = found.find(found.cell("uniform_3", "paper", 0))
    assert record is not None
    assert sizes.plot(record, None, "") == "the run learned no sizes"


def test_figures_are_written_alike_twice(tmp_path: Path) -> None:
    found = about(tmp_path / "store")
    written = write_figures(found, tmp_path / "one")
    write_figures(found, tmp_path / "two")
    names = {Path(line).name for line in written if line.endswith(".svg")}
    assert {"memory.svg", "sizes_mixed_3.svg", "bits_mixed_3.svg"} <= names
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
