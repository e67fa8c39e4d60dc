import runpy
import subprocess
import sys
from math import isqrt
from pathlib import Path

import pytest
from hydra.utils import instantiate

from quantable.base.errors import UserError
from quantable.networks.layers import IMAGE, LayerShape, Network
from quantable.networks.shapes import PACKAGED, read_network, read_shapes, shape_key, write_network
from quantable.networks.trace import trace

MODELS = list(
    runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_shapes.py"))["models"]()
)
KEYS = [shape_key(*arguments) for arguments in MODELS]
SHAPES = [LayerShape("conv1", 3456, 216, 243), LayerShape("fc", 80, 80, 8, "linear", bias=10)]
CONV = LayerShape("conv", 3456, 216, 243, "conv", 8, 3, 8, 1, (3, 3), (2, 2), (4, 4))

# Residual blocks by network; MobileNetV2 and Lite0 add in all blocks of a stage but the first.
BLOCKS = {
    "vgg19_cifar": 0,
    "resnet8_cifar": 3,
    "resnet18_cifar": 8,
    "resnet20_cifar": 9,
    "resnet18.tv_in1k": 8,
    "resnet50.tv_in1k": 16,
    "resnet101.tv_in1k": 33,
    "mobilenetv2_100.ra_in1k": 10,
    "tf_efficientnet_lite0.in1k": 9,
    "sqnxt23_w2": 21,
    # Five additions in each of 16 cells; in 9 normal cells one adds a layer's result to itself.
    "nasnet_mobile": 5 * 16 - 9,
    "alexnet_groups": 0,
    "alexnet_torchvision": 0,
    "lenet5": 0,
    "allcnn_c": 0,
}
JOINED = ("nasnet_mobile",)  # put channels beside others


def test_discovery():
    assert len(KEYS) >= 24
    assert sorted(path.stem for path in PACKAGED.glob("*")) == sorted(set(KEYS)) == sorted(KEYS)


@pytest.mark.parametrize(("model", "input_size"), MODELS, ids=KEYS)
def test_packaged_shapes_are_the_networks(model, input_size):
    net, key = instantiate(model["net"]), shape_key(model, input_size)
    assert read_network(key, [PACKAGED]) == trace(net, input_size)


@pytest.mark.parametrize("key", KEYS)
def test_facts_of_a_packaged_layer_agree_with_each_other(key):
    for layer in read_shapes(key, [PACKAGED]):
        (k_h, k_w), (h, w) = layer.kernel, layer.output
        assert layer.c_in % layer.groups == layer.c_out % layer.groups == 0
        assert layer.weights == layer.c_out * layer.c_in // layer.groups * k_h * k_w
        assert layer.macs == h * w * layer.weights
        assert layer.bias in (0, layer.c_out)
        side = isqrt(layer.inputs // layer.c_in)  # of a square map, or of a vector
        assert layer.inputs == layer.c_in * side**2
        for out, kernel, stride in zip((h, w), layer.kernel, layer.stride, strict=True):
            # The last window begins on the map, and no other fits behind it.
            assert (out - 1) * stride < side < out * stride + kernel


@pytest.mark.parametrize(("model", "input_size"), MODELS, ids=KEYS)
def test_links_of_a_packaged_network_agree_with_its_layers(model, input_size):
    network = read_network(shape_key(model, input_size), [PACKAGED])
    layers = {layer.name: layer for layer in network.layers}
    order, padded = [IMAGE, *layers], model["net"].get("shortcuts") == "pad"
    joined = model["name"] in JOINED
    assert list(network.feeds) == list(layers)
    for place, (name, feeders) in enumerate(network.feeds.items(), start=1):
        assert feeders
        assert set(feeders) <= set(order[:place])
        assert (IMAGE in feeders) == (place == 1)  # the first layer alone reads the image
        # What feeds a layer has the channels that it reads, or fewer where others are put beside
        # them, zeros by a shortcut or another layer's, or where a whole map is made a vector.
        fewer = {layers[n].c_out for n in feeders if n != IMAGE} - {layers[name].c_in}
        flat = layers[name].kind == "linear" and not any(layers[name].c_in % c for c in fewer)
        assert not fewer or ((padded or joined or flat) and max(fewer) < layers[name].c_in)
    # All but the last, the classifier, are read by another.
    assert {name for feeders in network.feeds.values() for name in feeders} == set(order[:-1])
    for sources in network.added:
        assert len(sources) > 1
        assert sorted(sources, key=order.index) == sources
        (h, w), c_out = layers[sources[-1]].output, layers[sources[-1]].c_out
        for name in sources:  # the stem of a timm ResNet is pooled on the way
            times = c_out // layers[name].c_out  # 1, unless shortcuts pad and pick pixels
            assert times == 1 or padded or joined
            sizes = [times] if padded else [1, 2]
            rows, columns = layers[name].output  # NASNet halves odd ones, upwards
            assert (h, w) in [(-(-rows // n), -(-columns // n)) for n in sizes]
        assert any(set(sources) <= set(feeders) for feeders in network.feeds.values())
    assert len(network.added) == BLOCKS[model["net"].get("name", model["name"])]


def test_packaged_vgg19_is_the_ad_papers():
    kept = read_shapes("vgg19_cifar-classes=10-in_channels=3-width=1-3x32x32", [PACKAGED])
    assert sum(layer.macs for layer in kept) == 398_136_320


OWN = "quantable.networks.timm.timm_network"


def model(_target_=OWN, **net):
    return {"name": "timm", "net": {"_target_": _target_, "weights": None, **net}}


def key(*, name="timm", size=(3, 32, 32), **net):
    return shape_key(model(**net) | {"name": name}, size)


def test_key_names_what_changes_a_shape_and_nothing_else():
    base = key(width=1.0, weights="a.pth", weights_sha256="0")
    assert base == key(width=1, size=[3, 32, 32], weights_sha256=None) == "timm-width=1-3x32x32"
    # As a record and an older config name the same network.
    assert base == key(_target_="quantable.models.timm.timm_network", width=1, weights_sha256="0")
    more = {"weights_sha256": None}
    others = [
        key(width=0.5, **more),
        shape_key(model(width=1.0, name="a", **more), (3, 32, 32)),
        shape_key(model(width=1.0, name="b", **more), (3, 32, 32)),
        key(width=1.0, size=(3, 64, 64), **more),
    ]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    "net",
    [
        {"_target_": "mine.timm_network"},  # a user's own function
        {"_target_": "quantable.networks.cifar.resnet8_cifar"},  # another of this project
        {"_target_": "quantable.mine.timm_network.other"},
    ],
)
def test_another_function_builds_another_network(net):
    ours = key(weights_sha256=None, width=1)
    theirs = key(**net, weights_sha256=None, width=1)
    assert ours != theirs
    assert net["_target_"] in theirs
    # All that it is given may change what it builds: also what a file says, but not where it lies.
    others = [
        key(**net, weights_sha256=None, width=2),
        key(**net, weights_sha256="0f", width=1),
        key(**net, weights_sha256="1f", width=1),
        key(**net, weights_sha256=None, width=1, _args_=[3]),
        key(**net, width=1),
    ]
    assert len({ours, theirs, *others}) == 7
    moved = key(**net, weights="elsewhere", weights_sha256="0f", width=1)
    assert moved == others[1]


def test_key_is_safe_as_a_file_name():
    key = shape_key(model(name="a/../b c:d", weights_sha256=None), (3, 32, 32))
    assert key == "timm-name=a%2F..%2Fb%20c%3Ad-3x32x32"
    theirs = shape_key(model(_target_="a/../b", name="x" * 999), (3, 32, 32))
    assert "/" not in theirs
    assert len(theirs) < 100


def test_shapes_survive_the_file(tmp_path):
    write_network("net", Network(SHAPES), tmp_path / "new" / "folder")
    assert read_shapes("net", [tmp_path, tmp_path / "new" / "folder"]) == SHAPES
    assert read_shapes("other", [tmp_path]) is None


@pytest.mark.parametrize(
    "network",
    [
        Network([CONV], 16, {"conv": [IMAGE]}, [[IMAGE, "conv"]]),
        Network([CONV], 16, {"conv": [IMAGE]}, []),
        Network([CONV], 0, {"conv": []}, None),
        Network([CONV, *SHAPES]),
        Network([CONV], activation_macs=7),
    ],
)
def test_a_network_survives_the_file(tmp_path, network):
    write_network("net", network, tmp_path)
    assert read_network("net", [tmp_path]) == network


def test_a_file_written_anew_is_read_anew(tmp_path):
    write_network("net", Network(SHAPES), tmp_path)
    assert read_network("net", [tmp_path]).batch_norm_channels is None
    write_network("net", Network(SHAPES, 16), tmp_path)
    assert read_network("net", [tmp_path]).batch_norm_channels == 16


LAYER = '{"name": "conv1", "macs": 3456, "weights": 216, "inputs": 243, "kind": "conv"}'


@pytest.mark.parametrize(
    ("text", "channels"),
    [(f"[{LAYER}]", None), (f'{{"batch_norm_channels": 8, "layers": [{LAYER}]}}', 8)],
    ids=["a list", "without links"],
)
def test_older_files_are_networks_of_which_less_is_known(tmp_path, text, channels):
    (tmp_path / "net.json").write_text(text)
    assert read_network("net", [tmp_path]) == Network(SHAPES[:1], channels, None, None)
    (layer,) = read_shapes("net", [tmp_path])
    facts = (layer.c_in, layer.c_out, layer.groups, layer.kernel, layer.stride, layer.output)
    assert facts == (None,) * 6


def test_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_network("net", Network(SHAPES), tmp_path)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_network("net", Network(SHAPES[:1]), tmp_path)
    assert read_shapes("net", [tmp_path]) == SHAPES
    assert [path.name for path in tmp_path.iterdir()] == ["net.json"]


@pytest.mark.parametrize("text", ["[", '[{"name": "a"}]', "3", "{}", '{"layers": [], "x": 1}'])
def test_broken_file_is_named(tmp_path, text):
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(UserError, match=r"net\.json: not a list of layer shapes"):
        read_shapes("net", [tmp_path])


def test_shapes_need_no_torch():
    code = "import sys, quantable.networks.shapes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
