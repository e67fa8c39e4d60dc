"""The search of ACQ: tight pairs alone, first layer to last, resumable; or what has no pair."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantable.allocation.choice import choose
from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.base.tick import Tick
from quantable.config.composition import compose_run
from quantable.cost.accumulators import bits_of
from quantable.cost.hardware import hardware_of
from quantable.data.images import first_images
from quantable.integers.emulation import Product
from quantable.methods.acq import ACQ
from quantable.quantization.channels import raw_bias, raw_weight
from quantable.search.acq import AcqSearch, acq_of, calibrated, give
from quantable.search.run import Start, items_of
from quantable.store.store import Store
from quantable.training.build import build

WORDS = [
    *("model=allcnn_c", "model.net.width=0.1", "data=fashion_mnist_mini", "quantizer=acq"),
    *("search=acq", "bits.inner=[8,8]", "bits.ends=null", "recipe=post_training"),
    *("data.train_images=8", "data.val_images=48", "data.test_images=32"),
    *("recipe.channels_last=false", "trainer.threads=1", "trainer.accelerator=cpu"),
]
SEARCH = AcqSearch(bound="known_weights", held_out=40)
WIDTHS = range(2, 9)


def start(folder: Path, accumulator: int, *words: str) -> Start:
    config = compose_run([*WORDS, f"bits.accumulator={accumulator}", *words])
    built = build(config, Store(folder), "")
    with torch.no_grad():
        for module in built.net.modules():
            if isinstance(module, nn.Conv2d):  # a float network has biases
                generator = torch.Generator().manual_seed(module.out_channels)
                raw_bias(module).copy_(torch.randn(module.out_channels, generator=generator))
    assert built.quantize is not None
    items = items_of(built, Bits(8, 8), None)
    place = Store(folder).cell("search")
    low, device = Bits(2, 2), torch.device("cpu")
    return Start(config, built, built.quantize, items, low, device, place, lambda *_: None)


def by_hand(raw: Tensor, bias: Tensor, weight_bits: int, data: tuple[int, int], act_f: int) -> int:
    """Bits that the sums need, with the weights' exponent by its definition."""
    top, w = 2 ** (weight_bits - 1) - 1, raw.double()

    def error(f: int) -> float:
        return float((w - (w * 2.0**f).round().clamp(-top, top) / 2.0**f).square().sum())

    f = max(f for f in range(-40, 40) if (w * 2.0**f).round().abs().max() <= top)
    f += error(f + 1) < error(f)
    integers = (w * 2.0**f).round().clamp(-top, top).long()
    offset = (bias.double() * 2.0 ** (f + act_f)).round().long()
    sums = Product(integers, data, offset, nn.Conv2d(*raw.shape[1::-1], raw.shape[2:]))
    return bits_of(int(sums.low.min()), int(sums.high.max()))


@pytest.mark.parametrize(
    ("bound", "accumulator"), [("known_weights", 12), ("known_weights", 20), ("data_type", 16)]
)
def test_every_candidate_fits_and_with_one_weight_bit_more_does_not(
    tmp_path: Path, bound: str, accumulator: int
) -> None:
    about, rule = start(tmp_path, accumulator), AcqSearch(bound, held_out=40)
    exponents, net = calibrated(about), about.built.net
    assert list(exponents) == list(WIDTHS)

    def fits(name: str, weight: int, act: int) -> bool:
        layer, signed = net.get_submodule(name), name == "conv1"
        raw, bias = raw_weight(layer).detach(), raw_bias(layer).detach()
        data = (-(2 ** (act - 1)), 2 ** (act - 1) - 1) if signed else (0, 2**act - 1)
        if by_hand(raw, bias, weight, data, int(exponents[act][name])) > accumulator:
            return False
        # K 2^(Bw + Bd) <= 2^(P + s)
        within = raw[0].numel() * 2 ** (weight + act) <= 2 ** (accumulator + signed)
        return within or bound == "known_weights"

    seen = 0
    for (name,) in about.items:
        found = {pair.act: pair for pair in rule.candidates(about, (name,), exponents)}
        for act in WIDTHS:
            if (pair := found.get(act)) is None:
                assert not any(fits(name, weight, act) for weight in WIDTHS)
                continue
            seen += 1
            assert fits(name, pair.weight, act)
            assert pair.weight == 8 or not fits(name, pair.weight + 1, act)
    assert seen >= 9


def widths(pair: Bits) -> tuple[int, int]:
    return pair.weight, pair.act


def top1(about: Start, float_layers: list[str]) -> float:
    """Held-out accuracy with some layers in float."""
    for name in about.quantize.bits:
        for quantizer in acq_of(about).quantizers_of(name):
            quantizer.through = name in float_layers
    about.built.net.eval()
    batches = about.built.images.eval_batches("val", 64, "cpu")
    with torch.no_grad():
        (x, y), *_ = first_images(iter(batches), 40)
        return 100 * float((about.built.net(x).argmax(dim=1) == y).sum()) / 40


def test_first_to_last_keeps_the_best_with_later_layers_in_float(tmp_path: Path) -> None:
    found = SEARCH(start(tmp_path, 14))
    about = start(tmp_path / "by hand", 14)
    exponents, names = calibrated(about), list(about.quantize.bits)
    pairs = [SEARCH.candidates(about, (name,), exponents) for name in names]
    whole = top1(about, names)
    taken = 0
    for i, name in enumerate(names):
        losses = {}
        for pair in pairs[i]:
            give(about, (name,), pair, exponents)
            losses[pair] = whole - top1(about, names[i + 1 :])
        assert found.tried[i].loss == pytest.approx(losses, abs=1e-4)
        least = min(losses.values())
        best = max((p for p in losses if losses[p] == least), key=widths)
        assert found.tried[i].taken == best
        taken += len(losses) > 1 and best != max(losses, key=widths)
        give(about, (name,), best, exponents)
    assert taken  # accuracy decided somewhere, and not the tie alone
    assert found.images == 40 * (1 + sum(map(len, pairs)))


def test_what_was_chosen_is_a_bits_file_with_its_accumulator(tmp_path: Path) -> None:
    from quantable.run import run_cell
    from quantable.tables.cells import Cell

    config = start(tmp_path, 16).config
    store = Store(tmp_path)
    record = run_cell(Cell(None, "search", 0, config, ()), store, "", lambda *_: None)
    assert record.scores is not None
    assert record.scores.chooses
    about = start(tmp_path, 16)
    file = choose(record, about.built.shapes, {}, hardware_of(config), config)
    assert file.accumulator == 16
    assert file.layers == {
        item.layers[0]: tuple(map(int, item.taken.split("/"))) for item in record.scores.items
    }
    with pytest.raises(UserError, match="ACQ chooses itself"):
        choose(record, about.built.shapes, {"linear": 0.5}, hardware_of(config), config)


def test_a_layer_without_any_pair_is_named_and_nothing_is_tried(tmp_path: Path) -> None:
    about = start(tmp_path, 8)
    found = AcqSearch("data_type", held_out=40)(about)
    # K is 9, signed, then 90, 90, 90, 171, 171, 171, 19, 19: at most 3 bits are left of 8
    assert found.infeasible == [f"conv{i}" for i in range(2, 10)]
    assert not found.tried
    assert not list(about.folder.glob("item*"))


class KilledError(Exception):
    """Stands for a kill between two items."""


def test_an_interrupted_search_goes_on_with_the_next_item(tmp_path: Path) -> None:
    whole = SEARCH(start(tmp_path / "whole", 14))

    def kill(tick: Tick) -> None:
        if str(tick) == "item 3 of 9 done":
            raise KilledError

    with pytest.raises(KilledError):
        SEARCH(replace(start(tmp_path, 14), tell=kill))
    kept = sorted((tmp_path / "cells" / "search").glob("item*.json"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 3
    again = SEARCH(start(tmp_path, 14))
    assert again.tried == whole.tried
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert again.earlier == sum(json.loads(path.read_text())["seconds"] for path in kept)


def test_network_and_quantizers_are_left_as_they_were(tmp_path: Path) -> None:
    about = start(tmp_path, 14)
    assert isinstance(about.quantize, ACQ)
    before = {name: str(value) for name, value in about.built.net.state_dict().items()}
    SEARCH(about)
    assert {name: str(value) for name, value in about.built.net.state_dict().items()} == before


def test_it_asks_for_its_method_and_for_the_bits_of_a_sum(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="widths of quantizer=acq"):
        SEARCH(start(tmp_path, 14, "quantizer=lsq"))
    config = start(tmp_path, 14)
    without = {**config.config, "bits": {**config.config["bits"], "accumulator": None}}
    with pytest.raises(UserError, match="search=acq needs the bits of a sum"):
        SEARCH(replace(config, config=without))
