import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from quantable.base.errors import UserError
from quantable.networks.cifar import (
    Pad,
    resnet8_cifar,
    resnet18_cifar,
    resnet20_cifar,
    scaled,
    vgg19_cifar,
)
from quantable.networks.counting import COUNTED, layer_shapes


def macs(net, input_size=(3, 32, 32), kinds=("conv", "linear")):
    return sum(layer.macs for layer in layer_shapes(net, input_size) if layer.kind in kinds)


def weights(net):
    return sum(layer.weights for layer in layer_shapes(net, (3, 32, 32)))


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


# The AD paper's networks, papers' arithmetic: Vasquez et al., DATE 2021, Tables V and VI.
def test_vgg19_is_the_ad_papers():
    net = vgg19_cifar(10, 3, width=1.0)
    assert macs(net) == 398_136_320
    assert weights(net) == 20_024_000
    assert [layer.macs for layer in layer_shapes(net, (3, 32, 32))] == [
        1_769_472, 37_748_736, 18_874_368, 37_748_736, 18_874_368, *[37_748_736] * 3,
        18_874_368, *[37_748_736] * 3, *[9_437_184] * 4, 5_120,
    ]  # fmt: skip


def test_quarter_width_vgg19():
    net = vgg19_cifar(10, 3, width=0.25)
    assert macs(net) == 25_216_256
    assert weights(net) == 1_252_784


def test_resnet18_plain_counts_555_417_600_convolution_macs():
    assert macs(resnet18_cifar(100, 3, 1.0, "plain"), kinds=["conv"]) == 555_417_600


@pytest.mark.parametrize(
    ("classes", "size", "expected"),
    [(100, 32, 576_440_320), (200, 32, 576_491_520), (200, 64, 2_305_658_880)],
)
def test_resnet18_with_all_shortcuts(classes, size, expected):
    assert macs(resnet18_cifar(classes, 3, 1.0, "all"), (3, size, size)) == expected


def test_quarter_width_resnet18_with_all_shortcuts():
    net = resnet18_cifar(10, 3, 0.25, "all")
    assert macs(net) == 36_357_376
    assert weights(net) == 721_072


def test_resnet20_with_all_shortcuts():
    assert macs(resnet20_cifar(10, 3, 1.0, "all")) == 42_648_192


def test_resnet20_with_padded_shortcuts_counts_40_551_millions():
    net = resnet20_cifar(10, 3, 1.0, "pad")
    stem = 32 * 32 * 3 * 16 * 9
    stages = [(32, 16, 6, 0), (16, 32, 5, 16), (8, 64, 5, 32)]  # side, channels, convs, and of c_in
    blocks = sum(s * s * c * 9 * (n * c + c_in) for s, c, n, c_in in stages)
    assert macs(net) == stem + blocks + 64 * 10 == 40_551_040
    assert parameters(net) == 269_722
    assert [
        layer.name for layer in layer_shapes(net, (3, 32, 32)) if "shortcut" in layer.name
    ] == []


@pytest.mark.parametrize("builder", [resnet8_cifar, resnet18_cifar, resnet20_cifar])
@pytest.mark.parametrize("width", [0.25, 0.3, 1.0])
def test_padded_shortcuts_are_the_picked_pixels_between_zeros(builder, width):
    net = builder(10, 3, width, "pad").eval()
    pads = {name: module for name, module in net.named_modules() if isinstance(module, Pad)}
    assert list(pads) == [f"layer{stage}.0.shortcut" for stage in range(2, net.stages + 1)]
    for name, pad in pads.items():
        block = net.get_submodule(name.removesuffix(".shortcut"))
        c_in, c_out = block.conv1.in_channels, block.conv1.out_channels
        x = torch.randn(2, c_in, 7, 8)
        by_hand = np.zeros((2, c_out, 4, 4), np.float32)
        front = (c_out - c_in) // 2
        for i in range(c_in):
            for row in range(4):
                for column in range(4):
                    by_hand[:, front + i, row, column] = x[:, i, 2 * row, 2 * column]
        assert np.array_equal(pad(x).numpy(), by_hand)
        assert block(x).shape == by_hand.shape


def test_resnet20_parameters_are_the_papers_plus_two_projections():
    # He et al., Table 6: 0.27 M. By hand, with batch norm's 2c for each convolution of c channels:
    stem = 3 * 16 * 9 + 2 * 16
    stage1 = 6 * (16 * 16 * 9 + 2 * 16)
    stage2 = (16 * 32 * 9 + 2 * 32) + 5 * (32 * 32 * 9 + 2 * 32)
    stage3 = (32 * 64 * 9 + 2 * 64) + 5 * (64 * 64 * 9 + 2 * 64)
    zero_padded = stem + stage1 + stage2 + stage3 + 64 * 10 + 10
    assert zero_padded == 269_722
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert parameters(resnet20_cifar(10, 3, 1.0, "plain")) == zero_padded + projections


def test_resnet8_parameters_by_hand():
    stem = 1 * 16 * 9 + 2 * 16
    stage1 = 2 * (16 * 16 * 9 + 2 * 16)
    stage2 = (16 * 32 * 9 + 2 * 32) + (32 * 32 * 9 + 2 * 32) + (16 * 32 + 2 * 32)
    stage3 = (32 * 64 * 9 + 2 * 64) + (64 * 64 * 9 + 2 * 64) + (32 * 64 + 2 * 64)
    by_hand = stem + stage1 + stage2 + stage3 + 64 * 10 + 10
    assert parameters(resnet8_cifar(10, 1, 1.0, "plain")) == by_hand


NETWORKS = [
    vgg19_cifar(10, 1, 0.25),
    resnet18_cifar(10, 1, 0.25, "all"),
    resnet20_cifar(10, 1, 0.5, "plain"),
    resnet8_cifar(10, 1, 0.5, "all"),
    resnet20_cifar(10, 1, 1.0, "pad"),
]
IDS = ["vgg19", "resnet18", "resnet20", "resnet8", "padded"]


@pytest.mark.parametrize("net", NETWORKS, ids=IDS)
@pytest.mark.parametrize("size", [28, 32, 64])
def test_network_runs_on_every_image_size(net, size):
    assert net(torch.zeros(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("net", NETWORKS, ids=IDS)
def test_modules_stand_in_execution_order_and_run_once(net):
    kinds = (*COUNTED, nn.BatchNorm2d, nn.ReLU)
    modules = [name for name, module in net.named_modules() if isinstance(module, kinds)]
    ran = []
    for name in modules:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    net(torch.zeros(2, 1, 32, 32))
    assert ran == modules
    assert isinstance(net.get_submodule(ran[0]), nn.Conv2d)
    assert isinstance(net.get_submodule(ran[-1]), nn.Linear)


def test_all_shortcuts_are_convolutions_and_plain_ones_only_where_shapes_change():
    def shortcuts(rule):
        shapes = layer_shapes(resnet18_cifar(10, 3, 0.25, rule), (3, 32, 32))
        return [layer.name for layer in shapes if "shortcut" in layer.name]

    assert shortcuts("plain") == [f"layer{stage}.0.shortcut.conv" for stage in (2, 3, 4)]
    assert len(shortcuts("all")) == 8


def test_convolutions_start_with_variance_two_over_fan_out():
    torch.manual_seed(0)
    conv = vgg19_cifar(10, 3, 1.0).features.conv16
    assert conv.bias is None
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_width_is_never_below_eight_channels():
    assert scaled(16, 0.01) == 8
    with pytest.raises(UserError, match="width=0: a width multiplier is above 0"):
        scaled(16, 0)


def test_unknown_shortcut_rule_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown shortcut rule 'al'\. Nearest: all"):
        resnet8_cifar(10, 1, 1.0, "al")


# Weights from a file


def kept(folder, state):
    path = folder / "weights.safetensors"
    save_file(state, path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("builder", [resnet8_cifar, resnet18_cifar, resnet20_cifar])
def test_weights_are_matched_by_name(builder, tmp_path):
    state = builder(10, 3, 0.25, "pad").state_dict()
    state = {name: torch.full_like(value, i) for i, (name, value) in enumerate(state.items())}
    loaded = builder(10, 3, 0.25, "pad", *kept(tmp_path, state)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert loaded.keys() == state.keys()


def test_the_names_of_the_public_resnets_are_known(tmp_path):
    state = resnet8_cifar(10, 3, 0.25, "pad").state_dict()
    theirs = {
        name.replace("fc.", "linear."): value
        for name, value in state.items()
        if "num_batches" not in name  # older files count no batches
    }
    loaded = resnet8_cifar(10, 3, 0.25, "pad", *kept(tmp_path, theirs)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), ["Missing", "layer1.0.conv1.weight"]),
        (lambda s: s.update(more=torch.zeros(1)), ["Unexpected", '"more"']),
        (lambda s: s.update({"fc.bias": torch.zeros(9)}), ["size mismatch", "fc.bias"]),
        (lambda s: s.update({"linear.bias": torch.zeros(10)}), ["Unexpected", '"linear.bias"']),
        (
            lambda s: s.update({"linear1.bias": s.pop("fc.bias")}),
            ["Missing", '"fc.bias"', "Unexpected", '"linear1.bias"'],
        ),
    ],
    ids=["missing", "left over", "size", "both names", "another name"],
)
def test_tensors_that_do_not_fit_are_named(change, said, tmp_path):
    state = resnet8_cifar(10, 3, 0.25, "pad").state_dict()
    change(state)
    with pytest.raises(UserError, match=r"weights: .* does not fit the network") as error:
        resnet8_cifar(10, 3, 0.25, "pad", *kept(tmp_path, state))
    assert all(words in str(error.value) for words in said)


@pytest.mark.parametrize("wrong", [None, "0" * 64])
def test_weights_need_their_hash(wrong, tmp_path):
    path, sha256 = kept(tmp_path, resnet8_cifar(10, 3, 0.25, "pad").state_dict())
    with pytest.raises(UserError) as error:
        resnet8_cifar(10, 3, 0.25, "pad", path, wrong)
    assert f"model.net.weights_sha256={wrong or 'null'}: " in str(error.value)
    assert sha256 in str(error.value)
