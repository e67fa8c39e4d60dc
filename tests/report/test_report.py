"""Reports from hand-made records: what is chosen, judged and shown."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hand_records import LAYERS, claim, hand_table, keep, record_of, reporter
from rich.console import Console
from rich.text import Text

from quantable.base.errors import UserError
from quantable.columns import COLUMNS
from quantable.networks.shapes import shape_key, write_network
from quantable.report.html.section import section
from quantable.report.render import FORMATS
from quantable.report.reporter import Reporter
from quantable.report.schema import ClaimLine, Entry, Report
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.schema import Table

FLOAT = [(91.0, 92.0)] * 5
GOOD, BAD = [(90.5, 91.5)], [(80.0, 99.0)]  # held out and test: the test images must not decide


def entry(about: Reporter, row: str, column: str) -> Entry:
    return about.entry(row, column)


def judged(about: Reporter, name: str) -> ClaimLine:
    return about.claim(name, about.table.claims[name])


# Entries


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"float": []}, "kept"),
        ({"float": ["quantizer=minmax"]}, "kept"),
        ({"float": ["quantizer=minmax", "recipe.batch_norms=null"]}, "measured anew on 40 images"),
        ({"float": ["recipe.batch_norms=null"]}, "kept"),  # nothing calibrates a float network
        ({"float": ["recipe=adam"]}, None),
    ],
)
def test_batch_norms_are_said_beside_a_number_of_no_training(
    tmp_path: Path, words: dict[str, list[str]], said: str | None
) -> None:
    base = [*("model=resnet8_cifar", "model.net.shortcuts=all"), "recipe=post_training"]
    rows = {"float": {"label": "run", "overrides": words["float"]}}
    columns = {"top1_pct": None, "macs_m": None}
    table = hand_table(base=base, rows=rows, columns=columns, claims={}, figures={})
    about = reporter(tmp_path, table)
    cell = about.cell("float", "paper", 0)
    record = record_of(cell, (32, [(91.0, 92.0)]))
    record.data.sizes["train"] = 40
    about.stores[0].add(record)
    about = reporter(tmp_path, table)
    known = json.loads(FORMATS["json"](about.report()))["rows"]
    assert [entry["measured"].get("batch_norms") for entry in known] == [said, None]
    for name in ("terminal", "markdown"):
        assert ("batch norms" in FORMATS[name](about.report())) == (said is not None)
    assert section(about, "").lines[0].norms == said


def test_a_rows_number_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed, test in enumerate((91.8, 92.0, 92.5)):
        keep(about, "float", seed, (32, [(91.0, 50.0), (91.0, test)]))
    shown = entry(about, "float", "top1_pct")
    assert shown.measured is not None
    assert shown.measured.mean == pytest.approx(92.1)
    assert shown.measured.std == pytest.approx(0.130**0.5)  # (0.09 + 0.01 + 0.16) / 2
    assert (shown.measured.n, shown.measured.budget) == (3, "paper")
    assert shown.measured.data == "Fashion-MNIST mini"
    assert len(set(shown.measured.records)) == 3
    assert shown.published is not None
    assert shown.published.value == 92.0
    assert shown.verdict == "match"


def test_products_that_no_cost_has_are_said_once(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(notes=["the table's own"]))
    assert about.report().notes == ["the table's own"]
    width = ("model.net.width=0.75",)  # of no packaged network
    about = reporter(tmp_path, hand_table(notes=["the table's own"]), overrides=width)
    config = about.cell("float", "paper", 0).config
    packaged = reporter(tmp_path).row_facts("float").facts[0].network
    assert packaged is not None
    key = shape_key(config["model"], config["data"]["input_size"])
    write_network(key, replace(packaged, activation_macs=178_831_872), about.stores[0].shapes)
    said, own = reporter(tmp_path, about.table, overrides=width).report().notes
    assert "Products of two activations" in said
    assert "in no cost: 178,831,872 MACs for one input" in said
    assert own == "the table's own"


def test_seeds_that_are_missing_make_it_incomplete(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "float", 1, (32, FLOAT))
    shown = entry(about, "float", "top1_pct")
    assert (shown.verdict, shown.reason) == ("incomplete", "1 of 3 seeds")


def test_a_copy_of_the_data_is_not_comparable(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed in range(3):
        keep(about, "float", seed, (32, FLOAT), variant="jpeg", title="CIFAR-10 (JPEG)")
    shown = entry(reporter(tmp_path), "float", "top1_pct")
    assert shown.verdict == "not comparable"
    assert shown.reason == "CIFAR-10 (JPEG) is not an exact copy of the paper's data"


@pytest.mark.parametrize(
    ("kept", "taken"),
    [  # variants of the records of seeds 0, 1 and 2
        ([["jpeg"], ["jpeg"], [""]], ""),
        ([["", "jpeg"], ["jpeg"], ["jpeg"]], ""),
        ([["jpeg", "jpeg121"], ["jpeg"], ["jpeg"]], "jpeg121"),
        ([["webp"], ["jpeg"], ["webp"]], "webp"),
        ([["part"], [], ["part"]], "part"),
    ],
)
def test_a_rows_records_are_of_one_variant(
    tmp_path: Path, kept: list[list[str]], taken: str
) -> None:
    about = reporter(tmp_path)
    for seed, variants in enumerate(kept):
        for word in variants:
            keep(about, "float", seed, (32, FLOAT), variant=word, title=f"title {word}")
    shown = entry(reporter(tmp_path), "float", "top1_pct").measured
    assert shown is not None
    assert shown.n == len(shown.records) == sum(taken in variants for variants in kept)
    assert shown.data == f"title {taken}"
    names = {record.name for record in Store(tmp_path).records() if record.data.variant == taken}
    assert set(shown.records) == names


def test_a_claim_compares_records_of_one_variant(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "float", 0, (32, FLOAT))
    ad = (16, GOOD), (8, GOOD)
    keep(about, "ad", 0, *ad, variant="jpeg", title="CIFAR-10 (JPEG)")
    mixed = reporter(tmp_path)
    assert judged(mixed, "drop").measured is None
    assert entry(mixed, "ad_final", "top1_pct").measured is None
    assert entry(mixed, "ad", "top1_pct").measured is None
    keep(about, "float", 0, (32, [(91.0, 93.0)]), variant="jpeg", title="CIFAR-10 (JPEG)")
    keep(about, "ad", 0, *ad)
    found = judged(reporter(tmp_path), "drop").measured
    assert found is not None
    assert (found.mean, found.n, found.data) == (pytest.approx(0.5), 1, "Fashion-MNIST mini")


def test_without_records_only_arithmetic_is_known(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    assert entry(about, "float", "top1_pct").verdict == "not run"
    ratio = entry(about, "bits16", "pim_ratio").measured
    assert ratio is not None
    assert (ratio.mean, ratio.n, ratio.budget, ratio.data) == (1.0, 1, "computed", None)
    assert entry(about, "float", "pim_ratio").measured is None  # float has no PIM energy
    assert entry(about, "ad", "pim_ratio").measured is None  # its widths are not known yet
    assert entry(about, "ad_final", "top1_pct").measured is None


def test_a_small_budget_is_never_a_match(tmp_path: Path) -> None:
    about = reporter(tmp_path, budget="cpu")
    for seed in range(3):
        keep(about, "float", seed, (32, FLOAT))
    shown = entry(about, "float", "top1_pct")
    assert shown.verdict == "not comparable"
    assert shown.measured is not None
    assert shown.measured.budget == "cpu"


def test_the_budget_shown_is_the_largest_with_a_record(tmp_path: Path) -> None:
    for budget in ("smoke", "cpu"):
        keep(reporter(tmp_path, budget=budget), "float", 0, (32, FLOAT))
    assert reporter(tmp_path, budget=None).budget == "cpu"
    assert reporter(tmp_path / "empty", budget=None).budget == "paper"


def test_recollected_and_derived_numbers_are_hints(tmp_path: Path) -> None:
    rows = {
        word: {
            "label": word,
            "overrides": ["quantizer=none"],
            "published": {"top1_pct": {"value": 92.0, "source": "memory", "confidence": word}},
        }
        for word in ("published", "proved", "recollected", "derived")
    }
    about = reporter(tmp_path, hand_table(rows=rows, claims={}))
    for seed in range(3):
        keep(about, "published", seed, (32, FLOAT))
    rows_shown = json.loads(FORMATS["json"](about.report()))["rows"]
    shown = {e["row"]: e for e in rows_shown if e["column"] == "top1_pct"}
    for word in ("published", "proved"):
        assert shown[word]["published"]["confidence"] == word
        assert shown[word]["hint"] is None
        assert shown[word]["verdict"] == "match"
    for word in ("recollected", "derived"):
        assert shown[word]["published"] is None
        assert shown[word]["hint"] == {
            "value": 92.0,
            "source": "memory",
            "confidence": word,
            "std": None,
            "n": None,
        }
        assert shown[word]["verdict"] == "no published value"


def test_training_complexity_by_hand(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "float", 0, (32, FLOAT))
    keep(about, "ad", 0, (16, FLOAT[:2]), (4, FLOAT[:3]), (2, FLOAT[:1]))
    values = {
        row: measured.mean
        for row in ("float", "bits16", "ad", "ad_1", "ad_2")
        if (measured := about.measured(row, "training_complexity"))
    }
    # 45 nm MAC energies of the sheet, 4.3: 1.65, 0.4875 and 0.29375 pJ at 16, 4 and 2 bit
    four, two = 3 * 0.4875 / 1.65, 0.29375 / 1.65
    assert values == pytest.approx(
        {"bits16": 5 / 5, "ad": 2 / 5, "ad_1": (2 + four) / 5, "ad_2": (2 + four + two) / 5}
    )


def test_a_phase_that_the_run_did_not_have_says_so(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "ad", 0, (16, GOOD), (8, GOOD))
    assert entry(about, "ad_1", "top1_pct").measured is not None
    shown = entry(about, "ad_2", "top1_pct")
    assert shown.measured is None
    assert shown.reason is not None
    assert "the run had 2" in shown.reason


def test_an_unknown_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown row 'ad_3'. Nearest: ad_2"):
        reporter(tmp_path, rows=("ad_3",)).report()


# The final phase: docs/methods/activation_density.md, 11


@pytest.mark.parametrize(
    ("budget", "val", "bits"),
    [
        ("paper", [91.0, 91.0, 91.0, 91.0], 2),  # the last one is good enough
        ("paper", [91.0, 91.0, 90.5, 89.9], 4),
        ("paper", [91.0, 91.0, 89.0, 90.2], 2),  # the last that is, not the first that is not
        ("paper", [91.0, 90.0, 89.0, 88.0], 8),  # exactly 1.0 pp below
        ("paper", [91.0, 70.0, 70.0, 70.0], 2),  # none is: the best, and of equals the last
        ("paper", [91.0, 89.0, 89.9, 89.5], 4),
        ("cpu", [91.0, 89.0, 89.5, 88.1], 2),  # 3.0 pp at CPU size
        ("cpu", [91.0, 89.0, 88.0, 87.9], 4),
        ("paper", [70.0, 91.0], 8),
    ],
)
@pytest.mark.parametrize("test", [0.0, 99.0], ids=["bad test", "good test"])
def test_final_phase(tmp_path: Path, budget: str, val: list[float], bits: int, test: float) -> None:
    about = reporter(tmp_path, budget=budget, seeds=(0,))
    keep(about, "float", 0, (32, [(99.0, 50.0), (91.0, 50.0)]))  # its last epoch: 91.0
    phases = [(b, [(99.0, test), (v, test)]) for b, v in zip((16, 8, 4, 2), val, strict=False)]
    keep(about, "ad", 0, *phases)
    (facts,) = about.row("ad_final").facts
    assert facts.bits is not None
    assert {b.weight for b in facts.bits.values()} == {bits}


def test_there_is_no_final_phase_without_reference_or_quantized_phase(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    keep(about, "ad", 0, (16, GOOD), (8, GOOD))
    keep(about, "ad", 1, (16, GOOD))
    keep(about, "float", 1, (32, FLOAT))
    shown = entry(about, "ad_final", "top1_pct")
    assert shown.measured is None
    assert shown.reason is not None
    assert "no such phase" in shown.reason


# Claims


def test_a_drop_is_taken_seed_by_seed(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed, (ref, own) in enumerate([(92.0, 91.5), (94.0, 93.0), (90.0, 89.4)]):
        keep(about, "float", seed, (32, [(91.0, ref)]))
        keep(about, "ad", seed, (16, GOOD), (8, [(91.0, own)]))
    line = judged(about, "drop")
    assert line.measured is not None
    assert line.measured.mean == pytest.approx((0.5 + 1.0 + 0.6) / 3)
    # Of 0.5, 1.0, 0.6; taken from means it would be the far larger spread between seeds.
    assert line.measured.std == pytest.approx(0.07**0.5)
    assert (line.verdict, line.reason, line.row) == ("holds", None, "ad_final")


def test_a_drop_uses_only_seeds_that_both_rows_have(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(claims={"drop": drop_of("ad_1")}))
    for seed, test in [(0, 92.0), (1, 99.0)]:
        keep(about, "float", seed, (32, [(91.0, test)]))
    for seed in (0, 2):
        keep(about, "ad", seed, (16, GOOD), (8, [(91.0, 91.5)]))
    line = judged(about, "drop")
    assert line.measured is not None
    assert (line.measured.mean, line.measured.n) == (0.5, 1)
    assert (line.verdict, line.reason) == ("holds", "1 of 3 seeds")


@pytest.mark.parametrize(
    ("least", "verdict", "reason"),
    [
        (30.1, "not judged", "float too weak: 30.00, below 30.1"),
        (30.0, "does not hold", None),
        (None, "does not hold", None),
    ],
)
def test_a_weak_float_network_has_nothing_to_lose(
    tmp_path: Path, least: float | None, verdict: str, reason: str | None
) -> None:
    weak = drop_of("ad_1") | {"float_at_least": least}
    about = reporter(tmp_path, hand_table(claims={"drop": weak}))
    for seed, ref in enumerate([20.0, 40.0, 30.0]):
        keep(about, "float", seed, (32, [(91.0, ref)]))
        keep(about, "ad", seed, (16, GOOD), (8, [(91.0, 1.0)]))
    line = judged(about, "drop")
    assert (line.verdict, line.reason) == (verdict, reason)


def drop_of(row: str) -> dict:
    return claim(kind="drop", rows=[row], reference="bits16", holds={"full": {"max": 1.0}})


def test_a_drop_without_a_common_seed_is_not_judged(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(claims={"drop": drop_of("ad_1")}))
    keep(about, "float", 0, (32, FLOAT))
    keep(about, "ad", 1, (16, GOOD), (8, GOOD))
    assert judged(about, "drop").verdict == "not judged"


@pytest.mark.parametrize(("test", "verdict"), [(91.0, "holds"), (90.9, "does not hold")])
def test_a_drop_holds_up_to_its_bound(tmp_path: Path, test: float, verdict: str) -> None:
    about = reporter(tmp_path)
    for seed in range(3):
        keep(about, "float", seed, (32, FLOAT))
        keep(about, "ad", seed, (16, GOOD), (8, [(91.0, test)]))
    assert judged(about, "drop").verdict == verdict


@pytest.mark.parametrize(
    ("widths", "verdict", "row", "ratio"),
    [
        ((16, 8, 4), "holds", "ad_2", 276.676 / 16.968),
        ((16, 4, 8), "does not hold", "ad_1", 276.676 / 16.968),  # large, but falling
        ((16, 4, 3), "does not hold", "ad_1", 276.676 / 16.968),  # 3 bit costs as 4
        ((16, 9, 12), "does not hold", "ad_1", 1.0),
        ((16, 8), "holds", "ad_1", 276.676 / 66.714),  # one update is a ladder of one
    ],
)
def test_the_largest_counts_and_must_rise(
    tmp_path: Path, widths: tuple[int, ...], verdict: str, row: str, ratio: float
) -> None:
    about = reporter(tmp_path)
    for seed in range(3):
        keep(about, "ad", seed, *((width, GOOD) for width in widths))
    line = judged(about, "largest")
    assert line.measured is not None
    assert line.measured.mean == pytest.approx(ratio)
    assert (line.verdict, line.row) == (verdict, row)
    assert len(line.measured.records) == 3


def keep_two_updates(about: Reporter, seed: int, first: int, second: int) -> None:
    keep(about, "ad", seed, (16, GOOD), (first, GOOD), (second, GOOD))


def test_times_is_taken_seed_by_seed(tmp_path: Path) -> None:
    times = claim(kind="times", column="pim_ratio", rows=["ad_2"], reference="ad_1")
    times |= {"unit": "x", "holds": {"full": {"min": 2.0}}}
    about = reporter(tmp_path, hand_table(claims={"times": times}))
    keep_two_updates(about, 0, 8, 4)
    keep_two_updates(about, 1, 4, 2)
    keep(about, "ad", 2, (16, GOOD), (8, GOOD))  # has no second update
    line = judged(about, "times")
    assert line.measured is not None
    factors = (66.714 / 16.968, 16.968 / 2.942)  # Table IV, in fJ per MAC
    assert line.measured.mean == pytest.approx(sum(factors) / 2)
    # Of the two factors; the quotient of the means would have no spread, and another value.
    assert line.measured.std == pytest.approx((factors[1] - factors[0]) / 2**0.5)
    assert (line.verdict, line.reason) == ("holds", "2 of 3 seeds")
    assert (line.kind, line.row, line.reference) == ("times", "ad_2", "ad_1")


@pytest.mark.parametrize(("second", "verdict"), [(4, "holds"), (7, "does not hold")])
def test_times_is_judged_by_its_bound(tmp_path: Path, second: int, verdict: str) -> None:
    times = claim(kind="times", column="pim_ratio", rows=["ad_2"], reference="ad_1")
    about = reporter(tmp_path, hand_table(claims={"t": times | {"holds": {"full": {"min": 2.0}}}}))
    keep_two_updates(about, 0, 8, second)  # 7 bit costs as 8
    assert judged(about, "t").verdict == verdict


def test_times_needs_both_rows(tmp_path: Path) -> None:
    times = claim(kind="times", rows=["ad_1"], reference="bits16", holds={"full": {}})
    about = reporter(tmp_path, hand_table(claims={"times": times}))
    keep(about, "float", 0, (32, [(91.0, 0.0)]))  # a factor of nothing is no number
    keep(about, "ad", 0, (16, GOOD), (8, GOOD))
    keep(about, "ad", 1, (16, GOOD), (8, GOOD))
    line = judged(about, "times")
    assert (line.measured, line.verdict, line.reason) == (None, "not judged", "not run")


def test_over_divides_two_columns_of_a_row(tmp_path: Path) -> None:
    over = claim(kind="over", column="energy_ratio", over="pim_ratio", rows=["bits16", "ad_1"])
    why = "the formulas allow at most 3.8"
    about = reporter(tmp_path, hand_table(claims={"over": over | {"report_only": why}}))
    line = judged(about, "over")
    assert line.measured is not None
    assert (line.measured.mean, line.measured.budget, line.row) == (1.0, "computed", "bits16")
    for seed in range(3):
        keep(about, "ad", seed, (16, GOOD), (8, GOOD))
    about = reporter(tmp_path, about.table)
    line = judged(about, "over")
    energy, pim = about.measured("ad_1", "energy_ratio"), about.measured("ad_1", "pim_ratio")
    assert energy is not None
    assert pim is not None
    assert line.measured is not None
    assert line.measured.mean == pytest.approx(energy.mean / pim.mean)
    assert (line.measured.n, line.measured.data) == (3, "Fashion-MNIST mini")
    assert (line.verdict, line.reason, line.bound) == ("not judged", why, None)


def test_a_claim_for_report_only_is_not_judged_even_with_a_bound(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(claims={"drop": drop_of("ad_1") | {"report_only": "so"}}))
    assert judged(about, "drop").reason == "not run"
    keep(about, "float", 0, (32, FLOAT))
    keep(about, "ad", 0, (16, GOOD), (8, GOOD))
    line = judged(reporter(tmp_path, about.table), "drop")
    assert (line.verdict, line.reason, line.bound) == ("not judged", "so", "at most 1")


def test_a_report_leaves_out_claims_of_the_other_scale(tmp_path: Path) -> None:
    claims = {
        "full": claim(holds={"full": {"min": 1.0}}),
        "cpu": claim(holds={"cpu": {"min": 1.0}}),
        "both": claim(report_only="shown"),
    }
    table = hand_table(claims=claims)

    def shown(budget: str) -> list[str]:
        return [line.claim for line in reporter(tmp_path, table, budget=budget).report().claims]

    assert shown("paper") == shown("gpu") == ["full", "both"]
    assert shown("cpu") == shown("smoke") == ["cpu", "both"]


def test_a_claim_line_shows_mean_std_seeds_data_and_budget(tmp_path: Path) -> None:
    def lines() -> list[str]:
        about = reporter(tmp_path, hand_table(claims={"value": claim(holds={"full": {}})}))
        report = about.report()
        (terminal,) = [
            line for line in FORMATS["terminal"](report).splitlines() if "says so" in line
        ]
        (markdown,) = [
            line for line in FORMATS["markdown"](report).splitlines() if "says so" in line
        ]
        return [terminal, markdown]

    about = reporter(tmp_path)
    for seed, test in enumerate((91.8, 92.0)):
        keep(about, "float", seed, (32, FLOAT))
        keep(about, "ad", seed, (16, GOOD), (8, [(91.0, test)]))
        said = ("91.80", "n=1, so no std") if seed == 0 else ("91.90 ± 0.14 (n=2)", "n=2")
        for line in lines():
            assert all(words in line for words in said)
            assert "; Fashion-MNIST mini; budget paper" in line


# Vectors and the baseline


def test_bits_per_layer_are_those_of_the_first_seed_that_has_a_run(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    for seed, width in ((1, 5), (2, 6)):
        record = record_of(about.cell("ad", "paper", seed), (16, GOOD), (8, GOOD), (4, GOOD))
        record.phases[1].bits["layer2.0.conv1"] = (width, width)
        record.phases[2].bits["layer2.0.conv1"] = (width, 8)
        record.phases[2].channels = dict.fromkeys(LAYERS[:-1], 12)
        about.stores[0].add(record)
    report = about.report()
    first, second = report.vectors  # the 16-bit phase is uniform, and there is no final one
    assert (first.row, first.seed, first.layers) == ("ad_1", 1, LAYERS)
    assert first.bits == [(8, 8)] * 4 + [(5, 5)] + [(8, 8)] * 6
    assert (first.channels, second.channels) == (None, [12] * 10 + [None])
    for face in ("terminal", "markdown"):
        text = FORMATS[face](report)
        assert "AD 1, seed 1: 8 8 8 8 5 8 8 8 8 8 8\n" in text
        assert (
            "AD 2, seed 1: weights 4 4 4 4 5 4 4 4 4 4 4; activations 4 4 4 4 8 4 4 4 4 4 4; "
            "channels 12 12 12 12 12 12 12 12 12 12 –" in text
        )
    assert json.loads(FORMATS["json"](report))["vectors"][0]["bits"][4] == [5, 5]
    assert "12 12" not in FORMATS["csv"](report)


def test_a_row_of_every_layer_is_a_row_for_each_of_the_asked_network(tmp_path: Path) -> None:
    rows = {
        "float": {"label": "float", "overrides": ["quantizer=none"]},
        "each": {"label": "ResNet-8", "cell": "float", "layer": "*"},
    }
    table = hand_table(rows=rows, columns={"layer_weights": None}, claims={})
    about = reporter(tmp_path, table)
    assert list(about.table.rows) == ["float", *(f"each.{layer}" for layer in LAYERS)]
    assert about.table.rows["each.layer2.0.conv1"].label == "ResNet-8: layer2.0.conv1"
    assert about.mean("each.layer2.0.conv1", "layer_weights") == 3 * 3 * 16 * 32
    unknown = reporter(tmp_path, table, overrides=("model.net.width=0.5",), rows=("each",))
    (entry,) = unknown.report().rows
    assert (entry.row, entry.measured) == ("each", None)
    assert entry.reason == "the layers of its network are known once it has run"
    assert len(reporter(tmp_path, table, rows=("each",)).report().rows) == len(LAYERS)
    assert len(reporter(tmp_path, table, rows=("float",)).report().rows) == 1


def test_bits_that_are_planned_layer_by_layer_are_shown_without_a_run(tmp_path: Path) -> None:
    words = ["quantizer=minmax", "bits.inner=[4,4]", "bits.ends=[8,8]"]
    mixed = [*words, "bits.layers={layer1.0.conv2:[2,2]}"]
    rows = {
        "even": {"label": "even", "overrides": words},  # 8, 4, ..., 4, 8
        "mixed": {"label": "mixed", "overrides": mixed},
    }
    report = reporter(tmp_path, hand_table(rows=rows, claims={})).report()
    assert [(v.row, v.seed, v.bits[2]) for v in report.vectors] == [("mixed", None, (2, 2))]
    assert "  mixed: 8 4 2 4 4 4 4 4 4 4 8\n" in FORMATS["terminal"](report)


def test_a_row_knows_the_baselines_run_of_its_seed(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(baseline="bits16"))
    for seed in (0, 2):
        keep(about, "float", seed, (32, FLOAT))
    for seed in range(3):
        keep(about, "ad", seed, (16, GOOD), (8, GOOD))
    baselines = [facts.baseline for facts in about.row("ad_1").facts]
    assert [b.seed if b else None for b in baselines] == [0, None, 2]
    assert {b.row for b in baselines if b} == {"float"}
    assert [f.baseline for f in reporter(tmp_path).row("ad_1").facts] == [None] * 3


def test_claims_without_a_run_are_not_judged(tmp_path: Path) -> None:
    lines = reporter(tmp_path).report().claims
    assert [line.claim for line in lines] == ["drop", "largest", "value"]
    for line in lines:
        assert (line.verdict, line.reason, line.measured) == ("not judged", "not run", None)
    assert [line.bound for line in lines] == ["at most 1", "at least 4, rising", "at most 0.9"]


@pytest.mark.parametrize(
    ("budget", "verdict", "reason"),
    [
        ("paper", "holds", None),
        ("gpu", "holds", None),
        ("cpu", "holds", None),
        ("smoke", "not judged", "budget smoke proves nothing"),
    ],
)
def test_a_claim_is_judged_by_the_bound_of_its_budget(
    tmp_path: Path, budget: str, verdict: str, reason: str | None
) -> None:
    about = reporter(tmp_path, hand_table(base=BASE), budget=budget)
    for seed in range(3):
        keep(about, "float", seed, (32, FLOAT))
        keep(about, "ad", seed, (16, GOOD), (4, GOOD))
    line = judged(about, "value")
    assert (line.verdict, line.reason) == (verdict, reason)
    without_bound = judged(about, "drop").verdict  # only full size has one
    assert (without_bound == "not judged") == (budget in ("cpu", "smoke"))


BASE = ("model=resnet8_cifar", "model.net.shortcuts=all", "recipe.epochs=5")


# Faces

LABEL = "a|b [red]c[/red] :x:"


def faces_table() -> Table:
    known = {"value": 91.0, "source": "Table 9", "confidence": "published"}
    lost = {"value": None, "reason": "page | lost [bold]"}
    rows = {
        "float": {
            "label": LABEL,
            "overrides": ["quantizer=none"],
            "published": {"top1_pct": known, "training_complexity": lost},
        },
        "ad": {"label": "AD", "overrides": ["quantizer=ad"], "reason": "needs [i]bits[/i]"},
    }
    claims = {"C-1": claim(rows=["float"], text="a | [b]", holds={"full": {"min": 90.0}})}
    return hand_table(rows=rows, claims=claims, notes=["one | note [link]"], title="[red]title")


@pytest.fixture
def faces(tmp_path: Path) -> Report:
    about = reporter(tmp_path, faces_table())
    for seed, test in enumerate((91.8, 92.0, 92.5)):
        keep(about, "float", seed, (32, [(91.0, test)]), title="set [x]")
    return about.report()


def cells(line: str) -> list[str]:
    """Split a Markdown line at the pipes that are not escaped; brackets as they are read."""
    parts = line.replace("\\|", "\0").strip("|").split("|")
    return [part.replace("\0", "|").replace("\\[", "[").strip() for part in parts]


def test_markdown(faces: Report) -> None:
    text = FORMATS["markdown"](faces)
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        assert len({len(cells(line)) for line in lines}) == 1
        assert set(cells(lines[1])) == {"---"}
    head, _, first, second = map(cells, tables[0])
    assert head[:2] == ["row", "top-1 [%]"]
    assert first[:2] == [LABEL, "92.10 ± 0.36 (n=3)"]
    assert first[-2:] == ["top-1 91.00 %; C-1", "above; C-1 holds"]
    assert second[:2] == ["AD", "–"]
    assert cells(tables[1][2])[1] == "a | [b]"
    for words in (
        r"- AD: needs \[i]bits\[/i]",
        r"- one \| note \[link]",
        r"budget paper; data set \[x]",
    ):
        assert words in text


def test_terminal_shows_brackets_and_colons_as_text(faces: Report) -> None:
    text = FORMATS["terminal"](faces)
    assert "\x1b" not in text  # standard output is no terminal here
    for words in (
        LABEL,
        "92.10 ± 0.36 (n=3)",
        "hand: [red]title",
        "above; C-1 holds",
        "- AD: needs [i]bits[/i]",
        "- one | note [link]",
        "a | [b]",
        "data set [x]",
        "at least 90",
    ):
        assert words in text


def test_terminal_colours_do_not_eat_the_words(
    faces: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantable.report.render.Console", coloured)
    text = FORMATS["terminal"](faces)
    assert "\x1b[" in text
    assert LABEL in Text.from_ansi(text).plain


def coloured(**settings) -> Console:
    return Console(**settings | {"force_terminal": True, "width": 200, "color_system": "standard"})


def test_comma_separated(faces: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](faces))))
    assert [(line["row"], line["column"]) for line in lines] == [
        (row, column)
        for row in ("float", "ad")
        for column in ("top1_pct", "training_complexity", "pim_ratio")
    ]
    first = lines[0]
    assert float(first["measured_mean"]) == pytest.approx(92.1)
    assert float(first["measured_std"]) == pytest.approx(0.130**0.5)
    assert (first["measured_n"], first["measured_data"]) == ("3", "set [x]")
    assert (first["published_value"], first["published_source"]) == ("91.0", "Table 9")
    assert (first["unit"], first["verdict"]) == ("%", "above")
    assert lines[3]["verdict"] == "not run"
    assert lines[3]["reason"] == "needs [i]bits[/i]"
    assert lines[3]["measured_mean"] == ""


def test_json_is_the_report(faces: Report) -> None:
    assert Report.model_validate_json(FORMATS["json"](faces)) == faces
    content = json.loads(FORMATS["json"](faces))
    assert {"row", "column", "unit", "published", "measured", "verdict"} <= set(content["rows"][0])
    assert content["rows"][0]["label"] == LABEL
    assert content["rows"][1]["reason"] == "page | lost [bold]"
    assert content["claims"][0]["verdict"] == "holds"


@pytest.mark.parametrize("face", sorted(FORMATS))
def test_a_report_of_nothing_has_every_face(tmp_path: Path, face: str) -> None:
    text = FORMATS[face](reporter(tmp_path, hand_table(claims={})).report())
    assert "not run" in text
    assert "Claims" not in text


# What a run spent, and whether it was one run


def test_training_time_is_the_runs_seconds_over_the_baselines(tmp_path: Path) -> None:
    about = reporter(tmp_path, hand_table(baseline="bits16"))
    keep(about, "float", 0, (32, [(91.0, 90.0)] * 5))  # five epochs of one second each
    keep(about, "ad", 0, (16, [(90.0, 89.0)] * 2), (8, [(90.0, 89.0)] * 2))
    assert [value for _, value in about.known("ad", "training_time")] == [2 / 5]
    assert [value for _, value in about.known("ad_1", "training_time")] == [4 / 5]
    assert [value for _, value in about.known("bits16", "training_time")] == [1]


def test_one_run_from_untrained_weights_has_no_epoch_outside_it(tmp_path: Path) -> None:
    about = reporter(tmp_path)
    record = keep(about, "ad", 0, (16, [(90.0, 89.0)] * 2), (8, [(90.0, 89.0)] * 3))
    facts = about.row("ad").facts[0]

    def outside(changed: Record) -> float | None:
        return COLUMNS["retrained_epochs"].value(replace(facts, record=changed))

    assert outside(record) == 0
    given = record.config | {"model.net.weights_sha256": "0" * 64}
    assert outside(record.model_copy(update={"config": given})) == 5  # it began trained
    gap = [*record.history[:3], *record.history[4:]]  # epoch 3 is missing, 4 stands in its place
    assert outside(record.model_copy(update={"history": gap})) == 2


def test_miscounted_activations_are_summed_over_the_epochs_that_counted_twice(
    tmp_path: Path,
) -> None:
    about = reporter(tmp_path)
    record = keep(about, "ad", 0, (16, [(90.0, 89.0)] * 3))
    facts = about.row("ad").facts[0]
    column = COLUMNS["miscounted"].value
    assert column(facts) is None  # a run that counted nothing twice proves nothing
    twice = [
        e.model_copy(update={"own": {"miscounted": n}})
        for e, n in zip(record.history, (0, 2, 1), strict=True)
    ]
    assert column(replace(facts, record=record.model_copy(update={"history": twice}))) == 3
