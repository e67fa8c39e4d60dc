"""What fits an accumulator by widths alone, set against sums that are added up."""

from itertools import product

import pytest

from quantable.columns import COLUMNS
from quantable.columns.acq import WIDTHS, pairs
from quantable.columns.facts import Facts
from quantable.config.composition import compose_run
from quantable.cost.hardware import hardware_of
from quantable.networks.layers import LayerShape, uniform
from quantable.report.figures.budgets import describe
from quantable.report.reporter import Reporter
from quantable.report.shapes import Grid
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

HARDWARE = hardware_of(compose_run([]))
CONV = LayerShape("conv", 7, 96, 3, c_in=16, c_out=12, groups=2, kernel=(3, 3))  # K = 72
FC = LayerShape("fc", 5, 50, 2, "linear", c_in=50, c_out=1, groups=1, kernel=(1, 1))


def number(column: str, **own: object) -> float | None:
    known = {"shapes": [CONV, FC], "bits": uniform([CONV, FC], 4), "hardware": HARDWARE} | own
    return COLUMNS[column].value(Facts(**known))  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulator", [8, 12, 16])
@pytest.mark.parametrize("terms", [25, 192, 864, 1728])
def test_a_tight_pair_fits_every_sum_and_one_bit_more_does_not(
    accumulator: int, terms: int
) -> None:
    """Claim AC-3, by the bound in its own form, for K that are no power of two."""
    found = pairs(accumulator, terms)

    def fits(weight: int, data: int) -> bool:
        return terms * 2 ** (weight - 1) * 2**data <= 2 ** (accumulator - 1) - 1

    for weight, data in found:
        assert fits(weight, data)
        assert weight == 8 or not fits(weight + 1, data)
    others = [data for data in WIDTHS if data not in {data for _, data in found}]
    assert not any(fits(weight, data) for weight, data in product(WIDTHS, others))


def test_a_layer_counts_itself_and_a_network_its_longest_sum() -> None:
    assert number("sum_terms") == number("sum_terms", layer="conv") == 72
    assert number("sum_terms", layer="fc") == 50
    assert number("log2_terms") == 7
    assert number("budget_16_bits") == 16 - 7
    assert number("budget_16_bits", layer="fc") == 16 - 6
    assert (number("weights"), number("macs")) == (146, 12)
    assert (number("weights", layer="fc"), number("macs", layer="fc")) == (50, 5)


def test_what_is_not_known_is_no_number() -> None:
    older = [CONV, LayerShape("fc", 5, 50, 2, "linear")]
    assert number("sum_terms", shapes=older) is None
    assert number("sum_terms", shapes=older, layer="conv") == 72
    assert number("weights", shapes=None) is None
    assert number("l1_limit") is None  # no accumulator is declared
    assert number("l1_limit", accumulator=16, bits=uniform([CONV, FC], 32)) is None


def test_a_row_that_declares_its_accumulator_shows_norms_alone() -> None:
    assert number("sum_terms", accumulator=16) is None
    # A channel at its limit with every datum at 2^4 - 1: the sum reaches the accumulator's top.
    limit, centred = (number(c, accumulator=16) for c in ("l1_limit", "centred_l1_limit"))
    assert limit is not None
    assert centred is not None
    assert limit * 2**4 == 2**15 - 1
    assert centred / 2 * (2**4 - 1) == 2**15 - 1  # half of the norm has each sign


def test_every_number_by_hand_is_met() -> None:
    report = Reporter(load_table("acq_bounds"), Asked(), []).report()
    assert {claim.verdict for claim in report.claims} == {"holds"}
    assert len(report.claims) == 13
    table = load_table("acq_bounds")
    assert sum(len(c.rows) for c in table.claims.values()) == 2 * 29 + 7 * 17 + 2 * 20 + 2 * 21


def test_the_figure_has_a_grid_for_each_whole_network() -> None:
    table = load_table("acq_bounds")
    grids = dict(describe(Reporter(table, Asked(), []), "budgets", table.figures["budgets"]))
    networks = ("allcnn_c", "alexnet", "torchvision", "lenet5", "network")
    assert list(grids) == [f"budgets_{name}" for name in networks]
    grid = grids["budgets_alexnet"]
    assert isinstance(grid, Grid)
    assert grid.columns[5] == "fc6"  # type: ignore[index]
    assert [line[5] for line in grid.groups[0].rows.values()] == [18, 10, 2, -2, -6]


def test_two_times_is_the_ceiling_and_what_is_measured_needs_an_arm_processor() -> None:
    report = Reporter(load_table("acq_speedup"), Asked(), []).report()
    verdicts = {claim.claim: claim.verdict for claim in report.claims}
    assert verdicts.pop("AC-2, measured") == "not judged"
    assert verdicts == {"AC-2": "holds", "AC-2, generated code": "holds"}
    numbers = {(entry.row, entry.column): entry for entry in report.rows}
    halved = numbers["sums_16", "dotprod_speedup"].measured
    assert halved is not None
    assert halved.mean == 0.5
    missing = numbers["measured", "neon_speedup"]
    assert missing.measured is None
    assert str(missing.reason).startswith("not run: the claim is about an Arm processor")


def test_a_number_that_is_off_is_counted() -> None:
    narrow = Asked(("model.net.width=0.25",), rows=("allcnn_c", *ALLCNN))
    table = load_table("acq_bounds")
    reporter = Reporter(table, narrow, [])
    assert reporter.mean("allcnn_2", "sum_terms") == 216
    claim = table.claims["budget at 16 bit"].model_copy(
        update={"rows": ALLCNN, "values": table.claims["budget at 16 bit"].values[:9]}
    )
    assert reporter.claim("budgets", claim).verdict == "does not hold"


ALLCNN = tuple(f"allcnn_{number}" for number in range(1, 10))
