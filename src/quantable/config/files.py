"""Files that a run reads, in its config: each key that names one gets the file's hash beside it.

A builder of this project declares ``<key>_sha256`` in its YAML, and whoever names the file says the
hash too, so that a table can name weights that are not on every machine. Of a user's own builder
every string that names a file is one, and its hash is added here where it is not given.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantable.base.content import SHA256, check_content, content_of
from quantable.base.errors import UserError
from quantable.base.places import is_own
from quantable.config.targets import TARGET


def with_hashes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of a config with the hash of every file; UserError where a given one is another's.

    Images are not looked at: a record keeps their own fingerprint.
    """
    return {
        key: node if key == "data" else _hashed(node, key, foreign=False)
        for key, node in config.items()
    }


def _hashed(node: Any, place: str, *, foreign: bool) -> Any:  # noqa: ANN401
    if isinstance(node, list):
        return [_hashed(part, f"{place}[{i}]", foreign=foreign) for i, part in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if TARGET in node:
        foreign = not is_own(node[TARGET])
    found = {key: _hashed(node[key], f"{place}.{key}", foreign=foreign) for key in node}
    if foreign:
        found = _with_missing(found, place)
    for key, value in found.items():
        beside = f"{key}{SHA256}"
        if beside not in found or value is None:
            continue
        if found[beside] is None or content_of(value) is not None:  # else of another machine
            check_content(value, found[beside], f"{place}.{key}")
    return found


def _with_missing(node: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Keywords of a user's builder with the hash of each that names a file, and of no other."""
    found = dict(node)
    for key, value in node.items():
        beside = f"{key}{SHA256}"
        if key == TARGET or value is None or node.get(beside) is not None:
            continue
        _refuse_folder(value, f"{place}.{key}")
        found.pop(beside, None)
        if (content := content_of(value)) is not None:
            found[beside] = content
    return found


def _refuse_folder(value: object, where: str) -> None:
    if isinstance(value, str) and os.sep in value and os.path.isdir(os.path.expanduser(value)):
        raise UserError(
            f"{where}: '{value}' is a folder, and only files are signed: name its files"
        )


def unnamed(node: Any, place: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield key and hash of the files below ``node`` whose hash is there and whose place is not."""
    if isinstance(node, dict):
        for key, value in node.items():
            base = str(key).removesuffix(SHA256)  # weight decays have bits as keys
            if base != str(key) and value is not None and node.get(base) is None:
                yield f"{place}.{base}", value
            yield from unnamed(value, f"{place}.{key}")


def absolute(node: Any) -> Any:  # noqa: ANN401
    """Copy of a config, or a part of it, whose files are named by places that hold anywhere."""
    if isinstance(node, list):
        return [absolute(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _absolute(value, node[f"{key}{SHA256}"])
        if f"{key}{SHA256}" in node
        else absolute(value)
        for key, value in node.items()
    }


def _absolute(value: Any, sha256: Any) -> Any:  # noqa: ANN401
    if isinstance(value, list):
        return [_absolute(*pair) for pair in zip(value, sha256, strict=True)]
    is_place = isinstance(value, str) and value != sha256  # of a list, not every part is a file
    return str(Path(value).expanduser().resolve()) if is_place else value
