"""Families of rows and claims: what ``for:`` stands for, and what is wrong with one."""

from pathlib import Path

import pytest

from quantable.base.errors import UserError
from quantable.cli import asked_tables, parse
from quantable.tables.cells import Asked
from quantable.tables.schema import BUDGETS, load_table, read_table

ROOT = Path(__file__).parents[2]
LONGEST = 120


def test_no_line_in_conf_is_longer_than_a_screen_is_wide() -> None:
    paths = sorted((ROOT / "conf").rglob("*.yaml"))
    assert len(paths) >= 73
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > LONGEST
    ]
    assert long == []


# The table with the most families, against what a reader would write by hand


def test_selection_on_cifar10_has_the_rows_of_seven_metrics_at_four_shares() -> None:
    table = load_table("selection_cifar10")
    ids = ["eagl", "alps", "hawq", "magnitude", "random", "first_to_last", "last_to_first"]
    rows = ["float", "start", "bits4", "bits2", *ids]
    rows += ["eagl_90", "eagl_80", "eagl_70", "eagl_60", "alps_90", "alps_80", "alps_70", "alps_60"]
    rows += ["hawq_90", "hawq_80", "hawq_70", "hawq_60"]
    rows += ["magnitude_90", "magnitude_80", "magnitude_70", "magnitude_60"]
    rows += ["random_90", "random_80", "random_70", "random_60"]
    rows += ["first_to_last_90", "first_to_last_80", "first_to_last_70", "first_to_last_60"]
    rows += ["last_to_first_90", "last_to_first_80", "last_to_first_70", "last_to_first_60"]
    assert list(table.rows) == rows
    assert table.rows["random"].label == "random order, the search"
    assert table.rows["random"].overrides == ("search=random",)

    row = table.rows["hawq_70"]
    assert (row.label, row.start, row.overrides) == ("HAWQ trace, 70 %", "start", ())
    assert row.chosen is not None
    assert (row.chosen.by, row.chosen.budgets) == ("hawq", {"linear": 0.7})
    assert row.budgets == {
        "gpu": ("recipe.epochs=15",),
        "cpu": ("recipe.epochs=2",),
        "smoke": ("recipe.epochs=1",),
    }
    assert table.rows["eagl_90"].label == "EAGL, 90 %"
    assert table.rows["last_to_first_60"].label == "last to first, 60 %"


def test_selection_on_cifar10_has_a_claim_for_each_metric_and_share() -> None:
    claims = load_table("selection_cifar10").claims
    names = ["EA-1 EAGL", "EA-1 ALPS"]
    names += ["EA-2 EAGL 90 %", "EA-2 EAGL 80 %", "EA-2 EAGL 70 %", "EA-2 EAGL 60 %"]
    names += ["EA-2 ALPS 90 %", "EA-2 ALPS 80 %", "EA-2 ALPS 70 %", "EA-2 ALPS 60 %"]
    assert list(claims) == [*names, "EA-4", "EA-5", "EA-6"]
    assert claims["EA-1 ALPS"].rows == ("alps_90",)
    claim = claims["EA-2 ALPS 70 %"]
    assert claim.rows == ("alps_70",)
    others = "hawq_70 magnitude_70 random_70 first_to_last_70 last_to_first_70"
    assert claim.others == tuple(others.split())


def test_selection_on_cifar10_has_three_seeds_of_39_runs_at_every_budget() -> None:
    # float, start, 4 bit and 2 bit, seven searches, 28 choices
    table = load_table("selection_cifar10")
    for budget in BUDGETS:
        cells = Asked(budget=budget).cells(table)
        assert len(cells) == 3 * (4 + 7 + 28)
        assert len({cell.signature for cell in cells}) == len(cells)


def test_a_row_of_a_family_is_asked_for_by_its_name() -> None:
    words = parse(["+table=selection_cifar10", "rows=eagl_90", "seed=0"])
    (table,) = asked_tables(words)
    assert [c.row for c in words.asked.cells(table)] == ["float", "start", "eagl", "eagl_90"]
    wrong = parse(["+table=selection_cifar10", "rows=eagle_90"])
    with pytest.raises(UserError, match=r"unknown row 'eagle_90'. Nearest: eagl_90.*\(39 in all\)"):
        wrong.asked.cells(table)


# What a family means

TOY = """\
id: toy
paper: none
title: toy
source: Table 1
budget: paper
seeds: [0]
base: []
columns: {{top1_pct: null}}
rows:
  eagl_60: {{label: by hand, overrides: []}}
{rows}
"""
ROW = '{label: "{metric}, {share} %", overrides: []}'


def toy(folder: Path, rows: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(TOY.format(rows=rows))
    return path


def family(given: str, name: str = "{metric}_{share}", label: str = "x", rest: str = "") -> str:
    return f'  "{name}": {{for: {given}, label: "{label}", overrides: []{rest}}}'


def test_a_placeholder_that_stands_alone_keeps_its_type(tmp_path: Path) -> None:
    given = '{"bits, value, n, train": {4: [91.5, 3, false], 2: [null, 3, true]}}'
    published = 'value: "{value}", n: "{n}", source: T, confidence: published, reason: lost'
    rest = f', cost_bits: "{{bits}}", train: "{{train}}", published: {{top1_pct: {{{published}}}}}'
    table = read_table(toy(tmp_path, family(given, "bits{bits}", "{bits} bit", rest)))
    assert list(table.rows) == ["eagl_60", "bits4", "bits2"]
    four, two = table.rows["bits4"], table.rows["bits2"]
    assert (four.label, four.cost_bits, four.train) == ("4 bit", 4, False)
    assert (four.published["top1_pct"].value, two.published["top1_pct"].value) == (91.5, None)
    assert four.published["top1_pct"].n == 3
    assert two.train is True


def test_braces_of_hydra_and_omegaconf_are_no_placeholders(tmp_path: Path) -> None:
    words = """["+a={k: 1, b: {bits}}", "seed=${bits}", "b={}"]"""
    rows = f'  "w{{bits}}": {{for: {{bits: [2]}}, label: x, overrides: {words}}}'
    table = read_table(toy(tmp_path, rows))
    assert table.rows["w2"].overrides == ("+a={k: 1, b: 2}", "seed=${bits}", "b={}")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            family("{metric: [eagl], share: [90]}", label="{metric}, {shar} %"),
            r"rows.{metric}_{share}.label: unknown placeholder 'shar'. Nearest: share \(2 in all\)",
        ),
        (
            family("{metric: [eagl], share: [90]}", name="{metrics}_{metric}_{share}"),
            "unknown placeholder 'metrics'. Nearest: metric",
        ),
        (
            family("{metric: [eagl], share: [90]}", rest=', budgets: {cpu: ["epochs={shares}"]}'),
            r"rows.{metric}_{share}.budgets.cpu: unknown placeholder 'shares'. Nearest: share",
        ),
        (
            family("{metric: [eagl], share: [90, 80]}", name="{metric}"),
            "rows.{metric}: the name lacks {share}: the entries would all have one",
        ),
        (family("{metric: [eagl], share: [60]}"), "{share}: a second entry of the name 'eagl_60'"),
        (family("{metric: [eagl, eagl], share: [90]}"), "a second entry of the name 'eagl_90'"),
        (
            family("{metric: [eagl], share: [90]}") + "\n" + family("{x: [eagl_90]}", "{x}"),
            "rows.{x}: a second entry of the name 'eagl_90'",
        ),
        (
            family("{bits: [4]}", "w{bits}") + "\n" + family("{bits: [2]}", "w{bits}"),
            "not readable as YAML: a second entry of the name 'w{bits}'",
        ),
        (
            family("{metric: [], share: [90]}"),
            r"for: metric: \[\] is no list or mapping of values",
        ),
        (family("{metric: {}, share: [90]}"), "for: metric: {} is no list or mapping of values"),
        (family("{metric: eagl, share: [90]}"), "for: metric: 'eagl' is no list or mapping"),
        (family("[eagl, alps]"), r"for: \['eagl', 'alps'\] is no mapping of variables"),
        (family("{}"), "for: {} is no mapping of variables to their values"),
        (family("null"), "for: None is no mapping of variables to their values"),
        (
            family("{metric: {eagl: EAGL}, share: [90]}"),
            "for: metric: a name is needed for each of eagl, EAGL, and only those",
        ),
        (
            family('{"metric, title": [eagl], share: [90]}'),
            "for: metric, title: a name is needed for each of eagl, and only those",
        ),
        (
            family('{"metric, a, b": {eagl: [1, 2, 3]}, share: [90]}'),
            "for: metric, a, b: a name is needed for each of eagl, 1, 2, 3, and only those",
        ),
        (
            family('{"metric, part": {eagl: 1}, "share, part": {90: 0.9}}'),
            "for: 'part' is named twice",
        ),
        (
            f'  "{{metric}}_90": {ROW}',
            "rows.{metric}_90: {metric} has no values, there is no for:",
        ),
        (
            family("{metric: [eagl], share: [90]}", rest=", lable: x"),
            "rows.eagl_90: unknown key 'lable'. Nearest: label",
        ),
        (
            "claims:\n  C {bits}: {for: {bits: [4]}, text: 'at {bit} bit'}",
            "claims.C {bits}.text: unknown placeholder 'bit'. Nearest: bits",
        ),
    ],
)
def test_what_is_wrong_with_a_family_is_named(tmp_path: Path, rows: str, message: str) -> None:
    pattern = message.replace("{", r"\{").replace("}", r"\}")
    with pytest.raises(UserError, match=pattern) as caught:
        read_table(toy(tmp_path, rows))
    assert "toy.yaml: " in str(caught.value)
