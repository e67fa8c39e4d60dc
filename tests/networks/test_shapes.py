import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate

from quantable.base.errors import UserError
from quantable.networks.layers import LayerShape
from quantable.networks.shapes import (
    PACKAGED,
    read_batch_norm_channels,
    read_shapes,
    shape_key,
    write_shapes,
)
from quantable.networks.trace import batch_norm_channels, layer_shapes

MODELS = list(
    runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_shapes.py"))["models"]()
)
KEYS = [shape_key(*arguments) for arguments in MODELS]
SHAPES = [LayerShape("conv1", 3456, 216, 243), LayerShape("fc", 80, 80, 8, "linear", bias=10)]


def test_discovery():
    assert len(KEYS) >= 23
    assert sorted(path.stem for path in PACKAGED.glob("*")) == sorted(set(KEYS)) == sorted(KEYS)


@pytest.mark.parametrize(("model", "input_size"), MODELS, ids=KEYS)
def test_packaged_shapes_are_the_networks(model, input_size):
    net, key = instantiate(model["net"]), shape_key(model, input_size)
    assert read_shapes(key, [PACKAGED]) == layer_shapes(net, input_size)
    assert read_batch_norm_channels(key, [PACKAGED]) == batch_norm_channels(net)


def test_packaged_vgg19_is_the_ad_papers():
    kept = read_shapes("vgg19_cifar-classes=10-in_channels=3-width=1-3x32x32", [PACKAGED])
    assert sum(layer.macs for layer in kept) == 398_136_320


def model(**net):
    return {"name": "timm", "net": {"_target_": "a.b", "weights": None, **net}}


def test_key_names_what_changes_a_shape_and_nothing_else():
    base = shape_key(model(width=1.0, weights="a.pth", weights_sha256="0"), (3, 32, 32))
    assert base == shape_key(model(width=1), [3, 32, 32]) == "timm-width=1-3x32x32"
    others = [model(width=0.5), model(width=1.0, name="a"), model(width=1.0, name="b")]
    assert len({base, *(shape_key(other, (3, 32, 32)) for other in others)}) == 4
    assert shape_key(model(width=1.0), (3, 64, 64)) != base


def test_key_is_safe_as_a_file_name():
    key = shape_key(model(name="a/../b c:d"), (3, 32, 32))
    assert key == "timm-name=a%2F..%2Fb%20c%3Ad-3x32x32"


def test_shapes_survive_the_file(tmp_path):
    write_shapes("net", SHAPES, tmp_path / "new" / "folder")
    assert read_shapes("net", [tmp_path, tmp_path / "new" / "folder"]) == SHAPES
    assert read_shapes("other", [tmp_path]) is None


def test_channels_of_batch_norms_stand_beside_the_layers(tmp_path):
    write_shapes("net", SHAPES, tmp_path, batch_norm_channels=16)
    assert read_shapes("net", [tmp_path]) == SHAPES
    assert read_batch_norm_channels("net", [tmp_path]) == 16
    assert read_batch_norm_channels("other", [tmp_path]) is None


def test_a_list_alone_is_a_network_whose_batch_norms_are_unknown(tmp_path):
    text = '[{"name": "conv1", "macs": 3456, "weights": 216, "inputs": 243, "kind": "conv"}]'
    (tmp_path / "net.json").write_text(text)
    assert read_shapes("net", [tmp_path]) == SHAPES[:1]
    assert read_batch_norm_channels("net", [tmp_path]) is None


def test_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_shapes("net", SHAPES, tmp_path)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_shapes("net", SHAPES[:1], tmp_path)
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
