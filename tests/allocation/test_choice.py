"""From scores to bits: the sheet's budgets on ResNet-20, and small cases by hand."""

from typing import Any

import pytest
from hand_records import record_of

from quantable.allocation.choice import choose
from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.cost.hardware import hardware_of
from quantable.networks.layers import LayerShape
from quantable.networks.shapes import PACKAGED, read_shapes
from quantable.store.record import Item, Record, Scores
from quantable.tables.cells import Cell

KEY = "resnet20_cifar-classes=10-in_channels=3-shortcuts=plain-width=1-3x32x32"
CONFIG = compose_run(["model=resnet20_cifar", "data=cifar10", "quantizer=lsq"])
UNIT = 131_072  # common divisor of ResNet-20's inner MACs


def searched(
    *items: tuple[list[str], float], greedy: bool = False, errors: tuple[float, ...] = ()
) -> Record:
    """The record of a search; each item with what is lost at 2 instead of 4 bits, and its error."""
    of_items = [{"2/2": error} for error in errors] or [{} for _ in items]
    scores = Scores(
        rule="by hand",
        unit="nat",
        greedy=greedy,
        items=[
            Item(layers=names, loss={"4/4": 0.0, "2/2": loss}, error=error)
            for (names, loss), error in zip(items, of_items, strict=True)
        ],
        seconds=0.0,
        images=0,
        epochs=0,
    )
    cell = Cell(None, "search", 0, CONFIG, ())
    return record_of(cell, (4, [(1.0, 1.0)])).model_copy(update={"scores": scores})


def chosen(record: Record, shapes: list[LayerShape], **budgets: float) -> Any:
    return choose(record, shapes, budgets, hardware_of(CONFIG), CONFIG)


SMALL = [
    LayerShape(name, macs, macs, 1) for name, macs in zip("sabcz", (9, 2, 2, 4, 9), strict=True)
]


def widths(file: Any) -> list[int]:
    return [bits[0] for bits in file.layers.values()]


def test_the_item_that_loses_least_goes_down() -> None:
    record = searched((["a"], 3.0), (["b"], 1.0), (["c"], 5.0))
    file = chosen(record, SMALL, linear=0.9)  # 32 MAC x bit, 28.8 allowed: a or b must go
    assert widths(file) == [8, 4, 2, 4, 8]
    assert file.choice.budgets["linear"].model_dump() == {
        "unit": "MAC x bit",
        "limit": 28.0,  # whole numbers
        "spent": 28.0,
    }
    assert (file.choice.objective, file.choice.bound) == (1.0, pytest.approx(1.0))


def test_linked_layers_go_together_and_cost_their_sum() -> None:
    record = searched((["a", "c"], 5.0), (["b"], 4.0))
    assert widths(chosen(record, SMALL, linear=0.9)) == [8, 4, 2, 4, 8]  # b alone is enough
    assert widths(chosen(record, SMALL, linear=0.8)) == [8, 2, 4, 2, 8]  # 25 allowed, b leaves 28
    assert widths(chosen(record, SMALL, linear=0.5)) == [8, 2, 2, 2, 8]


def test_a_gain_at_fewer_bits_is_taken() -> None:
    record = searched((["a"], 3.0), (["b"], -1.0), (["c"], 5.0))
    assert widths(chosen(record, SMALL, linear=1.0)) == [8, 4, 2, 4, 8]


def test_an_estimate_that_cannot_be_told_from_zero_lowers_nothing_by_itself() -> None:
    """Losses of -1.5 +- 7.3, -9 +- 1 and 0.2 +- 0.5 count as 7.3, 1 and 0.5; 3 +- 0.5 as it is."""
    estimates = [(["a"], -1.5), (["b"], -9.0), (["c"], 0.2), (["s"], 3.0)]
    record = searched(*estimates, errors=(7.3, 1.0, 0.5, 0.5))
    file = chosen(record, SMALL, linear=1.0)
    assert widths(file) == [4, 4, 4, 4, 8]
    assert file.choice.objective == 0
    file = chosen(record, SMALL, linear=0.9)  # 6.8 of 68 must go: c saves 8 for 0.5
    assert (widths(file), file.choice.objective) == ([4, 4, 4, 2, 8], 0.5)
    assert list(file.choice.loss.values()) == [
        {"4/4": 0.0, "2/2": loss} for loss in (7.3, 1.0, 0.5, 3.0)
    ]
    file = chosen(record, SMALL, linear=0.6)  # 28 of 68 must go: s, b and c save 30 for 4.5
    assert (widths(file), file.choice.objective) == ([2, 4, 2, 2, 8], 4.5)


def test_without_an_error_a_loss_is_what_it_is() -> None:
    record = searched((["a"], 3.0), (["b"], -1.0), (["c"], 5.0))
    text = record.model_dump_json()
    before = Record.model_validate_json(text.replace(',"error":{}', ""))
    assert before == record
    assert len(text) - len(text.replace(',"error":{}', "")) == 3 * len(',"error":{}')
    assert widths(chosen(before, SMALL, linear=1.0)) == [8, 4, 2, 4, 8]


def test_several_budgets_hold_at_once() -> None:
    record = searched((["a"], 3.0), (["b"], 1.0), (["c"], 3.5))
    assert widths(chosen(record, SMALL, linear=0.9)) == [8, 4, 2, 4, 8]
    file = chosen(record, SMALL, linear=0.9, bops=0.5)  # of 128 bit operations a saves 24, c 48
    assert widths(file) == [8, 4, 2, 2, 8]
    assert file.choice.objective == 4.5
    assert file.choice.budgets["bops"].model_dump() == {
        "unit": "bit operation",
        "limit": 64.0,
        "spent": 56.0,
    }


def test_in_order_until_the_budget_is_met() -> None:
    record = searched((["a"], 2.0), (["b"], 0.0), (["c"], 1.0), greedy=True)
    assert widths(chosen(record, SMALL, linear=0.9)) == [8, 4, 2, 4, 8]
    assert widths(chosen(record, SMALL, linear=0.8)) == [8, 4, 2, 2, 8]  # c, though a is enough
    assert widths(chosen(record, SMALL, linear=1.0)) == [8, 4, 4, 4, 8]


@pytest.mark.parametrize("greedy", [False, True])
def test_a_budget_that_nothing_meets(greedy: bool) -> None:
    record = searched((["a"], 3.0), (["b"], 1.0), (["c"], 5.0), greedy=greedy)
    with pytest.raises(UserError, match=r"linear.*(the least is 16|not even every item at 2/2)"):
        chosen(record, SMALL, linear=0.45)


@pytest.mark.parametrize("greedy", [False, True])
def test_a_score_that_is_no_number_is_refused(greedy: bool) -> None:
    record = searched((["a"], 3.0), (["b"], float("nan")), greedy=greedy)
    with pytest.raises(UserError, match="loss of layer 'b' at 2/2 bits: nan is no number"):
        chosen(record, SMALL, linear=0.9)


def test_only_a_search_has_scores() -> None:
    record = searched((["a"], 1.0)).model_copy(update={"scores": None})
    with pytest.raises(UserError, match="is no search"):
        chosen(record, SMALL, linear=0.9)
    with pytest.raises(UserError, match="unknown layer 'd'"):
        chosen(searched((["d"], 1.0)), SMALL, linear=0.9)


@pytest.mark.parametrize(("share", "units"), [(0.9, 246), (0.8, 184), (0.7, 123), (0.6, 61)])
def test_the_sheets_budgets_of_resnet20(share: float, units: int) -> None:
    """Units of MACs that may stay at 4 bit (eagl_alps sheet, 4.3); the loss here is the item's."""
    shapes = read_shapes(KEY, [PACKAGED])
    assert shapes is not None
    inner = {shape.name: shape.macs // UNIT for shape in shapes[1:-1]}
    assert sum(inner.values()) == 308
    linked = {f"layer{i}.0.conv1": f"layer{i}.0.shortcut.conv" for i in (2, 3)}
    alone = [name for name in inner if name not in linked.values()]
    items = [[name, linked[name]] if name in linked else [name] for name in alone]
    assert len(items) == 18
    record = searched(*((names, float(sum(inner[n] for n in names))) for names in items))
    file = chosen(record, shapes, linear=share)
    kept = sum(size for name, size in inner.items() if file.layers[name] == (4, 4))
    reachable = {0}
    for names in items:
        reachable |= {r + sum(inner[n] for n in names) for r in reachable}
    assert kept == max(size for size in reachable if size <= units)
    assert file.choice is not None
    assert file.choice.budgets["linear"].limit // (2 * UNIT) - 308 == units
    assert file.layers["conv1"] == file.layers["fc"] == (8, 8)
