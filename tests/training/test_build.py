"""What a run keeps of its network, and what it refuses to train on."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.data.images import Images
from quantable.networks.cifar import resnet8_cifar
from quantable.networks.counting import count
from quantable.networks.layers import IMAGE, LayerShape, Network
from quantable.networks.shapes import read_network, shape_key, write_network
from quantable.networks.trace import trace
from quantable.store.store import Store
from quantable.training.build import (
    Built,
    _keep_shapes,
    build,
    check_is_its_state,
    part_of,
    try_training_images,
)

SIZE = (3, 32, 32)
MODEL = {"name": "resnet8_cifar", "net": {"_target_": "mine.resnet8_cifar", "classes": 3}}
KEY = shape_key(MODEL, SIZE)
LAYERS = [LayerShape("conv1", 1, 1, 1)]
FEEDS = {"conv1": [IMAGE]}


def keep(net: nn.Module, store: Store) -> Network | None:
    images: Any = SimpleNamespace(input_size=SIZE)
    found = count(net, SIZE)
    built = Built(images, net, found.layers, found.activation_macs)
    _keep_shapes({"model": MODEL, "data": {"input_size": SIZE}}, built, store)
    return read_network(KEY, [store.shapes])


@pytest.mark.parametrize("old", [None, Network(LAYERS), Network(LAYERS, 8)])
def test_all_that_is_known_is_kept_also_where_an_older_file_says_less(
    tmp_path: Path, old: Network | None
) -> None:
    net, store = resnet8_cifar(3, 3, 0.5, "plain"), Store(tmp_path)
    if old is not None:
        write_network(KEY, old, store.shapes)
    assert keep(net, store) == trace(net, SIZE)


def test_a_file_from_before_products_of_activations_were_counted_is_written_anew(
    tmp_path: Path,
) -> None:
    net, store = timm.create_model("test_vit", img_size=32, patch_size=8), Store(tmp_path)
    now = trace(net, SIZE)
    assert now.activation_macs > 0
    write_network(KEY, replace(now, activation_macs=0), store.shapes)
    assert keep(net, store) == now


def test_a_file_of_what_the_function_built_before_it_was_changed_is_written_anew(
    tmp_path: Path,
) -> None:
    net, store = resnet8_cifar(3, 3, 0.5, "plain"), Store(tmp_path)
    write_network(KEY, Network(LAYERS, 8, FEEDS, []), store.shapes)
    assert keep(net, store) == trace(net, SIZE)


def test_a_file_that_says_all_is_left_alone(tmp_path: Path) -> None:
    net = resnet8_cifar(3, 3, 0.5, "plain")
    kept = Network(count(net, SIZE).layers, 8, FEEDS, None)
    write_network(KEY, kept, Store(tmp_path).shapes)
    assert keep(net, Store(tmp_path)) == kept


# Images and batches that a network cannot be trained on


class OfOneSize(nn.Module):
    """Takes 8x8 images alone, like a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm, self.fc = nn.Dropout(0.5), nn.BatchNorm1d(64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 8:
            raise AssertionError(f"Input height ({x.shape[-1]}) doesn't match model (8)")
        return self.fc(self.norm(self.drop(x.flatten(1))))


def config_of(
    *, epochs: int, batch_size: int, quantized: bool = False, pixels: int | None = None
) -> dict[str, Any]:
    small = {} if pixels is None else {"small_images": {"pixels": pixels, "share": 0.5}}
    recipe = {"epochs": epochs, "batch_size": batch_size} | small
    return {"recipe": recipe, "quantizer": {"callback": {} if quantized else None}}


@pytest.mark.parametrize(
    ("size", "config", "message"),
    [
        (
            (1, 9, 9),
            config_of(epochs=1, batch_size=4),
            "training fails with batches of 2 of images [1, 9, 9]: Input height (9) doesn't match "
            "model (8); choose a network for images of this size",
        ),
        (
            (1, 8, 8),
            config_of(epochs=1, batch_size=4, pixels=6),
            "training fails with batches of 2 of images [1, 6, 6]: Input height (6) doesn't match "
            "model (8); choose a network for images of this size",
        ),
        (
            (1, 9, 9),
            config_of(epochs=0, batch_size=4, quantized=True),
            "calibration fails with batches of 2 of images [1, 9, 9]: Input height (9) doesn't "
            "match model (8); choose a network for images of this size",
        ),
        (
            (1, 8, 8),
            config_of(epochs=1, batch_size=1),
            "training fails with batches of 1 of images [1, 8, 8]: Expected more than 1 value per "
            "channel when training, got input size torch.Size([1, 64]); choose "
            "recipe.batch_size=2 or more: a batch norm needs two values",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_one_message(
    size: tuple[int, ...], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        try_training_images(OfOneSize(), config, size)
    assert str(error.value) == f"model.net: {message}"


def test_trying_leaves_the_network_and_the_random_numbers_alone() -> None:
    net = OfOneSize()
    net.drop.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    for config in (
        config_of(epochs=1, batch_size=4),
        config_of(epochs=0, batch_size=1, quantized=True),
        config_of(epochs=0, batch_size=1),
    ):
        try_training_images(net, config, (1, 8, 8))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert (net.training, net.drop.training, net.norm.training) == (True, False, True)


def test_it_is_said_before_images_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=timm", "model.net.name=resnet18.tv_in1k", "recipe.batch_size=1"]
    monkeypatch.setattr(Images, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"recipe\.batch_size=2 or more"):
        build(compose_run(words), Store(tmp_path), "")  # 28x28 pixels: the last maps are 1x1
    assert not list(tmp_path.iterdir())


# Networks that are more than their state


class Masked(nn.Module):
    """Multiplies by a random mask, a number that runs along in training, or neither."""

    def __init__(self, classes: int, in_channels: int, kind: str, **_: object) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(in_channels, 4, 3), nn.Linear(4, classes)
        self.kind, self.seen, self.plain = kind, 1.0, torch.rand(4)
        self.register_buffer("lost", torch.rand(4), persistent=False)
        self.register_buffer("kept", torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        if self.training:
            self.seen *= 0.5
        return self.fc(x * getattr(self, self.kind))


@pytest.mark.parametrize("kind", ["seen", "plain", "lost", "kept"])
def test_a_network_that_no_state_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("quantable.networks.cifar.masked", Masked, raising=False)
    words = ["model.net._target_=quantable.networks.cifar.masked", f"+model.net.kind={kind}"]
    config = compose_run([*words, "data.train_images=64"])
    if kind == "kept":
        build(config, Store(tmp_path), "")
        return
    with pytest.raises(UserError, match=r"model\.net: Masked computes with more than its param"):
        build(config, Store(tmp_path), "")
    assert not list(tmp_path.iterdir())


def test_looking_for_it_leaves_the_network_and_the_random_numbers_alone() -> None:
    config = compose_run(["model=resnet8_cifar", "recipe.channels_last=false"])
    net = part_of(config, "model.net")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    check_is_its_state(net, config, (1, 28, 28))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
