"""Runs in processes of their own, killed at a chosen place and started again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from quantable.store.record import Record
from quantable.store.store import Store

ROOT = Path(__file__).parents[1]
# Small, but with everything a run has: augmentation, momentum, running ranges, two bit updates.
SMALL = [
    *("+table=ad_quickstart", "budget=smoke"),
    *("trainer.threads=1", "trainer.checkpoint_seconds=0.01", "trainer.accelerator=cpu"),
    *("data.train_images=768", "data.val_images=128", "data.test_images=128"),
]
AD = [
    *("rows=ad", "seed=3"),
    *("quantizer.callback.min_epochs=1", "quantizer.callback.max_epochs=1"),
]


# The same with pruning: updates end the second and the third of four epochs.
JOINT = [
    *("rows=ad", "seed=3", "quantizer=ad_pruning", "data.train_images=384"),
    *("quantizer.callback.min_epochs=[2,1]", "quantizer.callback.max_epochs=[2,1]"),
]
# Learned bit-widths: an epoch at fixed bits, two of the search, one of fine-tuning.
EDGE = [
    *("rows=bits4", "seed=3", "data.train_images=384", "quantizer=edge", "recipe=edge_short"),
    *("recipe.batch_size=64", "recipe.schedule.restart=2.0", "bits.ends=null"),
    *("bits.inner=[5,5]", "quantizer.callback.target=[3.5,3.5]", "quantizer.callback.strength=1.0"),
    *("quantizer.callback.epochs=[1,2,1]", "quantizer.callback.update_every=2"),
    *("quantizer.callback.weight.rounding.name=gaussian",),  # draws random numbers
]
# Real bit-widths: two epochs of the search, whose last one rounds them, and one of fine-tuning.
_REAL = [
    *("rows=bits4", "seed=3", "data.train_images=384", "recipe.batch_size=64"),
    *("quantizer.callback.epochs=[2,1]", "quantizer.callback.optimizer.lr=0.1"),
]
DFQ = [
    *_REAL,
    "quantizer=dfq",
    "bits.inner=[4,32]",
    "bits.ends=null",
    "quantizer.callback.target=2.5",
]
FRACBITS = [*_REAL, "quantizer=fracbits", "bits.ends=[8,8]", "quantizer.callback.target=3.5"]
# Two epochs, the first batch of which sets steps and norms, and projects the weights.
A2Q = [
    *("rows=bits4", "seed=3", "data.train_images=384", "recipe.batch_size=64", "bits.ends=[8,8]"),
    *("quantizer=a2q_plus", "bits.accumulator=11"),
]
ONLY_EPOCHS = "trainer.checkpoint_seconds=600"  # nothing follows an epoch's checkpoint at once


def start(store: Path, words: Sequence[str] = AD) -> subprocess.Popen[str]:
    command = [sys.executable, "reproduce/run.py", *SMALL, f"store={store}", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def checkpoint(store: Path) -> dict | None:
    for path in store.glob("cells/*/last.ckpt"):
        return torch.load(path, weights_only=True)
    return None


def kill_after(store: Path, epoch: int, batch: int, words: Sequence[str] = AD) -> None:
    """Start the cell and SIGKILL it once a checkpoint at or behind this place is on disk."""
    process = start(store, words)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        state = checkpoint(store)
        if state and (state["module"]["epoch"], state["module"]["batch"]) >= (epoch, batch):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return
        time.sleep(0.01)
    pytest.fail("no checkpoint in time")


def kill_at_once(store: Path, words: Sequence[str]) -> None:
    """Start the cell and SIGKILL it as soon as it holds the cell's lock."""
    process = start(store, words)
    deadline = time.monotonic() + 120
    while not list(store.glob("cells/*.lock")):
        assert process.poll() is None
        assert time.monotonic() < deadline, "no lock in time"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint(store) is None


def outcome(store: Path) -> tuple[Record, dict[str, torch.Tensor]]:
    (record,) = Store(store).records()
    return record, torch.load(Store(store).weights(record.name), weights_only=True)


def assert_same(unbroken: Path, broken: Path, *, resumed: int) -> Record:
    """Compare all that two runs left, apart from their seconds, to the last bit."""
    (whole, whole_weights), (again, weights) = outcome(unbroken), outcome(broken)
    assert whole.provenance.resumed == 0
    assert again.provenance.resumed == resumed
    assert again.metrics == whole.metrics
    assert again.costs == whole.costs
    assert again.phases == whole.phases  # widths, channels, parameters, shapes
    seconds = {"seconds": 0.0}
    assert [epoch.model_copy(update=seconds) for epoch in again.history] == [
        epoch.model_copy(update=seconds) for epoch in whole.history
    ]
    assert weights.keys() == whole_weights.keys()
    assert all(same(weights[name], whole_weights[name]) for name in whole_weights)
    return whole


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b
