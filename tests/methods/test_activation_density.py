"""Activation density against hand counts and the sheet's sequences."""

import io
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from ad_arguments import NUMBERS, ONE_EPOCH_PHASES
from torch import Tensor, nn

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.columns.training import complexity
from quantable.cost.hardware import Hardware, load_hardware
from quantable.methods.activation_density import ActivationDensity, DensityMeter, is_flat, next_bits
from quantable.methods.density_pruning import ChannelMeter
from quantable.networks.cifar import resnet8_cifar
from quantable.networks.layers import LayerShape, uniform
from quantable.quantization.quantizer import Quantizer
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

HARDWARE = Path(__file__).parents[2] / "conf" / "hardware"
GREY = (1, 28, 28)


def method(**changes: Any) -> ActivationDensity:
    """Return AD with phases of one epoch and nothing that ends the run early."""
    return ActivationDensity(**ONE_EPOCH_PHASES | changes)


def attached(**changes: Any) -> tuple[ActivationDensity, Classifier]:
    """Put AD on ResNet-8 with a convolution in every shortcut."""
    net = resnet8_cifar(10, in_channels=1, width=0.5, shortcuts="all")
    module = Classifier(
        net,
        input_size=GREY,
        optimizer=torch.optim.SGD,
        schedule=constant,
        epochs=9,
        numbers=NUMBERS,
    )
    ad = method(**changes)
    ad.setup(None, module, "fit")
    return ad, module


def end_epoch(ad: ActivationDensity, module: Classifier, density: float | dict[str, float]) -> None:
    """End an epoch whose densities are chosen, by activation module."""
    for name, meter in ad.meters.items():
        share = density if isinstance(density, float) else density[name]
        meter.nonzero.fill_(round(share * 1000))
        meter.elements.fill_(1000)
    module.history.append({"epoch": module.epoch})
    ad.on_train_epoch_end(None, module)
    module.epoch += 1


# AD-7: the proportion of non-zero activations


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[[-1.0, 0.0, 2.0, 3.0]]], 2 / 4),
        ([[[0.0, -0.0, -5.0]]], 0.0),
        ([[[1e-30, 1.0]]], 1.0),
        ([[[-1.0, 0.0, 2.0, 3.0]], [[7.0]]], 3 / 5),  # over elements, not over batches
        ([[[1.0, -1.0]] * 3, [[-1.0, -1.0]]], 3 / 8),
    ],
    ids=["half", "none", "smallest", "unequal batches", "two samples"],
)
def test_density_is_the_share_of_nonzero_outputs(batches: list, expected: float) -> None:
    relu = nn.ReLU()
    meter = DensityMeter(relu)
    for batch in batches:
        relu(torch.tensor(batch))
    assert meter.read() == expected


class Functional(nn.Module):
    """ReLUs as functions, except where ``module`` says so."""

    def __init__(self, module: bool) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.relu = nn.ReLU() if module else torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Functional(module=False), "no ReLU module is behind any of the network's 3 layers"),
        (Functional(module=True), r"1 of the network's 3 layers have none: conv2 \(Relu\)\."),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
            r"1 of the network's 2 layers have none: 0 \(Silu\)\. A function such as relu\(x\)",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1)),
            "no ReLU module is behind any of the network's 1 layers",
        ),
    ],
)
def test_activations_whose_zeros_are_not_seen_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(
        UserError, match=f"AD counts zeros behind nn.ReLU and nn.ReLU6 .* {message}"
    ):
        method().attach(net, (3, 8, 8))
    assert not any(isinstance(module, Quantizer) for module in net.modules())


@pytest.mark.parametrize(
    ("name", "unmetered"),
    [("mobilenetv2_035", "conv_pwl"), ("seresnet18", "fc2")],  # linear bottlenecks, gates
)
def test_linear_layers_and_gates_keep_their_widths(name: str, unmetered: str) -> None:
    ad = method()
    ad.attach(timm.create_model(name), (3, 32, 32))
    alone = ad.bits.keys() - ad.meter_of.keys()
    assert {layer for layer in ad.bits if layer.endswith(unmetered)} <= alone
    assert ad.updated_bits(dict.fromkeys(ad.meter_of, 0.5)).keys().isdisjoint(alone)


def test_counts_are_64_bit_integers_and_start_anew_after_reading() -> None:
    relu = nn.ReLU()
    meter = DensityMeter(relu)
    relu(torch.ones(1, 4))
    assert meter.nonzero.dtype == meter.elements.dtype == torch.int64
    assert meter.read() == 1.0
    relu(torch.tensor([[1.0, -1.0]]))
    assert meter.read() == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU6()], ids=["relu", "relu6"])
def test_counts_are_exact_in_every_precision(relu: nn.Module, dtype: torch.dtype) -> None:
    meter = DensityMeter(relu)
    x = torch.linspace(-20, 30, 3 * 5 * 61 * 67).sin().reshape(3, 5, 61, 67)
    batches = [x.to(dtype), (9 * x.flip(0)).to(dtype).contiguous(memory_format=torch.channels_last)]
    for batch in batches:
        relu(batch)
    positive = sum(np.count_nonzero(batch.float().numpy() > 0) for batch in batches)
    assert meter.nonzero.item() == positive
    assert meter.elements.item() == 2 * x.numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros_of_both_signs_and_the_least_numbers_are_told_apart(dtype: torch.dtype) -> None:
    identity = nn.Identity()
    meter, channels = DensityMeter(identity), ChannelMeter(identity)
    least = torch.finfo(dtype).smallest_normal
    row = torch.tensor([0.0, -0.0, least, 1.0, torch.inf], dtype=dtype)
    identity(row.repeat(40_000, 1))  # more than 16 bits count
    assert meter.nonzero.item() == 3 * 40_000
    assert channels.nonzero.tolist() == [0, 0, 40_000, 40_000, 40_000]
    assert meter.miscounted == channels.miscounted == 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile itself does
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # so here
def test_a_compiled_network_counts_in_one_graph() -> None:
    torch.compiler.reset()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    meter, channels = DensityMeter(net[1]), ChannelMeter(net[1])
    convolution = deepcopy(net[0])
    net.compile(fullgraph=True, backend="aot_eager")  # a graph break raises
    counts = []
    for seed in range(3):
        x = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
        net(x).sum().backward()
        counts.append(np.count_nonzero(convolution(x).relu().detach().numpy(), axis=(0, 2, 3)))
    assert channels.nonzero.tolist() == sum(counts).tolist()
    assert meter.nonzero.item() == sum(counts).sum()
    assert meter.elements.item() == channels.elements.item() == 3 * 2 * 4 * 7 * 7
    net.eval()(x)
    assert meter.elements.item() == 3 * 2 * 4 * 7 * 7


def test_evaluation_is_not_counted() -> None:
    relu = nn.ReLU()
    meter = DensityMeter(relu)
    relu(torch.tensor([[1.0, -1.0]]))
    relu.eval()
    relu(torch.ones(1, 100))
    assert meter.read() == 0.5


def test_density_is_counted_before_the_quantizer_makes_zeros() -> None:
    torch.manual_seed(0)
    first, last = nn.Conv2d(1, 4, 3), nn.Linear(4 * 4 * 4, 2)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), last)
    ad = method(layers={"2": [2, 2]})
    ad.attach(net, (1, 8, 8))
    x = torch.randn(16, 1, 8, 8)
    net(x)

    relu = np.maximum(nn.functional.conv2d(x, first.weight, first.bias).detach().numpy(), 0)
    quantized = ad.act_quantizers["2"](torch.from_numpy(relu))
    assert ad.meters["1"].read() == np.count_nonzero(relu) / relu.size
    assert np.count_nonzero(quantized.detach().numpy()) < 0.8 * np.count_nonzero(relu)


# The update rule


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.3, [16, 5, 2]),
        (0.5, [16, 8, 4, 2]),
        (0.7, [16, 11, 8, 6, 4, 3, 2]),
        (0.9, [16, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5]),
    ],
)
def test_constant_density_gives_the_sheets_sequence(density: float, expected: list[int]) -> None:
    found = [16]
    while (bits := next_bits(found[-1], density, min_bits=2)) != found[-1]:
        found.append(bits)
    assert found == expected


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_a_width_stays_from_one_minus_half_a_bit_on(bits: int) -> None:
    limit = 1 - 1 / (2 * bits)
    assert next_bits(bits, limit, min_bits=1) == bits
    assert next_bits(bits, limit - 1e-6, min_bits=1) == bits - 1


def test_halves_go_up_where_pythons_round_goes_to_even() -> None:
    assert round(9 * 0.5) == 4
    assert next_bits(9, 0.5, min_bits=2) == 5
    assert round(5 * 0.5) == 2
    assert next_bits(5, 0.5, min_bits=2) == 3
    assert next_bits(2, 0.0, min_bits=2) == 2


# Saturation

FLAT = [{"a": 0.50, "b": 0.30}, {"a": 0.50, "b": 0.31}]


@pytest.mark.parametrize(
    ("series", "window", "within", "expected"),
    [
        (FLAT, 1, 0.011, True),
        (FLAT, 1, 0.009, False),  # one layer is enough
        (FLAT[:1], 1, 1.0, False),  # too short to say
        (FLAT * 2, 2, 1e-9, True),  # both windows have the same mean
        (FLAT * 2, 3, 1.0, False),
        ([{"a": 0.9}, *[{"a": 0.5}] * 4], 2, 1e-9, True),  # what lies before does not matter
        ([{"a": x} for x in (0.4, 0.6, 0.5, 0.5)], 2, 1e-9, True),  # means, not values
        ([{"a": x} for x in (0.4, 0.4, 0.5, 0.5)], 2, 0.099, False),
        ([{"a": x} for x in (0.4, 0.4, 0.5, 0.5)], 2, 0.101, True),
        ([{"a": x} for x in (0.5, 0.5, 0.4, 0.4)], 2, 0.099, False),  # falling counts too
    ],
)
def test_flat(series: list, window: int, within: float, expected: bool) -> None:
    assert is_flat(series, window=window, within=within) == expected


# In a network


def test_shortcuts_share_the_meter_of_the_layer_they_are_added_into() -> None:
    ad, _ = attached()
    assert ad.meter_of["conv1"] != ad.meter_of["layer1.0.conv1"]
    for block in ("layer1.0", "layer2.0", "layer3.0"):
        assert ad.meter_of[f"{block}.shortcut.conv"] == ad.meter_of[f"{block}.conv2"]
        assert ad.meter_of[f"{block}.shortcut.conv"] != ad.meter_of[f"{block}.conv1"]
    assert "fc" not in ad.meter_of
    assert len(ad.meters) == 7  # the stem's and two in each block


def test_widths_follow_their_own_density_and_the_ends_stay() -> None:
    ad, module = attached()
    shares = dict.fromkeys(ad.meters, 0.5)
    shares[ad.meter_of["layer2.0.conv1"]] = 0.25
    shares[ad.meter_of["layer2.0.conv2"]] = 0.75
    end_epoch(ad, module, shares)
    widths = {name: bits.weight for name, bits in ad.bits.items()}
    assert widths == {
        "conv1": 16,
        "layer1.0.conv1": 8,
        "layer1.0.conv2": 8,
        "layer1.0.shortcut.conv": 8,
        "layer2.0.conv1": 4,
        "layer2.0.conv2": 12,
        "layer2.0.shortcut.conv": 12,
        "layer3.0.conv1": 8,
        "layer3.0.conv2": 8,
        "layer3.0.shortcut.conv": 8,
        "fc": 16,
    }
    assert {bits.act for bits in ad.bits.values()} == {4, 8, 12, 16}
    assert ad.weight_quantizers["layer2.0.conv1"].bits == 4
    assert ad.act_quantizers["layer2.0.shortcut.conv"].bits == 12


def test_the_history_has_density_total_and_the_widths_the_epoch_was_trained_with() -> None:
    ad, module = attached()
    shares = {name: i / 10 for i, name in enumerate(ad.meters, start=1)}
    end_epoch(ad, module, shares)
    (line,) = module.history
    assert line["own"]["density"] == {layer: shares[meter] for layer, meter in ad.meter_of.items()}
    assert line["own"]["total_density"] == pytest.approx(0.4)  # (0.1 + ... + 0.7) / 7
    assert set(map(tuple, line["bits"].values())) == {(16, 16)}
    assert (module.phase, module.phase_start) == (1, 1)


def test_a_run_goes_down_the_ladder_and_ends_when_no_width_changes() -> None:
    ad, module = attached()
    inner = []
    while not module.finished:
        inner.append(ad.bits["layer3.0.conv1"].weight)
        end_epoch(ad, module, 0.5)
        assert module.phase == len(inner) - module.finished
    assert inner == [16, 8, 4, 2]
    assert ad.bits["conv1"] == ad.bits["fc"] == Bits(16, 16)


@pytest.mark.parametrize(
    ("changes", "densities", "updates", "finished"),
    [
        ({"max_updates": 1}, [0.5, 0.5], 1, True),
        ({"max_updates": 0}, [0.5], 0, True),
        ({"max_updates": 2}, [0.5, 0.5], 2, False),
        ({}, [0.95], 0, True),  # dense enough
        ({}, [0.949], 1, False),
        ({"enough_density": 1.1}, [0.97], 0, True),  # 16 * 0.97 = 15.52: no width changes
        ({"min_epochs": 3, "max_epochs": 9}, [0.5, 0.5], 0, False),  # flat, but too early
        ({"min_epochs": 3, "max_epochs": 9}, [0.5, 0.5, 0.5], 1, False),
        ({"min_epochs": 1, "max_epochs": 3}, [0.5, 0.6, 0.7], 1, False),  # never flat: the cap
        ({"min_epochs": 1, "max_epochs": 4}, [0.5, 0.6, 0.7], 0, False),
        ({"min_epochs": 1, "max_epochs": 9}, [0.5, 0.5], 1, False),  # flat
        ({"min_epochs": 2, "max_epochs": 2}, [0.5, 0.5, 0.5, 0.5], 2, False),
    ],
)
def test_when_a_phase_and_the_run_end(
    changes: dict, densities: list[float], updates: int, finished: bool
) -> None:
    ad, module = attached(**changes)
    for density in densities:
        assert not module.finished
        end_epoch(ad, module, density)
    assert (module.phase, module.finished) == (updates, finished)


def test_a_phase_is_planned_with_its_longest_length() -> None:
    ad, module = attached(min_epochs=2, max_epochs=6)
    assert module.phase_epochs == 6
    for _ in range(2):
        end_epoch(ad, module, 0.5)
    assert (module.phase, module.phase_start, module.phase_epochs) == (1, 2, 6)


@pytest.mark.parametrize("epochs", [0, [1, 0]])
def test_a_phase_without_epochs_is_refused(epochs: int | list[int]) -> None:
    with pytest.raises(UserError, match=r"max_epochs=.*0.*: each phase has at least one epoch$"):
        method(max_epochs=epochs)  # its widths would be lowered behind the last evaluation


def test_flatness_looks_at_the_phase_only() -> None:
    ad, module = attached(min_epochs=1, max_epochs=3)
    for density in (0.5, 0.5):  # flat: an update
        end_epoch(ad, module, density)
    assert module.phase == 1
    end_epoch(ad, module, 0.5)  # the first epoch of a phase has none before it
    assert module.phase == 1


def test_state_comes_back_in_the_middle_of_an_epoch() -> None:
    ad, module = attached(min_epochs=9, max_epochs=9)
    end_epoch(ad, module, 0.5)
    x = torch.randn(2, *GREY)
    module.net(x)
    again, _ = attached(min_epochs=9, max_epochs=9)
    file = io.BytesIO()
    torch.save(ad.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.series == ad.series == [dict.fromkeys(ad.meter_of, 0.5)]
    for name, meter in ad.meters.items():
        assert again.meters[name].read() == meter.read() > 0


def test_one_training_step_counts_every_activation_once() -> None:
    ad, module = attached()
    sizes: dict[str, int] = {}

    def note(name: str, out: Tensor) -> None:
        sizes[name] = out.numel()

    for name in ad.meters:
        relu = module.net.get_submodule(name)
        relu.register_forward_hook(lambda _, __, out, name=name: note(name, out))
    module.net(torch.randn(3, *GREY))
    assert {name: meter.elements.item() for name, meter in ad.meters.items()} == sizes
    # (n, c, h, w) at half width: 8 channels of 28x28, 16 of 14x14, 32 of 7x7
    expected = [3 * 8 * 28 * 28] * 3 + [3 * 16 * 14 * 14] * 2 + [3 * 32 * 7 * 7] * 2
    assert list(sizes.values()) == expected


# Training complexity


@pytest.mark.parametrize(("bits", "expected"), [(4, "0.507"), (3, "0.466")])
def test_training_complexity_of_the_sheet(bits: int, expected: str) -> None:
    shapes = [LayerShape("a", macs=100, weights=9, inputs=4), LayerShape("b", 50, 9, 4)]
    hardware = Hardware(
        load_hardware(HARDWARE / "vasquez_45nm.yaml"),
        load_hardware(HARDWARE / "vasquez_pim.yaml"),
        "up",
    )
    phases = [(60, uniform(shapes, 16), shapes), (140, uniform(shapes, bits), shapes)]
    assert f"{complexity(phases, shapes, hardware, 200):.3f}" == expected
    assert complexity([(200, uniform(shapes, 16), shapes)], shapes, hardware, 200) == 1
