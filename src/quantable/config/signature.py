"""The name of a run's question, and which keys are no part of it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from quantable.base.content import without_places
from quantable.config.targets import signed_as

# Keys that change a trained number by the rounding of its sums at most, of which a record's
# provenance tells: machine and places; wording and arithmetic afterwards.
MACHINE = (
    *("trainer", "executor", "logger", "store"),
    *("data.root", "data.part", "data.loader", "data.source"),
    *("bits.file", "search.rule.workers"),  # the content of a bits file becomes bits.layers
)

LOOKS = ("quantizer.looks", "search.looks")  # of figures: no run and no record needs them

NOT_SIGNED = (*MACHINE, *LOOKS, "hardware", "objective", "data.title", "quantizer.numbers")


# Keys that are left out where they are null: runs without them are older than the keys.
OPTIONAL = (
    *("start", "teacher", "search", "bits.accumulator"),
    *("recipe.weight_decay_by_bits", "recipe.weight_decay_of", "recipe.small_images"),
    *("recipe.batch_norms", "recipe.version"),
)
# As here, but of these targets alone: others have always signed it.
OPTIONAL_OF = ("model.net.weights_sha256", "quantable.models.cifar.")


def flat(node: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, value)`` of every leaf; lists and empty dicts are leaves.

    >>> list(flat({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flat(value, f"{prefix}{key}.")
    else:
        yield prefix[:-1], node


def belongs(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``names`` or lies below one.

    >>> belongs("data.root", MACHINE), belongs("data.rooted", MACHINE)
    (True, False)
    """
    return f"{key}.".startswith(_with_dots(tuple(names)))


@cache  # a report asks for each key of each cell
def _with_dots(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``config`` as dotted keys without machine and looks: what a record keeps."""
    named = flat(without_places(signed_as(config)))
    return {key: value for key, value in named if not belongs(key, (*MACHINE, *LOOKS))}


def signature(config: Mapping[str, Any]) -> str:
    """Name a run config by twelve hex digits of SHA-256; machine keys are left out.

    Of a file that the config names, its content's hash is taken (``files.with_hashes``).

    >>> slow, fast = {"seed": 0, "trainer": {"threads": 1}}, {"seed": 0, "trainer": {"threads": 8}}
    >>> signature(slow) == signature(fast) != signature({"seed": 1})
    True
    """
    named = dict(flat(without_places(signed_as(config))))
    key, targets = OPTIONAL_OF
    young = named.get("model.net._target_", "").startswith(targets)
    optional = (*OPTIONAL, key) if young else OPTIONAL
    decisive = {
        key: value
        for key, value in named.items()
        if not belongs(key, NOT_SIGNED) and not (value is None and key in optional)
    }
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
