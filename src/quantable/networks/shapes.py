"""Traced layer shapes kept as data, one JSON file per network and input size: no torch needed.

The files in ``PACKAGED`` are written by ``tools/make_shapes.py`` and checked against the networks
by a test; a run adds the shapes of other networks to its store. A file is the list of layers, or
an object with that list and the channels of all batch norms, which are no layer's.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantable.base.errors import UserError
from quantable.networks.layers import LayerShape

PACKAGED = Path(__file__).parent / "traced"


@dataclass(frozen=True)
class _Network:
    """What one file holds."""

    layers: list[LayerShape]
    batch_norm_channels: int | None = None


def shape_key(model: Mapping[str, Any], input_size: Sequence[int]) -> str:
    """File name, without suffix, for the shapes of one network at one input size (c, h, w).

    ``model`` is the resolved ``model`` group of a run config: its ``name`` and the arguments in
    ``net``. ``_target_`` and everything about ``weights`` change no shape and are left out.

    >>> net = {"_target_": "quantable.networks.cifar.vgg19_cifar", "width": 0.25, "classes": 10}
    >>> shape_key({"name": "vgg19_cifar", "net": net}, (3, 32, 32))
    'vgg19_cifar-classes=10-width=0.25-3x32x32'
    """
    arguments = [
        f"{quote(key, safe='')}={_word(value)}"
        for key, value in sorted(model["net"].items())
        if not key.startswith(("_", "weights"))
    ]
    return "-".join([_word(model["name"]), *arguments, "x".join(str(n) for n in input_size)])


def read_shapes(key: str, folders: Iterable[Path]) -> list[LayerShape] | None:
    """Shapes kept under ``key`` in the first folder that has them, in execution order, or None."""
    network = _read(key, folders)
    return None if network is None else network.layers


def read_batch_norm_channels(key: str, folders: Iterable[Path]) -> int | None:
    """Channels of all batch norms of the network kept under ``key``, or None where unknown."""
    network = _read(key, folders)
    return None if network is None else network.batch_norm_channels


def write_shapes(
    key: str, shapes: Sequence[LayerShape], folder: Path, *, batch_norm_channels: int | None = None
) -> Path:
    """Keep ``shapes`` under ``key`` in ``folder``: the whole file appears at once, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(key, folder)
    text = "[\n" + ",\n".join(_line(shape) for shape in shapes) + "\n]"  # one layer, one line
    if batch_norm_channels is not None:
        text = f'{{"batch_norm_channels": {batch_norm_channels}, "layers": {text}}}'
    unfinished = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        unfinished.write_text(f"{text}\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _path(key: str, folder: Path) -> Path:
    return folder / f"{key}.json"


def _line(shape: LayerShape) -> str:
    """One layer as JSON; most have no bias, and none is written then."""
    return json.dumps(
        {key: value for key, value in asdict(shape).items() if key != "bias" or value}
    )


def _read(key: str, folders: Iterable[Path]) -> _Network | None:
    path = next((path for folder in folders if (path := _path(key, folder)).is_file()), None)
    return None if path is None else _parse(path)


def _parse(path: Path) -> _Network:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            content = {"layers": content}
        layers = [LayerShape(**layer) for layer in content.pop("layers")]
        return _Network(layers, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not a list of layer shapes ({error}); delete the file to trace them again."
        ) from error


def _word(value: object) -> str:
    """``value`` as a part of a file name; 1 and 1.0 read alike.

    >>> _word(1.0), _word(0.25), _word("plain"), _word("a/b")
    ('1', '0.25', 'plain', 'a%2Fb')
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return quote(str(value), safe="")
