"""Traced layer shapes kept as data, one JSON file per network and input size: no torch needed.

The files in ``PACKAGED`` are written by ``tools/make_shapes.py`` and checked against the networks
by a test; a run adds the shapes of other networks to its store.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quantable.layers import LayerShape
from quantable.names import UserError

PACKAGED = Path(__file__).parent / "shapes"


def shape_key(model: Mapping[str, Any], input_size: Sequence[int]) -> str:
    """File name, without suffix, for the shapes of one network at one input size (c, h, w).

    ``model`` is the resolved ``model`` group of a run config: its ``name`` and the arguments in
    ``net``. ``_target_`` and everything about ``weights`` change no shape and are left out.

    >>> net = {"_target_": "quantable.models.cifar.vgg19_cifar", "width": 0.25, "classes": 10}
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
    for folder in folders:
        path = _path(key, folder)
        if path.is_file():
            return _parse(path)
    return None


def write_shapes(key: str, shapes: Sequence[LayerShape], folder: Path) -> Path:
    """Keep ``shapes`` under ``key`` in ``folder``: the whole file appears at once, by rename."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(key, folder)
    lines = ",\n".join(json.dumps(asdict(shape)) for shape in shapes)  # one layer, one line
    unfinished = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        unfinished.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _path(key: str, folder: Path) -> Path:
    return folder / f"{key}.json"


def _parse(path: Path) -> list[LayerShape]:
    try:
        return [LayerShape(**layer) for layer in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
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
