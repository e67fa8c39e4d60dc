"""What a run keeps of its network."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
from torch import nn

from quantable.networks.cifar import resnet8_cifar
from quantable.networks.counting import count
from quantable.networks.layers import IMAGE, LayerShape, Network
from quantable.networks.shapes import read_network, shape_key, write_network
from quantable.networks.trace import trace
from quantable.store.store import Store
from quantable.training.build import Built, _keep_shapes

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
