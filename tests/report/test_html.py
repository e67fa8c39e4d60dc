"""HTML pages from hand-made records, read back by a parser of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from hand_records import LAYERS, claim, hand_table, keep, record_of, reporter

from quantable.base.places import ROOT
from quantable.config.schema import Looks
from quantable.report.draw_page import charts
from quantable.report.html.data import MOST_EPOCHS
from quantable.report.html.pages import write_html
from quantable.report.index import claims_table, coverage, listed, paper
from quantable.report.reporter import Reporter
from quantable.report.shapes import Axis, Grid, Group, Level, Panel, Plot, Point, Series
from quantable.report.svg import LETTER, SMALL_LETTER
from quantable.store.store import Store
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

FLOAT = [(91.0, 92.0)] * 5
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><b>bold</b>",
    "{{ 7 * 7 }} ]]> <!-- & &amp; '",
)


class Page(HTMLParser):
    """What a test asks of a page: its elements, its words, and the JSON in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.data: list[dict] = []
        self._inside: list[str] = []
        self._json = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept = {name: value or "" for name, value in attrs}
        self.elements.append((tag, kept))
        self._json = kept.get("type") == "application/json"
        self._inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while tag in self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside[-1:]:
            return
        if "script" in self._inside[-1:]:
            if self._json:
                self.data.append(json.loads(data))
            return
        self.words.append(data)
        if {"td", "th"} & set(self._inside):
            self.tables[-1][-1][-1] += data

    def attributes(self, name: str) -> Iterator[str]:
        return (kept[name] for _, kept in self.elements if name in kept)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, label: str) -> list[str]:
        rows = [row for table in self.tables for row in table if row[0].strip().endswith(label)]
        return [" ".join(cell.split()) for cell in rows[0][1:]]


def page_of(about: Reporter) -> Page:
    (path,) = write_html([about], about.stores[0].reports, index=False)
    return Page(path)


# Numbers


def test_a_row_has_published_ours_difference_and_verdict(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed, test in enumerate((91.8, 92.0, 92.5)):
        keep(about, "float", seed, (32, [(91.0, 50.0), (91.0, test)]))
    page = page_of(about)
    # mean 92.1, std sqrt((0.09 + 0.01 + 0.16) / 2) = 0.36; the paper's is 92.00 +- 0.5
    assert page.row("float")[:4] == ["92.00", "92.10 ± 0.36", "+0.10", "✓ match"]
    assert page.row("16 bit")[:4] == ["–", "92.10 ± 0.36", "", "· no published value"]
    assert "ours n=3" in " ".join(page.tables[0][1])
    assert page.row("AD final")[:4] == ["–", "–", "", "○ not run"]


def test_rows_with_other_seeds_say_how_many(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed in range(3):
        keep(about, "float", seed, (32, FLOAT))
    keep(about, "ad", 0, (16, [(90.0, 91.5)]))
    page = page_of(about)
    assert page.row("float")[1] == "92.00 ± 0.00 n=3"
    assert page.row("AD")[1] == "91.50 n=1"


def test_claims_have_their_bound_and_their_verdict(tmp_path: Path) -> None:
    said = {"value": claim(value=92.4, unit="%", holds={"full": {"min": 90.0}}, rows=["float"])}
    about = reporter(tmp_path, hand_table(claims=said))
    keep(about, "float", 0, (32, FLOAT))
    row = page_of(about).row("abstract")
    assert row[:3] == ["92.4 %", "92.00 %", "−0.40"]
    assert row[3].startswith("✓ holds")
    assert row[4] == "at least 90"


def test_what_differs_from_the_papers_protocol_stands_above_the_numbers(tmp_path: Path) -> None:
    about = reporter(tmp_path, budget="smoke")
    keep(about, "float", 1, (32, FLOAT), variant="jpeg", title="CIFAR-10 (JPEG)")
    text = page_of(about).text
    above = text[: text.index("Published and ours")]
    for words in (
        "Budget smoke, not the paper's size",
        "CIFAR-10 (JPEG) is not an exact copy",
        "Only 2,000 test images",
        "1 of 3 seeds",
    ):
        assert words in above
    assert "◇ not comparable" in text


def test_without_records_the_page_says_so(tmp_path: Path) -> None:
    assert "No run of this table has a record" in page_of(reporter(tmp_path)).text


# What is behind a number


def test_every_row_has_the_commands_and_histories_of_its_runs(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "ad", 2, (16, [(90.0, 91.0), (90.5, 91.25)]), (4, [(89.0, 90.0)]))
    page = page_of(about)
    for row in about.table.rows:
        for seed in about.seeds:
            assert about.cell(row, "paper", seed).command in page.words
    (data,) = page.data
    for row, width in (("ad", 16), ("ad_1", 4)):
        shown = data["rows"][f"hand--{row}"][2]
        assert shown["run"] == record.name
        assert data["layers"][shown["layers"]] == LAYERS
        assert shown["bits"] == [[width, width]] * len(LAYERS)
    history = data["runs"][record.name]
    at = history["head"].index("test top-1 [%]")
    assert [line[at] for line in history["lines"]] == [91.0, 91.25, 90.0]
    assert record.provenance.commit[:12] in page.text


def test_what_rounds_a_runs_sums_is_said(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    old, new = (keep(about, "ad", seed, (16, [(90.0, 91.0)])) for seed in (0, 1))
    new.provenance.threads, new.provenance.devices = 2, 3
    new.provenance.arithmetic = {"MKL": "yes"}
    about.stores[0].add(new)
    page = page_of(about)
    said = ("none, 1 thread", "3 devices of none, 2 threads, MKL yes")
    assert "; ".join(said) in page.text  # of the table
    assert set(said) <= set(page.words)  # of each run
    assert old.provenance.arithmetic == {}


def test_a_methods_own_numbers_are_columns_of_the_history(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "ad", 0, (16, [(90.0, 91.0), (90.5, 91.25)]))
    for epoch in record.history:
        epoch.own = {"norm": 2.5 + epoch.epoch, "rest": 1.0, "share": {"fc": 0.5}}
    about.stores[0].add(record)
    quantizer = about.cell("ad", about.budget, 0).config["quantizer"]
    quantizer["numbers"] = {"norm": {"title": "largest norm", "unit": "1/s", "decimals": 1}}
    page = page_of(about)
    history = page.data[0]["runs"][record.name]
    assert history["head"][-2:] == ["largest norm [1/s]", "rest"]
    assert [line[-2:] for line in history["lines"]] == [[2.5, 1.0], [3.5, 1.0]]
    assert "Share: AD" in page.text or "share: AD" in page.text


def test_a_long_history_keeps_its_last_epoch(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "float", 0, (32, [(91.0, 60 + i / 100) for i in range(1000)]))
    history = page_of(about).data[0]["runs"][record.name]
    assert len(history["lines"]) <= MOST_EPOCHS + 1
    assert history["every"] == 13  # 1,000 epochs in at most 80 lines
    assert (history["lines"][0][0], history["lines"][-1][0]) == (1, 1000)


# Hostile strings


def test_hostile_strings_are_text(tmp_path: Path) -> None:
    one, two, three, four = HOSTILE
    known = {"value": 92.0, "source": two, "confidence": "published"}
    rows = {
        "float": {
            "label": one,
            "overrides": ["quantizer=none"],
            "published": {"top1_pct": known},
            "reason": four,
        },
        three: {"label": three, "cell": "float", "cost_bits": 16},
    }
    claims = {two: claim(text=four, rows=["float"], holds={"full": {"min": 1}})}
    table = hand_table(rows=rows, claims=claims, title=three, source=one, notes=[two, four])
    about = reporter(tmp_path, table)
    record = record_of(about.cell("float", "paper", 0), (32, FLOAT), title=one)
    record.provenance.device = three
    record.provenance.versions["<i>"] = "\u202e\x00\x1b[31m"
    record.history[0] = record.history[0].model_copy(update={"bits": {two: (4, 4)}})
    about.stores[0].add(record)
    page = page_of(about)

    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "b", "i"}
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [name for _, kept in page.elements for name in kept if name.startswith("on")]
    for words in (one, two, three[9:], four):
        assert words in "".join(page.words)
    source = page.path.read_text(encoding="utf-8")
    assert not {"\u202e", "\x00", "\x1b"} & set(source)
    Page(write_html([about], about.stores[0].reports, index=True)[0])


# One file, nothing outside


def check_addresses(page: Page) -> int:
    """Every address leads to an element of the page or to a file beside it; returns how many."""
    known = set(page.attributes("id"))
    assert len(known) == len(list(page.attributes("id")))
    found = [address for address in page.attributes("href") if address != "data:,"]
    for address in found:
        if address.startswith("#"):
            assert unquote(address[1:]) in known
        else:
            assert (page.path.parent / unquote(address)).is_file()
    return len(found)


def test_a_page_asks_nothing_of_a_network(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "float", 0, (32, FLOAT))
    page = page_of(about)
    assert not list(page.attributes("src"))
    source = page.path.read_text(encoding="utf-8")
    assert "http" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert check_addresses(page) == 1 + len(about.table.rows)


def test_the_index_leads_to_every_table_and_back(tmp_path: Path) -> None:
    tables = [hand_table(id=f"hand_{i}") for i in range(3)]
    abouts = [reporter(tmp_path, table) for table in tables]
    index, *pages = map(Page, write_html(abouts, tmp_path / "reports", index=True))
    assert index.path.name == "index.html"
    assert check_addresses(index) == 1 + len(tables)
    assert "3 of 3 tables" in index.text
    for page in pages:
        check_addresses(page)
        assert "index.html" in page.attributes("href")


def test_several_tables_are_one_page_below_their_index(tmp_path: Path) -> None:
    abouts = [reporter(tmp_path, hand_table(id=f"hand_{i}")) for i in range(3)]
    (path,) = write_html(abouts, tmp_path, index=False)
    page = Page(path)
    check_addresses(page)
    assert len(page.data) == 3
    assert {"hand_0", "hand_1", "hand_2"} <= set(page.attributes("id"))


def test_the_index_filters_by_what_the_rows_are(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    line = listed(about, about.report(), "hand.html")
    assert (line.methods, line.networks) == (("float", "AD"), ("resnet8_cifar",))
    assert line.data == ("Fashion-MNIST mini",)


def test_claims_of_several_tables_are_one_table(tmp_path: Path) -> None:
    drop = claim(kind="drop", rows=["ad_1"], reference="bits16", unit="pp")
    drop["holds"] = {"full": {"max": 1.0}}
    both = reporter(
        tmp_path, hand_table(claims={"drop": drop, "too": claim(rows=["ad"], report_only="no")})
    )
    for seed, own in enumerate([91.5, 91.0, 91.4]):
        keep(both, "float", seed, (32, [(91.0, 92.0)]))
        keep(both, "ad", seed, (16, [(91.0, 92.0)]), (8, [(91.0, own)]))
    other = reporter(tmp_path / "empty", hand_table(id="other", claims={"drop": drop}))
    head, _, *lines = claims_table([both.report(), other.report()]).splitlines()
    assert head.endswith("| hand, budget paper | other, budget paper |")
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert [line[0] for line in cells] == ["drop", "too"]
    assert cells[0][2:] == ["0.70 ± 0.26 (n=3) pp: holds", "not judged (not run)"]
    assert cells[1][3] == "–"


def test_coverage_counts_published_measured_and_matched(tmp_path: Path) -> None:
    rows = {
        name: {
            "label": name,
            "overrides": ["quantizer=none", f"recipe.epochs={i + 1}"],
            "published": {"top1_pct": {"value": value, "source": "a", "confidence": "published"}},
        }
        for i, (name, value) in enumerate({"near": 92.0, "far": 80.0, "open": 1.0}.items())
    }
    about = reporter(tmp_path, hand_table(rows=rows, claims={}, seeds=[0]))
    for row in ("near", "far"):
        keep(about, row, 0, (32, FLOAT))
    counted = coverage(about.report())
    assert (counted.known, counted.measured, counted.matched, counted.off) == (3, 2, 1, 1)


def test_papers_have_authors_and_titles() -> None:
    found = paper("vasquez_2021")
    assert found.short == "Vasquez et al. 2021"
    assert found.number == "arXiv:2101.04354"
    assert "{" not in paper("zhou_2016").title
    assert paper("nobody_1999").short == "nobody_1999"


LOOK = """
import runpy, sys
sys.argv = ["report.py", *sys.argv[1:]]
try:
    runpy.run_path("reproduce/report.py", run_name="__main__")
except SystemExit as stop:
    assert stop.code in (0, None)
heavy = {"torch", "pytorch_lightning", "wandb", "matplotlib", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_command_writes_a_page_and_loads_nothing_heavy(tmp_path: Path) -> None:
    words = ["+table=ad_quickstart", "format=html", f"store={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.stderr == ""
    page = Page(Path(done.stdout.strip()))
    assert page.path == tmp_path / "reports" / "ad_quickstart.html"
    about = Reporter(load_table("ad_quickstart"), Asked(), [Store(ROOT / "reproduce" / "evidence")])
    for entry in about.report().rows:
        if entry.measured is not None and entry.column == "top1_pct":
            assert page.row(entry.label)[0] == f"{entry.measured.mean:.2f}"


@pytest.mark.slow
def test_sixty_tables_and_2000_cells_are_one_file_of_bearable_size(tmp_path: Path) -> None:
    rows = {
        f"row_{i}": {
            "label": f"row {i}",
            "overrides": ["quantizer=none", f"recipe.epochs={i + 1}"],
            "published": {"top1_pct": {"value": 92.0, "source": "a", "confidence": "published"}},
        }
        for i in range(12)
    }
    store, asked = Store(tmp_path), Asked(budget="paper")
    abouts = [
        Reporter(hand_table(id=f"hand_{i}", rows=rows, claims={}), asked, [store])
        for i in range(60)
    ]
    for row in rows:
        for seed in range(3):
            keep(abouts[0], row, seed, (32, [(91.0, 92.0)] * 100))
    (path,) = write_html(abouts, tmp_path, index=False)
    page = Page(path)
    assert sum("command" in kept.get("class", "") for _, kept in page.elements) == 60 * 36
    assert path.stat().st_size < 15_000_000


# Charts

LOOKS = Looks(short="one", colour="#0072B2", marker="s")


def chart_of(points: list[Point], *levels: Level) -> str:
    panel = Panel(Axis("cost"), Axis("accuracy"), [Series("one", LOOKS, points)], levels)
    (chart,) = charts(Plot("all", "", [panel]))
    return str(chart)


def test_names_in_a_figure_cover_no_point_and_no_other_name() -> None:
    points = [Point(f"point {i}", f"point {i}", 1 + i % 4 / 10, 50 + i // 4) for i in range(12)]
    drawn = chart_of(points)
    assert drawn.count('role="img"') == 12
    assert drawn.count('tabindex="0"') == 1
    texts = [line.split('"') for line in drawn.split("<text ")[1:] if 'class="label"' in line]
    boxes = [
        (float(t[1]) - half, float(t[3]) - 11, float(t[1]) + half, float(t[3]) + 2)
        for t in texts
        for half in [len("point 1") * LETTER / 2]
    ]
    assert boxes
    for i, one in enumerate(boxes):
        for two in boxes[:i]:
            assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


def test_in_a_crowd_lines_are_named_and_points_are_not() -> None:
    points = [Point(f"point {i}", f"point {i}", i, i % 7) for i in range(30)]
    assert 'class="label"' not in chart_of(points)


def test_a_level_has_its_words_beside_the_axes_and_leaves_the_scale_of_x_alone() -> None:
    points = [Point("a", "a", 50, 60), Point("b", "b", 100, 70)]
    drawn = chart_of(points, Level("float 70.30", "float", 70.3, LOOKS))
    assert ">float 70.30<" in drawn
    ticks = [part for part in drawn.split("<text ")[1:] if 'class="num"' in part]
    assert max(float(t.split(">")[1].split("<")[0]) for t in ticks) == 100


def test_numbers_on_an_axis_do_not_run_into_each_other() -> None:
    points = [Point("", "", x, 60) for x in (22, 100, 6400)]
    panel = Panel(Axis("cost", log=True), Axis("accuracy"), [Series("one", LOOKS, points)])
    (chart,) = charts(Plot("all", "", [panel]))
    texts = [part.split('"') for part in str(chart).split("<text ")[1:]]
    below = [
        (float(t[1]), len(t[8].strip(">").split("<")[0]) * SMALL_LETTER / 2)
        for t in texts
        if t[7] == "num" and t[5] == "middle"
    ]
    assert len(below) > 2
    assert all(a + half < b - other for (a, half), (b, other) in pairwise(below))


def test_a_heat_map_joins_epochs_of_one_shade() -> None:
    group = Group("densities", {"a": [0.1, 0.1, 0.9], "b": [None, 0.5, 0.5]})
    grid = Grid("densities", "", [group], 3, "epoch", changes={0: "16 bit"})
    (drawn,) = map(str, charts(grid))
    areas = drawn.split('<path class="d')[1:]
    assert [area[0] for area in areas] == ["0", "4", "8"]
    assert sum(area.count("M") for area in areas) == 3


def test_words_in_a_chart_are_text() -> None:
    group = Group("bits", {HOSTILE[0]: [4, 8]})
    grid = Grid(HOSTILE[2], "", [group], [HOSTILE[1], "fc"], "layer")
    (drawn,) = map(str, charts(grid))
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "<b>" not in drawn
