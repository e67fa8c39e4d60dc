"""Weight and activation bytes under each convention, by hand."""

import pytest
from hand_shapes import resnet18, uniform, vgg19

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.cost.memory import activation_bytes, memory_bytes, to_unit, weight_bytes
from quantable.networks.layers import LayerShape
from quantable.networks.shapes import PACKAGED, read_network

LAYERS = [
    LayerShape("first", macs=1, weights=80, inputs=24),
    LayerShape("inner", macs=1, weights=800, inputs=160),
    LayerShape("fc", macs=1, weights=40, inputs=16, kind="linear"),
]
BITS = {"first": Bits(4, 8), "inner": Bits(2, 4), "fc": Bits(4, 2)}


@pytest.mark.parametrize(
    ("ends_bits", "count_linear", "expected"),
    [
        (None, True, 40 + 200 + 20),
        (None, False, 40 + 200),
        (8, True, 80 + 200 + 40),
        (8, False, 80 + 200),  # the network's last layer is the linear one, which is left out
    ],
)
def test_weight_bytes_conventions(
    ends_bits: int | None, count_linear: bool, expected: float
) -> None:
    got = weight_bytes(LAYERS, BITS, ends_bits=ends_bits, count_linear=count_linear)
    assert got == expected


@pytest.mark.parametrize(
    ("layers", "weights"),
    [
        (vgg19(), 20_024_000),
        (vgg19(narrower=4), 1_252_784),
        (resnet18(classes=10, narrower=4), 721_072),
    ],
)
def test_weights_of_the_ad_networks(layers: list, weights: int) -> None:
    got = weight_bytes(layers, uniform(layers, 8), ends_bits=None, count_linear=True)
    assert got == weights


@pytest.mark.parametrize(
    ("reduction", "count_linear", "expected"),
    [("sum", True, 24 + 80 + 4), ("sum", False, 24 + 80), ("max", True, 80)],
)
def test_activation_bytes_conventions(reduction: str, count_linear: bool, expected: float) -> None:
    got = activation_bytes(LAYERS, BITS, reduction=reduction, count_linear=count_linear)
    assert got == expected


def test_units_are_decimal_or_binary() -> None:
    units = {"MB": 1e6, "MiB": 1_048_576, "kB": 1e3, "KiB": 1024}
    assert all(to_unit(size, unit) == 1 for unit, size in units.items())


def test_wrong_words_and_widths_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown unit 'Mb'.* MB"):
        to_unit(1, "Mb")
    with pytest.raises(UserError, match="unknown reduction 'mean'"):
        activation_bytes(LAYERS, BITS, reduction="mean", count_linear=True)
    with pytest.raises(UserError, match="unknown layer 'first'"):
        weight_bytes(LAYERS, {"inner": Bits(2, 2)}, ends_bits=8, count_linear=True)
    with pytest.raises(UserError, match="bits=0"):
        weight_bytes(LAYERS, BITS, ends_bits=0, count_linear=True)
    with pytest.raises(UserError, match=r"unknown accounting 'edg'. Nearest: edge"):
        memory_bytes(LAYERS, BITS, batch_norm_channels=0, accounting="edg")


# Schaefer et al., WACV 2024: activation elements, layers, the largest, weights with biases, batch
# norm channels, as the authors' sizes imply them. Traced from the real networks (test_shapes).
EDGE = {
    "timm-classes=1000-in_channels=3-name=tf_efficientnet_lite0.in1k-3x224x224": (
        (6_676_256, 49, 1_204_224, 4_609_992, 21_008)
    ),
    "timm-classes=1000-in_channels=3-name=mobilenetv2_100.ra_in1k-3x224x224": (
        (6_616_672, 52, 1_204_224, 3_470_760, 17_056)
    ),
    "sqnxt23_w2-classes=1000-in_channels=3-3x224x224": (
        (7_141_856, 111, 387_200, 2_560_648, 11_552)  # 21 blocks of 5, 4 shortcuts, head, fc
    ),
    "timm-classes=1000-in_channels=3-name=resnet18.tv_in1k-3x224x224": (
        (2_032_640, 20, 200_704, 11_679_912, 4_800)
    ),
}


@pytest.mark.parametrize(("key", "counts"), EDGE.items(), ids=lambda x: x if type(x) is str else "")
def test_edge_networks_have_the_papers_counts(key: str, counts: tuple[int, ...]) -> None:
    activations, tensors, largest, weights, channels = counts
    network = read_network(key, [PACKAGED])
    assert network is not None
    layers, found = network.layers, network.batch_norm_channels
    assert found is not None
    assert (len(layers) - 1, found) == (tensors, channels)
    for bits in (4, 8):
        paper, both, one = (
            memory_bytes(layers, uniform(layers, bits), batch_norm_channels=found, accounting=name)
            for name in ("edge", "edge_both_bn", "edge_largest")
        )
        assert paper["activations"] == both["activations"] == activations * bits / 8
        assert one["activations"] == largest * bits / 8
        assert paper["weights"] == both["weights"] == one["weights"] == weights * bits / 8
        assert both["batch_norm"] == one["batch_norm"] == 2 * paper["batch_norm"] == 8 * channels


def test_uniform_4_bit_lite0_has_the_papers_kilobytes() -> None:
    key = next(iter(EDGE))
    network = read_network(key, [PACKAGED])
    assert network is not None
    layers, channels = network.layers, network.batch_norm_channels
    assert channels is not None
    parts = memory_bytes(
        layers, uniform(layers, 4), batch_norm_channels=channels, accounting="edge"
    )
    assert to_unit(parts["activations"], "kB") == pytest.approx(3338.128)
    assert to_unit(parts["weights"], "kB") == pytest.approx(2304.996)
    assert to_unit(parts["batch_norm"], "kB") == pytest.approx(84.032)


def test_the_first_layers_input_and_biases_count_where_asked() -> None:
    first = activation_bytes(LAYERS, BITS, reduction="sum", count_linear=True, count_first=False)
    assert first == 80 + 4
    layers = [*LAYERS[:2], LayerShape("fc", macs=1, weights=40, inputs=16, kind="linear", bias=10)]
    asked = {"ends_bits": None, "count_linear": True}
    assert weight_bytes(layers, BITS, **asked, count_bias=True) == 40 + 200 + 20 + 5
    assert weight_bytes(layers, BITS, **asked) == 40 + 200 + 20
