"""ALPS: one epoch for every item from one start, measured on held-out images, and resumable."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from quantable.base.bits import Bits
from quantable.base.tick import Tick
from quantable.config.composition import compose_run
from quantable.data.images import first_images
from quantable.search.alps import Alps
from quantable.search.run import Start, items_of
from quantable.store.store import Store
from quantable.training.build import Built, build

WORDS = [
    *("model=resnet8_cifar", "data=fashion_mnist_mini", "quantizer=lsq", "search=alps"),
    *("data.train_images=96", "data.val_images=64", "data.test_images=32"),
    *(
        "recipe=lsq",
        "recipe.batch_size=32",
        "recipe.optimizer.lr=0.05",
        "recipe.channels_last=false",
    ),
    *("trainer.threads=1", "trainer.accelerator=cpu"),
]
ALPS = Alps(held_out=40, workers=1)


def start(folder: Path, *words: str) -> Start:
    config = compose_run([*WORDS, *words])
    built = build(config, Store(folder), "")
    assert built.quantize is not None
    items = items_of(built, Bits(4, 4), None)[:3]
    place = Store(folder).cell("search")
    return Start(
        config,
        built,
        built.quantize,
        items,
        Bits(2, 2),
        torch.device("cpu"),
        place,
        lambda *_: None,
    )


def by_hand(built: Built, item: tuple[str, ...], lr: float, decay: dict[int, float]) -> float:
    """One epoch of SGD with momentum 0.9 and a cosine, written out; the held-out loss in nat."""
    assert built.quantize is not None
    built.quantize.set_bits(dict.fromkeys(item, Bits(2, 2)))
    net, momentum = built.net.train(), {}
    batches = list(built.images.train_batches(32, seed=0, device="cpu"))
    own = {
        f"{name}.parametrizations.weight.original": decay[bits.weight]
        for name, bits in built.quantize.bits.items()
    }
    for i, (x, y) in enumerate(batches):
        net.zero_grad()
        cross_entropy(net(x), y).backward()
        rate = lr * 0.5 * (1 + math.cos(math.pi * (i + 0.5) / len(batches)))
        with torch.no_grad():
            for name, p in net.named_parameters():
                gradient = p.grad + own.get(name, 1e-4) * p
                momentum[name] = 0.9 * momentum[name] + gradient if i else gradient
                p -= rate * momentum[name]
    net.eval()
    with torch.no_grad():
        pairs = list(built.images.eval_batches("val", 32, "cpu"))
        x, y = (torch.cat(parts)[:40] for parts in zip(*pairs, strict=True))
        return float(cross_entropy(net(x), y))


def test_each_item_is_tuned_for_one_epoch_from_the_start(tmp_path: Path) -> None:
    found = ALPS(start(tmp_path))
    assert (found.epochs, found.images, found.earlier) == (4, 4 * (96 + 40), None)
    decay = {2: 0.25e-4, 4: 1e-4, 8: 1e-4}
    items = start(tmp_path).items
    reference, *losses = (
        by_hand(start(tmp_path).built, item, 0.05, decay) for item in ((), *items)
    )
    assert found.loss == pytest.approx([loss - reference for loss in losses], abs=2e-5)


def test_the_start_is_left_as_it_was(tmp_path: Path) -> None:
    about = start(tmp_path)
    before = {name: str(value) for name, value in about.built.net.state_dict().items()}
    ALPS(about)
    assert {name: str(value) for name, value in about.built.net.state_dict().items()} == before
    assert set(about.quantize.bits.values()) == {Bits(4, 4), Bits(8, 8)}


class KilledError(Exception):
    """Stands for a kill between two items."""


def test_an_interrupted_search_keeps_its_items(tmp_path: Path) -> None:
    whole = ALPS(start(tmp_path / "whole"))

    def kill(tick: Tick) -> None:
        if str(tick) == "item 2 of 4 done":  # of three items and the reference
            raise KilledError

    with pytest.raises(KilledError):
        ALPS(replace(start(tmp_path), tell=kill))
    kept = sorted((tmp_path / "cells" / "search").glob("item*.json"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 2
    again = ALPS(start(tmp_path))
    assert again.loss == whole.loss
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert again.earlier == sum(json.loads(path.read_text())["seconds"] for path in kept)


@pytest.mark.slow
def test_workers_change_no_number(tmp_path: Path) -> None:
    alone = ALPS(start(tmp_path / "one"))
    assert Alps(held_out=40, workers=2)(start(tmp_path / "two")).loss == alone.loss


def test_first_images_cuts_the_last_batch() -> None:
    pairs: list[Any] = [(torch.full((4, 1), float(i)), torch.arange(4)) for i in range(3)]
    assert [x[:, 0].tolist() for x, _ in first_images(iter(pairs), 6)] == [[0.0] * 4, [1.0] * 2]
    assert len(list(first_images(iter(pairs), 4))) == 1
