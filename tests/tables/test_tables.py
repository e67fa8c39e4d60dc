"""The table files: each cell composes, and what is wrong in a file is named."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

from quantable.base.errors import UserError
from quantable.cli import parse
from quantable.config.widths import planned_bits
from quantable.cost.hardware import hardware_of
from quantable.networks.shapes import PACKAGED, read_shapes, shape_key
from quantable.quantization.quantize import Quantize
from quantable.tables.cells import Asked
from quantable.tables.schema import (
    BUDGETS,
    Published,
    Tolerance,
    load_table,
    read_table,
    table_names,
)

TABLES = {name: load_table(name) for name in table_names()}
SIZED = [
    (name, budget)
    for name, table in TABLES.items()
    for budget in BUDGETS
    if budget == table.budget or budget in table.budgets
]
SEEDED_CELLS = [
    (f"{name}-{budget}-{cell.row}-{cell.seed}", cell)
    for name, budget in SIZED
    for cell in Asked(budget=budget).cells(TABLES[name])
]
CELLS = [(name, cell) for name, cell in SEEDED_CELLS if cell.seed == 0]
# Rows that differ in their search and budget alone are composed alike: one stands for all.
ALONE = [(name, cell) for name, cell in CELLS if cell.search is None or cell.row == "eagl_80"]


# Counted by hand: runs of a seed at the table's own budget. A new table need not be here.
RUNS = {
    **{"ad_cifar10": 2, "ad_cifar100": 2, "ad_tinyimagenet": 2, "ad_pruned": 10},
    **{"ad_quickstart": 5, "ad_pim": 0},
    **{"alps_resnet50": 8, "eagl_resnet50": 28, "eagl_resnet101": 28, "eagl_lite0": 28},
    **{"selection_cifar10": 39, "selection_cost": 9},
    **{"dfq_uniform_vs_mixed": 1 + 1 + 7 + 4, "dfq_sensitivity": 1 + 66, "dfq_bits": 1 + 4},
    **{"dfq_size": 0, "fracbits_cifar10": 4, "a2q_resnet18": 1 + 2 * 5, "a2q_cifar10": 1 + 2 * 5},
    **{"acq_bounds": 0, "acq_speedup": 0, "acq_alexnet": 1 + 3 * 12},
    **{"edge_cifar10": 1 + 5 + 4 * 5, "edge_gradients_cifar10": 1 + 2 * 9, "edge_lite0_ptq": 15},
}
VARIANTS = ("mixed", "granular", "surrogate", "granular_surrogate")
LEARN_BITS = {"ad", "pruned", "joint", "resnet18_ad", "resnet18_joint"}  # widths follow densities
LEARN_BITS |= {f"{variant}_{bits}" for variant in VARIANTS for bits in range(2, 7)}
LEARN_BITS |= {"mixed_2.5", "fracbits_3", "published_3"}


def test_discovery() -> None:
    assert len(TABLES) >= 29  # tests/test_docs.py compares them with their pages and cards
    for name, runs in RUNS.items():
        cells = Asked().cells(TABLES[name])
        assert len(cells) == runs * len(TABLES[name].seeds), name
    assert len(CELLS) >= 925
    assert len(SEEDED_CELLS) >= 2821


def test_rows_whose_bits_training_finds() -> None:
    cells = [cell for name in RUNS for cell in Asked(seeds=(0,)).cells(TABLES[name])]
    assert {c.row for c in cells if c.config["quantizer"]["learns_bits"]} == LEARN_BITS


@pytest.mark.parametrize(("name", "budget"), SIZED)
def test_every_row_composes_with_shapes_bits_and_constants_known_before_training(
    name: str, budget: str
) -> None:
    table, asked = TABLES[name], Asked()
    for row in table.rows:
        config = asked.cell(table, row, budget, seed=0).config
        assert config["budget"]["name"] == budget
        key = shape_key(config["model"], config["data"]["input_size"])
        shapes = read_shapes(key, [PACKAGED])
        assert shapes, f"{row}: no packaged shapes for {key}"
        assert hardware_of(config).pim.mac_fj[16] == 276.676


@pytest.mark.parametrize("cell", [c for _, c in CELLS], ids=[name for name, _ in CELLS])
def test_a_cell_has_a_quantizer_and_the_bits_its_shapes_name(cell: Any) -> None:
    callback = cell.config["quantizer"]["callback"]
    assert callback is None or isinstance(instantiate(callback), Quantize)
    shapes = read_shapes(
        shape_key(cell.config["model"], cell.config["data"]["input_size"]), [PACKAGED]
    )
    if cell.search is not None:  # found by a search, which is not run here
        return
    bits = planned_bits(cell.config, shapes)
    assert (bits is None) == cell.config["quantizer"]["learns_bits"]
    assert bits is None or list(bits) == [shape.name for shape in shapes]


@pytest.mark.parametrize(("name", "budget"), SIZED)
def test_no_two_trained_rows_ask_the_same_question(name: str, budget: str) -> None:
    table = TABLES[name]
    own = [row for row, r in table.rows.items() if r.overrides is not None and r.train]
    cells = Asked(budget=budget, seeds=(0,)).cells(table)
    assert [cell.row for cell in cells] == own
    assert len({cell.signature for cell in cells}) == len(own)


@pytest.mark.parametrize("cell", [c for _, c in ALONE], ids=[name for name, _ in ALONE])
def test_a_cells_command_runs_that_cell(cell: Any) -> None:
    python, script, *words = shlex.split(cell.command)
    assert (python, script) == ("python", "reproduce/run.py")
    parsed = parse(words)
    *_, again = parsed.asked.cells(TABLES[parsed.tables[0]])  # behind what it needs
    assert again.signature == cell.signature


def test_the_pim_tables_ad_row_is_the_run_of_the_cifar10_table() -> None:
    asked = Asked()
    ours = asked.cell(TABLES["ad_pim"], "vgg19_ad", "paper", seed=1).config
    theirs = asked.cell(TABLES["ad_cifar10"], "ad", "paper", seed=1).config
    assert {**ours, "store": ""} == {**theirs, "store": ""}


def test_both_edge_tables_on_cifar10_start_from_the_same_float_runs() -> None:
    for budget in BUDGETS:
        cells = [
            Asked().cell(TABLES[name], "float", budget, seed=1)
            for name in ("edge_cifar10", "edge_gradients_cifar10")
        ]
        assert cells[0].signature == cells[1].signature


# What the user asks for


def test_the_users_words_win_over_the_table() -> None:
    table = TABLES["ad_quickstart"]
    words = ("recipe.epochs=3", "bits.inner=[6,5]", "model=resnet20_cifar", "model.net.width=0.5")
    for row in table.rows:
        config = Asked(words).cell(table, row, "cpu", seed=0).config
        assert config["recipe"]["epochs"] == 3
        assert config["bits"]["inner"] == [6, 5]
        assert config["model"]["name"] == "resnet20_cifar"
        assert config["model"]["net"]["width"] == 0.5


def test_filters_choose_rows_and_seeds() -> None:
    table = TABLES["ad_cifar10"]
    cells = Asked(rows=("ad_1", "ad_2"), seeds=(7, 8)).cells(table)
    assert [(cell.row, cell.seed) for cell in cells] == [("ad", 7), ("ad", 8)]
    assert Asked(rows=("ad_2", "float")).chosen_rows(table) == ["float", "ad_2"]
    seeds = {cell.seed: cell.signature for cell in Asked(rows=("float",)).cells(table)}
    assert list(seeds) == [0, 1, 2]
    assert len(set(seeds.values())) == 3


def test_an_unknown_row_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"table ad_quickstart: unknown row 'bit4'. Nearest: bits4"):
        Asked(rows=("bit4",)).cells(TABLES["ad_quickstart"])


def test_a_word_that_a_needed_row_cannot_have_names_that_row() -> None:
    words = ("quantizer.callback.strength=0.1",)
    with pytest.raises(UserError, match=r"^row float: command line: unknown key 'quantizer.call"):
        Asked(overrides=words, rows=("mixed_2",)).cells(load_table("edge_cifar10"))


def test_an_unknown_table_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown table 'ad_cifar'. Nearest: ad_cifar10"):
        load_table("ad_cifar")


# What is wrong in a file

GOOD: dict[str, Any] = {
    "id": "toy",
    "paper": "none",
    "title": "toy",
    "source": "Table 1",
    "budget": "paper",
    "seeds": [0],
    "base": [],
    "columns": {"top1_pct": {"abs": 0.5}},
    "rows": {
        "float": {
            "label": "float",
            "overrides": [],
            "published": {
                "top1_pct": {"value": 90.0, "source": "Table 1", "confidence": "published"}
            },
        },
        "last": {"label": "last", "cell": "float"},
    },
    "claims": {
        "C-1": {
            "text": "good",
            "source": "abstract",
            "value": None,
            "unit": "%",
            "kind": "value",
            "column": "top1_pct",
            "rows": ["last"],
            "holds": {"full": {"min": 1.0}},
        }
    },
}
FLOAT = ("rows", "float")
LAST = ("rows", "last")
CLAIM = ("claims", "C-1")
BOPS = {"budget": "bops", "share": 0.5}
CLAIM_OVER = GOOD["claims"]["C-1"] | {"kind": "over"}
CLAIM_DIFFER = GOOD["claims"]["C-1"] | {"kind": "differ", "values": [90.0, 91.0]}
CLAIM_BEHIND = GOOD["claims"]["C-1"] | {"kind": "behind"}
NUMBER = (*FLOAT, "published", "top1_pct")


def written(folder: Path, place: tuple[str, ...], value: object) -> Path:
    """Write GOOD with one place changed."""
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    *way, last = place
    node = content
    for key in way:
        node = node[key]
    node[last] = value
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_good_file_is_good(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, ("notes",), []))
    assert table.columns["top1_pct"] == Tolerance(abs=0.5)
    assert table.rows["float"].published["top1_pct"].counts
    assert table.cell_of("last") == "float"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("colums",), {}, "toy.yaml: unknown key 'colums'. Nearest: columns"),
        ((*FLOAT, "lable"), "x", "toy.yaml: rows.float: unknown key 'lable'. Nearest: label"),
        (
            (*NUMBER, "vlaue"),
            1,
            "rows.float.published.top1_pct: unknown key 'vlaue'. Nearest: value",
        ),
        ((*CLAIM, "colum"), 1, "claims.C-1: unknown key 'colum'. Nearest: column"),
        ((*CLAIM, "holds", "full", "mni"), 1, "holds.full: unknown key 'mni'. Nearest: min"),
        (("columns", "top1_pct", "asb"), 1, "columns.top1_pct: unknown key 'asb'. Nearest: abs"),
        (NUMBER, {"value": None}, "rows.float.published.top1_pct: a null value needs its reason"),
        (NUMBER, {"value": None, "reason": ""}, "top1_pct: a null value needs its reason"),
        (NUMBER, {"value": 1.0}, "top1_pct: a value needs source and confidence"),
        ((*NUMBER, "source"), None, "top1_pct: a value needs source and confidence"),
        ((*NUMBER, "confidence"), "sure", "published.top1_pct.confidence: .*'published'"),
        (("columns", "top1"), None, "toy.yaml: unknown column 'top1'. Nearest: top1_pct"),
        (("columns",), {"macs_m": None}, "unknown column 'top1_pct'. Nearest: macs_m"),
        ((*CLAIM, "column"), "top1pct", "toy.yaml: unknown column 'top1pct'. Nearest: top1_pct"),
        ((*CLAIM, "rows"), ["lst"], "toy.yaml: unknown row 'lst'. Nearest: last"),
        ((*LAST, "cell"), "flaot", "toy.yaml: unknown row 'flaot'. Nearest: float"),
        (
            LAST,
            {"label": "x", "cell": "float", "phase": "final", "reference": "floaty"},
            "'floaty'",
        ),
        ((*LAST, "overrides"), [], "rows.last: give exactly one of overrides and cell"),
        ((*LAST, "cell"), None, "rows.last: give exactly one of overrides and cell"),
        ((*LAST, "phase"), "final", "rows.last: phase: final and reference go together"),
        ((*LAST, "reference"), "float", "rows.last: phase: final and reference go together"),
        (
            LAST,
            {"label": "x", "cell": "float", "phase": "final", "reference": "float"},
            "phase: final needs final_within_pp",
        ),
        ((*CLAIM, "kind"), "drop", "toy.yaml: claims.C-1: kind: drop needs reference"),
        ((*CLAIM, "kind"), "times", "toy.yaml: claims.C-1: kind: times needs reference"),
        ((*CLAIM, "reference"), "float", "toy.yaml: claims.C-1: kind: value has no reference"),
        ((*CLAIM, "kind"), "over", "toy.yaml: claims.C-1: kind: over needs over"),
        (CLAIM, CLAIM_DIFFER, "toy.yaml: claims.C-1: values: 2 numbers for 1 rows"),
        ((*CLAIM, "over"), "macs_m", "toy.yaml: claims.C-1: kind: value has no over"),
        ((*CLAIM, "kind"), "behind", "toy.yaml: claims.C-1: kind: behind needs others"),
        (CLAIM, CLAIM_BEHIND | {"others": []}, "toy.yaml: claims.C-1.others: .*at least 1"),
        (CLAIM, CLAIM_BEHIND | {"others": ["flaot"]}, "unknown row 'flaot'. Nearest: float"),
        ((*CLAIM, "kind"), "most", "toy.yaml: claims.C-1: .*'most'.*'largest'"),
        ((*CLAIM, "rows"), "last", "toy.yaml: claims.C-1.rows: .*tuple"),
        ((*CLAIM, "holds", "full", "t"), 2, "C-1: holds: t belongs to a comparison of rows"),
        (CLAIM, CLAIM_OVER | {"over": "mac_m"}, "unknown column 'mac_m'. Nearest: macs_m"),
        ((*CLAIM, "holds"), {}, "claims.C-1: give holds, or report_only with its reason"),
        (("baseline",), "flaot", "toy.yaml: unknown row 'flaot'. Nearest: float"),
        (
            LAST,
            {"label": "x", "cell": "float", "cost_bits": 8, "bits": [8, 8]},
            "rows.last: give at most one of cost_bits, bits and sizes",
        ),
        ((*LAST, "bits"), [8, 17], "rows.last.bits.1: .*16"),
        ((*NUMBER, "confidence"), "doubtful", "top1_pct: a doubtful value needs its reason"),
        ((*LAST, "sizes"), "publishd", "rows.last.sizes: .*'published'"),
        ((*LAST, "sizes"), "published", "sizes: published needs published act_kb and weight_kb"),
        (
            LAST,
            {"label": "x", "cell": "float", "cost_bits": 8, "sizes": "published"},
            "rows.last: give at most one of cost_bits, bits and sizes",
        ),
        (("points",), "edge_lite1", "toy.yaml: unknown points 'edge_lite1'. Nearest: edge_lite0"),
        (("points",), 3, "toy.yaml: points: .*string"),
        (("program",), "hawqv3", "toy.yaml: unknown program 'hawqv3'. Nearest: hawqv3_resnet"),
        ((*FLOAT, "policy"), BOPS, "toy.yaml: .*a row with policy needs the table's program"),
        ((*FLOAT, "policy"), BOPS | {"budget": "bop"}, "rows.float.policy.budget: .*'bops'"),
        ((*FLOAT, "policy"), BOPS | {"share": 0}, "rows.float.policy.share: .*greater than 0"),
        ((*FLOAT, "policy"), BOPS | {"share": 1.1}, "rows.float.policy.share: .*equal to 1"),
        ((*FLOAT, "policy"), BOPS | {"shared": 1}, "float.policy: unknown key 'shared'. .*: share"),
        ((*FLOAT, "policy"), {"budget": "bops"}, "policy: give budget and share, or counting"),
        ((*FLOAT, "policy"), BOPS | {"counting": "exact"}, "policy: give budget and share, or"),
        (("columns", "top1_pct"), {"abs": 1, "rel": 1}, "give exactly one of abs and rel"),
        (("columns", "top1_pct"), {"abs": 0}, "columns.top1_pct.abs: .*greater than 0"),
        (("budget",), "huge", "toy.yaml: budget: .*'paper'"),
        ((*FLOAT, "cost_bits"), 17, "rows.float.cost_bits: .*16"),
        (("id",), "other", "id: 'other' is not the file's name, toy"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else None,
)
def test_what_is_wrong_is_named_with_file_and_place(
    tmp_path: Path, place: tuple[str, ...], value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_table(written(tmp_path, place, value))
    assert "toy.yaml" in str(caught.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text("rows: {")
    with pytest.raises(UserError, match=r"toy.yaml: not readable as YAML"):
        read_table(path)


@pytest.mark.parametrize(
    ("confidence", "counts"),
    [("published", True), ("proved", True), ("recollected", False), ("derived", False)],
)
def test_only_what_stands_in_the_paper_counts(confidence: Any, counts: bool) -> None:
    assert Published(value=1.0, source="Table 1", confidence=confidence).counts == counts
    assert not Published(value=None, reason="lost").counts
    assert not Published(value=1.0, source="a", confidence="doubtful", reason="a subset").counts
