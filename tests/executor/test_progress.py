"""What a run says while it goes on: lines on a pipe, bars on a terminal."""

import io
import os
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from quantable import classifier, progress
from quantable.config import compose_run
from quantable.executor import work
from quantable.executor.board import Work
from quantable.executor.inline import run_inline
from quantable.progress import Lines, Progress
from quantable.store import Store
from quantable.table import Asked, Cell, load_table
from quantable.tick import Tick

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
    monkeypatch.setattr(classifier, "READ_SECONDS", 0.0)
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


def test_a_workers_log_has_the_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    for executor in ("pool", "slurm"):
        cell = the_cell(f"executor={executor}")
        work._told(cell, os.getppid())(TICK)
        assert capsys.readouterr().err.splitlines() == [
            f"float seed 0 begins: run {cell.signature}, 2 epochs planned",
            "float seed 0: epoch 3 of at most 12, loss 0.5321, held-out 71.20 %, about 2 min left",
        ]
