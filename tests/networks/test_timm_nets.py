import hashlib
from pathlib import Path

import pytest
import timm
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

from quantable.base.errors import UserError
from quantable.networks.timm import timm_network

NAME = "mobilenetv2_100.ra_in1k"


def network(name=NAME, classes=10, weights=None, sha256=None):
    return timm_network(name, classes, 3, weights=weights, weights_sha256=sha256)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "millions"),  # parameters at 1,000 classes: timm's results-imagenet.csv
    [
        ("mobilenetv2_100.ra_in1k", 3.50),
        ("efficientnet_lite0.ra_in1k", 4.65),
        ("tf_efficientnet_lite0.in1k", 4.65),
        ("resnet18.tv_in1k", 11.69),
        ("resnet50.tv_in1k", 25.56),
    ],
)
def test_parameters_are_timms_published_counts(name, millions):
    net = network(name, classes=1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_missing_tag_lists_the_tags():
    with pytest.raises(UserError, match=r"'resnet18' has \d+ sets of weights: .*resnet18\.tv_in1k"):
        network("resnet18")


@pytest.mark.parametrize("name", ["resnet18.tv_in1", "resnet18.tv_ink"])
def test_unknown_name_names_the_nearest(name):
    with pytest.raises(UserError, match=r"unknown timm network .*Nearest: .*resnet18\.tv_in1k"):
        network(name)


def test_a_hubs_name_is_refused_before_anything_is_fetched():
    with pytest.raises(UserError, match="unknown timm network 'hf-hub:timm/resnet18'"):
        network("hf-hub:timm/resnet18")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights_are_loaded(tmp_path, suffix):
    source = timm.create_model(NAME, num_classes=10)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)

    net = network(weights=str(path), sha256=sha256_of(path))

    for key, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


@pytest.mark.parametrize("wrong", [None, "0" * 64])
def test_weights_without_the_right_hash_are_refused_and_the_hash_is_printed(tmp_path, wrong):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=f"weights_sha256=.*{sha256_of(path)}"):
        network(weights=str(path), sha256=wrong)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no file '.*nowhere\.pth'"):
        network(weights=str(tmp_path / "nowhere.pth"), sha256="0" * 64)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(NAME, num_classes=7).state_dict(), path)
    with pytest.raises(UserError, match=r"(?s)does not fit the network.*classifier\.weight"):
        network(weights=str(path), sha256=sha256_of(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "checkpoint with state_dict, epoch"),
        ({"path": Path("x")}, "holds more than plain tensors"),
    ],
)
def test_checkpoints_and_objects_are_refused(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        network(weights=str(path), sha256=sha256_of(path))


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_broken_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match=f"{name}' holds more than plain tensors, or is broken"):
        network(weights=str(path), sha256=sha256_of(path))


CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
SIZES = {"alexnet_groups": [3, 227, 227], "alexnet_torchvision": [3, 224, 224]}  # too small else


def test_discovery():
    assert len(CONFIGS) == 11  # raise this by one with each network


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_model_config_builds_a_network(path):
    model = OmegaConf.load(path)
    assert model.name == path.stem
    if path.stem == "timm":
        assert OmegaConf.is_missing(model.net, "name")
        model.net.name = NAME
    size = SIZES.get(path.stem, [1, 28, 28])
    data = {"classes": 7, "input_size": size}
    config = OmegaConf.create({"data": data, "model": model})
    net = instantiate(config.model.net)
    assert net(torch.zeros(2, *size)).shape == (2, 7)
