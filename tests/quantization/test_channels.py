"""Channels that belong together, by reading the networks, and what is left after a cut."""

import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import ScaledStdConv2d, StdConv2d
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.networks.cifar import resnet8_cifar, resnet18_cifar, resnet20_cifar, vgg19_cifar
from quantable.networks.counting import layer_shapes
from quantable.quantization.channels import Group, channel_groups, cut, shrink_to
from quantable.quantization.quantize import Quantize

RGB = (3, 32, 32)
TINY = (3, 16, 16)


# Which channels belong together, written down by hand.


def test_a_stage_of_a_resnet_is_one_group_and_the_inner_layer_of_each_block_another() -> None:
    found = channel_groups(resnet20_cifar(10, 3, 0.5, "plain"), RGB)
    blocks = range(3)
    stage1 = Group(
        channels=8,
        producers=("conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"),
        norms=("bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"),
        consumers=(
            *("layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1"),
            *("layer2.0.conv1", "layer2.0.shortcut.conv"),
        ),
    )
    later = {
        stage: Group(
            channels=channels,
            producers=(
                *(f"layer{stage}.0.conv2", f"layer{stage}.0.shortcut.conv"),
                *(f"layer{stage}.1.conv2", f"layer{stage}.2.conv2"),
            ),
            norms=(
                *(f"layer{stage}.0.bn2", f"layer{stage}.0.shortcut.bn"),
                *(f"layer{stage}.1.bn2", f"layer{stage}.2.bn2"),
            ),
            consumers=(f"layer{stage}.1.conv1", f"layer{stage}.2.conv1", *readers),
        )
        for stage, channels, readers in [
            (2, 16, ("layer3.0.conv1", "layer3.0.shortcut.conv")),
            (3, 32, ("fc",)),
        ]
    }
    inner = {
        (stage, block): Group(
            channels=4 * 2**stage,
            producers=(f"layer{stage}.{block}.conv1",),
            norms=(f"layer{stage}.{block}.bn1",),
            consumers=(f"layer{stage}.{block}.conv2",),
        )
        for stage in (1, 2, 3)
        for block in blocks
    }
    assert found == [
        stage1,
        *(inner[1, block] for block in blocks),
        *(inner[2, 0], later[2], inner[2, 1], inner[2, 2]),
        *(inner[3, 0], later[3], inner[3, 1], inner[3, 2]),
    ]


def test_with_a_convolution_in_every_shortcut_each_block_stands_alone() -> None:
    found = channel_groups(resnet18_cifar(10, 3, 0.25, "all"), RGB)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    outputs = [("conv1",)] + [(f"{block}.conv2", f"{block}.shortcut.conv") for block in blocks]
    inner = [(f"{block}.conv1",) for block in blocks]
    assert sorted(group.producers for group in found) == sorted(outputs + inner)
    readers = {group.producers: group.consumers for group in found}
    for before, block in zip(outputs, blocks, strict=False):
        assert readers[before] == (f"{block}.conv1", f"{block}.shortcut.conv")
        assert readers[(f"{block}.conv1",)] == (f"{block}.conv2",)
    assert readers[outputs[-1]] == ("fc",)


def test_each_convolution_of_vgg_stands_alone() -> None:
    names = [f"features.conv{i}" for i in range(1, 17)]
    assert channel_groups(vgg19_cifar(10, 3, 0.25), RGB) == [
        Group(
            channels=16 * 2 ** min(3, (i >= 3) + (i >= 5) + (i >= 9)),
            producers=(name,),
            norms=(f"features.bn{i}",),
            consumers=(reader,),
        )
        for i, (name, reader) in enumerate(zip(names, [*names[1:], "fc"], strict=True), start=1)
    ]


# Blocks in each stage of a timm network: sets of producers follow from MobileNetV2's structure.
MOBILE = [
    ("mobilenetv2_035", [1, 2, 3, 4, 3, 3, 1]),
    ("efficientnet_lite0", [1, 2, 2, 3, 3, 4, 1]),
]


@pytest.mark.parametrize(("name", "stages"), MOBILE, ids=[name for name, _ in MOBILE])
def test_expansion_and_depthwise_layer_share_channels_and_bottlenecks_stage_by_stage(
    name: str, stages: list[int]
) -> None:
    expected = {("conv_stem", "blocks.0.0.conv_dw"): ("blocks.0.0.conv_pw",)}
    expected[("blocks.0.0.conv_pw",)] = ("blocks.1.0.conv_pw",)
    for stage, blocks in list(enumerate(stages))[1:]:
        names = [f"blocks.{stage}.{block}" for block in range(blocks)]
        for block in names:
            expected[(f"{block}.conv_pw", f"{block}.conv_dw")] = (f"{block}.conv_pwl",)
        after = "conv_head" if stage == len(stages) - 1 else f"blocks.{stage + 1}.0.conv_pw"
        bottlenecks = tuple(f"{block}.conv_pwl" for block in names)
        expected[bottlenecks] = (*(f"{block}.conv_pw" for block in names[1:]), after)
    expected[("conv_head",)] = ("classifier",)
    found = channel_groups(timm.create_model(name), RGB)
    assert {group.producers: group.consumers for group in found} == expected


def test_the_gate_of_squeeze_and_excitation_is_cut_with_what_it_scales() -> None:
    found = channel_groups(timm.create_model("mobilenetv3_small_050"), RGB)
    group = {g.producers[0]: g for g in found}
    block = "blocks.2.0"
    assert group[f"{block}.conv_pw"] == Group(
        channels=group[f"{block}.conv_pw"].channels,
        producers=(f"{block}.conv_pw", f"{block}.conv_dw", f"{block}.se.conv_expand"),
        norms=(f"{block}.bn1", f"{block}.bn2"),
        consumers=(f"{block}.se.conv_reduce", f"{block}.conv_pwl"),
    )
    assert group[f"{block}.se.conv_reduce"].consumers == (f"{block}.se.conv_expand",)


def test_channels_of_a_grouped_convolution_stay() -> None:
    net = timm.create_model("regnetx_002")
    grouped = {f"{name}.conv{i}.conv" for name in ("s1.b1", "s2.b1", "s4.b7") for i in (1, 2)}
    found = channel_groups(net, RGB)
    assert grouped.isdisjoint(name for group in found for name in group.producers)
    assert "s4.b7.conv3.conv" in {name for group in found for name in group.producers}


@pytest.mark.parametrize(("c_in", "c_out"), [(8, 16), (8, 4), (12, 12)])
def test_a_convolution_with_groups_is_depthwise_where_each_channel_has_its_own(
    c_in: int, c_out: int
) -> None:
    pair = nn.Conv2d(3, c_in, 1), nn.Conv2d(c_in, c_out, 3, groups=4)
    found = channel_groups(nn.Sequential(*pair, nn.Conv2d(c_out, 5, 1), nn.Conv2d(5, 2, 1)), RGB)
    assert [group.producers for group in found] == [("2",)]


def test_the_last_layer_is_in_no_group() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    assert [group.producers for group in channel_groups(net, RGB)] == [("0",)]
    assert channel_groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), RGB) == []


# What has no rule.


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(self.conv(x)))


class Between(nn.Module):
    """Two layers with an operation between them that has no module."""

    def __init__(self, operation: Callable[[Tensor], Tensor], c_in: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.operation = operation
        self.last = nn.Conv2d(c_in, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.first(x)))


class Appended(nn.Module):
    """A shortcut with zeros behind its channels, as in the first CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.conv(x) + nn.functional.pad(x, (0, 0, 0, 0, 0, 4)))


def dense() -> nn.Module:
    return DenseNet(growth_rate=8, block_config=(2, 2))


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)


def behind_conv(*modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 1), *modules, nn.Conv2d(8, 2, 1))


def flattened() -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(nn.Conv2d(3, 8, 1), pool, nn.Flatten(), nn.Linear(32, 2))


MIXED = [
    (dense, r"of layer 'features\.conv0' are mixed before '\S+denselayer2\.norm1' \(BatchNorm"),
    (torchvision.models.shufflenet_v2_x0_5, r"of layer 'stage2\.\S+' are mixed before '\S+'"),
    (vit, r"of layer 'patch_embed\.proj' are mixed before 'blocks\.0\.norm1' \(LayerNorm\)"),
    (flattened, r"of layer '0' are mixed before '3' \(Linear\)"),
    (behind_conv(nn.ChannelShuffle(2)), r"of layer '0' are mixed before '2' \(Conv2d\)"),
    (
        behind_conv(nn.GroupNorm(2, 8, affine=False)),
        r"of layer '0' are mixed before '2' \(Conv2d\)",
    ),
    (partial(Between, lambda x: x[:, :4], 4), r"of layer 'first' are mixed before 'last'"),
    (
        partial(Between, lambda x: x.repeat(1, 2, 1, 1), 16),
        r"of layer 'first' are mixed before 'last'",
    ),
    (Appended, r"of layer 'stem' are mixed before 'last' \(Conv2d\)"),
]


@pytest.mark.parametrize(("make", "message"), MIXED)
def test_mixed_channels_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(NotImplementedError, match=f"channels {message}"):
        channel_groups(make(), RGB)


@pytest.mark.parametrize("norm", [nn.PReLU(8), nn.GroupNorm(8, 8)], ids=["prelu", "group norm"])
def test_parameters_without_a_rule_are_refused(norm: nn.Module) -> None:
    kind = type(norm).__name__
    with pytest.raises(NotImplementedError, match=rf"module '1' \({kind}\) has a parameter for"):
        channel_groups(behind_conv(norm)(), RGB)


def test_a_layer_that_runs_twice_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"layer 'conv' \(Conv2d\) runs more than once"):
        channel_groups(Twice(), RGB)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (ScaledStdConv2d(4, 8, 1), r"\(ScaledStdConv2d\): .* it has bias, gain, weight: choose"),
        (StdConv2d(4, 8, 1, bias=False), r"\(StdConv2d\) changes its weight"),
        (nn.ConvTranspose2d(4, 8, 1), r"\(ConvTranspose2d\): channels are cut of nn\.Conv2d and"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 8, 1)), r"\(Conv1d\): channels are cut of"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_cannot_be_cut_whole_are_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        channel_groups(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), layer, nn.ReLU()), RGB)


# The cut network computes what the whole one does where nothing reads the removed channels.


class Added(nn.Module):
    """A layer that reads the channels it is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3)
        self.conv = nn.Conv2d(12, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(x + self.bn(self.conv(x)).relu())


def unscaled() -> nn.Module:
    norm = nn.BatchNorm2d(12, affine=False)
    return nn.Sequential(nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 2, 1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: resnet20_cifar(10, 3, 0.5, "plain"),
    "resnet18": lambda: resnet18_cifar(10, 3, 0.25, "all"),
    "vgg19": lambda: vgg19_cifar(10, 3, 0.25),
    "mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=10),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "added": Added,
    "unscaled": unscaled,
}
EVERY = pytest.mark.parametrize("name", NETWORKS)
METHODS = pytest.mark.parametrize("method", [LSQ, MinMax], ids=["lsq", "minmax"])


def built(name: str) -> nn.Module:
    """A network in float64 whose norms have random statistics, scales and shifts."""
    torch.manual_seed(0)
    net = NETWORKS[name]().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return net


def chosen(groups: list[Group]) -> list[Tensor]:
    """Half of each group's channels, at random."""
    generator = torch.Generator().manual_seed(1)
    halves = [torch.randperm(g.channels, generator=generator)[: g.channels // 2] for g in groups]
    return [half.sort().values for half in halves]


def removed(group: Group, keep: Tensor) -> Tensor:
    gone = torch.ones(group.channels, dtype=torch.bool)
    gone[keep] = False
    return gone


def stored(net: nn.Module, layer: str) -> Tensor:
    """A layer's own weight, quantized or not."""
    parameters = dict(net.named_parameters())
    plain, original = f"{layer}.weight", f"{layer}.parametrizations.weight.original"
    return (parameters[plain] if plain in parameters else parameters[original]).data


def unread(net: nn.Module, groups: list[Group], keeps: list[Tensor]) -> None:
    """Take from the consumers the weights for the channels that are not kept."""
    for group, keep in zip(groups, keeps, strict=True):
        for name in group.consumers:
            stored(net, name)[:, removed(group, keep)] = 0


def cut_all(
    net: nn.Module,
    groups: list[Group],
    keeps: list[Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    for group, keep in zip(groups, keeps, strict=True):
        cut(net, group, keep, optimizer)


def images(n: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, *TINY, generator=generator, dtype=torch.float64)


@EVERY
def test_removed_channels_are_those_nothing_reads(name: str) -> None:
    whole = built(name).eval()
    groups = channel_groups(whole, TINY)
    keeps = chosen(groups)
    pruned = deepcopy(whole)
    before = dict(pruned.named_parameters())
    cut_all(pruned, groups, keeps)
    assert all(pruned.get_parameter(key) is value for key, value in before.items())
    with torch.no_grad():
        out, first = pruned(images()), whole(images())
        unread(whole, groups, keeps)
        expected = whole(images())
    assert (out - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (out - first).abs().max() > 1e-3 * first.abs().max()
    for group, keep in zip(groups, keeps, strict=True):
        assert all(len(stored(pruned, name)) == len(keep) for name in group.producers)
        assert all(stored(pruned, name).shape[1] == len(keep) for name in group.consumers)
    for module, was in zip(pruned.modules(), whole.modules(), strict=True):
        if isinstance(module, nn.Conv2d):
            dense = was.groups == 1
            assert module.out_channels == len(module.weight)
            assert module.groups == (1 if dense else len(module.weight))
            assert module.in_channels == module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_var)


def quantized(net: nn.Module, method: Any, *, per_channel: bool) -> Quantize:
    quantize = Quantize(
        weight=partial(method, batched=False, per_channel=per_channel),
        act=partial(method, batched=True, per_channel=per_channel),
        inner=[4, 4],
        ends=None,
        layers={},
    )
    quantize.attach(net, TINY)
    net.double()
    return quantize


def per_channel_state(quantize: Quantize) -> dict[str, Tensor]:
    """Steps and ranges by layer, operand and name."""
    return {
        f"{layer} {operand} {name}": tensor.detach().clone()
        for operand, quantizers in [
            ("weight", quantize.weight_quantizers),
            ("act", quantize.act_quantizers),
        ]
        for layer, quantizer in quantizers.items()
        for name, tensor in [*quantizer.named_parameters(), *quantizer.named_buffers()]
    }


@METHODS
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg19"])
def test_kept_channels_keep_their_steps_and_ranges(name: str, method: Any) -> None:
    pruned = built(name)
    quantize = quantized(pruned, method, per_channel=True)
    groups = channel_groups(built(name), TINY)
    keeps = chosen(groups)
    pruned(images())  # a training batch sets steps and ranges
    pruned.eval()
    whole = deepcopy(pruned)
    old = per_channel_state(quantize)
    cut_all(pruned, groups, keeps)

    expected = dict(old)
    for group, keep in zip(groups, keeps, strict=True):
        made = [f"{layer} weight " for layer in group.producers]
        read = [f"{layer} act " for layer in group.consumers]
        expected |= {k: v[keep] for k, v in old.items() if k.startswith((*made, *read))}
    found = per_channel_state(quantize)
    assert len(found) == 2 * len(quantize.bits)  # LSQ: a step each; min-max: an input's two ends
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    # Without their norms' scale and shift the channels are 0, which is a level behind a ReLU. The
    # weights that read them take a kept one's value: a min-max range may neither grow nor shrink.
    for group, keep in zip(groups, keeps, strict=True):
        for norm in group.norms:
            whole.get_submodule(norm).weight.data[removed(group, keep)] = 0
            whole.get_submodule(norm).bias.data[removed(group, keep)] = 0
        for layer in group.consumers:
            weight = stored(whole, layer)
            weight[:, removed(group, keep)] = weight[:, keep[:1]]
    with torch.no_grad():
        out, target = pruned(images()), whole(images())
    assert (out - target).abs().max() <= 1e-12 * target.abs().max()


def test_depthwise_layers_of_a_quantized_network_lose_steps_on_both_sides() -> None:
    pruned = built("mobilenetv2")
    groups = channel_groups(pruned, TINY)
    keeps = chosen(groups)
    quantize = quantized(pruned, LSQ, per_channel=True)
    pruned(images())
    pruned.eval()
    whole = deepcopy(pruned)
    (keep,) = (
        keep
        for group, keep in zip(groups, keeps, strict=True)
        if "blocks.1.0.conv_dw" in group.producers
    )
    old = per_channel_state(quantize)
    cut_all(pruned, groups, keeps)
    found = per_channel_state(quantize)
    for operand in ("weight", "act"):
        key = f"blocks.1.0.conv_dw {operand} step"
        assert torch.equal(found[key], old[key][keep])
    unread(whole, groups, keeps)  # 0 is a level of every LSQ grid
    with torch.no_grad():
        out, target = pruned(images()), whole(images())
    assert (out - target).abs().max() <= 1e-12 * target.abs().max()


# The optimizer.


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-3)


OPTIMIZERS = pytest.mark.parametrize("make", [sgd, adam])


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    x, y = torch.randn(8, *TINY, dtype=torch.float64), torch.arange(8) % 2
    optimizer.zero_grad()
    out = net(x)
    nn.functional.cross_entropy(out.flatten(2).mean(2) if out.dim() > 2 else out, y).backward()
    optimizer.step()


@OPTIMIZERS
def test_momentum_of_kept_channels_stays(make: Callable[..., torch.optim.Optimizer]) -> None:
    net = resnet8_cifar(10, 3, 0.5, "plain").double()
    optimizer = make(net)
    step(net, optimizer, 0)
    (group,) = [g for g in channel_groups(net, TINY) if g.producers[0] == "layer2.0.conv2"]
    keep = torch.tensor([0, 3, 4, 15])
    old = {
        name: {key: value.clone() for key, value in optimizer.state[parameter].items()}
        for name, parameter in net.named_parameters()
    }
    listed = list(optimizer.param_groups[0]["params"])
    cut(net, group, keep, optimizer)
    assert all(a is b for a, b in zip(listed, net.parameters(), strict=True))
    first = [f"layer2.0.{name}.weight" for name in ("conv2", "shortcut.conv")]
    first += [
        f"layer2.0.{bn}.{name}" for bn in ("bn2", "shortcut.bn") for name in ("weight", "bias")
    ]
    second = [f"layer3.0.{name}.weight" for name in ("conv1", "shortcut.conv")]
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (name in first + second)  # a gradient of the old size
        for key, value in optimizer.state[parameter].items():
            expected = old[name][key]
            if expected.dim() and name in first:
                expected = expected[[0, 3, 4, 15]]
            elif expected.dim() and name in second:
                expected = expected[:, [0, 3, 4, 15]]
            assert torch.equal(value, expected), (name, key)


@pytest.mark.parametrize(
    ("name", "make"), [("resnet20", sgd), ("resnet20", adam), ("mobilenetv2", sgd), ("added", adam)]
)
def test_a_step_after_the_cut_is_the_whole_networks(
    name: str, make: Callable[..., torch.optim.Optimizer]
) -> None:
    whole = built(name)
    groups = channel_groups(whole, TINY)
    keeps = chosen(groups)
    unread(whole, groups, keeps)
    pruned = deepcopy(whole)
    ours, theirs = make(pruned), make(whole)
    for optimizer, net in [(ours, pruned), (theirs, whole)]:
        step(net, optimizer, 0)
        unread(net, groups, keeps)

    cut_all(pruned, groups, keeps, ours)
    step(pruned, ours, 1)
    step(whole, theirs, 1)
    cut_all(whole, groups, keeps, theirs)
    for (key, value), expected in zip(
        pruned.state_dict().items(), whole.state_dict().values(), strict=True
    ):
        assert torch.allclose(value, expected, rtol=1e-9, atol=1e-11), key
    for mine, yours in zip(pruned.parameters(), whole.parameters(), strict=True):
        for key, value in ours.state[mine].items():
            assert torch.allclose(value, theirs.state[yours][key], rtol=1e-9, atol=1e-11), key


@METHODS
def test_a_quantized_network_trains_on(method: Any) -> None:
    net = resnet8_cifar(10, 3, 0.5, "all")
    groups = channel_groups(net, TINY)
    quantized(net, method, per_channel=True)
    optimizer = sgd(net)
    step(net, optimizer, 0)
    cut_all(net, groups, chosen(groups), optimizer)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    step(net, optimizer, 1)
    assert all(p.grad.shape == p.shape and p.isfinite().all() for p in net.parameters())
    changed = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert all(changed)


# A fresh network takes the size of a saved one.


def formats(net: nn.Module) -> list[bool]:
    last = torch.channels_last
    return [p.is_contiguous(memory_format=last) for p in net.parameters() if p.dim() == 4]


@pytest.mark.parametrize(
    ("name", "method", "channels_last"),
    [
        *[("resnet18", method, last) for method in (None, LSQ, MinMax) for last in (False, True)],
        ("mobilenetv2", LSQ, True),
    ],
)
def test_a_fresh_network_takes_the_saved_size(name: str, method: Any, channels_last: bool) -> None:
    def fresh(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = NETWORKS[name]().double()
        if channels_last:
            net.to(memory_format=torch.channels_last)
        if method is not None:
            quantized(net, method, per_channel=True)
        return net

    pruned, again = fresh(0), fresh(1)
    groups = channel_groups(NETWORKS[name](), TINY)
    pruned(images())
    before = formats(pruned)
    assert all(before) == channels_last  # a depthwise or 1x1 layer's weight is both at once
    cut_all(pruned, groups, chosen(groups))
    assert formats(pruned) == before
    shrink_to(again, pruned.state_dict())
    assert formats(again) == before
    again.load_state_dict(pruned.state_dict())
    strides = [[p.stride() for p in net.parameters()] for net in (pruned, again)]
    assert strides[0] == strides[1]
    assert str(again) == str(pruned)
    assert torch.equal(again.eval()(images()), pruned.eval()(images()))
    for net in (again, pruned):  # both can be cut once more
        for group in groups:
            cut(net, group, torch.arange(0, group.channels // 2, 2), None)
    assert torch.equal(again(images()), pruned(images()))


def test_a_network_of_the_saved_size_stays() -> None:
    net = resnet8_cifar(10, 3, 0.5, "plain")
    before = {name: (p, p.data_ptr(), p.clone()) for name, p in net.named_parameters()}
    shrink_to(net, net.state_dict())
    for name, (parameter, place, value) in before.items():
        assert net.get_parameter(name) is parameter
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, value)


# MACs of what is left, against fvcore's count of operators.


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "vgg19", "mobilenetv2", "mobilenetv3"])
def test_macs_of_what_is_left_are_fvcores(name: str) -> None:
    net = NETWORKS[name]().eval()
    groups = channel_groups(net, TINY)
    whole = layer_shapes(net, TINY)
    cut_all(net, groups, chosen(groups))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's: deprecated, and on the networks' own code
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore").setLevel(logging.ERROR)
        operators = FlopCountAnalysis(net, torch.zeros(1, *TINY)).by_operator()
    shapes = layer_shapes(net, TINY)
    assert sum(s.macs for s in shapes if s.kind == "conv") == operators["conv"]
    assert sum(s.macs for s in shapes if s.kind == "linear") == operators["linear"]
    assert [s.name for s in shapes] == [s.name for s in whole]
    assert sum(s.macs for s in shapes) < 0.6 * sum(s.macs for s in whole)
