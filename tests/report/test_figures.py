"""Figures from hand-made records: what is in them, that it is legible, and always the same."""

import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from base64 import b64decode
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import check_legible, drawn, lightness, words
from fontTools.ttLib import TTFont
from hand_records import LAYERS, Epochs, hand_table, keep, record_of, reporter
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from quantable.base.places import ROOT
from quantable.cli import report_main, run_main
from quantable.report.figures import (
    Point,
    bits_figure,
    density_figure,
    frontier,
    frontier_figure,
    points,
    write_figures,
)
from quantable.report.marks import MARKS, method_of_run
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.verdict import Measured
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

EPOCHS: Epochs = [(90.0, 91.0)] * 4


@pytest.fixture(autouse=True)
def drawing() -> Iterator[None]:
    with style.context(STYLE, after_reset=True):
        yield


def with_density(record: Record) -> Record:
    """Add densities: behind layer i of the execution order (0.3 + i / 20), falling by epoch."""
    for line in record.history:
        values = {name: 0.3 + i / 20 - line.epoch / 100 for i, name in enumerate(LAYERS[:-1])}
        line.own = {  # no order of the layers but the network's counts
            "density": dict(reversed(values.items())),
            "total_density": sum(values.values()) / len(values),
        }
    return record


def ad_record(about: Reporter) -> Record:
    """Return an AD run that begins with 16, 16 (no change), 8 and 4 bits."""
    cell = about.cell("ad", about.budget, 0)
    return with_density(record_of(cell, *((bits, EPOCHS) for bits in (16, 16, 8, 4))))


# What is in them


def test_densities_by_layer_and_epoch_with_the_changes_marked(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    heat, line = drawn(density_figure(record, "hand")).axes[:2]
    assert [label.get_text() for label in heat.get_yticklabels()] == LAYERS[:-1]
    shown = np.asarray(heat.images[0].get_array())  # (layers, epochs)
    by_hand = [[0.3 + i / 20 - e / 100 for e in range(16)] for i in range(10)]
    np.testing.assert_allclose(shown, by_hand)
    for axes in (heat, line):
        marks = [mark for mark in axes.lines if str(mark.get_gid()).startswith("change")]
        # after epochs 8 and 12, counted from 1: the second phase changed nothing
        assert [mark.get_xdata()[0] for mark in marks] == [8.5, 12.5]
    assert [text.get_text() for text in heat.texts] == [
        *("16.00", "16.00", "8.00", "4.00"),
        "mean bits",
    ]
    means = line.lines[0].get_ydata()
    np.testing.assert_allclose(means, np.mean(by_hand, axis=0))


def test_a_run_without_densities_has_no_such_figure(tmp_path: Path) -> None:
    record = record_of(reporter(tmp_path).cell("float", "paper", 0), (32, EPOCHS))
    assert density_figure(record, "hand") == "the run has no activation densities"
    assert bits_figure(record, "hand", {}) == "all inner layers keep the same bit-width"


def test_bits_of_every_phase_by_layer(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    record.phases[3].bits["layer1.0.conv1"] = (2, 2)
    figure = drawn(bits_figure(record, "hand", {3: "AD final"}))
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [
        [16] * 11,
        [16] * 11,
        [8] * 11,
        [4, 2, *[4] * 9],
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    looks = [(line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in axes.lines]
    assert len(set(looks)) == 4
    assert "phase 2: epochs 9 to 12, mean 8.00 bit" in words(figure)
    assert "AD final: epochs 13 to 16, mean 3.82 bit" in words(figure)  # (10 x 4 + 2) / 11


def test_activations_and_channels_get_axes_where_they_differ(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    record.phases[3].bits["fc"] = (4, 8)
    for phase in record.phases:
        phase.channels = dict.fromkeys(LAYERS[:-1], 16 - 4 * phase.index)
    weights, acts, channels = drawn(bits_figure(record, "hand", {})).axes
    assert [weights.lines[3].get_ydata()[-1], acts.lines[3].get_ydata()[-1]] == [4, 8]
    assert [list(line.get_ydata()[:-1]) for line in channels.lines] == [
        [count] * 10 for count in (16, 12, 8, 4)
    ]
    assert np.isnan(channels.lines[0].get_ydata()[-1])  # a layer without a count has no point
    assert channels.get_ylabel() == "output channels"


def test_a_change_of_channels_alone_is_a_change(tmp_path: Path) -> None:
    cell = reporter(tmp_path).cell("ad", "paper", 0)
    record = with_density(record_of(cell, (16, EPOCHS), (16, EPOCHS)))
    for phase in record.phases:
        phase.channels = {"conv1": 8 - phase.index}
    heat = drawn(density_figure(record, "hand")).axes[0]
    assert [line.get_gid() for line in heat.lines].count("change_1") == 1
    assert len(drawn(bits_figure(record, "hand", {})).axes) == 2


ROWS: dict[str, Any] = {
    "float": {"label": "float", "overrides": ["quantizer=none"]},
    "bits16": {"label": "16 bit", "cell": "float", "cost_bits": 16},
    "ad": {"label": "AD", "overrides": ["quantizer=ad", "bits.inner=[16,16]"], "phase": 1},
    "ad_last": {"label": "AD, last", "cell": "ad"},
}


def three_seeds(folder: Path) -> Reporter:
    table = hand_table(rows=ROWS | {"ad_last": ROWS["ad_last"] | {"phase": 1}}, claims={})
    about = reporter(folder, table)
    for seed in (0, 1, 2):
        keep(about, "float", seed, (32, [(91.0, 92.0 + seed)]))
    for seed in (0, 1):
        keep(about, "ad", seed, (16, EPOCHS), (4 + seed, [(90.0, 89.0 + seed)]))
    return about


def test_the_frontiers_points_are_the_reports_numbers(tmp_path: Path) -> None:
    about = three_seeds(tmp_path)
    shown, records = points(about, "pim_energy_uj")
    assert [(p.label, p.method) for p in shown] == [("16 bit", "uniform"), ("AD = AD, last", "AD")]
    assert len(records) == 5
    assert [(p.accuracy.mean, p.accuracy.n) for p in shown] == [(93.0, 3), (89.5, 2)]
    assert shown[1].energy == about.measured("ad", "pim_energy_uj")
    assert [p.label for p in points(about, "energy_uj")[0]] == ["float", "16 bit", "AD = AD, last"]

    figure = drawn(frontier_figure(about))
    pim, cmos = figure.axes
    assert (pim.get_xscale(), cmos.get_xscale()) == ("log", "log")
    assert pim.get_xlabel().startswith("PIM energy [uJ]")
    assert cmos.get_xlabel().startswith("45 nm energy [uJ]")
    assert pim.get_ylabel() == "top-1 [%]"
    assert [note.get_text() for note in pim.texts] == ["16 bit", "AD =\nAD, last (n=2)"]
    # 92, 93 and 94 %: a standard deviation of 1
    bars = [bar.get_segments() for bar in pim.containers[0].lines[2]]
    np.testing.assert_allclose([s[:, 1] for (s,) in bars], [[92.0, 94.0]])


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    def at(energy: float, accuracy: float) -> Point:
        return Point("", "AD", Measured((energy,), "cpu", None), Measured((accuracy,), "cpu", None))

    best = [at(1, 80), at(3, 85), at(9, 90)]
    beaten = [at(3, 84), at(2, 79), at(10, 90), at(9, 85)]
    assert frontier([*beaten, *reversed(best)]) == best


def test_a_run_knows_its_method(tmp_path: Path) -> None:
    asked = {
        "float": ["quantizer=none"],
        "uniform": ["quantizer=lsq"],
        "AD": ["quantizer=ad", "bits.inner=[16,16]"],
        "AD joint": ["quantizer=ad_pruning", "bits.inner=[16,16]"],
        "AD pruned": [
            *("quantizer=ad_pruning", "bits.inner=[16,16]"),
            "quantizer.callback.min_bits=16",
        ],
        "other": ["quantizer=ad", "quantizer.callback._target_=elsewhere.Method"],
    }
    rows = {name: {"label": name, "overrides": words} for name, words in asked.items()}
    about = reporter(tmp_path, hand_table(rows=rows, claims={}))
    for name in rows:
        assert method_of_run(record_of(about.cell(name, "paper", 0), (4, EPOCHS))) == name
    assert set(asked) == set(MARKS)


# Legible


def test_labels_cover_neither_each_other_nor_a_mark(tmp_path: Path) -> None:
    widths = (16, 15, 14, 13, 12, 11, 10, 9)
    rows = {
        f"bits{bits}": {
            "label": f"quantized to {bits} bit",
            "overrides": ["quantizer=minmax", f"bits.inner=[{bits},{bits}]"],
        }
        for bits in widths
    }
    about = reporter(tmp_path, hand_table(rows=rows, claims={}))
    for bits in widths:
        for seed, test in enumerate((91.0, 91.0 + bits / 50)):
            keep(about, f"bits{bits}", seed, (bits, [(90.0, test)]))
    figure = drawn(frontier_figure(about))
    assert len(figure.axes) == 2
    figure.draw_without_rendering()
    for axes in figure.axes:
        # without the thin lines that lead to the points
        labels = [Text.get_window_extent(note) for note in axes.texts]
        assert len(labels) == len(widths)
        marks = [line.get_window_extent() for c in axes.containers for line in [c.lines[0]]]
        assert len(marks) == len(widths)
        assert not any(one.overlaps(other) for one, other in combinations(labels, 2))
        assert not any(label.overlaps(mark) for label in labels for mark in marks)
        assert all(within(label, axes) for label in labels)


def within(box: Bbox, axes: Axes) -> bool:
    return axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.y0 <= box.y0


def test_nothing_is_cut_off_and_letters_are_large_enough(tmp_path: Path) -> None:
    about = three_seeds(tmp_path)
    record = ad_record(about)
    long = "a title that is too long for one line " * 5
    for figure in map(
        drawn,
        (density_figure(record, long), bits_figure(record, long, {}), frontier_figure(about)),
    ):
        check_legible(figure)


def test_methods_differ_in_grey_and_in_shape() -> None:
    greys = [lightness(mark.colour) for mark in MARKS.values()]
    assert all(abs(one - other) > 10 for one, other in combinations(greys, 2))
    assert len({mark.marker for mark in MARKS.values()}) == len(MARKS)


# Files


def in_store(folder: Path) -> None:
    """Keep finished smoke runs of the quickstart's rows that three figures need."""
    store = Store(folder)
    for cell in Asked(budget="smoke", rows=("float", "bits4", "ad")).cells(
        load_table("ad_quickstart")
    ):
        widths = {"float": (32,), "bits4": (4,), "ad": (16, 8, 4)}[cell.row]
        record = record_of(cell, *((bits, EPOCHS) for bits in widths))
        store.add(with_density(record) if cell.row == "ad" else record)


ASKED = ["+table=ad_quickstart", "budget=smoke", "format=figures"]
NAMES = ("bits_ad", "density_ad", "frontier")
LOOK = """
import json, runpy, sys
sys.argv = ["reproduce/report.py", *json.loads(sys.argv[1])]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print(sorted({"matplotlib", "torch"} & set(sys.modules)))
"""


def look(*words: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, json.dumps(words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | env,
    )
    assert done.stderr == ""
    return done.stdout


def test_the_same_records_give_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        in_store(folder)
    assert report_main([*ASKED, f"store={folders[0]}"]) == 0
    printed = capsys.readouterr().out
    elsewhere = {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    shown = look(*ASKED, f"store={folders[1]}", **elsewhere)
    assert shown.endswith("['matplotlib']\n")
    one, other = (folder / "reports" / "ad_quickstart" for folder in folders)
    kept = sorted(one.iterdir())
    assert [p.name for p in kept] == [
        f"{name}.{kind}" for name in NAMES for kind in ("pdf", "png", "svg")
    ]
    for path in kept:
        assert path.read_bytes() == (other / path.name).read_bytes()
        assert str(path) in printed.splitlines()
    assert "density_float, density_bits4: the run has no activation densities" in printed
    assert "run bits8, run bits2: no record at budget smoke" in printed


def test_svg_says_what_it_shows_as_text(tmp_path: Path) -> None:
    in_store(tmp_path)
    report_main([*ASKED, f"store={tmp_path}"])
    said = {}
    for path in (tmp_path / "reports" / "ad_quickstart").glob("*.svg"):
        root = ET.fromstring(path.read_text())
        said[path.stem] = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]
        foot = "resnet8_cifar; data Fashion-MNIST mini; budget smoke; seed 0."
        assert foot in said[path.stem], path
    assert {"activation density", "epoch", "layer2.0.shortcut.conv"} <= set(said["density_ad"])
    assert "bit-width [bit]" in said["bits_ad"]
    assert "AD, 1st update: epochs 5 to 8, mean 8.00 bit" in said["bits_ad"]
    labels = ("float", "uniform", "AD", "16 bit", "4 bit", "AD, 1st update", "top-1 [%]")
    # where several rows are one point, an equals sign ends the line of a name
    assert set(labels) <= {words.removesuffix(" =") for words in said["frontier"]}


def test_svg_and_pdf_hold_every_letter_they_use(tmp_path: Path) -> None:
    in_store(tmp_path)
    report_main([*ASKED, f"store={tmp_path}"])
    folder = tmp_path / "reports" / "ad_quickstart"
    for path in folder.glob("*.svg"):
        svg = path.read_text()
        (face,) = re.findall(
            r"@font-face\{font-family:'DejaVu Sans';src:url\(data:[^,]*,(.*?)\)", svg
        )
        held = TTFont(io.BytesIO(b64decode(face))).getBestCmap().keys()
        root = ET.fromstring(svg)
        texts = [element for element in root.iter() if element.tag.endswith("text")]
        assert {ord(c) for text in texts for c in "".join(text.itertext()).strip()} <= held
        styles = "".join(element.get("style", "") for text in texts for element in text.iter())
        assert set(re.findall(r"font-family: '([^']+)'", styles)) == {"DejaVu Sans"}
        assert not re.search(r"font[^;]*(italic|oblique|bold)", styles)
    for path in folder.glob("*.pdf"):
        pdf = path.read_bytes()
        assert b"/FontFile2" in pdf  # TrueType
        assert b"/Type3" not in pdf


def test_without_records_nothing_is_written(tmp_path: Path) -> None:
    about = reporter(tmp_path / "store")
    assert write_figures(about, tmp_path / "figures") == [
        "not drawn: run float, run ad: no record at budget paper",
        "not drawn: frontier: fewer than two rows have both accuracy and energy",
    ]
    assert not (tmp_path / "figures").exists()


def test_a_finished_table_is_drawn_by_the_run_command_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    in_store(tmp_path)
    assert run_main([*ASKED, "rows=float,bits4", f"store={tmp_path}"]) == 0
    folder = tmp_path / "reports" / "ad_quickstart"
    written = [str(folder / f"frontier.{kind}") for kind in ("svg", "pdf", "png")]
    assert "\n".join(written) in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 3


def test_other_formats_load_no_matplotlib(tmp_path: Path) -> None:
    in_store(tmp_path)
    shown = look("+table=ad_quickstart", "budget=smoke", "format=json", f"store={tmp_path}")
    assert shown.endswith("[]\n")
