"""Published programs, solved from conf/program alone: the authors' policies are the reference."""

import json
import math
import runpy
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from development_data import shared

from quantable.allocation import program as module
from quantable.allocation.knapsack import allocate
from quantable.allocation.program import HawqProgram, Policy, compare, program_names, read_program
from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.base.places import CONF, ROOT
from quantable.networks.layers import LayerShape
from quantable.networks.shapes import PACKAGED, read_shapes
from quantable.report.reporter import Reporter
from quantable.report.schema import Entry, Report
from quantable.store.bits_file import read_bits
from quantable.tables.cells import Asked
from quantable.tables.schema import load_table

KINDS = {"size": "modelsize", "bops": "bops", "latency": "latency"}  # ours: the authors' word
POLICIES = [
    (network, kind, share)
    for network in ("resnet18", "resnet50")
    for kind in KINDS
    for share in ("0.75", "0.5", "0.25")
]
SHAPES = "timm-classes=1000-in_channels=3-name={}.tv_in1k-3x224x224"


def published(place: str) -> dict[str, Bits]:
    layers = read_bits(CONF / "bits" / f"{place}.json").layers
    return {name: Bits(*pair) for name, pair in layers.items()}


def shapes(network: str) -> list[LayerShape]:
    return read_shapes(SHAPES.format(network), [PACKAGED])


def files(folder: str) -> list[Path]:
    return sorted((CONF / folder).glob("*.json"))


def test_discovery() -> None:
    assert program_names() == ["hawqv3_resnet18", "hawqv3_resnet50", "limpq_resnet50"]
    assert len(files("bits/hawqv3")) == 18
    assert len(files("bits/limpq")) == 1


# HAWQ-V3


@pytest.mark.parametrize(("network", "kind", "share"), POLICIES)
def test_hawqv3_policies(network: str, kind: str, share: str) -> None:
    bits = published(f"hawqv3/{network}_{KINDS[kind]}_{share}")
    program = read_program(f"hawqv3_{network}")
    found = compare(program, Policy(budget=kind, share=float(share)), bits, "here")
    # The one published policy that is not optimal: 0.8232 gained, where 0.8314 can be.
    known = (network, kind, share) == ("resnet50", "size", "0.25")
    assert found.both == found.weight == found.act == len(program.layers) - known
    assert ("published" in found.reason) == known
    assert "Optimal" in found.reason
    assert found.reason.endswith("gap 0")


def test_the_policy_that_differs_is_named_with_both_objectives() -> None:
    bits = published("hawqv3/resnet50_modelsize_0.25")
    program = read_program("hawqv3_resnet50")
    reason = compare(program, Policy(budget="size", share=0.25), bits, "here").reason
    assert reason.startswith("layer3.5.conv1: published 4, ours 8; ")
    # Recomputed for the project's paper sheet, by another program.
    assert "Omega 0.083110 (gain 0.823226) published, Omega 0.074949 (gain 0.831387) ours" in reason
    assert "exceed" not in reason


@pytest.mark.parametrize(("network", "kind", "share"), POLICIES[:9])
def test_solutions_respect_limits_and_ties(network: str, kind: str, share: str) -> None:
    problem = read_program(f"hawqv3_{network}").problem(Policy(budget=kind, share=float(share)))
    found = allocate(problem.loss, problem.budgets, problem.ties)
    assert found.spent[kind] <= problem.budgets[0].limit
    assert len(problem.ties) == 3
    assert all(len({found.bits[name] for name in tie}) == 1 for tie in problem.ties)


def hand_program(**changes: Any) -> HawqProgram:
    """Two layers whose Omega and costs are counted by hand below."""
    common = {"latency_ms": {4: 1.0, 8: 2.0}}
    content = {
        "method": "hawqv3",
        "network": "hand",
        "authors_network": "hand",
        "source": "hand",
        "conventions": {},
        "ties": [],
        "limits": {},
        "ends": {"stem": {"weights": 1, "macs": 1}, "fc": {"weights": 2, "macs": 2}},
        "layers": {
            "a": {"weights": 10, "macs": 300, "trace": 0.5, "perturbation": {4: 2.0, 8: 0.0}},
            "b": {"weights": 20, "macs": 100, "trace": 0.2, "perturbation": {4: 6.0, 8: 1.0}},
        },
    }
    for layer in content["layers"].values():
        layer.update(common)
    return HawqProgram.model_validate(content | changes)


@pytest.mark.parametrize(
    ("budget", "share", "limit", "widths"),
    [
        # 8 bit gain 1.0 in a and 1.0 in b; they need 5 and 10 byte more than 15 byte
        ("size", 0.5, 22.5, (8, 4)),
        # ... and 14,400 and 4,800 bit operations more than 6,400
        ("bops", 0.5, 16000.0, (4, 8)),
        ("latency", 1.0, 4.0, (8, 8)),
    ],
)
def test_a_budget_is_a_share_of_the_way_from_4_to_8_bit(
    budget: Any, share: float, limit: float, widths: tuple[int, int]
) -> None:
    problem = hand_program().problem(Policy(budget=budget, share=share))
    assert problem.budgets[0].limit == limit
    found = allocate(problem.loss, problem.budgets, problem.ties)
    assert tuple(bits.weight for bits in found.bits.values()) == widths
    at_4 = dict.fromkeys(("a", "b"), Bits(4, 4))
    assert problem.lost(at_4) == pytest.approx(0.5 * 2 + 0.2 * 6)


def test_ties_are_part_of_the_problem() -> None:
    problem = hand_program(ties=[["a", "b"]]).problem(Policy(budget="size", share=0.5))
    found = allocate(problem.loss, problem.budgets, problem.ties)
    assert set(found.bits.values()) == {Bits(4, 4)}


# LIMPQ


@pytest.mark.parametrize(
    ("counting", "weights", "activations", "objective"),
    [("authors", 52, 52, "4.617439"), ("exact", 49, 50, "4.630866")],
)
def test_limpq_policy(counting: Any, weights: int, activations: int, objective: str) -> None:
    program, bits = read_program("limpq_resnet50"), published("limpq/resnet50_w3a4")
    found = compare(program, Policy(counting=counting), bits, "here")
    assert (found.weight, found.act) == (weights, activations)
    assert f"importance {objective}" in found.reason
    exceeded = "exceed the limit: bops 47.86 of 47.63 G bit operations" in found.reason
    assert exceeded == (counting == "exact")
    assert len(program.problem(Policy(counting=counting)).loss) == 52
    options = program.problem(Policy(counting=counting)).loss["layer1.0.conv1"]
    assert len(options) == 25  # 1,300 variables in all


def test_limpq_forbids_the_two_outliers() -> None:
    loss = read_program("limpq_resnet50").problem(Policy(counting="exact")).loss
    forbidden = {
        (name, bits.weight)
        for name, options in loss.items()
        for bits, value in options.items()
        if math.isinf(value)
    }
    assert forbidden == {("layer4.0.downsample.0", 5), ("layer4.2.conv3", 5)}


# The tables


@lru_cache
def report(name: str) -> Report:
    return Reporter(load_table(name), Asked(), []).report()


def entries(name: str, column: str) -> dict[str, Entry]:
    return {entry.row: entry for entry in report(name).rows if entry.column == column}


@pytest.mark.parametrize(("network", "differing"), [("resnet18", 0), ("resnet50", 1)])
def test_hawqv3_tables_have_a_verdict_for_every_policy(network: str, differing: int) -> None:
    found = entries(f"hawqv3_{network}", "policy")
    words = [e.verdict for e in found.values() if e.published]
    assert (words.count("match"), words.count("below")) == (9 - differing, differing)
    if differing:
        assert "layer3.5.conv1: published 4, ours 8" in str(found["modelsize_0.25"].reason)
    assert found["uniform8"].reason == "not the solution of a program"
    top1 = entries(f"hawqv3_{network}", "top1_pct")
    assert {e.verdict for e in top1.values()} == {"not run"}
    assert all(e.published and "not here" in str(e.reason) for e in top1.values())


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_the_authors_float_and_uniform_rows_are_counted_alike(network: str) -> None:
    for column in ("weights_mib", "bops_g"):
        found = entries(f"hawqv3_{network}", column)
        assert {found[row].verdict for row in ("fp32", "uniform8", "uniform4")} == {"match"}


def test_limpqs_table_tells_both_counts() -> None:
    weights, acts = (entries("limpq_resnet50", f"policy_{part}") for part in ("weights", "acts"))
    assert [weights[row].verdict for row in ("authors", "exact")] == ["match", "below"]
    assert [acts[row].measured.mean for row in ("authors", "exact")] == [52, 50]
    assert "layer1.1.conv2: published 4/3, ours 3/3" in str(weights["exact"].reason)
    assert entries("limpq_resnet50", "weight_compression")["authors"].verdict == "match"
    inner = entries("limpq_resnet50", "bops_inner_g")
    assert inner["uniform"].measured.mean == pytest.approx(47.629467648)  # 12 x MACs
    assert inner["authors"].measured.mean == pytest.approx(47.8607, abs=5e-5)


# Of ResNet-50 with fc, in M: v1 (HAWQ-V3), whose stride sits in the first 1x1, and v1.5 (timm).
@pytest.mark.parametrize(
    ("name", "macs"),
    [("hawqv3_resnet50", 3858.0), ("limpq_resnet50", 4089.2)],
)
def test_macs_are_those_of_the_authors_network(name: str, macs: float) -> None:
    counted = read_program(name).recount(shapes("resnet50"), "here")
    assert sum(layer.macs for layer in counted) * 1e-6 == pytest.approx(macs, abs=0.05)


def test_reports_import_scipy_where_there_is_a_program_and_never_torch() -> None:
    code = """
import sys
from quantable.cli import report_main
report_main(["+table=ad_pim", "format=json"])
assert "scipy" not in sys.modules
report_main(["+table=limpq_resnet50", "format=json"])
assert "scipy" in sys.modules and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is refused


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown program 'hawqv3_resnet19'.*hawqv3_resnet18"):
        read_program("hawqv3_resnet19")


@pytest.mark.parametrize(
    ("name", "policy", "message"),
    [
        ("hawqv3_resnet18", Policy(counting="exact"), "here: .*HAWQ-V3 needs budget and share"),
        ("limpq_resnet50", Policy(budget="size", share=0.5), "here: .*LIMPQ needs counting"),
    ],
)
def test_a_policy_for_another_program_is_refused(name: str, policy: Policy, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare(read_program(name), policy, {}, "here")


def test_bits_that_the_program_lacks_are_refused() -> None:
    bits = published("hawqv3/resnet18_bops_0.5") | {"layer2.0.conv2": Bits(4, 8)}
    message = "here: layer 'layer2.0.conv2' has 4/8 bits; the program chooses among 4/4, 8/8"
    with pytest.raises(UserError, match=message):
        compare(read_program("hawqv3_resnet18"), Policy(budget="size", share=0.5), bits, "here")


def test_a_program_of_another_network_is_refused() -> None:
    program, network = read_program("hawqv3_resnet18"), shapes("resnet18")
    layers = dict(program.layers)
    layers["layer5.0.conv1"] = layers["layer4.0.conv1"]
    more = program.model_copy(update={"layers": layers})
    with pytest.raises(UserError, match=r"here: unknown layer 'layer5.0.conv1'. Nearest: "):
        more.recount(network, "here")
    del layers["layer5.0.conv1"], layers["layer1.0.conv1"]
    fewer = program.model_copy(update={"layers": layers})
    with pytest.raises(UserError, match=r"here: 1 of 21 layers are missing: layer1.0.conv1"):
        fewer.recount(network, "here")
    other = [LayerShape(n, 1, w, 1) for n, w in [("stem", 1), ("a", 11), ("b", 20), ("fc", 2)]]
    with pytest.raises(UserError, match=r"here: layer 'a' has 10 weights.*network 11"):
        hand_program().recount(other, "here")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("layers", "layer1.0.conv1", "macs"), 1, "limits.bops.0.75=8.*: its layers give"),
        (("layers", "layer1.0.conv1", "trase"), 1, "layer1.0.conv1.trase: .*not permitted"),
        (("method",), "hawq", "method.*'hawqv3', 'limpq'"),
        (("ties",), None, "hawqv3.ties: .*array"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_file_is_named_with_the_place(
    tmp_path: Path, monkeypatch: Any, place: tuple[str, ...], value: object, message: str
) -> None:
    content = json.loads((CONF / "program" / "hawqv3_resnet18.json").read_text())
    *way, last = place
    node = content
    for key in way:
        node = node[key]
    node[last] = value
    (tmp_path / "hawqv3_resnet18.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "PROGRAMS", tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_program("hawqv3_resnet18")
    assert "hawqv3_resnet18.json: " in str(caught.value)


# Against the transcriptions (development data; skipped where they are absent)


@pytest.mark.data
def test_conf_equals_the_transcriptions() -> None:
    papers = shared("papers")
    made = runpy.run_path(str(ROOT / "tools" / "make_programs.py"))["contents"](papers)
    expected = dict(made)
    kept = [*files("program"), *files("bits/hawqv3"), *files("bits/limpq")]
    found = {path.relative_to(CONF).as_posix(): json.loads(path.read_text()) for path in kept}
    assert found == expected


@pytest.mark.data
@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_sizes_and_bops_are_the_sheets(network: str) -> None:
    paper = json.loads(shared(f"papers/hawqv3/{network}.json").read_text())
    pairs = {"weights_mib": "size_MiB", "weights_mb": "size_MB", "bops_g": "bops_G"}
    for column, key in pairs.items():
        found = entries(f"hawqv3_{network}", column)
        assert len(found) == len(paper["derived_totals"]["values"]) == 12
        for row, totals in paper["derived_totals"]["values"].items():
            assert found[row].measured.mean == pytest.approx(totals[key], abs=0.006), (row, column)
            stated = next(r for r in paper["reported"] if r["policy"] == row)
            if column == "bops_g":
                assert found[row].published.value == stated["bops_G"]
            elif column == "weights_mib":
                assert found[row].published.value == stated["model_size_MB"]
