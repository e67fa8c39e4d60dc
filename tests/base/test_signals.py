"""A scheduler's signal ends a run between two batches, and the next one goes on exactly there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from killed_runs import ROOT, SMALL, assert_same, checkpoint, finish, start
from torch import nn

from quantable.base.signals import Preempted, heed, heeding, listen, noted
from quantable.base.tick import Tick
from quantable.data.images import EvalBatches, Split, TrainBatches
from quantable.training.build import fit, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.classifier import Classifier
from quantable.training.evaluation import Evaluate

SIZE = (1, 8, 8)
PREEMPTED = 75
# What a scheduler's worker does: hear the signals, run, tell by the exit status what happened.
WORKER = """
import sys
from quantable import cli
from quantable.base import signals
signals.listen()
try:
    cli.run_main(sys.argv[1:])
except signals.Preempted as stop:
    print(stop)
    sys.exit(75)
"""
RUN = [*("rows=ad", "seed=3"), *(f"quantizer.callback.{m}_epochs=1" for m in ("min", "max"))]
ONLY_EPOCHS = "trainer.checkpoint_seconds=600"  # whatever else is saved is due to the signal


@pytest.fixture
def handlers() -> Iterator[None]:
    before = listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_signal_is_heeded_between_two_items(handlers: None, name: str) -> None:
    seen = []

    def see(item: int) -> None:
        seen.append(item)
        if item == 1:
            os.kill(os.getpid(), getattr(signal, name))

    with pytest.raises(Preempted, match=name):
        list(map(see, heeding(range(4))))
    assert seen == [0, 1]
    assert noted()


def test_without_a_signal_nothing_is_raised(handlers: None) -> None:
    heed()
    assert list(heeding("abc")) == ["a", "b", "c"]


class Drawn:
    """Random images with the surface that training and evaluation need; signals on demand."""

    classes = 3
    sizes: ClassVar[dict[str, int]] = {"val": 20, "test": 20}

    def __init__(self, signal_at: int | None) -> None:
        self.signal_at = signal_at  # counts evaluation batches, from 0

    def split(self, count: int) -> Split:
        generator = torch.Generator().manual_seed(count)
        pixels = torch.randint(256, (count, *SIZE), generator=generator, dtype=torch.uint8)
        labels = torch.randint(self.classes, (count,), generator=generator)
        return Split(pixels, labels, torch.ones(1) / 255, torch.zeros(1), channels_last=False)

    def eval_batches(self, split: str) -> "Signalling":
        return Signalling(EvalBatches(self.split(20), batch_size=4), self)


class Signalling:
    def __init__(self, batches: EvalBatches, images: Drawn) -> None:
        self.batches, self.images = batches, images

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            if self.images.signal_at is not None:
                if self.images.signal_at == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.images.signal_at -= 1
            yield batch


def train(path: Path, *, signal_batch: int | None = None, signal_evaluation: int | None = None):
    """Three epochs of six batches; a signal within a batch of the second epoch, or later on."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    module = Classifier(
        net,
        input_size=SIZE,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        schedule=lambda share, phase: 1 - share / 2,
        epochs=3,
    )
    images = Drawn(signal_evaluation)

    def tell(tick: Tick) -> None:
        if (tick.epoch, tick.batch - 1) == (1, signal_batch):
            os.kill(os.getpid(), signal.SIGTERM)

    keep = Keep(path, every_seconds=600, quantize=None, commit="", clean=True)
    keep.restore(module)
    trainer = trainer_of({"trainer": {"accelerator": "cpu"}, "recipe": {"precision": "32-true"}})
    trainer.callbacks += [Evaluate(images, None, tell, {}), keep]
    fit(trainer, module, TrainBatches(images.split(48), 8, seed=0, padding=1, flip=True))
    return module, keep


@pytest.mark.parametrize(
    ("signal_at", "place"),
    [
        ({"signal_batch": 0}, (1, 1)),
        ({"signal_batch": 3}, (1, 4)),
        ({"signal_batch": 5}, (1, 6)),
        ({"signal_evaluation": 7}, (1, 6)),  # five in an epoch: the third of the second one
    ],
    ids=["first-batch", "mid-epoch", "last-batch", "evaluation"],
)
def test_preempted_training_goes_on_exactly(
    handlers: None, tmp_path: Path, signal_at: dict[str, int], place: tuple[int, int]
) -> None:
    whole, _ = train(tmp_path / "whole")
    path = tmp_path / "last.ckpt"
    with pytest.raises(Preempted, match="SIGTERM"):
        train(path, **signal_at)
    state = torch.load(path, weights_only=True)["module"]
    assert (state["epoch"], state["batch"]) == place
    listen()  # as a new process does
    again, keep = train(path)
    assert keep.resumed == 1
    assert len(again.history) == len(whole.history) == 3
    for line, other in zip(again.history, whole.history, strict=True):
        assert line | {"seconds": 0} == other | {"seconds": 0}
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor)


def worker(store: Path) -> subprocess.Popen[str]:
    words = [*SMALL, *RUN, ONLY_EPOCHS, f"store={store}"]
    command = [sys.executable, "-c", WORKER, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def place(store: Path) -> tuple[int, int]:
    state = checkpoint(store)
    assert state is not None
    return state["module"]["epoch"], state["module"]["batch"]


def preempt(store: Path, number: signal.Signals, after: int) -> tuple[int, int]:
    """Signal a worker once ``after`` epochs are saved; the place where it stopped."""
    process = worker(store)
    deadline = time.monotonic() + 120
    while after and not (list(store.glob("cells/*/last.ckpt")) and place(store) >= (after, 0)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, err
    assert number.name in out
    return place(store)


@pytest.mark.slow
def test_preempted_run_ends_as_undisturbed(tmp_path: Path) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    finish(start(undisturbed, RUN))
    places = [
        preempt(disturbed, signal.SIGUSR2, after=1),
        preempt(disturbed, signal.SIGTERM, after=2),
    ]
    assert all(batch > 0 for _, batch in places)  # not where an epoch saves itself
    assert places[0] < places[1]
    assert not list(disturbed.glob("cells/*.lock"))
    finish(start(disturbed, RUN))
    assert_same(undisturbed, disturbed, resumed=2)
