"""A search: a network as it starts and a rule in, a number for every item and choice of bits out.

An item is a set of layers that share their bits, because they read one activation. A rule says what
it loses when one item alone goes from the start's bits (``high``) to ``low``.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quantable.allocation.choice import word_of
from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.base.signals import heed
from quantable.base.tick import Tell, Tick
from quantable.networks.trace import linked_layers
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Quantizer
from quantable.store.record import Item, Scores
from quantable.training.build import Built, part_of


@dataclass(frozen=True)
class Start:
    """What a rule looks at; it leaves network and quantizers as they were."""

    config: dict[str, Any]
    built: Built
    quantize: Quantize
    items: Sequence[tuple[str, ...]]
    low: Bits
    device: torch.device
    folder: Path  # where a rule may keep finished parts
    tell: Tell

    def weights(self, item: Sequence[str]) -> list[tuple[Tensor, Quantizer]]:
        """Float weight and quantizer of each layer of an item."""
        layers = [(name, self.built.net.get_submodule(name)) for name in item]
        return [
            (layer.parametrizations.weight.original, self.quantize.weight_quantizers[name])  # type: ignore[union-attr,misc]
            for name, layer in layers
        ]


@dataclass(frozen=True)
class Tried:
    """What a rule that chooses itself tried for an item, with what that lost, and took."""

    loss: Mapping[Bits, float]
    taken: Bits


@dataclass(frozen=True)
class Found:
    """A rule's numbers: for each item what is lost at ``low`` against the start's bits.

    A rule that chooses itself has ``tried`` instead, or the layers that make this ``infeasible``.
    """

    loss: Sequence[float] = ()
    error: Sequence[float] = ()  # standard error of each loss, where they are estimates
    images: int = 0  # passed through the network, each time counted
    epochs: float = 0.0  # of training
    earlier: float | None = None  # seconds of an interrupted attempt whose parts were kept
    tried: Sequence[Tried] = ()
    infeasible: Sequence[str] = ()


class Rule(Protocol):
    """A metric: what each item loses at fewer bits; some choose themselves."""

    name: str
    unit: str
    greedy: bool  # items go down in the order of their loss, instead of by a knapsack

    def __call__(self, start: Start) -> Found: ...  # noqa: D102


def run_search(
    config: dict[str, Any], built: Built, folder: Path, device: torch.device, tell: Tell
) -> tuple[Scores, int]:
    """Score every item; also how often the search was taken up again."""
    if built.quantize is None:
        raise UserError("search: the start is a float network; choose a quantizer and bits.inner")
    search = config["search"]
    rule: Rule = part_of(config, "search.rule")
    high, low = Bits(*config["bits"]["inner"]), Bits(*search["low"])
    items = items_of(built, high, search["links"])

    def tell_and_heed(tick: Tick) -> None:
        tell(tick)
        heed()

    began = time.perf_counter()
    found = rule(Start(config, built, built.quantize, items, low, device, folder, tell_and_heed))
    seconds = time.perf_counter() - began
    return (
        Scores(
            rule=rule.name,
            unit=rule.unit,
            greedy=rule.greedy,
            items=_scored(items, found, high, low),
            infeasible=list(found.infeasible),
            seconds=seconds + (found.earlier or 0.0),
            images=found.images,
            epochs=found.epochs,
        ),
        int(found.earlier is not None),
    )


def _scored(items: Sequence[tuple[str, ...]], found: Found, high: Bits, low: Bits) -> list[Item]:
    """The items with their numbers; none where a rule had no choice for some."""
    if found.infeasible:
        return []
    if found.tried:
        return [
            Item(
                layers=list(item),
                loss={word_of(bits): loss for bits, loss in tried.loss.items()},
                taken=word_of(tried.taken),
            )
            for item, tried in zip(items, found.tried, strict=True)
        ]
    errors = [{word_of(low): error} for error in found.error] or [{} for _ in items]
    return [
        Item(layers=list(item), loss={word_of(high): 0.0, word_of(low): loss}, error=error)
        for item, loss, error in zip(items, found.loss, errors, strict=True)
    ]


def items_of(
    built: Built, high: Bits, links: Sequence[Sequence[str]] | None
) -> list[tuple[str, ...]]:
    """Items of a network: layers that read one activation, or ``links`` and all others alone.

    Items with a layer of other bits than ``high`` (an end, an exception) are not searched.
    """
    assert built.quantize is not None
    bits = built.quantize.bits
    if links is None:
        items = linked_layers(built.net, built.input_size)
    else:
        items = _given(links, list(bits))
    searched = [item for item in items if all(bits[name] == high for name in item)]
    if not searched:
        raise UserError(f"search: no layer has bits.inner={[high.weight, high.act]}")
    return searched


def _given(links: Sequence[Sequence[str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Items as the user links them, in execution order."""
    owner: Mapping[str, Sequence[str]] = {}
    for link in links:
        for name in link:
            if name not in names:
                raise unknown("layer", name, names, "search.links")
            if name in owner:
                raise UserError(f"search.links: layer '{name}' is in two groups")
            owner = {**owner, name: link}
    items = [tuple(owner.get(name, (name,))) for name in names]
    return list(dict.fromkeys(items))
