"""Figures of a layer selection, from hand-made records: what is in them, and that it is legible."""

from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import check_legible, drawn, lightness, words
from hand_records import LAYERS, hand_table, keep, record_of, reporter
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from quantable.report.figures import write_figures
from quantable.report.marks import MARKS, METRICS, SEARCH_MARKS, metric_of_search
from quantable.report.page import STYLE
from quantable.report.reporter import Reporter
from quantable.report.selection import (
    Selection,
    Series,
    Spot,
    chosen_bits_figure,
    draw_selection,
    scores_figure,
    selection_figure,
    selection_of,
)
from quantable.report.verdict import Measured
from quantable.store.record import Item, Record, Scores

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


@pytest.fixture
def about(tmp_path: Path) -> Reporter:
    """Two seeds of two searches at one budget; of ``four`` one, and none of ``two``."""
    made = reporter(tmp_path, hand_table(rows=rows(0.9), claims={}), seeds=(0, 1))
    for seed in (0, 1):
        keep(made, "float", seed, (32, [(91.0, 92.0)]))
        keep_searches(made, seed)
        keep_chosen(made, "eagl_0.9", seed, 89.0 + seed)
        keep_chosen(made, "random_0.9", seed, 88.0)
    four = keep(made, "four", 0, (4, [(90.0, 91.0)]))
    assert four.phases[0].bits["fc"] == (4, 4)
    return made


def test_accuracy_and_compute_are_of_each_seeds_own_search(about: Reporter) -> None:
    selection = selection_of(about)
    assert [(one.label, one.metric) for one in selection.series] == [
        ("EAGL", "EAGL"),
        ("random order", "random"),
    ]
    (spot,) = selection.series[0].spots.values()
    assert spot.accuracy.values == (89.0, 90.0)
    shares = []
    for seed in (0, 1):
        cell = about.cell("eagl_0.9", "paper", seed)
        shapes, bits = about.asked.shapes(cell.config), cell.bits
        assert shapes is not None
        assert bits is not None
        macs = {s.name: s.macs for s in shapes if s.name in INNER}
        spent = sum(macs[name] * bits.layers[name][0] for name in INNER)
        shares.append(100 * spent / (4 * sum(macs.values())))
    assert spot.compute == pytest.approx(np.mean(shares))
    assert 0 < spot.compute <= 90
    assert [(s.label, s.compute, s.accuracy.mean) for s in selection.uniform] == [
        ("4 bit", 100, 91.0)
    ]
    assert [(label, m.mean) for label, m in selection.floats] == [("float", 92.0)]
    assert len(selection.records) == 2 + 1 + 4


def test_the_frontier_and_the_difference_to_random(about: Reporter) -> None:
    figure = drawn(selection_figure(about))
    upper, lower = figure.axes
    assert upper.get_xscale() == "linear"
    assert lower.get_xlabel() == "compute of 4 bit's [%], inner layers"
    assert upper.get_ylabel() == "top-1 [%]"
    eagl, random, four = (container.lines[0] for container in upper.containers)
    assert [list(line.get_ydata()) for line in (eagl, random, four)] == [[89.5], [88.0], [91.0]]
    assert list(four.get_xdata()) == [100]
    assert [list(c.lines[0].get_ydata()) for c in lower.containers] == [[1.5], [0.0]]
    # 89 and 90 %: a standard deviation of 0.5 ** 0.5
    (bar,) = upper.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [89.5 - 0.5**0.5, 89.5 + 0.5**0.5])
    (line,) = [line for line in upper.lines if line.get_color() == "#000000"]
    assert list(line.get_ydata()) == [92.0, 92.0]
    said = words(figure)
    assert {"float 92.00", "4 bit (n=1)", "EAGL", "random order"} <= set(said)
    assert not any("2 bit" in text for text in said)
    foot = "resnet8_cifar; data Fashion-MNIST mini; budget paper; seeds 0, 1. Bars: standard"
    assert any(" ".join(text.split()).startswith(foot) for text in said)


def test_a_point_alone_is_no_frontier(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(rows=rows(0.9), claims={}), seeds=(0,))
    keep_searches(about, 0)
    keep_chosen(about, "eagl_0.9", 0, 89.0)
    assert selection_figure(about) == "fewer than two rows with chosen bits have a record"


def test_without_random_there_is_no_difference(tmp_path: Path) -> None:
    table = hand_table(rows=rows(0.9, 0.7, cost="bops"), claims={})
    about = reporter(tmp_path, table, seeds=(0,))
    keep_searches(about, 0)
    for share, test in ((0.9, 89.0), (0.7, 87.0)):
        keep_chosen(about, f"eagl_{share}", 0, test)
    figure = drawn(selection_figure(about))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "BOPs of 4 bit's [%], inner layers"
    line = axes.containers[0].lines[0]
    assert list(line.get_ydata()) == [87.0, 89.0]  # by rising compute
    assert not any("Bars" in text for text in words(figure))


def test_scores_are_bars_in_execution_order(about: Reporter) -> None:
    record = search_record(about, "eagl", 0, "layer3.0.conv2")
    assert record.scores is not None
    (axes,) = scores_figure(record, record.scores, "hand").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == INNER
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == [(i + 1) / 8 for i in range(7)] + [0.0, 1.0]
    assert axes.yaxis.get_inverted()
    assert axes.get_xlabel() == "loss at 2/2 bit (weight/activation) against 4/4 [nat]"
    assert axes.get_figure().get_suptitle() == "eagl: hand"
    order = record.scores.model_copy(update={"greedy": True, "unit": "place"})
    (axes,) = scores_figure(record, order, "hand").axes
    assert axes.get_xlabel() == "from 4/4 to 2/2 bit (weight/activation) in this order [place]"


def test_bits_of_chosen_rows_are_grouped_by_budget(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(rows=rows(0.9, 0.6), claims={}), seeds=(0,))
    keep_searches(about, 0)
    names = [f"{search}_{share}" for search in SEARCHES for share in (0.9, 0.6)]
    records = {name: keep_chosen(about, name, 0, 90.0) for name in names}
    records["random_0.6"].phases[0].bits["layer1.0.conv1"] = (4, 8)
    figure = drawn(chosen_bits_figure(about.table, records))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == LAYERS
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        *("eagl 0.9", "random 0.9"),
        *("eagl 0.6", "random 0.6"),
    ]
    assert list(axes.get_yticks()) == [0, 1, 2.5, 3.5]  # a gap between budgets
    legend = axes.get_legend()
    assert legend is not None
    keys = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(legend.get_texts(), legend.get_patches(), strict=True)
    }
    assert list(keys) == ["2 bit", "4 bit", "weights 4, activations 8 bit", "8 bit"]
    greys = [lightness(colour[:3]) for colour in keys.values()]
    assert all(light - dark > 15 for light, dark in pairwise(greys))  # fewer bits are lighter
    shown = np.concatenate([mesh.get_array() for mesh in axes.collections])  # (rows, layers, 4)
    assert shown.shape == (4, len(LAYERS), 4)
    named = {(2, 2): "2 bit", (4, 4): "4 bit", (8, 8): "8 bit"}
    named[4, 8] = "weights 4, activations 8 bit"
    order = ("eagl_0.9", "random_0.9", "eagl_0.6", "random_0.6")
    for colours, name in zip(shown, order, strict=True):
        for colour, layer in zip(colours, LAYERS, strict=True):
            assert tuple(colour) == keys[named[records[name].phases[0].bits[layer]]]


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
    about = reporter(tmp_path, hand_table(rows=rows(0.9), claims={}), seeds=(0,))
    said = write_figures(about, tmp_path / "figures")
    assert "not drawn: bits_chosen: no row with chosen bits has a record" in said
    assert "not drawn: frontier: fewer than two rows with chosen bits have a record" in said


# Legible


def measured(*values: float) -> Measured:
    return Measured(values, "cpu", "CIFAR-10")


def crowded(record: Record) -> Selection:
    """Seven searches at four budgets, within half a point of each other; squares at both ends."""
    series = []
    for i, metric in enumerate(SEARCH_MARKS):
        spots = {}
        for share in (60, 70, 80, 90):
            top = 84 + share / 20 + i / 10
            accuracy = measured(top - 0.2, top, top + 0.2)
            spots[("linear", share / 100),] = Spot(metric, share - i / 5, accuracy)
        series.append(Series(metric, metric, spots))
    uniform = [
        Spot("4 bit (the start of all below)", 100, measured(88.9, 89.0, 89.1)),
        Spot("4 bit, fine-tuned like the mixed ones", 100, measured(89.0, 89.1, 89.2)),
        Spot("2 bit", 50, measured(85.0, 86.0, 87.0)),
    ]
    floats = [("float", measured(89.1, 89.15, 89.2))]
    return Selection("compute_of_4bit", series, uniform, floats, [record])


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Figure:
    cell = reporter(tmp_path_factory.mktemp("crowd")).cell("float", "paper", 0)
    selection = crowded(record_of(cell, (32, [(90.0, 90.0)])))
    with style.context(STYLE, after_reset=True):
        figure = draw_selection(selection, "a title that is too long for one line " * 5)
        figure.draw_without_rendering()
    return figure


def test_labels_cover_neither_each_other_nor_a_mark(crowd: Figure) -> None:
    for axes in crowd.axes:
        notes = [Text.get_window_extent(note) for note in axes.texts]
        assert not any(one.overlaps(other) for one, other in combinations(notes, 2))
        assert not any(note.overlaps(mark) for note in notes for mark in marks(axes))
    assert [len(axes.containers) for axes in crowd.axes] == [7 + 3, 7]
    assert len(crowd.axes[0].texts) == 4


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
    assert len(beside) == 3
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
    np.testing.assert_allclose(np.diff(moved), 5 / 72 * crowd.dpi)
    assert sum(moved) == pytest.approx(0)


def test_nothing_is_cut_off_and_letters_are_large_enough(crowd: Figure, about: Reporter) -> None:
    record = search_record(about, "eagl", 0, "layer1.0.conv1")
    chosen = {"eagl_0.9": keep_chosen(about, "eagl_0.9", 0, 90.0)}
    assert record.scores is not None
    others = [scores_figure(record, record.scores, "hand"), chosen_bits_figure(about.table, chosen)]
    for figure in map(drawn, (crowd, *others)):
        check_legible(figure)


def test_metrics_differ_in_grey_in_shape_and_in_dash() -> None:
    beside = [MARKS["float"], MARKS["uniform"], *SEARCH_MARKS.values()]
    greys = [lightness(mark.colour) for mark in beside]
    assert all(abs(one - other) > 7.5 for one, other in combinations(greys, 2))
    assert len({mark.marker for mark in beside} | {MARKS["other"].marker}) == len(beside) + 1
    assert len({mark.dash for mark in SEARCH_MARKS.values()}) == len(SEARCH_MARKS)


def test_every_search_has_its_mark(tmp_path: Path) -> None:
    names = ("eagl", "alps", "hawq", "magnitude", "random", "first_to_last", "last_to_first")
    words = {name: ["quantizer=lsq", f"search={name}"] for name in names}
    made = {name: {"label": name, "overrides": words[name]} for name in names}
    about = reporter(tmp_path, hand_table(rows=made, claims={}))
    metrics = [metric_of_search(search_record(about, name, 0, INNER[0])) for name in names]
    assert metrics == list(SEARCH_MARKS) == list(METRICS.values())
    unknown = search_record(about, "eagl", 0, INNER[0])
    unknown.config["search.rule._target_"] = "elsewhere.Metric"
    assert metric_of_search(unknown) == "other"
