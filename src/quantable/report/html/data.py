"""What opens on click, as JSON that a script element may hold: histories and bits by layer."""

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from quantable.report.history import EVERY_RUN, Heading, number_of, numbers_in
from quantable.store.record import Epoch, Record

MOST_EPOCHS = 80  # lines of a history; a longer one is thinned


def script(content: Mapping[str, Any]) -> Markup:
    """Write data without the letters that could end the element, or begin a comment in it."""
    text = json.dumps(content, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def history(record: Record, declared: Mapping[str, Heading]) -> dict[str, Any]:
    """A run's history, line by line; a long one keeps each k-th epoch and the last.

    The method's own numbers stand behind those of every run, under the headings it declares.
    """
    step = -(-len(record.history) // MOST_EPOCHS) or 1
    last = len(record.history) - 1
    kept = [e for i, e in enumerate(record.history) if i % step == 0 or i == last]
    own = {n: declared.get(n, Heading(n)) for n in numbers_in(record, by_layer=False)}
    columns = {
        name: heading
        for name, heading in {**EVERY_RUN, **own}.items()
        if any(_number(epoch, name) is not None for epoch in kept)
    }
    return {
        "every": step,
        "head": [heading.words for heading in columns.values()],
        "decimals": [heading.decimals for heading in columns.values()],
        "lines": [[_short(epoch, *column) for column in columns.items()] for epoch in kept],
    }


def _number(epoch: Epoch, name: str) -> float | None:
    return None if name == "mean_bits" else number_of(epoch, name)


def _short(epoch: Epoch, name: str, heading: Heading) -> float | int | None:
    value = _number(epoch, name)
    if value is None:
        return None
    if heading.decimals:
        return round(value, heading.decimals)
    return int(value) + (name == "epoch")
