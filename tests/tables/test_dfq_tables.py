"""The tables of real bit-widths: which runs they share, and that what they compare is alike."""

from typing import Any

import pytest

from quantable.config.widths import planned_bits
from quantable.networks.shapes import PACKAGED, read_shapes
from quantable.report.reporter import Reporter
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import BUDGETS, load_table

NAMES = ("dfq_uniform_vs_mixed", "dfq_sensitivity", "dfq_bits", "fracbits_cifar10")
TABLES = {name: load_table(name) for name in NAMES}
RESNET20 = "resnet20_cifar-classes=10-in_channels=3-shortcuts=plain-width=1-3x32x32"


def cell(table: str, row: str, budget: str, seed: int = 0) -> Cell:
    return Asked().cell(TABLES[table], row, budget, seed)


def callback(made: Cell) -> dict[str, Any]:
    return dict(made.config["quantizer"]["callback"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_budget_cpu_one_float_run_a_seed_serves_all(name: str, seed: int) -> None:
    theirs = Asked().cell(load_table("ad_cifar10"), "float", "cpu", seed)
    assert cell(name, "float", "cpu", seed).signature == theirs.signature


def test_at_budget_cpu_the_bits_by_layer_are_those_of_the_comparison() -> None:
    for target in ("5", "4", "3", "2.5"):
        rows = [cell(name, f"mixed_{target}", "cpu") for name in ("dfq_bits", NAMES[0])]
        assert len({row.signature for row in rows}) == 1


@pytest.mark.parametrize("budget", BUDGETS)
def test_mixed_and_uniform_rows_differ_in_their_bits_alone(budget: str) -> None:
    for table in ("dfq_uniform_vs_mixed", "fracbits_cifar10"):
        for name, row in TABLES[table].rows.items():
            for other in row.uniform:
                mixed, uniform = cell(table, name, budget), cell(table, other, budget)
                assert mixed.config["start"] == uniform.config["start"] is not None
                assert sum(callback(mixed)["epochs"]) == sum(callback(uniform)["epochs"])
                assert callback(uniform)["epochs"][0] == 0 < callback(mixed)["epochs"][0]
                recipes = [dict(made.config["recipe"]) for made in (mixed, uniform)]
                assert recipes[0].pop("schedule") | {"restart": 1.0} == recipes[1].pop("schedule")
                assert recipes[0] == recipes[1]  # the uniform row has one phase alone
                assert mixed.config["data"] == uniform.config["data"]
                assert mixed.config["recipe"]["epochs"] == sum(callback(mixed)["epochs"])


def test_a_target_is_that_of_its_uniform_row_or_lies_between_two() -> None:
    table = TABLES["dfq_uniform_vs_mixed"]
    for name, row in table.rows.items():
        if row.uniform:
            target = callback(cell(table.id, name, "paper"))["target"]
            widths = [
                cell(table.id, other, "paper").config["bits"]["inner"] for other in row.uniform
            ]
            assert all(act == 32 for _, act in widths)
            assert min(widths)[0] <= target <= max(widths)[0]
            assert len(widths) == 2 or min(widths)[0] == target


def test_sensitivity_quantizes_each_layer_alone() -> None:
    shapes = read_shapes(RESNET20, [PACKAGED])
    assert shapes is not None
    layers = [shape.name for shape in shapes]
    table = TABLES["dfq_sensitivity"]
    rows = [name for name in table.rows if name != "float"]
    assert rows == [f"{layer}_{bits}" for layer in layers for bits in (2, 3, 4)]
    assert len(rows) == 66
    assert list(table.claims["DF-1"].rows) == [f"{layer}_2" for layer in layers]
    for row in rows:
        made = cell(table.id, row, "cpu")
        bits = planned_bits(made.config, shapes)
        assert bits is not None
        layer, _, width = row.rpartition("_")
        assert {name: b.weight for name, b in bits.items() if b.weight < 32} == {layer: int(width)}
        assert all(b.act == 32 for b in bits.values())
        assert made.config["recipe"]["batch_norms"] == "kept"
        assert made.config["recipe"]["epochs"] == 0
    assert Reporter(table, Asked(), []).report().vectors == []  # labels say which layer it is


def test_bits_have_a_row_of_every_layer_for_every_target() -> None:
    shapes = read_shapes(RESNET20, [PACKAGED])
    assert shapes is not None
    rows = {name: row for name, row in TABLES["dfq_bits"].rows.items() if row.layer is not None}
    targets = ("5", "4", "3", "2.5")
    assert list(rows) == [f"{shape.name}_{target}" for shape in shapes for target in targets]
    for name, row in rows.items():
        assert name == f"{row.layer}_{str(row.cell).removeprefix('mixed_')}"


def test_sizes_are_those_counted_by_hand() -> None:
    report = Reporter(load_table("dfq_size"), Asked(), []).report()
    found = [entry for entry in report.rows if entry.hint is not None]
    assert len(found) == 4 + 3 * 5
    for entry in found:
        assert entry.hint is not None
        assert entry.measured is not None
        digits = 0 if entry.row.startswith("nasnet") else 1
        assert round(entry.measured.mean, digits) == entry.hint.value
        assert (entry.hint.confidence, entry.verdict) == ("derived", "no published value")
    by_row = {
        entry.row: entry.measured for entry in report.rows if entry.column == "weight_compression"
    }
    rates = {row: one.mean for row, one in by_row.items() if one is not None}
    for row, rate in {"nasnet_6": 5.333, "resnet18_3": 10.667, "resnet18_2": 16}.items():
        assert rates[row] == pytest.approx(rate, abs=5e-4)
    assert [claim.verdict for claim in report.claims] == ["holds"] * 4
