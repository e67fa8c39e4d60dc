"""Families in a table file: one entry of ``rows`` or ``claims`` with ``for:`` stands for many.

``for`` has a line for each variable. A list gives each value one word; a mapping, under as many
names as words, gives it more of them::

    "{metric}_{share}":
      for:
        metric, title: {eagl: EAGL, alps: ALPS}
        share, part: {90: 0.9, 80: 0.8}
      label: "{title}, {share} %"
      chosen: {by: "{metric}", budgets: {linear: "{part}"}}
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from quantable.base.errors import UserError, unknown

# ${bits} is OmegaConf's, and braces with a colon or a comma are a mapping of Hydra's
PLACEHOLDER = re.compile(r"(?<!\$)\{([^{}:,]+)\}")
Words = dict[str, Any]  # what each placeholder stands for


def expanded(entries: Mapping[Any, object], where: str) -> dict[Any, object]:
    """Put its members in the place of each family, the first variable outermost.

    >>> row = {"for": {"name": ["a", "b"], "bits": [2, 3]}, "cost_bits": "{bits}"}
    >>> for name, entry in expanded({"{name}{bits}": row, "c": {"label": "C"}}, "rows").items():
    ...     print(name, entry)
    a2 {'cost_bits': 2}
    a3 {'cost_bits': 3}
    b2 {'cost_bits': 2}
    b3 {'cost_bits': 3}
    c {'label': 'C'}
    """
    found: dict[Any, object] = {}
    for name, entry in entries.items():
        for member, body in _members(name, entry, f"{where}.{name}"):
            if member in found:
                raise UserError(f"{where}.{name}: a second entry of the name '{member}'")
            found[member] = body
    return found


def _members(name: object, entry: object, where: str) -> Iterator[tuple[object, object]]:
    asked = PLACEHOLDER.findall(str(name))
    if not isinstance(entry, dict) or "for" not in entry:
        if asked:
            raise UserError(f"{where}: {{{asked[0]}}} has no values, there is no for:")
        yield name, entry
        return
    variables = _variables(entry["for"], f"{where}: for")
    for first, *_ in variables:
        if first.keys().isdisjoint(asked):
            raise UserError(
                f"{where}: the name lacks {{{next(iter(first))}}}: the entries would all have one"
            )
    template = {key: value for key, value in entry.items() if key != "for"}
    for chosen in product(*variables):
        words = {word: value for one in chosen for word, value in one.items()}
        yield str(filled(name, words, where)), filled(template, words, where)


def _variables(given: object, where: str) -> list[list[Words]]:
    """Return the values of each variable, each by its names."""
    if not isinstance(given, dict) or not given:
        raise UserError(f"{where}: {given!r} is no mapping of variables to their values")
    keys = [[name.strip() for name in str(key).split(",")] for key in given]
    names = [name for key in keys for name in key]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: '{name}' is named twice")
    return [
        _values(key, values, f"{where}: {', '.join(key)}")
        for key, values in zip(keys, given.values(), strict=True)
    ]


def _values(names: list[str], given: object, where: str) -> list[Words]:
    """Return the words of each value of one variable.

    >>> _values(["share", "part"], {90: 0.9, 80: 0.8}, "for")
    [{'share': 90, 'part': 0.9}, {'share': 80, 'part': 0.8}]
    >>> _values(["bits", "first", "last"], {2: [4, 8]}, "for")
    [{'bits': 2, 'first': 4, 'last': 8}]
    """
    if not isinstance(given, list | dict) or not given:
        raise UserError(f"{where}: {given!r} is no list or mapping of values")
    lines = [[value] for value in given]
    if isinstance(given, dict):
        several = len(names) > 2  # a single word may be a list itself
        for line, more in zip(lines, given.values(), strict=True):
            line += more if several and isinstance(more, list) else [more]
    for line in lines:
        if len(line) != len(names):
            raise UserError(
                f"{where}: a name is needed for each of {', '.join(map(str, line))}, and only those"
            )
    return [dict(zip(names, line, strict=True)) for line in lines]


def filled(template: object, words: Words, where: str) -> object:
    """Put words in the place of placeholders; one that stands alone keeps its word's type.

    >>> filled(["{metric}_{share}", "{part}", 7], {"metric": "eagl", "share": 90, "part": 0.9}, "")
    ['eagl_90', 0.9, 7]
    """
    if isinstance(template, dict):
        return {key: filled(value, words, f"{where}.{key}") for key, value in template.items()}
    if isinstance(template, list):
        return [filled(value, words, where) for value in template]
    return _text(template, words, where) if isinstance(template, str) else template


def _text(template: str, words: Words, where: str) -> object:
    for name in PLACEHOLDER.findall(template):
        if name not in words:
            raise unknown("placeholder", name, words, where)
    if alone := PLACEHOLDER.fullmatch(template):
        return words[alone[1]]
    return PLACEHOLDER.sub(lambda found: str(words[found[1]]), template)
