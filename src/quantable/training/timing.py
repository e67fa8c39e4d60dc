"""How long a training step takes on this machine: a few are made of a throwaway network.

Nothing of it stays: the random generators and the number of threads are as before.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn

from quantable.base.signals import heed
from quantable.data.images import Images, Split, TrainBatches
from quantable.quantization.quantize import Quantize
from quantable.training.build import fit, module_of, part_of, trainer_of, try_training_images
from quantable.training.classifier import Classifier

TIMED = 2  # steps, after one that warms up
ENOUGH_SECONDS = 20.0  # no further step begins after these


@dataclass(frozen=True)
class Step:
    """A measured training step, and ``epochs`` of the run's first phase.

    ``small_share``: what small images save of that phase, whose time is taken to go with pixels.
    """

    seconds: float
    epochs: int
    small_share: float

    def phase_seconds(self, steps: int) -> float:
        """The first phase, of so many ``steps`` an epoch; evaluations not counted."""
        return self.seconds * steps * self.epochs * (1 - self.small_share)


def timed_step(config: Mapping[str, Any]) -> Step:
    """Time the training step of a run: forward, backward and optimizer, at its batch size.

    Its network has random weights, its images are noise of full size, and it is not compiled. The
    penalties and hooks of a method are those of its first phase.
    """
    with isolate_rng(include_cuda=False), _threads(config["trainer"]["threads"]):
        trainer, watch = trainer_of(config), _Stopwatch()
        images: Images = part_of(config, "data.loader")
        net, quantize = _network(config, images.train_size)
        epochs = config["recipe"]["epochs"]
        module = module_of(config, net, quantize, config["data"]["input_size"], epochs=epochs)
        if config["teacher"] is not None:
            module.teach(part_of(config, "model.net").eval().requires_grad_(False))
        trainer.callbacks += [*([quantize] if quantize else []), watch]  # type: ignore[attr-defined]
        small, module.small_images = module.small_images, None
        with suppress(_EnoughError):
            fit(trainer, module, _noise(config, images.train_size, trainer.strategy.root_device))
        saved = 0.0
        if small is not None:
            _, h, w = config["data"]["input_size"]
            saved = small["share"] * (1 - small["pixels"] ** 2 / (h * w))
        return Step(min(watch.seconds[1:] or watch.seconds), module.phase_epochs, saved)


def _network(config: Mapping[str, Any], size: tuple[int, ...]) -> tuple[nn.Module, Quantize | None]:
    net: nn.Module = part_of(config, "model.net")
    try_training_images(net, config, size)
    if config["recipe"]["channels_last"]:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config["quantizer"]["callback"] is None:
        return net, None
    quantize: Quantize = part_of(config, "quantizer.callback")
    quantize.attach(net, config["data"]["input_size"])
    return net, quantize


def _noise(config: Mapping[str, Any], size: tuple[int, ...], device: torch.device) -> TrainBatches:
    """Random images of ``size`` (c, h, w), one batch for each step."""
    c, h, w = size
    last, batch = config["recipe"]["channels_last"], config["recipe"]["batch_size"]
    n = batch * (1 + TIMED)
    split = Split(
        torch.randint(256, (n, h, w, c) if last else (n, c, h, w), dtype=torch.uint8).to(device),
        torch.randint(config["data"]["classes"], (n,)).to(device),
        scale=torch.full((c,), 1 / 64).to(device),
        shift=torch.full((c,), -2.0).to(device),
        channels_last=last,
    )
    return TrainBatches(split, batch, seed=0, padding=0, flip=True)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _EnoughError(Exception):
    """Ends a training before its first epoch does."""


class _Stopwatch(pl.Callback):
    def __init__(self) -> None:
        self.seconds: list[float] = []  # of each step
        self.began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        assert isinstance(pl_module, Classifier)
        if pl_module.sums.device.type != "cpu":
            pl_module.sums.tolist()  # waits for the device
        heed()
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        pl_module.batch += 1
        if len(self.seconds) > TIMED or sum(self.seconds) > ENOUGH_SECONDS:
            raise _EnoughError
        self.began = now
