"""What a config says of its method's own numbers."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml

from quantable.base.places import CONF
from quantable.config.schema import OwnNumber

NUMBERS = "quantizer.numbers."


def own_numbers(config: Mapping[str, Any]) -> dict[str, OwnNumber]:
    """A method's own numbers by name, in the order of its YAML: what an epoch's ``own`` may hold.

    ``config`` is that of a cell, or a record's with dotted keys. A record from before there were
    declarations has none, and numbers all the same: they are as its cell's config declares them.

    >>> place = "quantizer.numbers.kb"
    >>> own_numbers({f"{place}.title": "size", f"{place}.unit": "kB", f"{place}.decimals": 1})
    {'kb': OwnNumber(title='size', unit='kB', decimals=1, by=None)}
    """
    declared: dict[str, dict[str, Any]] = {}
    if "quantizer" in config:
        declared = config["quantizer"].get("numbers", {})  # a method without any says nothing
    for key, value in config.items():
        if key.startswith(NUMBERS):
            name, _, field = key.removeprefix(NUMBERS).partition(".")
            declared.setdefault(name, {})[field] = value
    return {name: OwnNumber.model_validate(about) for name, about in declared.items()}


@cache
def every_methods_numbers() -> list[str]:
    """Names of all own numbers that the files of conf/quantizer declare."""
    files = (yaml.safe_load(path.read_text()) for path in (CONF / "quantizer").glob("*.yaml"))
    return sorted({name for content in files for name in content.get("numbers", {})})
