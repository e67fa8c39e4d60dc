"""Input sizes of timm's weights, kept as data: a wrong size is refused without timm and torch.

``tools/make_input_sizes.py`` writes the file, which counts for the timm that it was made with; a
test compares it. A run asks the timm that is installed.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from quantable.base.errors import UserError

FILE = Path(__file__).with_suffix(".json")


class Sizes(NamedTuple):
    """Sizes (c, h, w) that images have with some weights; accuracy is published at ``tested``."""

    trained: tuple[int, ...]
    tested: tuple[int, ...]


@cache
def kept_sizes() -> dict[str, Sizes]:
    """Sizes by the weights' full name; none where another timm than the file's is installed."""
    kept = json.loads(FILE.read_text())
    if kept["timm"] != version("timm"):
        return {}
    return {
        tag: Sizes(*(tuple(map(int, size.split("x"))) for size in sizes.split()))
        for sizes, tags in kept["sizes"].items()
        for tag in tags
    }


def check_input_size(given: Sequence[int], tag: str, sizes: Sizes) -> None:
    """Refuse another ``data.input_size`` than the one that the weights ``tag`` are evaluated at."""
    if tuple(given) != sizes.tested:
        tested = str(list(sizes.tested)).replace(" ", "")
        raise UserError(
            f"data.input_size={list(given)}: the weights {tag} are evaluated at "
            f"{list(sizes.tested)} and trained at {list(sizes.trained)}; "
            f"set 'data.input_size={tested}', or data.tag to weights of your size"
        )
