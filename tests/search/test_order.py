"""Selection by place or chance: the order in which items go to fewer bits."""

import itertools
import random

import pytest

from quantable.base.errors import UserError
from quantable.search.order import Order, ordered

ITEMS = [("conv1",), ("layer1.conv1", "layer1.down"), ("layer1.conv2",), ("fc",)]


def test_depth_orders() -> None:
    assert ordered(ITEMS, "first_to_last", seed=0) == ITEMS
    assert ordered(ITEMS, "last_to_first", seed=0) == [ITEMS[3], ITEMS[2], ITEMS[1], ITEMS[0]]


def test_random_orders_hold_every_item_once_and_depend_on_the_seed_alone() -> None:
    state = random.getstate()
    orders = [ordered(ITEMS, "random", seed) for seed in range(200)]
    assert {tuple(order) for order in orders} == set(itertools.permutations(ITEMS))  # all 24
    assert orders == [ordered(ITEMS, "random", seed) for seed in range(200)]
    assert random.getstate() == state


def test_unknown_order_is_an_error() -> None:
    with pytest.raises(UserError, match=r"unknown order 'frist_to_last'\. Nearest: first_to_last"):
        Order("frist_to_last")
