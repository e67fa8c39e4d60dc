"""What a run says while it goes on: lines on a pipe, bars on a terminal, and how long it takes."""

import io
import os
import random
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hand_records import record_of
from rich.console import Console

from quantable.base.errors import UserError
from quantable.base.signals import Preempted
from quantable.base.tick import Tick, duration
from quantable.config.composition import compose_run
from quantable.executor import inline, pool, progress, work
from quantable.executor.actions import overview
from quantable.executor.board import Work
from quantable.executor.expected import expected, hours, steps_of
from quantable.executor.inline import run_inline
from quantable.executor.progress import Lines, Progress
from quantable.report.reporter import Reporter
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import load_table
from quantable.training import evaluation
from quantable.training.timing import Step, timed_step

TABLE = load_table("ad_quickstart")
# Two epochs of two batches.
TINY = [
    *("data.train_images=64", "data.val_images=32", "data.test_images=32"),
    *("recipe.batch_size=32", "recipe.epochs=2"),
    *("trainer.accelerator=cpu", "trainer.threads=1"),
]
TICK = Tick(2, 12, 8, 10, loss=0.5321, val_top1_pct=71.2, seconds_left=130)


class Pipe(io.StringIO):
    """Keeps what has come through at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.through = [""]

    def flush(self) -> None:
        self.through.append(self.getvalue())


def work_of(*words: str, budget: str = "smoke", rows: tuple[str, ...] = ("float",)) -> Work:
    asked = Asked((*TINY, *words), budget, rows, (0,))
    return Work(TABLE, asked, asked.cells(TABLE))


def the_cell(*words: str, budget: str = "smoke") -> Cell:
    return work_of(*words, budget=budget).cells[0]


def test_a_pipe_has_a_line_at_once_when_a_cell_begins_and_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(evaluation, "READ_SECONDS", 0.0)
    pipe = Pipe()
    monkeypatch.setattr(sys, "stderr", pipe)
    asked, store = work_of(), Store(tmp_path)
    assert run_inline(asked, store) == {}
    first, *places, last = pipe.getvalue().splitlines(keepends=True)
    (record,) = store.records()
    one, two = record.history
    assert first == f"float seed 0 begins: run {record.signature}, 2 epochs planned\n"
    assert last.startswith("[1/1] float seed 0: top-1 ")
    assert len(places) == 4
    # The mean over all batches of an epoch is the loss that the record has.
    begin = "float seed 0: epoch 1 of at most 2"
    assert re.fullmatch(rf"{begin}, loss \d\.\d{{4}}\n", places[0])
    assert places[1].startswith(f"{begin}, loss {one.train_loss:.4f}, about ")
    begin = "float seed 0: epoch 2 of at most 2"
    known = f"loss {two.train_loss:.4f}, held-out {one.val_top1_pct:.2f} %"
    assert places[3] == f"{begin}, {known}, about 0 s left\n"
    for n in range(1, 7):  # each line is through before the next is written
        assert "".join([first, *places, last][:n]) in pipe.through


def test_there_is_one_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [1000.0], []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = Lines(the_cell(), said.append)
    for now[0] in range(1000, 1150):
        lines(Tick(int(now[0]) - 1000, 150, 0, 10))
    assert [line.partition(" of ")[0] for line in said[1:]] == [
        "float seed 0: epoch 61",
        "float seed 0: epoch 121",
    ]


@pytest.mark.parametrize(
    ("words", "planned"),
    [
        (["recipe=post_training"], "without training"),
        (["quantizer=ad"], "in phases that learn the bit-widths"),
        (["search=alps", "quantizer=lsq"], "a search"),
    ],
)
def test_what_a_cell_is_about_to_do(words: list[str], planned: str) -> None:
    said: list[str] = []
    config = compose_run(words)
    Lines(Cell(None, "run", 1, config, ()), said.append)
    assert said[0].startswith("run seed 1 begins: run ")
    assert said[0].endswith(f", {planned}")


@pytest.mark.parametrize("width", [80, 160])
def test_the_bar_on_a_terminal_has_loss_and_held_out_accuracy(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    screen = io.StringIO()
    terminal = partial(Console, file=screen, force_terminal=True, width=width)
    monkeypatch.setattr(progress, "Console", lambda stderr: terminal())
    cell = the_cell()
    with Progress(2) as shown:
        tell = shown.start(cell)
        tell(TICK)
        shown.bars.refresh()
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "loss 0.5321, held-out 71.20 %" in text
    assert "cells (epoch 3 of at most 12)" in text
    assert "-:--:--" in text  # time left: nothing is cut
    assert "begins" not in text


def test_a_log_has_every_attempt_while_it_lasts_and_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    store, asked = Store(tmp_path), work_of()
    (cell,) = asked.cells
    path = tmp_path / "logs" / f"{cell.signature}.log"
    read: list[str] = []

    def run_cell(cell: Cell, store: Store, variant: str, tell) -> Record:
        tell(TICK)
        read.append(path.read_text())  # while it trains
        if len(read) == 1:
            raise Preempted("stopped by SIGTERM")
        if len(read) == 2:
            raise UserError("no such layer")
        return record_of(cell, (32, [(80.0, 81.0)]))

    monkeypatch.setattr("quantable.run.run_cell", run_cell)
    with pytest.raises(Preempted):
        run_inline(asked, store)
    assert run_inline(asked, store) != {}
    assert run_inline(asked, store) == {}
    begins = f"float seed 0 begins: run {cell.signature}, 2 epochs planned"
    place = "float seed 0: epoch 3 of at most 12, loss 0.5321, held-out 71.20 %"
    lines = path.read_text().splitlines()
    assert [line for line in lines if not line.startswith("--- ")] == [
        *(begins, place, "float seed 0 stopped: stopped by SIGTERM"),
        *(begins, place, "float seed 0 failed: no such layer"),
        *(begins, place, "float seed 0: top-1 81.00 %, 1 s"),
    ]
    assert [line.endswith(f", process {os.getpid()}") for line in lines].count(True) == 3
    assert read[0].splitlines()[1:] == [begins, place]


def test_a_worker_says_on_a_cluster_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, "expected", lambda cells: f"{cells[0].label} takes long")
    for executor, said in (("pool", ""), ("slurm", "float seed 0 takes long\n")):
        work._told(the_cell(f"executor={executor}"), os.getppid())(TICK)
        assert capsys.readouterr().err == said


def test_a_run_that_diverges_says_so_once_in_log_status_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    asked, store = work_of("recipe.optimizer.lr=30"), Store(tmp_path)
    assert run_inline(asked, store) == {}
    (record,) = store.records()
    assert record.history[0].train_loss is not None
    said = f"float seed 0 diverged: training loss {record.history[0].train_loss:.3g} in epoch 1"
    log = (tmp_path / "logs" / f"{record.name}.log").read_text()
    for text in (log, capsys.readouterr().err):
        assert text.count("diverged") == 1
        assert said in text
    assert " diverged: training loss " in overview([asked], store)
    (note,) = Reporter(TABLE, asked.asked, [store]).report().notes[:1]
    assert note.startswith("float seed 0 diverged: training loss ")
    assert note.endswith(" in epoch 2, where guessing has 2.30.")


# How long a run takes


def test_a_run_at_budget_paper_without_a_gpu_says_how_long_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, store = work_of(budget="paper"), Store(tmp_path / "said")
    assert run_inline(asked, store) == {}
    said = capsys.readouterr().err.splitlines()
    begins = next(i for i, line in enumerate(said) if " begins: " in line)
    assert begins == 1
    assert re.match(
        r"float seed 0 takes about \S+ (s|min|h).* at budget paper on this machine's CPU "
        r"\(\S+ s a step, 2 steps x 2 epochs; evaluations not counted\)",
        said[0],
    )
    assert all(word in said[0] for word in ("budget=cpu", "budget=smoke"))

    silent = Store(tmp_path / "silent")
    monkeypatch.setattr(inline, "expected", lambda cells: None)
    assert run_inline(work_of(budget="paper"), silent) == {}
    assert "budget" not in capsys.readouterr().err
    ((one,), (two,)) = store.records(), silent.records()
    for a, b in zip(one.history, two.history, strict=True):
        assert a.model_copy(update={"seconds": 0}) == b.model_copy(update={"seconds": 0})
    weights = [torch.load(s.weights(one.signature), weights_only=True) for s in (store, silent)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize(
    ("words", "budget"),
    [([], "cpu"), ([], "smoke"), (["recipe.epochs=0"], "paper")],
)
def test_nothing_is_timed_at_a_smaller_budget_or_without_training(
    monkeypatch: pytest.MonkeyPatch, words: list[str], budget: str
) -> None:
    monkeypatch.setattr("quantable.training.timing.timed_step", lambda config: pytest.fail("timed"))
    assert expected([the_cell(*words, budget=budget)]) is None


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (["recipe.channels_last=true", "teacher=0123456789ab"], 2),
        (["quantizer=lsq", "recipe=lsq", "recipe.epochs=3"], 3),  # weight decay by bits
        (["quantizer=ad", "quantizer.callback.max_epochs=5"], 5),
        (["quantizer=edge", "quantizer.callback.epochs=[4,2,1]", "bits.inner=[6,6]"], 4),
    ],
    ids=["float", "lsq", "ad", "edge"],
)
def test_timing_a_step_leaves_no_trace(words: list[str], epochs: int) -> None:
    config = compose_run([*TINY, *words])
    torch.manual_seed(3)
    states = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]
    before = torch.get_num_threads()
    step = timed_step(config | {"trainer": config["trainer"] | {"threads": before + 1}})
    assert step.epochs == epochs  # of the first phase
    assert step.seconds > 0
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_hours_are_steps_times_their_time_and_macs_of_a_hand_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Step(seconds=2.0, epochs=3, small_share=0.25)  # phases: 3 epochs, then what is left of 5
    monkeypatch.setattr("quantable.training.timing.timed_step", lambda config: step)
    work = work_of("recipe.epochs=5")
    cells, shapes = work.cells, work.asked.shapes(work.cells[0].config)
    said = hours(cells, work.asked).splitlines()
    steps = steps_of(cells[0])
    seconds = 2.0 * steps * (3 * 0.75 + 2)
    assert f"1 x about {duration(seconds)} (2 s a step, {steps} steps x 5 epochs)" in said[0]
    assert shapes is not None
    images = 5 * steps * cells[0].config["recipe"]["batch_size"]
    macs = 3 * sum(shape.macs for shape in shapes) * images
    assert f"{macs:.2g} MACs, {macs / 5e12 / 3600:.2g} GPU-hours" in said[-1]


@pytest.mark.slow
def test_a_pool_says_it_too_with_a_workers_share_of_the_cores() -> None:
    cells = work_of(budget="paper", rows=("float", "bits4")).cells
    said = pool._expected(cells, 1)
    assert said is not None
    assert said.startswith("float seed 0, one of 2 cells to train, takes about ")
    assert pool._expected(work_of().cells, 1) is None
