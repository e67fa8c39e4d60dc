"""Traced networks kept as data, one JSON file per network and input size: no torch needed.

The files in ``PACKAGED`` are written by ``tools/make_shapes.py`` and checked against the networks
by a test; a run adds other networks to its store. A file is an object with the fields of `Network`.
Older ones lack some of them, or are the list of layers alone: they are read as they are, and the
next run of that network writes the file of its store anew, as it does where the code has changed.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantable.base.content import SHA256, without_places
from quantable.base.errors import UserError
from quantable.base.places import is_own
from quantable.networks.layers import LayerShape, Network

PACKAGED = Path(__file__).parent / "traced"
PAIRS = ("kernel", "stride", "output")  # tuples of a layer, which JSON makes lists


def shape_key(model: Mapping[str, Any], input_size: Sequence[int]) -> str:
    """File name, without suffix, for the shapes of one network at one input size (c, h, w).

    ``model`` is the resolved ``model`` group of a run config: its ``name`` and what builds it in
    ``net``. A network of this project goes by its arguments: its function has its name, and weights
    change no shape. Of any other, the function's name and a digest of all that it is given.

    >>> net = {"_target_": "quantable.networks.cifar.vgg19_cifar", "width": 0.25, "classes": 10}
    >>> shape_key({"name": "vgg19_cifar", "net": net}, (3, 32, 32))
    'vgg19_cifar-classes=10-width=0.25-3x32x32'
    >>> shape_key({"name": "vgg19_cifar", "net": net | {"_target_": "mine.vgg"}}, (3, 32, 32))
    'vgg19_cifar-mine.vgg-b5262c82367c-3x32x32'
    """
    net, name = without_places(model["net"]), model["name"]
    target = net.get("_target_", "")
    if is_own(target) and target.endswith((f".{name}", f".{name}_network")):
        parts = [
            f"{quote(key, safe='')}={_word(value)}"
            for key, value in sorted(net.items())
            if key != "_target_" and not key.endswith(SHA256)
        ]
    else:
        content = json.dumps(net, sort_keys=True).encode()
        parts = [_word(target), hashlib.sha256(content).hexdigest()[:12]]
    return "-".join([_word(name), *parts, "x".join(str(n) for n in input_size)])


def read_network(key: str, folders: Iterable[Path]) -> Network | None:
    """The network kept under ``key`` in the first folder that has it, or None."""
    path = next((path for folder in folders if (path := _path(key, folder)).is_file()), None)
    return None if path is None else _parse(path, path.read_bytes())


def read_shapes(key: str, folders: Iterable[Path]) -> list[LayerShape] | None:
    """Layers alone of the network kept under ``key``, in execution order, or None."""
    network = read_network(key, folders)
    return None if network is None else network.layers


def write_network(key: str, network: Network, folder: Path) -> Path:
    """Keep ``network`` under ``key`` in ``folder``: the whole file appears at once, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(key, folder)
    unfinished = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        unfinished.write_text(_text(network), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _path(key: str, folder: Path) -> Path:
    return folder / f"{key}.json"


def _text(network: Network) -> str:
    """JSON with one layer, one layer's feeders or one addition a line; unknown facts are left out.

    >>> print(_text(Network([LayerShape("fc", 8, 8, 2)], 0, feeds={"fc": [""]})), end="")
    {"batch_norm_channels": 0,
    "layers": [
    {"name": "fc", "macs": 8, "weights": 8, "inputs": 2, "kind": "conv"}
    ],
    "feeds": {
    "fc": [""]
    }}
    """
    facts = {
        "batch_norm_channels": network.batch_norm_channels,
        "layers": [_known(shape) for shape in network.layers],
        "feeds": network.feeds,
        "added": network.added,
        "activation_macs": network.activation_macs or None,  # most networks have none
    }
    parts = [f'"{key}": {_json(value)}' for key, value in facts.items() if value is not None]
    return "{" + ",\n".join(parts) + "}\n"


def _json(value: object) -> str:
    """One item of a collection, one line."""
    if isinstance(value, Mapping):
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items())
        return f"{{\n{lines}\n}}"
    if isinstance(value, Sequence):
        lines = ",\n".join(json.dumps(item) for item in value)
        return f"[\n{lines}\n]"
    return json.dumps(value)


def _known(shape: LayerShape) -> dict[str, Any]:
    """What is written of a layer; most have no bias, and none is written then."""
    return {
        key: value
        for key, value in vars(shape).items()
        if value is not None and (key != "bias" or value)
    }


@lru_cache  # a report asks for the same few networks for every cell
def _parse(path: Path, text: bytes) -> Network:
    try:
        content = json.loads(text)
        if isinstance(content, list):
            content = {"layers": content}
        layers = [_layer(layer) for layer in content.pop("layers")]
        return Network(layers, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not a list of layer shapes ({error}); delete the file to trace them again."
        ) from error


def _layer(values: dict[str, Any]) -> LayerShape:
    return LayerShape(**values | {key: tuple(values[key]) for key in PAIRS if key in values})


def _word(value: object) -> str:
    """``value`` as a part of a file name; 1 and 1.0 read alike.

    >>> _word(1.0), _word(0.25), _word("plain"), _word("a/b")
    ('1', '0.25', 'plain', 'a%2Fb')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return quote(str(value), safe="")
