"""Runs that cut channels, from the command's words to the record and back to the network."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import quantable.run
import quantable.training.build
from quantable.base.errors import UserError
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.config.composition import compose_run
from quantable.cost.hardware import hardware_of
from quantable.quantization.quantizer import Quantizer
from quantable.store.record import Phase, Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.finished import load_network

BASELINE_EPOCHS = 3
SMALL = [
    *("recipe=sgd_one_cycle", f"recipe.epochs={BASELINE_EPOCHS}", "recipe.batch_size=8"),
    "recipe.optimizer.lr=0.02",
    *("data.train_images=32", "data.val_images=16", "data.test_images=16"),
    *("trainer.threads=1", "trainer.accelerator=cpu", "bits.ends=[16,16]"),
]
ONE_UPDATE = [
    *("quantizer=ad_pruning", "bits.inner=[16,16]", "quantizer.callback.max_updates=1"),
    *("quantizer.callback.min_epochs=1", "quantizer.callback.max_epochs=1"),
]
LSQ_PER_CHANNEL = [
    f"quantizer.callback.{operand}.{word}"
    for operand in ("weight", "act")
    for word in ("_target_=quantable.methods.lsq.LSQ", "per_channel=true")
]
RUNS = {
    "resnet8": [*ONE_UPDATE, "quantizer.callback.max_updates=2"],
    "shortcuts": [
        *(*ONE_UPDATE, *LSQ_PER_CHANNEL, "quantizer.callback.keep_by=magnitude"),
        *("model.net.shortcuts=all", "bits.inner=[8,8]", "bits.layers={layer2.0.conv1: [6,6]}"),
    ],
    "vgg19": [*ONE_UPDATE, "model=vgg19_cifar", "model.net.width=0.25"],
    "mobilenetv2": [*ONE_UPDATE, "model=timm", "model.net.name=mobilenetv2_035"],
    "whole": ["quantizer=minmax", "bits.inner=[4,4]", "recipe.epochs=1"],
}


class Run:
    """A finished run: its record as read from the store, and its network as it was trained."""

    def __init__(self, store: Store, words: list[str]) -> None:
        networks: list[nn.Module] = []
        build = quantable.training.build.part_of

        def noted(config, key):
            built = build(config, key)
            networks.extend([built] if key == "model.net" else [])
            return built

        words = [*SMALL, *words]
        cell = Cell(None, "single", 0, compose_run(words) | {"seed": 0}, tuple(words))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantable.training.build, "part_of", noted)
            store.add(quantable.run.run_cell(cell, store, "", lambda *_: None))
        (self.net,) = networks
        found = store.find(cell.signature, "")
        assert found is not None
        self.record: Record = found
        self.weights = store.weights(found.name)

    @property
    def last(self) -> Phase:
        return self.record.phases[-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    store = Store(tmp_path_factory.mktemp("store"))
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice
        yield {name: Run(store, words) for name, words in RUNS.items()}
    torch.set_num_threads(threads)


PRUNED = pytest.mark.parametrize("name", [name for name in RUNS if name != "whole"])


def images() -> Tensor:
    return torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@PRUNED
def test_every_network_loses_channels_and_trains_on(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    assert len(run.record.phases) == (3 if name == "resnet8" else 2)
    assert [phase.epochs for phase in run.record.phases] == [1] * len(run.record.phases)
    for before, after in zip(run.record.phases, run.record.phases[1:], strict=False):
        assert after.parameters < before.parameters
        assert all(after.channels[layer] <= before.channels[layer] for layer in before.channels)
        assert sum(s.macs for s in after.shapes) < 0.8 * sum(s.macs for s in before.shapes)
        assert after.bits != before.bits
    assert all(epoch.number("miscounted") == 0 for epoch in run.record.history)
    assert {name: len(run.net.get_submodule(name).weight) for name in run.last.channels} == (
        run.last.channels
    )
    assert run.last.parameters == sum(p.numel() for p in run.net.parameters())


def test_a_run_that_cuts_nothing_says_nothing_of_channels(runs: dict[str, Run]) -> None:
    (phase,) = runs["whole"].record.phases
    assert (phase.channels, phase.parameters, phase.shapes) == (None, None, None)


# Costs by hand, from the channels of ResNet-8 on 28x28 images


def layers_of(phase: Phase) -> dict[str, tuple[int, int, int]]:
    """MACs, weights and inputs of every layer, written down from the paper's network."""
    c = phase.channels
    assert c is not None
    found = {}
    blocks = [("layer1.0", "conv1", 28, 28), ("layer2.0", "layer1.0.conv2", 28, 14)]
    blocks += [("layer3.0", "layer2.0.conv2", 14, 7)]
    rows = [("conv1", 1, 9, 28, 28)]
    for name, before, side_in, side_out in blocks:
        rows.append((f"{name}.conv1", c[before], 9, side_in, side_out))
        rows.append((f"{name}.conv2", c[f"{name}.conv1"], 9, side_out, side_out))
        if name != "layer1.0":
            rows.append((f"{name}.shortcut.conv", c[before], 1, side_in, side_out))
    rows.append(("fc", c["layer3.0.conv2"], 1, 1, 1))
    for name, c_in, kernel, side_in, side_out in rows:
        weights = c_in * kernel * c[name]
        found[name] = (weights * side_out**2, weights, c_in * side_in**2)
    return found


def mac_pj(phase: Phase) -> float:
    return sum(
        macs * (3.1 * phase.bits[name][0] / 32 + 0.1)
        for name, (macs, _, _) in layers_of(phase).items()
    )


def test_costs_follow_from_the_channels_that_are_left(runs: dict[str, Run]) -> None:
    record = runs["resnet8"].record
    first, *_, last = record.phases
    whole, left = layers_of(first), layers_of(last)
    assert first.channels == {
        "conv1": 16,
        **{f"layer1.0.conv{i}": 16 for i in (1, 2)},
        **{f"layer2.0.{name}": 32 for name in ("conv1", "conv2", "shortcut.conv")},
        **{f"layer3.0.{name}": 64 for name in ("conv1", "conv2", "shortcut.conv")},
        "fc": 10,
    }
    for phase in record.phases:
        hand = layers_of(phase)
        assert {s.name: (s.macs, s.weights, s.inputs) for s in phase.shapes} == hand
        norms = [2 * count for name, count in phase.channels.items() if name != "fc"]
        weights = sum(weights for _, weights, _ in hand.values())
        assert phase.parameters == weights + sum(norms) + 10  # 10: the last layer's biases

    bits = {name: pair[0] for name, pair in last.bits.items()}
    supported = {k: min(s for s in (2, 4, 8, 16) if s >= k) for k in range(1, 17)}
    fj = {2: 2.942, 4: 16.968, 8: 66.714, 16: 276.676}
    pim_uj = sum(left[name][0] * fj[supported[bits[name]]] for name in left) * 1e-9
    memory_pj = sum((w + i) * 2.5 * bits[name] for name, (_, w, i) in left.items())
    whole_macs = sum(macs for macs, _, _ in whole.values())
    whole_pj = whole_macs * 1.65 + sum((w + i) * 40 for _, w, i in whole.values())
    expected = {
        "macs_m": sum(macs for macs, _, _ in left.values()) * 1e-6,
        "energy_mac_uj": mac_pj(last) * 1e-6,
        "energy_memory_uj": memory_pj * 1e-6,
        "energy_uj": (mac_pj(last) + memory_pj) * 1e-6,
        "mac_energy_ratio": whole_macs * 1.65 / mac_pj(last),
        "energy_ratio": whole_pj / (mac_pj(last) + memory_pj),
        "pim_energy_uj": pim_uj,
        "pim_ratio": whole_macs * 276.676e-9 / pim_uj,
        "pim_mac_fj": pim_uj * 1e9 / sum(macs for macs, _, _ in left.values()),
        "mean_bits": sum(bits.values()) / len(bits),
        "bops_g": sum(macs * bits[name] ** 2 for name, (macs, _, _) in left.items()) * 1e-9,
        "weights_mb": sum(w * bits[name] for name, (_, w, _) in left.items()) / 8e6,
    }
    assert {name: record.costs[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_training_is_charged_for_the_channels_each_phase_had(runs: dict[str, Run]) -> None:
    record = runs["resnet8"].record
    spent = [mac_pj(phase) / mac_pj(record.phases[0]) for phase in record.phases]
    complexity = [sum(spent[: i + 1]) / BASELINE_EPOCHS for i in range(3)]
    assert complexity[0] == 1 / 3
    assert [epoch.training_complexity for epoch in record.history] == pytest.approx(complexity)

    macs = [sum(macs for macs, _, _ in layers_of(phase).values()) for phase in record.phases]
    hardware = hardware_of({"hardware": compose_run([])["hardware"]})
    shapes = record.phases[0].shapes
    for i, phase in enumerate(record.phases):
        facts = Facts(shapes, phase.bit_map, hardware, record=record, phase=phase)
        share = sum(macs[: i + 1]) / (BASELINE_EPOCHS * macs[0])
        assert COLUMNS["training_macs"].value(facts) == pytest.approx(share)
        assert COLUMNS["training_complexity"].value(facts) == pytest.approx(complexity[i])
        assert COLUMNS["parameters"].value(facts) == phase.parameters


# Weights of a finished run


def test_a_new_process_gets_the_same_network(runs: dict[str, Run], tmp_path: Path) -> None:
    torch.save(images(), tmp_path / "images.pt")
    script = """
import sys
from pathlib import Path
import torch
from quantable.training.finished import load_network
from quantable.store.store import Store
store, folder = Store(Path(sys.argv[1])), Path(sys.argv[2])
images = torch.load(folder / "images.pt")
with torch.no_grad():
    for record in store.records():
        net = load_network(record, store.weights(record.name))
        torch.save(net(images), folder / f"{record.name}.pt")
"""
    store = next(iter(runs.values())).weights.parents[1]
    command = [sys.executable, "-c", script, str(store), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, run in runs.items():
        with torch.no_grad():
            expected = run.net.eval()(images())
        assert expected.isfinite().all(), name
        assert torch.equal(torch.load(tmp_path / f"{run.record.name}.pt"), expected), name


@pytest.mark.parametrize("name", ["resnet8", "shortcuts", "vgg19"])
def test_the_loaded_network_has_the_records_size(runs: dict[str, Run], name: str) -> None:
    run = runs[name]
    net = load_network(run.record, run.weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's: deprecated, and on the networks' own code
        from fvcore.nn import FlopCountAnalysis, parameter_count

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        operators = FlopCountAnalysis(net, images()[:1]).by_operator()
    assert parameter_count(net)[""] == run.last.parameters
    macs = {"conv": 0, "linear": 0}
    for shape in run.last.shapes:
        macs[shape.kind] += shape.macs
    assert {kind: operators[kind] for kind in macs} == macs


def test_signs_are_the_runs_own(runs: dict[str, Run], tmp_path: Path) -> None:
    run, place = runs["whole"], tmp_path / "weights.pt"
    state = torch.load(run.weights, weights_only=True)

    def signed() -> set[str]:
        """Layers with a signed input by all who know of it, in the network read back."""
        torch.save(state, place)
        found = {}
        for name, layer in load_network(run.record, place).named_modules():
            if isinstance(quantizer := getattr(layer, "act_quantizer", None), Quantizer):
                weights = layer.parametrizations.weight[0]
                found[name] = {
                    quantizer.signed,
                    *(q.layer.input_signed for q in (quantizer, weights)),
                }
        assert len(found) == 10
        assert all(len(words) == 1 for words in found.values())
        return {name for name, words in found.items() if words == {True}}

    assert signed() == {"conv1"}
    for key in ("fc.parametrizations.weight.0", "fc.act_quantizer"):  # as if rules were other then
        state[f"{key}._extra_state"][-1] = True
    state["fc.act_quantizer._extra_state"][-2] = True
    assert signed() == {"conv1", "fc"}
    for key in state:
        if key.endswith("_extra_state"):  # of an older store
            state[key] = state[key][:2]
    assert signed() == {"conv1"}


def test_missing_weights_are_named(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.pt: no such file; weights are kept where"):
        load_network(runs["whole"].record, tmp_path / "gone.pt")
