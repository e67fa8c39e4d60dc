"""Sizes by which mixed bits are set beside uniform ones, and the accuracy then: by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand_records import claim, hand_table, keep, reporter

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.networks.layers import LayerShape, Network, uniform
from quantable.report.reporter import Reporter

CONV = LayerShape("conv", macs=900, weights=100, inputs=64, c_in=3, c_out=8)
FC = LayerShape("fc", macs=50, weights=50, inputs=5, kind="linear", bias=10)
LAYERS = [CONV, FC]
NETWORK = Network(LAYERS, batch_norm_channels=8)  # 8 scales and 8 shifts
WIDE = "layer3.0.conv2"
PLACES = {4: (88.0, 90.0), 3: (80.0, 84.0)}  # test top-1 of uniform bits, by seed


def value(name: str, facts: Facts) -> float | None:
    return COLUMNS[name].value(facts)


def sized(tmp_path: Path, conv: int, fc: int) -> Facts:
    hardware = reporter(tmp_path).row("float").facts[0].hardware
    bits = {"conv": Bits(conv, 32), "fc": Bits(fc, 8)}
    return Facts(LAYERS, bits, hardware, network=NETWORK)


def test_sizes_by_hand(tmp_path: Path) -> None:
    facts = sized(tmp_path, conv=4, fc=2)
    assert value("mean_bits", facts) == 3
    assert value("mean_bits_by_weights", facts) == pytest.approx((400 + 100) / 150)
    assert value("quantized_weights", facts) == 150
    assert value("weights_kb", facts) == pytest.approx(500 / 8000)
    assert value("compression_quantized", facts) == pytest.approx(32 * 150 / 500)
    parameters, kept = 150 + 10 + 2 * 8, 10 + 2 * 8
    assert value("compression_all", facts) == pytest.approx(32 * parameters / (500 + 32 * kept))


def test_a_layer_in_float_is_no_quantized_weight(tmp_path: Path) -> None:
    facts = sized(tmp_path, conv=4, fc=32)
    assert value("quantized_weights", facts) == 100
    assert value("compression_quantized", facts) == 8
    assert value("weight_compression", facts) == pytest.approx(32 * 150 / (400 + 32 * 50))
    whole = sized(tmp_path, conv=32, fc=32)
    assert value("quantized_weights", whole) == 0
    assert value("compression_quantized", whole) is None
    assert value("compression_all", whole) == 1


def test_without_batch_norms_known_there_is_no_compression_of_all(tmp_path: Path) -> None:
    facts = sized(tmp_path, conv=4, fc=2)
    assert value("compression_all", replace(facts, network=None)) is None
    cut = replace(facts.network or NETWORK, batch_norm_channels=None)
    assert value("compression_all", replace(facts, network=cut)) is None


def about(tmp_path: Path, **mixed: Any) -> Reporter:
    """Two uniform rows and one of 89 and 92 % that is set beside them; two seeds."""
    words = ["quantizer=minmax", "bits.ends=null"]
    rows = {
        "float": {"label": "float", "overrides": ["quantizer=none"]},
        "u4": {"label": "4 bit", "overrides": [*words, "bits.inner=[4,32]"]},
        "u3": {"label": "3 bit", "overrides": [*words, "bits.inner=[3,32]"]},
        "mixed": {"label": "mixed", "overrides": [*words, "bits.inner=[2,32]"]} | mixed,
    }
    ahead = claim(
        kind="smallest", column="uniform_gap_pp", rows=["mixed"], holds={"full": {"positive": 1}}
    )
    columns = {"uniform_gap_pp": None, "drop_pp": None}
    found = reporter(
        tmp_path,
        hand_table(
            rows=rows, columns=columns, claims={"ahead": ahead}, seeds=[0, 1], baseline="float"
        ),
    )
    for seed in (0, 1):
        keep(found, "float", seed, (32, [(90.0, 93.0 + seed)]))
        for bits, places in PLACES.items():
            keep(found, f"u{bits}", seed, (bits, [(90.0, places[seed])]))
    keep(found, "mixed", 0, (4, [(90.0, 89.0)]))
    keep(found, "mixed", 1, (4, [(90.0, 92.0)]))
    return found


def test_the_gap_to_one_row_is_a_difference_seed_by_seed(tmp_path: Path) -> None:
    found = about(tmp_path, uniform=["u4"])
    assert found.by_seed("mixed", "uniform_gap_pp") == {0: 1.0, 1: 2.0}
    assert found.by_seed("mixed", "drop_pp") == {0: 4.0, 1: 2.0}
    assert found.by_seed("float", "drop_pp") == {0: 0.0, 1: 0.0}
    assert found.by_seed("u4", "uniform_gap_pp") == {}
    line = found.claim("ahead", found.table.claims["ahead"])
    assert (line.verdict, line.bound) == ("holds", "above 0 in 1 or more")
    assert line.measured is not None
    assert (line.measured.mean, line.measured.std) == (1.5, pytest.approx(0.5**0.5))


def test_the_gap_to_two_rows_is_to_the_line_between_them(tmp_path: Path) -> None:
    found = about(tmp_path, uniform=["u4", "u3"])
    one = found.row_facts("mixed").by_seed[0]
    assert value("uniform_gap_pp", one) == 89 - 88  # at 4 bit, as the first
    assert one.shapes is not None
    half = uniform(one.shapes, 3)
    heaviest = max(one.shapes, key=lambda shape: shape.weights)
    half[heaviest.name] = Bits(4, 32)
    share = heaviest.weights / sum(shape.weights for shape in one.shapes)
    on_line = 80 + share * (88 - 80)
    assert value("uniform_gap_pp", replace(one, bits=half)) == pytest.approx(89 - on_line)


def test_a_gap_needs_every_row_of_the_seed(tmp_path: Path) -> None:
    found = about(tmp_path, uniform=["u4", "u3"])
    for row in ("mixed", "u4"):
        keep(found, row, 2, (4, [(90.0, 89.0)]))
    again = reporter(tmp_path, found.table, seeds=(0, 1, 2))
    assert set(again.by_seed("mixed", "top1_pct")) == {0, 1, 2}
    assert set(again.by_seed("mixed", "uniform_gap_pp")) == {0, 1}


def test_a_row_set_beside_others_is_no_uniform_row(tmp_path: Path) -> None:
    table = about(tmp_path, uniform=["u4"]).table
    rows = {name: row.model_dump() for name, row in table.rows.items()}
    rows["u4"]["uniform"] = ["u3"]
    with pytest.raises(ValueError, match=r"rows.mixed.uniform: u4 is itself set beside others"):
        hand_table(rows=rows, claims={}, columns={"uniform_gap_pp": None})


def layered(tmp_path: Path, layer: str) -> Reporter:
    rows = {
        "mixed": {"label": "mixed", "overrides": ["quantizer=minmax", "bits.ends=null"]},
        "one": {"label": layer, "cell": "mixed", "layer": layer},
    }
    columns = dict.fromkeys(
        ("layer_weights", "layer_bits", "layer_real_bits", "layer_bits_share_pct")
    )
    return reporter(tmp_path, hand_table(rows=rows, claims={}, columns=columns, seeds=[0]))


def test_a_row_of_one_layer(tmp_path: Path) -> None:
    found = layered(tmp_path, WIDE)
    record = keep(found, "mixed", 0, (4, [(90.0, 89.0)] * 2), (2, [(90.0, 89.0)]))
    search = record.history[1].model_copy(update={"own": {"real_bits": {WIDE: 3.75}}})
    bits = record.phases[1].bits | {WIDE: (8, 32)}
    changed = record.model_copy(
        update={
            "history": [record.history[0], search, record.history[2]],
            "phases": [record.phases[0], record.phases[1].model_copy(update={"bits": bits})],
        }
    )
    found.stores[0].add(changed)
    again = reporter(tmp_path, found.table)
    facts = again.row_facts("one").by_seed[0]
    others = sum(shape.weights for shape in facts.shapes or []) - 64 * 64 * 9
    assert value("layer_weights", facts) == 64 * 64 * 9
    assert value("layer_bits", facts) == 8
    assert value("layer_real_bits", facts) == 3.75
    assert value("layer_bits_share_pct", facts) == pytest.approx(
        100 * 8 * 64 * 64 * 9 / (8 * 64 * 64 * 9 + 2 * others)
    )
    assert value("layer_bits", again.row_facts("mixed").by_seed[0]) is None
    assert [vector.row for vector in again.report().vectors] == ["mixed"]


def test_a_layer_that_the_network_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows.one.layer: unknown layer 'fd'. Nearest: "):
        layered(tmp_path, "fd").row("one")
