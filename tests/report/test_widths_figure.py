"""Real widths over a search, and mixed beside uniform bits, from hand-made records."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawings import check_legible
from hand_records import LAYERS, hand_table, keep, reporter
from matplotlib import style

from quantable.report.draw_page import charts
from quantable.report.draw_paper import draw
from quantable.report.kinds import described
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.shapes import Plot

WORDS = ["quantizer=minmax", "bits.ends=null"]
TOP1 = {4: 88.0, 3: 80.0, 2: 60.0}
ENDS = {name: 4.4 - i / 4 for i, name in enumerate(LAYERS)}  # real widths at the end of the search


@pytest.fixture(autouse=True)
def drawing() -> Iterator[None]:
    with style.context(STYLE, after_reset=True):
        yield


def about(folder: Path) -> Reporter:
    """Uniform 4, 3 and 2 bit and a mixed row whose widths fell from 5 over four epochs."""
    rows: dict[str, Any] = {
        f"u{bits}": {
            "label": f"{bits} bit",
            "series": "uniform",
            "overrides": [*WORDS, f"bits.inner=[{bits},32]"],
        }
        for bits in TOP1
    }
    rows["float"] = {"label": "float", "overrides": ["quantizer=none"]}
    for target in (3, 2):
        overrides = [*WORDS, f"bits.inner=[{target},16]"]
        rows[f"m{target}"] = {"label": f"mixed {target}", "series": "mixed", "overrides": overrides}
    series = {
        "uniform": {"short": "uniform", "colour": "#0072B2", "marker": "s"},
        "mixed": {"short": "mixed", "colour": "#D55E00", "marker": "^"},
    }
    figures = {
        "frontier": {"kind": "frontier", "x": ["compression_quantized"]},
        "widths": {"kind": "widths"},
    }
    table = hand_table(
        rows=rows, series=series, figures=figures, claims={}, columns={"top1_pct": None}
    )
    found = reporter(folder, table, seeds=(0,))
    keep(found, "float", 0, (32, [(92.0, 92.0)]))
    for bits, top1 in TOP1.items():
        keep(found, f"u{bits}", 0, (bits, [(top1, top1)]))
    keep(found, "m2", 0, (2, [(65.0, 65.0)]))
    searched(found)
    return found


def searched(found: Reporter) -> None:
    record = keep(found, "m3", 0, (5, [(80.0, 80.0)] * 4), (3, [(82.0, 82.0), (84.0, 83.0)]))
    bits = {name: (int(width), 16) for name, width in ENDS.items()}
    for epoch, line in enumerate(record.history):
        part = min(epoch, 3) / 3
        line.own = {"real_bits": {name: 5 + part * (end - 5) for name, end in ENDS.items()}}
    for phase in record.phases:
        phase.bits = bits
    found.stores[0].add(record)


def plot_of(found: Reporter, name: str) -> Plot:
    (shape,) = (shape for _, own, shape in described(found) if own == name)
    assert isinstance(shape, Plot), shape
    return shape


def test_real_widths_go_to_their_integers_behind_the_rounding(tmp_path: Path) -> None:
    plot = plot_of(about(tmp_path), "widths_m3")
    (panel,) = plot.panels
    assert panel.changes == [4.5]
    assert len(panel.series) == len(LAYERS)
    for one, (name, end) in zip(panel.series, ENDS.items(), strict=True):
        integer = int(end)
        assert one.line[0] == (1, 5)
        assert one.line[3:] == [(4, pytest.approx(end)), (5, integer), (6, integer)]
        assert [(point.x, point.y) for point in one.points] == [(5, integer)]
        assert one.tip == f"{name}: {end:.2f} bit, rounded to {integer}"
    assert list(plot.keys) == ["conv1", "layer1", "layer2", "layer3", "fc"]
    check_legible(draw(plot, "a search"))
    assert len(charts(plot)) == 1


def test_a_run_without_real_widths_has_no_such_figure(tmp_path: Path) -> None:
    found = [own for _, own, _ in described(about(tmp_path)) if own.startswith("widths")]
    assert found == ["widths_m3"]
    table = about(tmp_path / "other").table
    alone = reporter(tmp_path / "other", table, rows=("u4", "u3"), seeds=(0,))
    shapes = {own: shape for _, own, shape in described(alone)}
    assert shapes["widths"] == "no run has searched for real widths"


def test_mixed_and_uniform_are_a_line_each(tmp_path: Path) -> None:
    (panel,) = plot_of(about(tmp_path), "frontier").panels
    lines = {one.name: one.line for one in panel.series}
    assert lines["uniform"] == [(8, 88), (32 / 3, 80), (16, 60)]
    assert len(lines["mixed"]) == 2
    assert lines["mixed"][-1] == (16, 65)
    assert [level.y for level in panel.levels] == [92]
