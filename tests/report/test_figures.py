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
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import check_legible, lightness
from fontTools.ttLib import TTFont
from hand_records import LAYERS, Epochs, hand_table, keep, record_of, reporter
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from quantable.base.errors import UserError
from quantable.base.places import CONF, ROOT
from quantable.cli import report_main, run_main
from quantable.config.composition import compose_run
from quantable.config.schema import Looks
from quantable.report.draw_paper import draw, write_figures
from quantable.report.figures import epochs, frontier, numbers, phases
from quantable.report.history import Heading
from quantable.report.kinds import described
from quantable.report.looks import looks_of
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Grid, Panel, Plot, Point, Series
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table, table_names

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


def heat_map(record: Record, title: str = "hand") -> Grid:
    return numbers.heat_map(record, "density", Heading("activation density"), title)


def plot_of(about: Reporter, name: str) -> Plot:
    (shape,) = (shape for _, own, shape in described(about) if own == name)
    assert isinstance(shape, Plot), shape
    return shape


def ad_record(about: Reporter) -> Record:
    """Return an AD run that begins with 16, 16 (no change), 8 and 4 bits."""
    cell = about.cell("ad", about.budget, 0)
    return with_density(record_of(cell, *((bits, EPOCHS) for bits in (16, 16, 8, 4))))


# What is in them


def test_densities_by_layer_and_epoch_with_the_changes_marked(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    heat = draw(heat_map(record), "hand").axes[0]
    assert [label.get_text() for label in heat.get_yticklabels()] == LAYERS[:-1]
    shown = np.asarray(heat.images[0].get_array())  # (layers, epochs)
    by_hand = [[0.3 + i / 20 - e / 100 for e in range(16)] for i in range(10)]
    np.testing.assert_allclose(shown, by_hand)
    marks = [mark for mark in heat.lines if str(mark.get_gid()).startswith("change")]
    # after epochs 8 and 12, counted from 1: the second phase changed nothing
    assert [mark.get_xdata()[0] for mark in marks] == [8.5, 12.5]
    assert [text.get_text() for text in heat.texts] == ["16.00 bit", "8.00 bit", "4.00 bit"]


def test_numbers_of_a_whole_network_are_lines_over_epochs(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = ad_record(about)
    about.stores[0].add(record)
    plot = plot_of(about, "total_density")
    (line,) = plot.panels[0].series
    means = np.mean([[0.3 + i / 20 - e / 100 for e in range(16)] for i in range(10)], axis=0)
    np.testing.assert_allclose(line.line, list(zip(range(1, 17), means, strict=True)))
    (axes,) = draw(plot, "hand").axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), means)


def test_a_run_without_numbers_of_its_own_has_no_such_figure(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "float", 0, (32, EPOCHS))
    reasons = {own: shape for _, own, shape in described(about)}
    assert reasons["numbers"] == "no run has numbers of its method's own that change"
    assert phases.grid(record, "hand", {}) == "all inner layers keep the same bit-width"
    assert reasons["bits_float"] == "all inner layers keep the same bit-width"


def test_a_declared_number_has_its_heading(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "ad", 0, (16, EPOCHS), (4, EPOCHS))
    for epoch in record.history:
        epoch.own = {"norm": 2.0 + epoch.epoch, "share": {"conv1": 0.25, "fc": 0.5}}
    about.stores[0].add(record)
    quantizer = about.cell("ad", about.budget, 0).config["quantizer"]
    quantizer["numbers"] = {"norm": {"title": "largest norm", "unit": "1/s", "decimals": 1}}
    shapes = {own: shape for _, own, shape in described(about)}
    norm, share = shapes["norm"], shapes["share_ad"]
    assert isinstance(norm, Plot)
    assert norm.panels[0].y.name == "largest norm [1/s]"
    assert isinstance(share, Grid)  # not declared: under its own name
    assert share.title == "share: AD"
    assert share.groups[0].rows == {"conv1": [0.25] * 8, "fc": [0.5] * 8}


def test_bits_of_every_phase_by_layer(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    record.phases[3].bits["layer1.0.conv1"] = (2, 2)
    grid = phases.grid(record, "hand", {3: "AD final"})
    assert isinstance(grid, Grid)
    assert grid.columns == LAYERS
    assert grid.groups[0].rows == {
        "phase 0: epochs 1 to 4, mean 16.00 bit": [16] * 11,
        "phase 1: epochs 5 to 8, mean 16.00 bit": [16] * 11,
        "phase 2: epochs 9 to 12, mean 8.00 bit": [8] * 11,
        "AD final: epochs 13 to 16, mean 3.82 bit": [4, 2, *[4] * 9],  # (10 x 4 + 2) / 11
    }
    (axes,) = draw(grid, "hand").axes
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    written = [text.get_text() for text in axes.texts]
    assert written == ["16"] * 22 + ["8"] * 11 + ["4", "2", *["4"] * 9]


def test_activations_and_channels_get_groups_where_they_differ(tmp_path: Path) -> None:
    record = ad_record(reporter(tmp_path))
    record.phases[3].bits["fc"] = (4, 8)
    for phase in record.phases:
        phase.channels = dict.fromkeys(LAYERS[:-1], 16 - 4 * phase.index)
    grid = phases.grid(record, "hand", {})
    assert isinstance(grid, Grid)
    weights, acts, channels = ([*group.rows.values()] for group in grid.groups)
    assert [weights[3][-1], acts[3][-1]] == [4, 8]
    assert [row[:-1] for row in channels] == [[count] * 10 for count in (16, 12, 8, 4)]
    assert channels[0][-1] is None  # a layer without a count
    assert grid.groups[2].name == "output channels"
    check_legible(draw(grid, "hand"))


def test_a_change_of_channels_alone_is_a_change(tmp_path: Path) -> None:
    cell = reporter(tmp_path).cell("ad", "paper", 0)
    record = with_density(record_of(cell, (16, EPOCHS), (16, EPOCHS)))
    for phase in record.phases:
        phase.channels = {"conv1": 8 - phase.index}
    assert heat_map(record).changes == {0: "16.00 bit", 4: "16.00 bit"}
    grid = phases.grid(record, "hand", {})
    assert isinstance(grid, Grid)
    assert len(grid.groups) == 2


UNIFORM = {"short": "uniform", "colour": "#0072B2", "marker": "s"}
ROWS: dict[str, Any] = {
    "float": {"label": "float", "overrides": ["quantizer=none"]},
    "bits16": {"label": "16 bit", "series": "uniform", "cell": "float", "cost_bits": 16},
    "ad": {"label": "AD", "overrides": ["quantizer=ad", "bits.inner=[16,16]"], "phase": 1},
    "ad_last": {"label": "AD, last", "cell": "ad"},
}


def three_seeds(folder: Path) -> Reporter:
    rows = ROWS | {"ad_last": ROWS["ad_last"] | {"phase": 1}}
    table = hand_table(rows=rows, series={"uniform": UNIFORM}, claims={})
    about = reporter(folder, table)
    for seed in (0, 1, 2):
        keep(about, "float", seed, (32, [(91.0, 92.0 + seed)]))
    for seed in (0, 1):
        keep(about, "ad", seed, (16, EPOCHS), (4 + seed, [(90.0, 89.0 + seed)]))
    return about


def test_the_frontiers_points_are_the_reports_numbers(tmp_path: Path) -> None:
    about = three_seeds(tmp_path)
    plot = plot_of(about, "frontier")
    pim, cmos = plot.panels
    shown = {one.name: one.points for one in pim.series}
    assert {name: [p.label for p in own] for name, own in shown.items()} == {
        "uniform": ["16 bit"],
        "AD": ["AD = AD, last (n=2)"],
    }
    assert len(plot.records) == 5
    assert [p.y for own in shown.values() for p in own] == [93.0, 89.5]
    energy = about.measured("ad", "pim_energy_uj")
    assert energy is not None
    assert shown["AD"][0].x == pytest.approx(energy.mean)
    assert shown["AD"][0].x_std == pytest.approx(energy.std)
    # float's energy is far away: a line across with its accuracy, 92, 93 and 94 %
    assert [(level.label, level.y, level.y_std) for level in cmos.levels] == [
        ("float 93.00", 93.0, 1.0)
    ]

    above, below = draw(plot, "hand").axes
    assert (above.get_xscale(), below.get_xscale()) == tuple(
        "log" if panel.x.log else "linear" for panel in (pim, cmos)
    )
    assert above.get_xlabel().startswith("PIM energy [uJ]")
    assert below.get_xlabel().startswith("45 nm energy [uJ]")
    assert above.get_ylabel() == "top-1 [%]"
    assert [note.get_text() for note in above.texts] == [
        *("float 93.00", "16 bit", "AD =\nAD, last (n=2)"),
    ]
    # a standard deviation of 1
    bars = above.containers[0].lines[2][-1].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in bars], [[92.0, 94.0]])


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    def at(energy: float, accuracy: float) -> Point:
        return Point("", "", energy, accuracy)

    best = [(1, 80), (3, 85), (9, 90)]
    beaten = [at(3, 84), at(2, 79), at(10, 90), at(9, 85)]
    assert frontier.frontier([*beaten, *(at(*place) for place in reversed(best))]) == best


def test_a_table_or_a_methods_own_file_says_how_a_row_looks(tmp_path: Path) -> None:
    asked = {
        "float": ["quantizer=none"],
        "LSQ": ["quantizer=lsq"],
        "AD": ["quantizer=ad", "bits.inner=[16,16]"],
        "AD with pruning": ["quantizer=ad_pruning", "bits.inner=[16,16]"],
        "learned bits": ["quantizer=edge"],
        "EAGL": ["quantizer=lsq", "search=eagl"],
    }
    rows = {name: {"label": name, "overrides": words} for name, words in asked.items()}
    rows["told"] = {"label": "told", "overrides": ["quantizer=ad"], "series": "uniform"}
    table = hand_table(rows=rows, series={"uniform": UNIFORM}, claims={})
    about = reporter(tmp_path, table)
    assert {row: looks_of(about, row).short for row in rows} == {
        **{row: row for row in asked},
        "told": "uniform",
    }


def looks_in(group: str) -> dict[str, Looks]:
    """Looks of every method in a group of conf."""
    key = {"quantizer": "quantizer", "search": "search"}[group]
    names = [path.stem for path in (CONF / group).glob("*.yaml")]
    configs = {
        n: compose_run([f"{group}={n}"])[key] for n in names if (group, n) != ("search", "none")
    }
    return {name: Looks.model_validate(config["looks"]) for name, config in configs.items()}


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
    figure = draw(plot_of(about, "frontier"), "hand")
    assert len(figure.axes) == 2
    figure.draw_without_rendering()
    for axes in figure.axes:
        # without the thin lines that lead to the points
        labels = [Text.get_window_extent(note) for note in axes.texts]
        assert len(labels) == len(widths)
        (line,) = (container.lines[0] for container in axes.containers)
        places = line.get_transform().transform(line.get_xydata())
        radius = line.get_markersize() / 2 / 72 * figure.dpi
        marks = [Bbox([place, place]).padded(radius) for place in places]
        assert len(marks) == len(widths)
        assert not any(one.overlaps(other) for one, other in combinations(labels, 2))
        assert not any(label.overlaps(mark) for label in labels for mark in marks)
        assert all(within(label, axes) for label in labels)


def within(box: Bbox, axes: Axes) -> bool:
    return axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.y0 <= box.y0


def test_the_grid_lies_behind_lines_and_marks(tmp_path: Path) -> None:
    about = three_seeds(tmp_path)
    widths = epochs.lines_of(about, ["train_loss", "mean_bits"])
    for shape in (plot_of(about, "frontier"), widths):
        assert isinstance(shape, Plot)
        for axes in draw(shape, "hand").axes:
            drawn = [*axes.lines, *axes.collections]
            grid = (axes.xaxis.get_zorder(), axes.yaxis.get_zorder())
            assert drawn
            assert max(grid) < min(artist.get_zorder() for artist in drawn)


def test_ticks_of_a_narrow_range_are_whole_values() -> None:
    axis = Axis("bits")
    points = [Point("a", "", 2.9991, 90.0), Point("b", "", 3.0, 91.0)]
    one = Series("s", looks_in("quantizer")["lsq"], points)
    figure = draw(Plot("narrow", "", [Panel(axis, Axis("top-1"), [one])]), "hand")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.xaxis.get_offset_text().get_text() == ""
    assert "2.9992" in [label.get_text() for label in axes.get_xticklabels()]


def test_nothing_is_cut_off_and_letters_are_large_enough(tmp_path: Path) -> None:
    about = three_seeds(tmp_path)
    record = ad_record(about)
    about.stores[0].add(record)
    long = "a title that is too long for one line " * 5
    widths = epochs.lines_of(about, ["mean_bits"])
    assert widths is not None
    grid = phases.grid(record, long, {})
    assert isinstance(grid, Grid)
    for shape in (heat_map(record, long), grid, plot_of(about, "frontier"), widths):
        check_legible(draw(shape, long))


@pytest.mark.parametrize("group", ["quantizer", "search"])
def test_methods_differ_in_shape_and_in_colour(group: str) -> None:
    looks = looks_in(group).values()
    for part in ("short", "colour"):
        assert len({getattr(one, part) for one in looks}) == len(looks), part
    assert len({(one.marker, one.dash) for one in looks}) == len(looks)


@pytest.mark.parametrize("name", table_names())
def test_series_of_a_figure_differ_in_shape_and_in_grey(name: str) -> None:
    table = load_table(name)
    marks = [one.marker for one in table.series.values()]
    greys = sorted(lightness(one.colour) for one in table.series.values())
    assert len(set(marks)) == len(marks)
    assert all(b - a > 2 for a, b in pairwise(greys))


@pytest.mark.parametrize("name", table_names())
def test_every_table_names_figures_that_exist(name: str) -> None:
    """Each entry is described, and each name stands for one figure."""
    about = Reporter(load_table(name), Asked(), [Store(ROOT / "reproduce" / "evidence")])
    found = [own for _, own, _ in described(about)]
    assert about.table.figures
    assert len(set(found)) == len(found)


def test_an_unknown_kind_of_figure_is_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    table = hand_table(figures={"a": {"kind": "frontiers"}}, claims={})
    with pytest.raises(UserError, match=r"figures\.a.*frontiers.*frontier"):
        list(described(reporter(tmp_path, table)))


@pytest.mark.parametrize(
    ("kind", "of", "nearest"),
    [("epochs", "train_los", "train_loss"), ("numbers", "densty", "density")],
)
def test_an_unknown_number_of_a_figure_is_named_with_the_nearest_right_one(
    tmp_path: Path, kind: str, of: str, nearest: str
) -> None:
    table = hand_table(figures={"a": {"kind": kind, "of": [of]}}, claims={})
    with pytest.raises(UserError, match=rf"hand\.yaml: figures\.a\.of: .*'{of}'.*: {nearest}"):
        list(described(reporter(tmp_path, table)))


def test_a_figure_of_some_numbers_has_no_others(tmp_path: Path) -> None:
    for of, drawn in (("density", ["density_ad"]), ("total_density", ["total_density"])):
        table = hand_table(figures={"a": {"kind": "numbers", "of": [of]}}, claims={})
        about = reporter(tmp_path, table)
        about.stores[0].add(ad_record(about))
        assert [own for name, own, _ in described(about) if name] == drawn


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
NAMES = ("bits_ad", "density_ad", "frontier", "total_density", "widths")
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
    assert "bits_float, bits_bits4: all inner layers keep the same bit-width" in printed
    assert "run bits8, run bits2: no record at budget smoke" in printed


def test_svg_says_what_it_shows_as_text(tmp_path: Path) -> None:
    in_store(tmp_path)
    report_main([*ASKED, f"store={tmp_path}"])
    said = {}
    for path in (tmp_path / "reports" / "ad_quickstart").glob("*.svg"):
        root = ET.fromstring(path.read_text())
        said[path.stem] = ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]
        foot = "resnet8_cifar; data Fashion-MNIST mini; budget smoke; seed 0."
        assert " ".join(said[path.stem]).count(foot) == 1, path
    assert {"epoch", "layer2.0.shortcut.conv"} <= set(said["density_ad"])
    assert "1st update: epochs 5 to 8, mean 8.00 bit" in said["bits_ad"]
    labels = ("float 91.00", "uniform", "AD", "16 bit", "4 bit", "1st update", "top-1 [%]")
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
        "not drawn: frontier: fewer than two rows have both top-1 and PIM energy or 45 nm energy",
        "not drawn: numbers: no run has numbers of its method's own that change",
        "not drawn: loss: no run in which train_loss or val_loss changes",
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
