"""Several devices train as one: two processes on this CPU, against one."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantable.base import devices
from quantable.base.errors import UserError
from quantable.base.places import CONF
from quantable.base.signals import Preempted, listen
from quantable.base.tick import Tick
from quantable.config.composition import compose_run
from quantable.data.images import EvalBatches, Share, Split, TrainBatches
from quantable.run import _train, run_cell
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.build import build, devices_of
from quantable.training.evaluation import evaluate

SMALL = [
    *("trainer.accelerator=cpu", "trainer.threads=1", "recipe=sgd_one_cycle", "recipe.epochs=2"),
    *("recipe.batch_size=16", "recipe.optimizer.lr=0.05"),
    *("data.train_images=48", "data.val_images=10", "data.test_images=21"),
    *("model.net.width=0.25", "bits.inner=[4,4]", "bits.ends=[8,8]"),
]
DENSITY = [f"quantizer.callback.{m}_epochs=1" for m in ("min", "max")]
MEASURES = {f"{split}_{of}" for split in ("train", "val", "test") for of in ("loss", "top1_pct")}
METHODS: dict[str, list[str]] = {path.stem: [] for path in (CONF / "quantizer").glob("*.yaml")}
METHODS |= {  # those that need words of their own
    "ad": DENSITY,
    "ad_pruning": DENSITY,
    "dfq": ["quantizer.callback.epochs=[1,1]"],
    "edge": [  # at 4 bit a value lies so near the middle of two levels that processors differ
        *("quantizer.callback.epochs=[1,1,1]", "quantizer.callback.update_every=2"),
        "bits.inner=[5,5]",
    ],
    "fracbits": ["quantizer.callback.epochs=[1,1]"],
    "a2q": ["bits.accumulator=12"],
    "a2q_plus": ["bits.accumulator=12"],
}


def cell_of(method: str, *words: str, precision: str = "64-true", devices: int = 1) -> Cell:
    words = (f"quantizer={method}", *SMALL, *METHODS[method], *words)
    config = compose_run(words)
    config["recipe"]["precision"] = precision
    config["trainer"]["devices"] = devices
    return Cell(None, method, 0, config, words)


class in_double:  # noqa: N801 - used like a function
    """Batches of an evaluation in float64, as the network is."""

    def __init__(self, eval_batches: Callable[..., EvalBatches], *args: Any, **words: Any) -> None:
        self.batches = eval_batches(*args, **words)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x.double(), y) for x, y in self.batches)


def train_all(cells: Mapping[str, Cell], folder: Path) -> dict[str, tuple[Any, ...]]:
    """Train every cell on this rank's share; histories, bit-widths and weights."""
    results = {}
    for name, cell in cells.items():
        built = build(dict(cell.config), Store(folder), "")
        built.images.eval_batches = partial(in_double, built.images.eval_batches)
        module, _, _ = _train(cell, built, Store(folder), "", lambda *_: None, None)
        bits = built.quantize.bits if built.quantize else {}
        results[name] = module.history, bits, module.net.state_dict()
    return results


def follow_all(cells: Mapping[str, Cell], folder: Path) -> None:
    train_all(cells, folder)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    # In float64, where rounding is too small to carry anything over a quantizer's threshold.
    cells = {method: cell_of(method) for method in METHODS}
    alone = train_all(cells, tmp_path / "one")
    with devices.together(2, follow_all, (cells, tmp_path / "two"), gpus=False):
        both = train_all(cells, tmp_path / "two")
    for method, (history, bits, state) in alone.items():
        other_history, other_bits, other_state = both[method]
        assert other_bits == bits, method
        assert len(other_history) == len(history) > 0
        for line, other in zip(history, other_history, strict=True):
            assert other.keys() == line.keys()  # test images at the end of a phase alone
            for name in line.keys() & MEASURES:
                assert other[name] == pytest.approx(line[name], rel=1e-6), (method, name)
            assert other.get("own", {}).get("density") == line.get("own", {}).get(
                "density"
            )  # counts of all images
        for name, tensor in state.items():
            torch.testing.assert_close(other_state[name], tensor, msg=lambda m, n=name: f"{n}: {m}")
    assert {len(history) for history, _, _ in alone.values()} >= {2, 3}


@pytest.mark.slow
def test_two_devices_keep_one_record_of_every_test_image(tmp_path: Path) -> None:
    words = ["data.train_images=512", "data.test_images=2000", "recipe.batch_size=64"]
    cell = cell_of("minmax", *words, precision="32-true", devices=2)
    whole = run_cell(cell, Store(tmp_path / "whole"), "", lambda *_: None)
    assert whole.data.sizes["test"] == 2000
    assert whole.signature == cell_of("minmax", *words, precision="32-true").signature

    # the same weights, on one device
    store = Store(tmp_path / "whole")
    built = build(dict(cell.config), store, "")
    weights = torch.load(store.weights(cell_name(cell.signature, "")), weights_only=True)
    built.net.load_state_dict(weights)
    batches = built.images.eval_batches("test", 100, "cpu", channels_last=True)
    found = evaluate(built.net, batches, 10, 2000)
    assert found.top1_pct == pytest.approx(whole.metrics["last"]["test_top1_pct"], abs=1e-4)
    assert found.loss == pytest.approx(whole.metrics["last"]["test_loss"], rel=1e-4)

    # stopped by a signal for the first process alone in the second epoch, and taken up again
    def tell(tick: Tick) -> None:
        if (tick.epoch, tick.batch) == (1, 3):
            os.kill(os.getpid(), signal.SIGUSR2)

    broken = Store(tmp_path / "broken")
    before = listen()
    with pytest.raises(Preempted, match="SIGUSR2"):
        run_cell(cell, broken, "", tell)
    listen()
    again = run_cell(cell, broken, "", lambda *_: None)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert again.provenance.resumed == 1
    assert again.metrics == whole.metrics
    resumed = torch.load(broken.weights(cell_name(cell.signature, "")), weights_only=True)
    assert all(torch.equal(resumed[name], weights[name]) for name, t in weights.items() if t.dim())


def drawn(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    ones = torch.ones(3)
    return Split(pixels, torch.arange(count), ones / 255, ones, channels_last=False)


@pytest.mark.parametrize("of", [2, 3])
def test_shares_of_a_batch_are_the_batch(of: int) -> None:
    def batches(share: Share) -> list[tuple[Tensor, Tensor]]:
        return list(TrainBatches(drawn(40), 12, seed=5, padding=2, flip=True, share=share))

    shares = [batches(Share(i, of)) for i in range(of)]
    for whole, *parts in zip(batches(Share()), *shares, strict=True):
        for i in range(2):
            assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


@pytest.mark.parametrize(("count", "of"), [(40, 3), (7, 4), (2, 3)])
def test_shares_of_an_evaluation_hold_each_image_once(count: int, of: int) -> None:
    seen = []
    for i in range(of):
        batches = EvalBatches(drawn(count), 6, Share(i, of))
        labels = [y for _, y in batches]
        assert len(labels) == len(batches)
        seen += [label for y in labels for label in y.tolist()]
    assert seen == list(range(count))


def test_batch_that_cannot_be_shared_is_refused() -> None:
    config = dict(cell_of("none", devices=3).config)
    with pytest.raises(UserError, match=r"trainer.devices=3.*recipe.batch_size=16"):
        devices_of(config)


def test_search_uses_one_device() -> None:
    config = dict(cell_of("none", devices=3).config) | {"search": {"rule": {}}}
    assert devices_of(config) == 1


def vanish() -> None:
    os._exit(3)


class Poison:
    """Ends the process that unpickles it, as one that cannot import the code would."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (3,)


def exchange(arguments: tuple[object, ...] = ()) -> None:
    with devices.together(2, vanish, arguments, gpus=False):
        for _ in range(100):
            devices.total(torch.ones(1))


@pytest.mark.slow
def test_lost_device_ends_the_run() -> None:
    with pytest.raises(RuntimeError):
        exchange()


@pytest.mark.slow
def test_device_that_never_arrives_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="ended with status 3"):
        exchange((Poison(),))


def test_alone_nothing_is_exchanged() -> None:
    x = torch.tensor([1.0, 2.0])
    for function in (
        devices.total,
        devices.mean,
        devices.least,
        devices.greatest,
        devices.gathered,
    ):
        assert function(x) is x
    devices.check_equal(nn.Linear(2, 2))
    assert (devices.rank(), devices.count()) == (0, 1)
