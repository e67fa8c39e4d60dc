"""Layer selection without a metric: items go to low bits by their place, or by chance.

Rivals in Bablani et al., arXiv:2301.13330. An item is a tuple of the names of layers that share
their bits; items come in execution order.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantable.base.errors import unknown
from quantable.search.run import Found, Start

Item = tuple[str, ...]
ORDERS = ("first_to_last", "last_to_first", "random")


@dataclass(frozen=True)
class Order:
    """The rule: an item's loss is its place in the order in which items go down."""

    by: Literal["first_to_last", "last_to_first", "random"]
    unit = "place"
    greedy = True

    def __post_init__(self) -> None:
        if self.by not in ORDERS:
            raise unknown("order", self.by, ORDERS, "search.rule.by")

    @property
    def name(self) -> str:
        """As reports have it."""
        return self.by.replace("_", " ")

    def __call__(self, start: Start) -> Found:
        """Place of every item; a random one is drawn from the run's seed."""
        order = ordered(start.items, self.by, seed=start.config["seed"])
        return Found([float(order.index(item)) for item in start.items])


def ordered(items: Sequence[Item], by: str, seed: int) -> list[Item]:
    """The items in the order in which they go down.

    >>> ordered([("a",), ("b", "c"), ("d",)], "random", seed=1)
    [('a',), ('d',), ('b', 'c')]
    """
    if by == "random":
        draw = random.Random(seed)  # its random() alone is promised to stay as it is
        return sorted(items, key=lambda _: draw.random())
    return list(items)[:: 1 if by == "first_to_last" else -1]
