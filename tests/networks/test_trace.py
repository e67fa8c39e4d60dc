from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from quantable.methods.minmax import MinMax
from quantable.networks.cifar import resnet8_cifar, resnet18_cifar, resnet20_cifar, vgg19_cifar
from quantable.networks.counting import COUNTED, layer_shapes
from quantable.networks.trace import (
    activations,
    feeds_and_additions,
    linked_layers,
    signed_inputs,
)
from quantable.quantization.quantize import Quantize


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 2, 1)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.last(self.relu(self.conv(self.relu(self.conv(x)))))


def hooks_of(net):
    return [
        hook
        for module in net.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]


@pytest.mark.parametrize(
    "function",
    [layer_shapes, signed_inputs, activations, linked_layers, feeds_and_additions],
)
def test_network_is_left_as_it_was(function):
    net = resnet8_cifar(10, 3, 0.5, "plain")
    net.layer1.eval()
    net.fc.register_forward_hook(lambda *_: None)
    random_state = torch.get_rng_state()
    flags = {name: module.training for name, module in net.named_modules()}
    hooks = hooks_of(net)
    state = {key: value.clone() for key, value in net.state_dict().items()}

    function(net, (3, 32, 32))

    assert {name: module.training for name, module in net.named_modules()} == flags
    assert hooks_of(net) == hooks
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


# Signs and activations, by reading the networks.


def test_behind_relus_only_the_stem_is_signed():
    assert signed_inputs(resnet20_cifar(10, 3, 0.5, "all"), (3, 32, 32)) == {"conv1"}
    assert signed_inputs(vgg19_cifar(10, 3, 0.25), (3, 32, 32)) == {"features.conv1"}


def test_expansions_behind_linear_bottlenecks_are_signed():
    net = timm.create_model("mobilenetv2_100.ra_in1k")
    expansions = {name for name, _ in net.named_modules() if name.endswith("conv_pw")}
    first_block = "blocks.0.0.conv_pw"  # the separable block's pointwise layer, behind a ReLU6
    expected = {"conv_stem", "conv_head"} | expansions - {first_block}
    assert signed_inputs(net, (3, 32, 32)) == expected


def test_first_layer_is_signed_whatever_it_gets():
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    assert signed_inputs(net, (3, 4, 4)) == {"1"}


def resnet_activations(stages, blocks, relu1, relu2, shortcut, shortcut_of):
    expected = {"conv1": relu1}
    for stage in range(1, stages + 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            expected |= {f"{name}.conv1": f"{name}.{relu1}", f"{name}.conv2": f"{name}.{relu2}"}
            if shortcut_of(stage, block):
                expected[f"{name}.{shortcut}"] = f"{name}.{relu2}"
    return expected


def changes_shape(stage, block):
    return stage > 1 and block == 0


def always(stage, block):
    return True


@pytest.mark.parametrize(
    ("build", "stages", "blocks"),
    [(resnet8_cifar, 3, 1), (resnet20_cifar, 3, 3), (resnet18_cifar, 4, 2)],
)
@pytest.mark.parametrize(("rule", "shortcut_of"), [("plain", changes_shape), ("all", always)])
def test_cifar_resnets_shortcut_and_second_convolution_share_a_relu(
    build, stages, blocks, rule, shortcut_of
):
    net = build(10, 3, 0.25, rule)
    expected = resnet_activations(stages, blocks, "relu1", "relu2", "shortcut.conv", shortcut_of)
    assert activations(net, (3, 32, 32)).relus == expected


def test_vgg19s_activations_in_order():
    net = vgg19_cifar(10, 1, 0.25)
    expected = {f"features.conv{n}": f"features.relu{n}" for n in range(1, 17)}
    assert activations(net, (1, 28, 28)).relus == expected


def test_timm_resnet18_with_in_place_activations():
    net = timm.create_model("resnet18.tv_in1k")
    expected = resnet_activations(4, 2, "act1", "act2", "downsample.0", changes_shape)
    assert activations(net, (3, 64, 64)).relus == expected


def test_mobilenetv2s_linear_bottlenecks_have_none():
    net = timm.create_model("mobilenetv2_100.ra_in1k")
    names = [name for name, module in net.named_modules() if isinstance(module, COUNTED)]
    found = activations(net, (3, 64, 64)).relus
    bottlenecks = {n for n in names if n.endswith("conv_pwl")} | {"blocks.0.0.conv_pw"}
    assert set(names) - found.keys() == bottlenecks | {"classifier"}
    assert found["conv_stem"] == "bn1.act"
    assert found["blocks.0.0.conv_dw"] == "blocks.0.0.bn1.act"
    assert found["blocks.3.1.conv_pw"] == "blocks.3.1.bn1.act"
    assert found["blocks.3.1.conv_dw"] == "blocks.3.1.bn2.act"
    assert found["conv_head"] == "bn2.act"


def test_frozen_network_has_the_same_activations():
    net = resnet8_cifar(10, 1, 0.5, "all").requires_grad_(False)
    assert len(activations(net, (1, 28, 28)).relus) == 10  # stem, three blocks of three


def test_in_place_activation_behind_a_linear_layer_on_tokens():
    net = nn.Sequential(nn.Flatten(2), nn.Linear(16, 10), nn.ReLU(inplace=True), nn.Linear(10, 4))
    assert activations(net, (3, 4, 4)).relus == {"1": "2"}


class Written(nn.Module):
    """A nonlinearity that is no module of torch's."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_another_nonlinearity_ends_the_way():
    modules = [getattr(nn, name) for name in nn.modules.activation.__all__]
    # The last two are sums and quotients, through which the input reaches what is behind.
    left_out = (nn.ReLU, nn.ReLU6, nn.MultiheadAttention, nn.Softsign, nn.Tanhshrink)
    given = dict.fromkeys((nn.GLU, nn.Softmin, nn.Softmax, nn.LogSoftmax), (1,))
    given[nn.Threshold] = (0.0, 0.0)
    made = [module(*given.get(module, ())) for module in modules if module not in left_out]
    for other in (*made, Written(lambda x: torch.maximum(x, x.new_zeros(()))), Written(abs)):
        net = nn.Sequential(nn.Conv2d(3, 2, 1), other, nn.MaxPool2d(2), nn.ReLU())
        found = activations(net, (3, 4, 4))
        assert found.relus == {}, other
        assert found.others.keys() == {"0"}, other


def test_activation_that_runs_twice_stops_with_its_name():
    with pytest.raises(NotImplementedError, match=r"activation 'relu' \(ReLU\) runs more than"):
        activations(Twice(), (3, 4, 4))


# Layers that read one tensor: counts of the papers' networks, then what separates two readers.


@pytest.mark.parametrize(
    ("net", "inner", "items", "pairs"),
    [
        (timm.create_model("resnet50"), 52, 48, ["layer1", "layer2", "layer3", "layer4"]),
        (timm.create_model("resnet101"), 103, 99, ["layer1", "layer2", "layer3", "layer4"]),
        (timm.create_model("mobilenetv2_100"), 51, 51, []),
    ],
    ids=["resnet50", "resnet101", "mobilenetv2"],
)
def test_linked_layers_of_imagenet_networks(net, inner, items, pairs):
    shapes = [shape.name for shape in layer_shapes(net, (3, 32, 32))]
    linked = linked_layers(net, (3, 32, 32))
    assert [name for item in linked for name in item] == in_item_order(shapes, linked)
    assert (len(shapes) - 2, len(linked) - 2) == (inner, items)
    expected = [(f"{stage}.0.conv1", f"{stage}.0.downsample.0") for stage in pairs]
    assert [item for item in linked if len(item) > 1] == expected


def in_item_order(names, items):
    """Names by the first layer of their item, then by execution order."""
    item_of = {name: item for item in items for name in item}
    return sorted(names, key=lambda name: names.index(item_of[name][0]))


def test_linked_layers_of_resnet20_with_and_without_quantizers():
    net = resnet20_cifar(10, 3, 0.5, "plain")
    linked = linked_layers(net, (3, 32, 32))
    pairs = [(f"layer{n}.0.conv1", f"layer{n}.0.shortcut.conv") for n in (2, 3)]
    assert [item for item in linked if len(item) > 1] == pairs
    assert linked[0] == ("conv1",)
    assert linked[-1] == ("fc",)
    assert len(linked) - 2 == 18

    quantizer = partial(MinMax, batched=True)
    callback = Quantize(
        weight=partial(MinMax, batched=False), act=quantizer, inner=[4, 4], ends=None, layers={}
    )
    callback.attach(net, (3, 32, 32))
    assert linked_layers(net, (3, 32, 32)) == linked


class Readers(nn.Module):
    """Two layers read a tensor, the second one after ``between``."""

    def __init__(self, between):
        super().__init__()
        self.between = between
        self.stem, self.one, self.two = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        y = self.one(x).mean()
        return y + self.two(self.between(x))


def changed_in_place(x):
    x[0, 0, 0, 0] = 1.0
    return x


@pytest.mark.parametrize(
    ("between", "linked"),
    [
        (nn.Identity(), True),
        (nn.Dropout(0.5), True),
        (torch.Tensor.detach, True),
        (lambda x: x.view(x.shape), True),
        (torch.clone, False),
        (nn.ReLU(), False),
        (nn.ReLU(inplace=True), False),
        (nn.MaxPool2d(1), False),
        (changed_in_place, False),
        (lambda x: x.view(-1).mul_(2).view(x.shape), False),
        (lambda x: x.mT, False),
        (lambda x: x[:, :1].expand(-1, 3, -1, -1), False),
        (lambda x: x[:, :, 1:], False),
    ],
    ids=["identity", "dropout", "detached", "view", "clone", "relu", "relu in place", "pool",
         "assignment", "in place by a view", "transposed", "expanded", "sliced"],
)  # fmt: skip
def test_two_layers_are_linked_if_the_very_same_tensor_enters_both(between, linked):
    groups = [("stem",), ("one", "two")] if linked else [("stem",), ("one",), ("two",)]
    assert linked_layers(Readers(between), (3, 4, 4)) == groups


class Halves(Readers):
    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=-1)
        return self.one(left) + self.two(right)


def test_two_halves_of_one_tensor_are_two():
    assert len(linked_layers(Halves(None), (3, 4, 4))) == 3


class SeparateAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 2, stride=2)
        self.out, self.value, self.key, self.query = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        return self.out(F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)))


def test_query_key_and_value_are_one_item():
    expected = [("embed",), ("query", "key", "value"), ("out",)]
    assert linked_layers(SeparateAttention(), (3, 4, 4)) == expected


class Head(nn.Module):
    """A layer that reads two tensors, each with a reader of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.own, self.other, self.shared = (
            nn.Conv2d(3, 3, 1) for _ in range(5)
        )

    def forward(self, x):
        one, two = self.first(x), self.second(x.relu())
        alone = self.own(one) + self.other(two)
        return alone + self.shared(one) + self.shared(two)


def test_layer_that_runs_twice_joins_both_groups():
    expected = [("first",), ("second",), ("own", "other", "shared")]
    assert linked_layers(Head(), (3, 4, 4)) == expected


class Joined(nn.Module):
    """A chain of additions, a gate that multiplies, and a concatenation."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.gate, self.side = (nn.Conv2d(3, 3, 1) for _ in range(5))
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        y = self.stem(x).relu()
        y = y + self.one(y)
        y = y + self.two(y.relu())
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        y = torch.cat([y, self.side(x)], dim=1)
        return self.fc(y.mean((2, 3)))


def test_feeds_pass_additions_products_and_concatenations():
    feeds, added = feeds_and_additions(Joined(), (3, 4, 4))
    assert feeds == {
        "stem": [""],
        "one": ["stem"],
        "two": ["stem", "one"],
        "gate": ["stem", "one", "two"],
        "side": [""],
        "fc": ["stem", "one", "two", "gate", "side"],
    }
    assert added == [["stem", "one"], ["stem", "one", "two"]]


class Two(nn.Module):
    def __init__(self, combine):
        super().__init__()
        self.combine = combine
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.shift = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return self.combine(self, x)


def added_in_place(net, x):
    y = net.one(x)
    y += net.two(x)
    return y.relu_()


def changed_in_a_part(net, x):
    y = net.one(x)
    y[:, :1].relu_()
    return net.two(y)


def added_to_a_part(net, x):
    y = net.one(x)
    y[:, :1] += net.two(x)[:, :1]
    return y


@pytest.mark.parametrize(
    ("combine", "added"),
    [
        (lambda net, x: net.two(net.one(x) + x), [["", "one"]]),
        (lambda net, x: net.one(x) + net.two(x), [["one", "two"]]),
        (added_in_place, [["one", "two"]]),
        (lambda net, x: sum([net.one(x), net.two(x), x]), [["one", "two"], ["", "one", "two"]]),
        (lambda net, x: net.two(F.hardswish(net.one(x)) + 1 + net.shift), []),
        (lambda net, x: net.two((y := net.one(x)) + y.relu()), []),
        (lambda net, x: torch.cat([net.one(x), net.two(x)]), []),
        (added_to_a_part, None),
        (changed_in_a_part, []),
    ],
    ids=["the image", "at the end", "in place", "three", "constants", "one result twice",
         "concatenation", "to a part", "not in a part"],
)  # fmt: skip
def test_additions_join_results_of_two_or_more(combine, added):
    assert feeds_and_additions(Two(combine), (3, 4, 4))[1] == added


def test_layer_that_runs_twice_has_the_feeders_of_both_runs():
    feeds, added = feeds_and_additions(Twice(), (3, 4, 4))
    assert feeds == {"conv": ["", "conv"], "last": ["conv"]}
    assert added == []


def test_first_layer_behind_an_activation_in_place_is_fed_by_the_image():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))
    assert feeds_and_additions(net, (3, 4, 4)) == ({"1": [""]}, [])


def test_links_of_resnet20s_first_blocks_with_and_without_quantizers():
    net = resnet20_cifar(10, 3, 0.5, "plain")
    feeds, added = feeds_and_additions(net, (3, 32, 32))
    assert dict(list(feeds.items())[:6]) == {
        "conv1": [""],
        "layer1.0.conv1": ["conv1"],
        "layer1.0.conv2": ["layer1.0.conv1"],
        "layer1.1.conv1": ["conv1", "layer1.0.conv2"],
        "layer1.1.conv2": ["layer1.1.conv1"],
        "layer1.2.conv1": ["conv1", "layer1.0.conv2", "layer1.1.conv2"],
    }
    assert added[:2] == [
        ["conv1", "layer1.0.conv2"],
        ["conv1", "layer1.0.conv2", "layer1.1.conv2"],
    ]
    assert feeds["fc"] == added[-1]
    assert added[-1][:2] == ["layer3.0.conv2", "layer3.0.shortcut.conv"]

    callback = Quantize(
        weight=partial(MinMax, batched=False),
        act=partial(MinMax, batched=True),
        inner=[4, 4],
        ends=None,
        layers={},
    )
    callback.attach(net, (3, 32, 32))
    assert feeds_and_additions(net, (3, 32, 32)) == (feeds, added)


def test_convolved_shortcuts_are_added_in_resnet20s_first_blocks():
    feeds, added = feeds_and_additions(resnet20_cifar(10, 3, 0.5, "all"), (3, 32, 32))
    blocks = [[f"layer1.{n}.conv2", f"layer1.{n}.shortcut.conv"] for n in (0, 1)]
    assert added[:2] == blocks
    assert feeds["layer1.1.conv1"] == feeds["layer1.1.shortcut.conv"] == blocks[0]


def test_links_of_mobilenetv2s_first_blocks():
    feeds, added = feeds_and_additions(timm.create_model("mobilenetv2_100"), (3, 32, 32))
    assert dict(list(feeds.items())[:10]) == {
        "conv_stem": [""],
        "blocks.0.0.conv_dw": ["conv_stem"],
        "blocks.0.0.conv_pw": ["blocks.0.0.conv_dw"],
        "blocks.1.0.conv_pw": ["blocks.0.0.conv_pw"],
        "blocks.1.0.conv_dw": ["blocks.1.0.conv_pw"],
        "blocks.1.0.conv_pwl": ["blocks.1.0.conv_dw"],
        "blocks.1.1.conv_pw": ["blocks.1.0.conv_pwl"],
        "blocks.1.1.conv_dw": ["blocks.1.1.conv_pw"],
        "blocks.1.1.conv_pwl": ["blocks.1.1.conv_dw"],
        "blocks.2.0.conv_pw": ["blocks.1.0.conv_pwl", "blocks.1.1.conv_pwl"],
    }
    assert added[0] == ["blocks.1.0.conv_pwl", "blocks.1.1.conv_pwl"]


def test_squeeze_and_excitation_feeds_what_its_gate_multiplies():
    feeds, _ = feeds_and_additions(timm.create_model("seresnet18"), (3, 32, 32))
    assert feeds["layer1.0.se.fc1"] == ["layer1.0.conv2"]
    assert feeds["layer1.0.se.fc2"] == ["layer1.0.se.fc1"]
    assert feeds["layer1.1.conv1"] == ["conv1", "layer1.0.conv2", "layer1.0.se.fc2"]
