"""Figures of a layer selection, from hand-made records: what is in them, and that it is legible."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import check_legible, lightness, words
from hand_records import LAYERS, hand_table, keep, record_of, reporter
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from test_figures import looks_in

from quantable.report.draw_paper import SIDEWAYS, draw, write_figures
from quantable.report.figures import scores
from quantable.report.kinds import described
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Grid, Level, Panel, Plot, Point, Series, Shape
from quantable.store.record import Item, Record, Scores
from quantable.tables.schema import Table

INNER = LAYERS[1:-1]
SEARCHES = {"eagl": "EAGL", "random": "random order"}


@pytest.fixture(autouse=True)
def drawing() -> Iterator[None]:
    with style.context(STYLE, after_reset=True):
        yield


def rows(*shares: float, cost: str = "linear") -> dict[str, Any]:
    """Float, 4 bit, 2 bit, two searches, and what each chose at ``shares``."""
    four = {"start": "float", "overrides": ["quantizer=lsq"]}
    made: dict[str, Any] = {
        "float": {"label": "float", "overrides": []},
        "four": {"label": "4 bit", **four},
        "two": {"label": "2 bit", "overrides": ["quantizer=lsq", "bits.inner=[2,2]"]},
    }
    for name, label in SEARCHES.items():
        words = ["quantizer=lsq", f"search={name}"]
        made[name] = {"label": f"{label}, the search", "start": "four", "overrides": words}
    for name in SEARCHES:
        for share in shares:
            chosen = {"by": name, "budgets": {cost: share}}
            row = {"label": f"{name} {share}", "start": "four", "overrides": ["quantizer=lsq"]}
            made[f"{name}_{share}"] = {**row, "chosen": chosen}
    return made


def search_record(about: Reporter, row: str, seed: int, first: str) -> Record:
    """Return a search that puts the layer ``first`` to 2 bit first, the others in order."""
    order = [first, *(name for name in INNER if name != first)]
    items = [Item(layers=[n], loss={"4/4": 0.0, "2/2": order.index(n) / 8}) for n in INNER]
    greedy = row == "random"
    scores = Scores(
        rule=row, unit="nat", greedy=greedy, items=items, seconds=1.0, images=0, epochs=0
    )
    changes = {"scores": scores, "history": [], "phases": [], "metrics": {}}
    cell = about.cell(row, about.budget, seed)
    return record_of(cell, (4, [(0.0, 0.0)])).model_copy(update=changes)


def keep_searches(about: Reporter, seed: int) -> None:
    firsts = {"eagl": "layer1.0.conv1", "random": "layer3.0.conv2"}
    for row in SEARCHES:
        about.stores[0].add(search_record(about, row, seed, firsts[row]))


def keep_chosen(about: Reporter, row: str, seed: int, test: float) -> Record:
    """Put a run with the chosen bits into the store."""
    cell = about.cell(row, about.budget, seed)
    assert cell.bits is not None
    record = record_of(cell, (4, [(90.0, test)]))
    record.phases[0].bits = cell.bits.layers
    about.stores[0].add(record)
    return record


def selection(*shares: float, cost: str = "linear") -> Table:
    x = "bops_of_4bit" if cost == "bops" else "compute_of_4bit"
    figures = {
        "frontier": {"kind": "frontier", "x": [x], "base": "random"},
        "bits_chosen": {"kind": "bits"},
        "scores": {"kind": "scores"},
    }
    return hand_table(rows=rows(*shares, cost=cost), figures=figures, claims={})


def shape_of(about: Reporter, name: str) -> Shape | str:
    (shape,) = (shape for _, own, shape in described(about) if own == name)
    return shape


def plot_of(about: Reporter) -> Plot:
    shape = shape_of(about, "frontier")
    assert isinstance(shape, Plot), shape
    return shape


@pytest.fixture
def about(tmp_path: Path) -> Reporter:
    """Two seeds of two searches at one budget; of ``four`` one, and none of ``two``."""
    made = reporter(tmp_path, selection(0.9), seeds=(0, 1))
    for seed in (0, 1):
        keep(made, "float", seed, (32, [(91.0, 92.0)]))
        keep_searches(made, seed)
        keep_chosen(made, "eagl_0.9", seed, 89.0 + seed)
        keep_chosen(made, "random_0.9", seed, 88.0)
    four = keep(made, "four", 0, (4, [(90.0, 91.0)]))
    assert four.phases[0].bits["fc"] == (4, 4)
    return made


def test_accuracy_and_compute_are_of_each_seeds_own_search(about: Reporter) -> None:
    plot = plot_of(about)
    series = {one.name: one.points for one in plot.panels[0].series}
    assert list(series) == ["LSQ", "EAGL", "random order"]
    (point,) = series["EAGL"]
    assert (point.y, point.y_std) == (89.5, pytest.approx(0.5**0.5))  # 89 and 90 %
    shares = []
    for seed in (0, 1):
        cell = about.cell("eagl_0.9", "paper", seed)
        shapes, bits = about.asked.shapes(cell.config), cell.bits
        assert shapes is not None
        assert bits is not None
        macs = {s.name: s.macs for s in shapes if s.name in INNER}
        spent = sum(macs[name] * bits.layers[name][0] for name in INNER)
        shares.append(100 * spent / (4 * sum(macs.values())))
    assert point.x == pytest.approx(np.mean(shares))
    assert 0 < point.x <= 90
    assert [(p.label, p.x, p.y) for p in series["LSQ"]] == [("4 bit (n=1)", 100, 91.0)]
    assert [(level.label, level.y) for level in plot.panels[0].levels] == [("float 92.00", 92.0)]
    assert len(plot.records) == 2 + 1 + 4


def test_the_frontier_and_the_difference_to_random(about: Reporter) -> None:
    figure = draw(plot_of(about), "hand")
    upper, lower = figure.axes
    assert upper.get_xscale() == "linear"
    assert lower.get_xlabel() == "compute of 4 bit's [%]"
    assert upper.get_ylabel() == "top-1 [%]"
    four, eagl, random = (container.lines[0] for container in upper.containers)
    assert [list(line.get_ydata()) for line in (eagl, random, four)] == [[89.5], [88.0], [91.0]]
    assert list(four.get_xdata()) == [100]
    assert [list(c.lines[0].get_ydata()) for c in lower.containers] == [[1.5], [0.0]]
    bars = upper.containers[1].lines[2]
    ends = [bar[:, 1] for lines in bars for bar in lines.get_segments()]
    assert any(np.allclose(end, [89.5 - 0.5**0.5, 89.5 + 0.5**0.5]) for end in ends)
    lines = [line for line in upper.lines if line.get_color() == "#000000"]
    assert [list(line.get_ydata()) for line in lines] == [[92.0, 92.0]]
    said = words(figure)
    assert {"float 92.00", "4 bit (n=1)", "EAGL", "random order"} <= set(said)
    assert not any("2 bit" in text for text in said)
    foot = "resnet8_cifar; data Fashion-MNIST mini; budget paper; seeds 0, 1. Up and to the left"
    assert any(" ".join(text.split()).startswith(foot) for text in said)


def test_a_point_alone_is_no_frontier(tmp_path: Path) -> None:
    about = reporter(tmp_path, selection(0.9), seeds=(0,))
    keep_searches(about, 0)
    keep_chosen(about, "eagl_0.9", 0, 89.0)
    said = "fewer than two rows have both top-1 and compute of 4 bit's"
    assert shape_of(about, "frontier") == said


def test_without_random_there_is_no_difference(tmp_path: Path) -> None:
    about = reporter(tmp_path, selection(0.9, 0.7, cost="bops"), seeds=(0,))
    keep_searches(about, 0)
    for share, test in ((0.9, 89.0), (0.7, 87.0)):
        keep_chosen(about, f"eagl_{share}", 0, test)
    plot = plot_of(about)
    (panel,) = plot.panels
    assert panel.x.name == "BOPs of 4 bit's [%]"
    assert [y for _, y in panel.series[0].line] == [87.0, 89.0]  # by rising compute
    assert "Bars" not in plot.note


def test_scores_are_bars_in_execution_order(about: Reporter) -> None:
    record = search_record(about, "eagl", 0, "layer3.0.conv2")
    looks = looks_in("search")["eagl"]
    assert record.scores is not None
    (axes,) = draw(scores.bars(record, record.scores, looks), "hand").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == INNER
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == [(i + 1) / 8 for i in range(7)] + [0.0, 1.0]
    assert axes.yaxis.get_inverted()
    assert axes.get_xlabel() == "loss at 2/2 bit (weight/activation) against 4/4 [nat]"
    order = record.scores.model_copy(update={"greedy": True, "unit": "place"})
    shape = scores.bars(record, order, looks)
    assert shape.axis == "from 4/4 to 2/2 bit (weight/activation) in this order [place]"


def test_bits_of_chosen_rows_are_grouped_by_budget(tmp_path: Path) -> None:
    about = reporter(tmp_path, selection(0.9, 0.6), seeds=(0,))
    keep_searches(about, 0)
    names = [f"{search}_{share}" for search in SEARCHES for share in (0.9, 0.6)]
    records = {name: keep_chosen(about, name, 0, 90.0) for name in names}
    records["random_0.6"].phases[0].bits["layer1.0.conv1"] = (4, 8)
    about.stores[0].add(records["random_0.6"])
    grid = shape_of(about, "bits_chosen")
    assert isinstance(grid, Grid)
    assert grid.columns == tuple(LAYERS)
    assert [list(group.rows) for group in grid.groups] == [
        ["eagl 0.9", "random 0.9"],
        ["eagl 0.6", "random 0.6, weights", "random 0.6, acts"],
    ]
    lines = {name: row for group in grid.groups for name, row in group.rows.items()}
    for name, line in (("eagl_0.9", "eagl 0.9"), ("random_0.6", "random 0.6, weights")):
        bits = records[name].phases[0].bits
        assert lines[line] == [bits[layer][0] for layer in LAYERS]
    assert lines["random 0.6, acts"][LAYERS.index("layer1.0.conv1")] == 8

    (axes,) = draw(grid, "hand").axes
    assert list(axes.get_yticks()) == [0, 1, 2.5, 3.5, 4.5]  # a gap between budgets
    written = [text.get_text() for text in axes.texts]
    assert written == [f"{value:g}" for line in lines.values() for value in line]
    shown = np.concatenate([mesh.get_array() for mesh in axes.collections])
    shades = {
        value: lightness(tuple(colour[:3]))
        for colours, line in zip(shown[2:], list(lines.values())[2:], strict=True)
        for colour, value in zip(colours, line, strict=True)
    }
    greys = [shades[value] for value in sorted(shades)]
    assert all(light - dark > 15 for light, dark in pairwise(greys))  # fewer bits are lighter


def test_files_of_a_selection_are_the_same_twice(about: Reporter, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    said, _ = (write_figures(about, folder) for folder in folders)
    kept = sorted(path.name for path in folders[0].iterdir())
    names = ("bits_chosen", "frontier", "scores_eagl", "scores_random")
    assert kept == [f"{name}.{kind}" for name in names for kind in ("pdf", "png", "svg")]
    for name in kept:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert "not drawn: run two: no record at budget paper" in said


def test_without_records_nothing_of_a_selection_is_drawn(tmp_path: Path) -> None:
    about = reporter(tmp_path, selection(0.9), seeds=(0,))
    said = write_figures(about, tmp_path / "figures")
    assert "not drawn: bits_chosen: no row with different bits by layer is known" in said
    why = "fewer than two rows have both top-1 and compute of 4 bit's"
    assert f"not drawn: frontier: {why}" in said


# Legible


def crowded(record: Record) -> Plot:
    """Seven searches at four budgets, within half a point of each other; squares at both ends."""
    series = []
    for i, looks in enumerate(looks_in("search").values()):
        points = [
            Point("", "", share - i / 5, 84 + share / 20 + i / 10, 0.0, 0.2)
            for share in (60, 70, 80, 90)
        ]
        line = [(point.x, point.y) for point in points]
        series.append(Series(looks.short, looks, points, line, aside=True))
    lsq = looks_in("quantizer")["lsq"]
    ends = [("4 bit", 100, 89.0), ("4 bit, fine-tuned", 100, 89.1), ("2 bit", 50, 86.0)]
    uniform = Series("LSQ", lsq, [Point(label, "", x, y, 0.0, 0.1) for label, x, y in ends])
    floats = [
        Level(label, "", y, looks_in("quantizer")["none"])
        for label, y in (("float 89.15", 89.15), ("float of the start 89.10", 89.1))
    ]
    x = Axis("compute of 4 bit's [%]")
    lower = Panel(x, Axis("minus the mean of random order [pp]"), series)
    panels = [Panel(x, Axis("top-1 [%]"), [*series, uniform], floats), lower]
    return Plot("crowded", "", panels, [record])


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Figure:
    cell = reporter(tmp_path_factory.mktemp("crowd")).cell("float", "paper", 0)
    plot = crowded(record_of(cell, (32, [(90.0, 90.0)])))
    with style.context(STYLE, after_reset=True):
        figure = draw(plot, "a title that is too long for one line " * 5)
        figure.draw_without_rendering()
    return figure


def test_labels_cover_neither_each_other_nor_a_mark(crowd: Figure) -> None:
    for axes in crowd.axes:
        notes = [Text.get_window_extent(note) for note in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(notes, 2))
        assert not any(note.overlaps(mark) for note in notes for mark in marks(axes))
    assert [len(axes.containers) for axes in crowd.axes] == [8 + 1, 8]
    assert len(crowd.axes[0].texts) == 2  # so many points are named by their lines' key


def marks(axes: Axes) -> list[Bbox]:
    """Boxes of all marks, of 6.5 points, where they are drawn."""
    boxes = []
    for container in axes.containers:
        line = container.lines[0]
        radius = line.get_markersize() / 2 / 72 * line.figure.dpi
        for x, y in line.get_transform().transform(line.get_xydata()):
            boxes.append(Bbox([[x, y], [x, y]]).padded(radius))
    return boxes


def test_labels_in_the_margin_keep_the_order_of_their_points(crowd: Figure) -> None:
    notes = [note for note in crowd.axes[0].texts if isinstance(note, Annotation)]
    beside = [note for note in notes if note.xyann[0] == 1.02]
    assert len(beside) == 2
    heights = [note.xyann[1] for note in sorted(beside, key=lambda note: note.xy[1])]
    assert heights == sorted(heights)


def test_the_seven_lines_of_a_budget_stand_side_by_side(crowd: Figure) -> None:
    axes = crowd.axes[1]
    ends = [c.lines[0] for c in axes.containers]
    moved = [
        line.get_transform().transform(line.get_xydata())[0, 0]
        - axes.transData.transform(line.get_xydata())[0, 0]
        for line in ends
    ]
    np.testing.assert_allclose(np.diff(moved), SIDEWAYS / 72 * crowd.dpi)
    assert sum(moved) == pytest.approx(0)


def test_nothing_is_cut_off_and_letters_are_large_enough(crowd: Figure, about: Reporter) -> None:
    record = search_record(about, "eagl", 0, "layer1.0.conv1")
    grid = shape_of(about, "bits_chosen")
    assert record.scores is not None
    assert isinstance(grid, Grid)
    bars = scores.bars(record, record.scores, looks_in("search")["eagl"])
    for figure in (crowd, draw(bars, "hand"), draw(grid, "hand")):
        check_legible(figure)


def test_metrics_differ_in_grey_in_shape_and_in_dash() -> None:
    quantizers, searches = looks_in("quantizer"), looks_in("search")
    beside = [quantizers["none"], quantizers["lsq"], *searches.values()]
    greys = [lightness(looks.colour) for looks in beside]
    assert all(abs(one - other) > 7.5 for one, other in combinations(greys, 2))
    assert len({looks.marker for looks in beside}) == len(beside)
    assert len({looks.dash for looks in searches.values()}) == len(searches)
