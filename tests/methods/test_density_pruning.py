"""AD pruning against hand counts: how many channels stay, and which."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from ad_arguments import NUMBERS, ONE_EPOCH_PHASES
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.methods.density_pruning import ChannelMeter, DensityPruning, next_channels
from quantable.networks.cifar import resnet8_cifar
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

GREY = (1, 28, 28)
PIXELS = 1000  # of each channel, in the densities that a test chooses


def method(**changes: Any) -> DensityPruning:
    """Return AD pruning with phases of one epoch and nothing that ends the run early."""
    pruning = {"keep_by": "density", "min_channels": 4, "enough_density": 1.1}
    return DensityPruning(**ONE_EPOCH_PHASES | pruning | changes)


class Run:
    """AD pruning on a network, with an optimizer and epochs whose densities are chosen."""

    def __init__(self, net: nn.Module, **changes: Any) -> None:
        self.net = net
        self.module = Classifier(
            net,
            input_size=GREY,
            optimizer=torch.optim.SGD,
            schedule=constant,
            epochs=9,
            numbers=NUMBERS,
        )
        self.ad = method(**changes)
        self.ad.setup(None, self.module, "fit")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        self.trainer = SimpleNamespace(optimizers=[optimizer])
        for layer in self.layers().values():  # mark each channel: its first weight is its number
            weight = layer.parametrizations.weight.original
            weight.data.view(len(weight), -1)[:, 0] = torch.arange(len(weight))

    def layers(self) -> dict[str, Any]:
        return {name: self.net.get_submodule(name) for name in self.ad.bits}

    def end_epoch(self, density: float, **by_relu: float | Tensor) -> None:
        """End an epoch; ``by_relu``: a ReLU's density, or one for each of its channels."""
        sizes = {
            relu: len(self.net.get_submodule(layer).weight)
            for layer, relu in self.ad.meter_of.items()
        }
        for name, meter in self.ad.meters.items():
            share = torch.as_tensor(by_relu.get(name.replace(".", "_"), density))
            meter.nonzero = (share * PIXELS).round().long().expand(sizes[name]).clone()
            meter.elements = torch.tensor(PIXELS * sizes[name])
        self.module.history.append({"epoch": self.module.epoch})
        self.ad.on_train_epoch_end(self.trainer, self.module)
        self.module.epoch += 1

    def channels(self) -> dict[str, int]:
        return {name: len(layer.weight) for name, layer in self.layers().items()}

    def left(self, layer: str) -> list[int]:
        """Return the numbers that the channels of a layer had in the beginning."""
        weight = self.net.get_submodule(layer).parametrizations.weight.original
        return weight.detach().flatten(1)[:, 0].int().tolist()


def resnet(shortcuts: str = "all") -> nn.Module:
    """ResNet-8 at half width: 8, 16 and 32 channels."""
    torch.manual_seed(0)
    return resnet8_cifar(10, in_channels=1, width=0.5, shortcuts=shortcuts)


# How many channels stay


@pytest.mark.parametrize(
    ("channels", "density", "at_least", "expected"),
    [
        (64, 0.5, 4, 32),
        (9, 0.5, 4, 5),  # 4.5: halves go up, where Python's round() would go to even
        (13, 0.5, 4, 7),
        (5, 0.5, 1, 3),
        (64, 0.9921, 4, 63),  # 63.49
        (64, 0.9922, 4, 64),  # 63.50
        (64, 1.0, 4, 64),
        (10, 0.0, 4, 4),
        (10, 0.44, 4, 4),
        (10, 0.45, 4, 5),
        (3, 0.1, 4, 3),  # fewer than the least number from the start
        (3, 0.1, 1, 1),
    ],
)
def test_channels_after_an_update(
    channels: int, density: float, at_least: int, expected: int
) -> None:
    assert next_channels(channels, density, min_channels=at_least) == expected


def test_each_group_keeps_its_share() -> None:
    run = Run(resnet())
    run.end_epoch(0.5, relu1=0.6, layer2_0_relu1=0.22, layer3_0_relu2=0.75)
    assert run.channels() == {
        "conv1": 5,  # 8 x 0.6 = 4.8
        "layer1.0.conv1": 4,
        "layer1.0.conv2": 4,
        "layer1.0.shortcut.conv": 4,
        "layer2.0.conv1": 4,  # 16 x 0.22 = 3.52
        "layer2.0.conv2": 8,
        "layer2.0.shortcut.conv": 8,
        "layer3.0.conv1": 16,
        "layer3.0.conv2": 24,
        "layer3.0.shortcut.conv": 24,
        "fc": 10,
    }
    assert not run.module.finished
    assert run.module.phase == 1


def test_density_is_the_mean_over_the_channels() -> None:
    run = Run(resnet())
    shares = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1])  # 4.8 of 8
    run.end_epoch(1.0, relu1=shares)
    assert run.channels()["conv1"] == 5
    assert run.module.history[-1]["own"]["density"]["conv1"] == pytest.approx(0.6)


def test_layers_behind_several_relus_take_the_mean() -> None:
    run = Run(resnet("plain"))  # the stem and layer1.0.conv2 share channels, each with its ReLU
    first = torch.tensor([0.9, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.1])  # 2.0
    second = torch.tensor([0.0, 1.0, 0.9, 0.7, 0.6, 0.8, 0.8, 0.2])  # 5.0; mean density 7 / 16
    run.end_epoch(1.0, relu1=first, layer1_0_relu2=second)
    # 8 x 7 / 16 = 3.5: four channels; the sums are 0.9 1.0 0.9 1.2 1.1 0.8 0.8 0.3
    assert run.left("conv1") == run.left("layer1.0.conv2") == [0, 1, 3, 4]
    assert {name for name, count in run.channels().items() if count == 4} == {
        "conv1",
        "layer1.0.conv2",
    }


def test_updates_end_where_no_channel_and_no_width_changes() -> None:
    run = Run(resnet(), min_bits=16)
    counts = []
    while not run.module.finished:
        counts.append(run.channels()["layer3.0.conv2"])
        run.end_epoch(0.5)
    assert counts == [32, 16, 8, 4]
    assert set(run.channels().values()) == {4, 10}


def test_without_lower_widths_it_only_prunes() -> None:
    run = Run(resnet(), min_bits=16)
    run.end_epoch(0.5)
    assert {bits.weight for bits in run.ad.bits.values()} == {16}
    assert run.channels()["layer2.0.conv1"] == 8


def test_widths_fall_at_the_same_update() -> None:
    run = Run(resnet())
    run.end_epoch(0.5, layer2_0_relu1=0.25)
    widths = {name: bits.weight for name, bits in run.ad.bits.items()}
    assert widths["layer2.0.conv1"] == 4
    assert widths["layer3.0.conv1"] == 8
    assert widths["conv1"] == widths["fc"] == 16
    assert run.channels()["conv1"] == 4  # the first layer loses channels like the others


def test_linear_bottlenecks_of_a_mobilenet_stay() -> None:
    run = Run(timm.create_model("mobilenetv2_035", in_chans=1, num_classes=10))
    before = run.channels()
    run.end_epoch(0.5)
    after = run.channels()
    still = {name for name in before if after[name] == before[name]}
    bottlenecks = {name for name in before if name.endswith("conv_pwl")} | {"blocks.0.0.conv_pw"}
    assert still == bottlenecks | {"classifier"}
    assert all(after[name] == before[name] // 2 for name in before.keys() - still)


# Which channels stay


def test_the_densest_channels_stay_in_their_order() -> None:
    run = Run(resnet())
    shares = torch.tensor([0.1, 0.9, 0.5, 0.6, 0.0, 0.7, 0.8, 0.4])  # mean 0.5
    run.end_epoch(1.0, relu1=shares)
    assert run.left("conv1") == [1, 3, 5, 6]


def test_of_equals_the_lower_number_stays() -> None:
    run = Run(resnet())
    shares = torch.tensor([0.2, 0.6, 0.6, 0.2, 0.6, 0.6, 0.6, 0.6])  # mean 0.5
    run.end_epoch(0.5, relu1=shares)
    assert run.left("conv1") == [1, 2, 4, 5]
    assert run.left("layer3.0.conv2") == run.left("layer3.0.shortcut.conv") == [*range(16)]


def test_by_magnitude_the_largest_mean_absolute_weight_stays() -> None:
    run = Run(resnet(), keep_by="magnitude")
    sizes = {
        "layer2.0.conv2": {2: 3.0, 3: -9.0, 7: 5.0, 15: 2.0},
        "layer2.0.shortcut.conv": {11: 4.0, 15: 2.0},
    }
    weights = {name: run.layers()[name].parametrizations.weight.original for name in sizes}
    for name, weight in weights.items():
        for channel in range(16):
            weight.data[channel] = sizes[name].get(channel, 0.0)
    shares = torch.linspace(0.5, 0.0, 16)  # mean 0.25: four channels; the densest are the first
    run.end_epoch(1.0, layer2_0_relu2=shares)
    # Means over both layers: 4.5 of channel 3, 2.5 of 7, 2.0 of 11 and of 15, 1.5 of 2
    left = {name: weight[:, 0, 0, 0].tolist() for name, weight in weights.items()}
    assert left["layer2.0.conv2"] == [-9.0, 5.0, 0.0, 2.0]
    assert left["layer2.0.shortcut.conv"] == [0.0, 0.0, 4.0, 2.0]


def test_a_wrong_word_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown keep_by 'densty'\. Nearest: density"):
        method(keep_by="densty")
    with pytest.raises(UserError, match=r"min_channels=0: it is at least 1"):
        method(min_channels=0)


# What a record will say


def test_sizes_are_noted_from_the_phase_on_that_has_them() -> None:
    run = Run(resnet("plain"), min_bits=16)
    net = run.net
    whole = sum(p.numel() for p in resnet("plain").parameters())
    run.end_epoch(1.0)  # nothing changes: the run ends
    assert run.module.finished
    assert [(n["phase"], n["parameters"]) for n in run.module.networks] == [(0, whole)]
    run.module.finished = False
    run.end_epoch(0.5)
    first, second = run.module.networks
    assert second["phase"] == 1
    # 4, 8 and 16 channels; two numbers for each channel of a norm
    convs = 9 * (1 * 4 + 2 * 4 * 4 + 4 * 8 + 8 * 8 + 8 * 16 + 16 * 16) + 4 * 8 + 8 * 16
    norms = 2 * (3 * 4 + 3 * 8 + 3 * 16)
    assert second["parameters"] == convs + norms + 16 * 10 + 10
    assert second["parameters"] == sum(p.numel() for p in net.parameters())
    assert first["channels"]["layer3.0.conv2"] == 32
    assert second["channels"] == run.channels()
    macs = {shape["name"]: shape["macs"] for shape in second["shapes"]}
    assert macs["conv1"] == 28 * 28 * 9 * 1 * 4
    assert macs["layer2.0.conv1"] == 14 * 14 * 9 * 4 * 8
    assert macs["fc"] == 160
    inputs = {shape["name"]: shape["inputs"] for shape in second["shapes"]}
    assert inputs["layer3.0.shortcut.conv"] == 14 * 14 * 8


# Counting


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_counted_apart(dtype: torch.dtype, channels_last: bool) -> None:
    relu = nn.ReLU()
    meter = ChannelMeter(relu)
    x = torch.linspace(-20, 30, 7 * 5 * 61 * 67).sin().reshape(7, 5, 61, 67).to(dtype)
    batches = [x, (9 * x.flip(0))[:3], x[:1] - 0.5]
    for batch in batches:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        relu(batch.contiguous(memory_format=layout))
    outputs = np.concatenate([batch.float().clamp(min=0).numpy() for batch in batches])
    counts = [np.count_nonzero(outputs[:, channel]) for channel in range(5)]
    assert meter.nonzero.tolist() == counts
    assert meter.nonzero.dtype == torch.int64
    assert meter.read() == np.count_nonzero(outputs) / outputs.size
    assert meter.by_channel.tolist() == [count / (outputs.size // 5) for count in counts]
    assert meter.miscounted == 0


def test_features_without_a_map_are_counted_apart() -> None:
    relu = nn.ReLU()
    meter = ChannelMeter(relu)
    relu(torch.tensor([[1.0, -1.0, 2.0], [0.0, -3.0, 4.0]]))
    meter.read()
    assert meter.by_channel.tolist() == [0.5, 0.0, 1.0]
    relu(torch.tensor([[1.0, 1.0, -2.0]]))  # counted anew
    assert meter.read() == pytest.approx(2 / 3)
    assert meter.by_channel.tolist() == [1.0, 1.0, 0.0]


def test_a_wrong_count_is_found() -> None:
    relu = nn.ReLU()
    meter = ChannelMeter(relu)
    meter.nonzero += 3  # of each of the five channels
    relu(torch.randn(2, 5, 4, 4))
    assert meter.miscounted == 15


def test_counts_come_back_in_the_middle_of_an_epoch() -> None:
    runs = [Run(resnet()) for _ in range(2)]
    runs[0].net(torch.randn(2, *GREY))
    file = io.BytesIO()
    torch.save(runs[0].ad.state_dict(), file)
    file.seek(0)
    runs[1].ad.load_state_dict(torch.load(file, weights_only=True))
    meters = [run.ad.meters["layer2.0.relu1"] for run in runs]
    assert meters[0].read() == meters[1].read() > 0
    assert meters[0].by_channel.tolist() == meters[1].by_channel.tolist()
    assert len(meters[0].by_channel) == 16
