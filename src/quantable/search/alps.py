r"""ALPS: accuracy-aware layer precision selection, by one epoch of fine-tuning for every item.

Bablani et al. 2023, arXiv:2301.13330. Every item alone goes to fewer bits, the network is
fine-tuned for one epoch, and what it then loses is the item's score:

.. math:: G_i = L(\text{item } i \text{ at low bits}) - L(\text{none})

with the cross-entropy :math:`L` on held-out images in evaluation mode; "none" is the start after
the same extra epoch. That the loss is measured, and where, is this project's decision (card).
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.base.files import write_json
from quantable.base.signals import ignore
from quantable.base.tick import Tick
from quantable.data.images import first_images
from quantable.search.run import Found, Start, items_of
from quantable.store.store import Store
from quantable.training.build import build, fit, loading_of, module_of, trainer_of
from quantable.training.classifier import Classifier
from quantable.training.evaluation import evaluate
from quantable.training.fallen import Fallen

Item = tuple[str, ...]
REFERENCE: Item = ()  # nothing goes down


@dataclass(frozen=True)
class Alps:
    """Fine-tune for one epoch with each item at fewer bits.

    ``held_out``: images of the held-out split that measure the loss. ``workers``: processes that
    share the items, with one thread each where there are several; they change no number.
    Finished items are kept, and an interrupted search goes on with the next: a scheduler's signal
    is heard between two items.
    """

    held_out: int
    workers: int
    name = "ALPS"
    unit = "nat"
    greedy = False

    def __call__(self, start: Start) -> Found:
        """Score of every item, in nat."""
        jobs = [REFERENCE, *start.items]
        kept = [start.folder / f"item{i}.json" for i in range(len(jobs))]
        earlier = [json.loads(path.read_text()) for path in kept if path.exists()]
        todo = [i for i in range(len(jobs)) if not kept[i].exists()]
        for done, (i, result) in enumerate(self._results(start, jobs, todo), len(earlier)):
            write_json(kept[i], result)
            start.tell(Tick(done, len(jobs), 1, 1, unit="item"))
        results = [json.loads(path.read_text()) for path in kept]
        loss = [result["loss"] for result in results]
        return Found(
            loss=[value - loss[0] for value in loss[1:]],
            images=sum(result["images"] for result in results),
            epochs=len(jobs),
            earlier=sum(result["seconds"] for result in earlier) if earlier else None,
        )

    def _results(
        self, start: Start, jobs: list[Item], todo: list[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if self.workers == 1 or len(todo) < 2:
            state = {name: _copy(value) for name, value in start.built.net.state_dict().items()}
            for i in todo:
                yield i, tuned_loss(start, state, jobs[i], self.held_out)
            start.built.net.load_state_dict(state)
            return
        if start.device.type != "cpu":
            raise UserError("search.rule.workers: several processes share a CPU, not a GPU")
        folder = start.folder.parents[1]
        with ProcessPoolExecutor(
            min(self.workers, len(todo)),
            mp_context=get_context("spawn"),
            initializer=_open,
            initargs=(start.config, folder, start.built.images.variant, self.held_out),
        ) as pool:
            # one at a time for each process, so that what is done is kept at once
            futures = {pool.submit(_tune, jobs[i]): i for i in todo}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:  # nobody wants the rest where the search ends before
                pool.shutdown(cancel_futures=True)


class Advance(pl.Callback):
    """Moves the module's place in the epoch, which the learning rate follows."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Count the step."""
        assert isinstance(pl_module, Classifier)
        pl_module.batch += 1
        trainer.should_stop = pl_module.batch >= pl_module.batches


def tuned_loss(start: Start, state: dict[str, Any], item: Item, held_out: int) -> dict[str, Any]:
    """Loss in nat on held-out images after one epoch from ``state`` with ``item`` at low bits."""
    began = time.perf_counter()
    config, built = start.config, start.built
    built.net.load_state_dict(state)
    start.quantize.set_bits(dict.fromkeys(item, start.low))
    module = module_of(config, built.net, start.quantize, built.input_size, epochs=1)
    loading = loading_of(config, start.device)
    trainer = trainer_of(config)
    trainer.callbacks.extend([Fallen(start.quantize), Advance()])  # type: ignore[attr-defined]
    batches = built.images.train_batches(seed=config["seed"], **loading)
    fit(trainer, module, batches)
    module.check_finite()
    tested = min(held_out, built.images.sizes["val"])
    slice_ = first_images(iter(built.images.eval_batches("val", **loading)), tested)
    loss = evaluate(built.net, slice_, built.images.classes, tested).loss
    return {
        "layers": list(item),
        "loss": loss,
        "images": len(batches) * loading["batch_size"] + tested,
        "seconds": time.perf_counter() - began,
    }


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, torch.Tensor) else value


_opened: list[tuple[Start, dict[str, Any], int]] = []  # of this worker process


def _open(config: dict[str, Any], folder: Path, variant: str, held_out: int) -> None:
    """Make the start once in every worker."""
    ignore()
    config = config | {"trainer": config["trainer"] | {"threads": 1}}
    built = build(config, Store(folder), variant)
    assert built.quantize is not None
    built.images.load()
    high, low = Bits(*config["bits"]["inner"]), Bits(*config["search"]["low"])
    items = items_of(built, high, config["search"]["links"])
    start = Start(
        config, built, built.quantize, items, low, torch.device("cpu"), folder, lambda *_: None
    )
    state = {name: _copy(value) for name, value in built.net.state_dict().items()}
    _opened.append((start, state, held_out))


def _tune(item: Item) -> dict[str, Any]:
    start, state, held_out = _opened[0]
    return tuned_loss(start, state, item, held_out)
