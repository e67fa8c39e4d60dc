"""A cell streamed to W&B while it is trained, killed in between; and the step sizes it sends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
import wandb
from killed_runs import checkpoint
from stand_in import serving

from quantable.cli import run_main
from quantable.logger import wandb_run
from quantable.logger.stream import steps
from quantable.logger.wandb_run import CellRun, steps_in
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.methods.pact import PACT
from quantable.networks.cifar import resnet8_cifar
from quantable.quantization.quantize import Quantize
from quantable.store.record import Epoch
from quantable.store.store import Store

ROOT = Path(__file__).parents[2]
CELL = [
    *("+table=ad_quickstart", "budget=smoke", "rows=ad", "seed=0", "logger=wandb"),
    *("quantizer.callback.min_epochs=4", "quantizer.callback.max_epochs=4"),
    *("data.train_images=192", "data.val_images=64", "data.test_images=64"),
    *("trainer.threads=1", "trainer.checkpoint_seconds=0.01", "trainer.accelerator=cpu"),
]


def start(store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "reproduce/run.py", *CELL, f"store={store}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def stop_after(store: Path, epoch: int, number: signal.Signals) -> None:
    """Start the cell and signal it once ``epoch`` epochs are in its checkpoint, and no later.

    It is frozen in between, so that it trains no epoch more on a fast machine, while W&B's own
    process writes what it was handed.
    """
    process, deadline = start(store), time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        state = checkpoint(store)
        if state and state["module"]["epoch"] >= epoch:
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            process.communicate(timeout=300)
            assert process.returncode != 0, "the cell was done before the signal came"
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail("no checkpoint in time")


@pytest.mark.slow
def test_a_cell_killed_twice_holds_one_continuous_history(tmp_path: Path) -> None:
    stop_after(tmp_path, 1, signal.SIGKILL)
    stop_after(tmp_path, 3, signal.SIGTERM)
    last = start(tmp_path)
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err

    (record,) = Store(tmp_path).records()
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{record.name}/*.wandb"))
    assert len(files) == 3  # no attempt overwrote another
    assert [step for file in files for step in sorted(steps_in(file))] == [
        epoch.epoch for epoch in record.history
    ]
    assert len(record.history) >= 9  # every attempt had something to do
    lines = {line["_step"]: line for file in files for line in history(file)}
    for epoch in record.history:
        line = lines[epoch.epoch]
        assert line["val/top1_pct"] == epoch.val_top1_pct
        assert line.get("test/top1_pct") == epoch.test_top1_pct  # at the end of a phase
        assert line["train/loss"] == epoch.train_loss
        assert epoch.bits is not None
        density = epoch.by_layer("density")
        assert density
        for layer, (weight, act) in epoch.bits.items():
            assert (line[f"bits/weight/{layer}"], line[f"bits/act/{layer}"]) == (weight, act)
        for layer, share in density.items():
            assert line[f"density/{layer}"] == pytest.approx(share)
    assert any(name.startswith("step/act/") for name in lines[record.history[-1].epoch])


def history(file: Path) -> list[dict]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    lines = map(json.loads, done.stdout.splitlines())
    return [line["history"]["item"] for line in lines if line["type"] == "history"]


def attached(weight: object, act: object) -> Quantize:
    """ResNet-8 with everything quantized to 4 bits, after one training batch."""
    torch.manual_seed(0)
    net = resnet8_cifar(classes=10, in_channels=1, width=0.25, shortcuts="all")
    quantize = Quantize(weight=weight, act=act, inner=[4, 4], ends=None, layers={})
    quantize.attach(net, (1, 28, 28))
    assert steps(quantize).keys() == {
        f"step/act/{name}" for name, q in quantize.act_quantizers.items() if isinstance(q, PACT)
    }  # of others nothing is known before the first batch
    net.train()(torch.randn(4, 1, 28, 28))
    return quantize


def test_learned_steps_are_sent_as_they_are() -> None:
    quantize = attached(partial(LSQ, batched=False), partial(LSQ, batched=True, per_channel=True))
    sent = steps(quantize)
    assert len(sent) == 2 * len(quantize.bits)
    weight, act = quantize.weight_quantizers["fc"], quantize.act_quantizers["fc"]
    assert sent["step/weight/fc"] == pytest.approx(weight.step.item())
    assert sent["step/act/fc"] == pytest.approx(act.step.mean().item())  # over channels


def test_a_range_of_sixteen_levels_has_fifteen_steps() -> None:
    tracked = attached(partial(MinMax, batched=False), partial(MinMax, batched=True))
    act = tracked.act_quantizers["fc"]
    assert steps(tracked)["step/act/fc"] == pytest.approx((act.high - act.low).item() / 15)
    clipped = attached(partial(LSQ, batched=False), partial(PACT, batched=True, clip_init=3.0))
    sent = steps(clipped)
    assert sent["step/act/fc"] == pytest.approx(3 / 15)  # from 0
    assert sent["step/act/conv1"] == pytest.approx(6 / 15)  # the images are signed


SHORT = [
    *("budget=smoke", "recipe.epochs=2", "seed=0", "trainer.threads=1", "trainer.accelerator=cpu"),
    *("data.train_images=128", "data.val_images=64", "data.test_images=64"),
]


def ran(store: Path, *words: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a run leaves, but for its seconds."""
    assert run_main([*SHORT, *words, f"store={store}"]) == 0
    (record,) = Store(store).records()
    plain = record.model_dump(exclude={"provenance"})
    for epoch in plain["history"]:
        del epoch["seconds"]
    return plain, torch.load(Store(store).weights(record.name), weights_only=True)


def kill_wandb() -> None:
    """End W&B's own process, which this one has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        name, _, fields = path.read_text().partition("(")[2].rpartition(")")
        if name == "wandb-core" and int(fields.split()[1]) == os.getpid():
            os.kill(int(path.parent.name), signal.SIGKILL)
            return
    pytest.fail("W&B has no process")


def test_however_wandb_fails_the_record_is_that_of_a_run_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, weights = ran(tmp_path / "plain")
    monkeypatch.setattr(wandb_run, "BEGIN_SECONDS", 3.0)
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 3.0)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    told = CellRun.line

    def fails_at(epoch: int, fail: Callable[[CellRun], object]) -> Callable[..., None]:
        def line(self: CellRun, line: Epoch, *more: object) -> None:
            if line.epoch == epoch:
                fail(self)
            told(self, line, *more)  # type: ignore[arg-type]

        return line

    def check(case: str, *, said: bool = True) -> None:
        found, last = ran(tmp_path / case, "logger=wandb")
        assert found == plain, case
        assert all(torch.equal(last[name], weights[name]) for name in weights), case
        assert ("action=wandb_replay sends later" in capsys.readouterr().err) == said, case
        with suppress(ConnectionResetError):  # of the process that was killed
            wandb.teardown()

    check("offline", said=False)
    (file,) = (tmp_path / "offline").glob("wandb/offline-run-*/*.wandb")
    assert steps_in(file) == {0, 1}
    monkeypatch.setenv("WANDB_MODE", "online")
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        check("online", said=False)
        (name,) = server.lines
        assert server.steps(name) == [0, 1]
        monkeypatch.setattr(CellRun, "line", fails_at(1, lambda run: kill_wandb()))
        server.delete(name)  # and the run of before, whose id is refused now
        check("process")
        monkeypatch.setattr(CellRun, "line", fails_at(1, lambda run: server.close()))
        check("middle")
    monkeypatch.setattr(CellRun, "line", told)
    check("start")
