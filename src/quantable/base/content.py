"""Files that a config names: what they hold is part of a run's question, where they lie is not.

Beside a key that names a file stands ``<key>_sha256``, the SHA-256 of the file's content.
"""

import hashlib
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from quantable.base.errors import UserError

SHA256 = "_sha256"
YOUNG_NS = 2_000_000_000  # a file that changed just now may change again within a tick of its clock


def content_of(value: object) -> Any:  # noqa: ANN401 - a hash, or a list
    """SHA-256 of the file that ``value`` names; None where it names none on this machine.

    Of a list with a file among its parts, the list with hashes in the files' places.

    >>> content_of("plain"), content_of(["plain", 3]), content_of(0.5)
    (None, None, None)
    """
    if isinstance(value, list | tuple):
        hashes = [content_of(part) for part in value]
        return [h or part for h, part in zip(hashes, value, strict=True)] if any(hashes) else None
    if not isinstance(value, str) or not os.path.isfile(os.path.expanduser(value)):
        return None
    path = Path(value).expanduser()
    try:
        stat = path.stat()
        version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        young = time.time_ns() - stat.st_ctime_ns < YOUNG_NS
        return (_sha256.__wrapped__ if young else _sha256)(path, version)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


@lru_cache  # a table's rows name the same file
def _sha256(path: Path, version: tuple[int, ...]) -> str:
    del version
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_content(value: object, sha256: object, key: str) -> None:
    """Raise unless ``value``, which ``key`` of a config names, has the content ``sha256``."""
    actual = content_of(value)
    if actual is None:
        raise UserError(f"{key}: no file '{value}'")
    if actual != sha256:
        given = "null" if sha256 is None else sha256
        raise UserError(
            f"{key}{SHA256}={given}: the SHA-256 of '{value}' is {actual}. "
            f"If it is the file you mean, set {key}{SHA256} to that."
        )


def without_places(node: Any) -> Any:  # noqa: ANN401 - any part of a config
    """Copy of a config, or a part of it, where the hash alone stands for a file.

    >>> without_places({"net": {"weights": "a/b", "weights_sha256": "0f", "width": 1.0}})
    {'net': {'weights_sha256': '0f', 'width': 1.0}}
    """
    if isinstance(node, dict):
        kept = {k: value for k, value in node.items() if f"{k}{SHA256}" not in node}
        return {key: without_places(value) for key, value in kept.items()}
    if isinstance(node, list | tuple):
        return [without_places(value) for value in node]
    return node
