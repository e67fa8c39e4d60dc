"""Statuses: attempts, deaths, cancelling, and what a table of cells says of them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hand_records import hand_table, record_of

from quantable.executor.board import Board, text
from quantable.executor.cluster import Job, Queue
from quantable.executor.requeue import again
from quantable.executor.status import (
    Status,
    begin_attempt,
    cancel,
    note_death,
    note_stop,
    queued,
    read_status,
    uncancel,
    write_status,
)
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def cell() -> Cell:
    words = ("executor=slurm", "executor.retries=2", "data.root=src/quantable/data")
    return Asked((*words, "data=fashion_mnist_mini"), "paper").cells(hand_table())[0]


def at(status: Status, epoch: int) -> Status:
    return replace(status, state="running", epoch=epoch, batch=0, batches=10, job="7_0")


def status_of(store: Store, name: str) -> Status:
    status = read_status(store, name)
    assert status is not None
    return status


def test_a_cell_that_gets_on_may_be_killed_often(store: Store) -> None:
    for epoch in range(10):
        begin_attempt(store, "cell", at(Status("running"), epoch))
        write_status(store, "cell", at(status_of(store, "cell"), epoch + 1))
        assert note_death(store, "cell", 2, "signal 9")
    assert status_of(store, "cell").attempts == 10


def test_a_cell_that_dies_at_one_place_is_given_up(store: Store) -> None:
    goes_on = []
    for _ in range(4):
        begin_attempt(store, "cell", Status("running", row="r", epoch=3))
        goes_on.append(note_death(store, "cell", 2, "signal 9"))
    assert goes_on == [True, True, False, False]
    status = status_of(store, "cell")
    assert (status.state, status.error) == ("failed", ("signal 9 (attempt 4)",))


def test_preemptions_are_free_as_long_as_the_cell_gets_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for epoch in (1, 2, 3, 4, 4, 4):
        begun = begin_attempt(store, "cell", Status("running", job="7"))
        note_stop(store, "cell", replace(begun, epoch=epoch))
        assert again(store, 2, 75)
    begun = begin_attempt(store, "cell", Status("running", job="7"))
    note_stop(store, "cell", begun)  # before the first batch
    assert not again(store, 2, 75)
    status = status_of(store, "cell")
    assert (status.state, status.preempted) == ("failed", 7)
    assert "executor.minutes" in status.error[0]


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("preempted", 75, True),
        ("running", 137, True),  # killed
        ("queued", 1, True),  # the step never began
        ("done", 1, False),
        ("failed", 2, False),
    ],
)
def test_which_jobs_are_queued_again(
    store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch, state, code: int, expected: bool
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    name = cell.signature
    assert not again(store, 2, code)  # nobody knows the job
    write_status(store, name, Status(state, job="7_1"))
    write_status(store, "another", Status("done", job="7_0"))
    assert again(store, 2, code) == expected
    if expected:
        cancel(store, name)
        assert not again(store, 2, code)


def test_the_question_whether_to_go_on_loads_nothing_else() -> None:
    """It is asked between a time limit's signal and the limit."""
    code = "import quantable.executor.requeue, sys; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"pydantic", "hydra", "omegaconf", "yaml", "numpy", "rich"} & set(loaded)


# What the board makes of it


def queue(state: str) -> Queue:
    return Queue({"7_0": Job(state)})


def word(store: Store, cell: Cell, state: str = "") -> str:
    return Board(store, ask=lambda: queue(state) if state else Queue()).line(cell).word


def test_words_of_a_cell(store: Store, cell: Cell) -> None:
    name = cell.signature
    assert word(store, cell) == "missing"
    write_status(store, name, queued(cell, None))
    assert word(store, cell) == "queued"  # this process is about to submit it
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], text=True, capture_output=True
    )
    write_status(store, name, replace(queued(cell, None), pid=int(gone.stdout)))
    assert word(store, cell) == "missing"  # whoever queued it died before it had a job
    write_status(store, name, Status("queued", job="7_0"))
    assert word(store, cell, "PENDING") == "queued"
    assert word(store, cell) == "lost"  # the job went without having begun
    assert word(store, cell, "CANCELLED") == "cancelled"
    write_status(store, name, Status("running", job="7_0", attempts=1))
    assert word(store, cell, "RUNNING") == "queued"  # its process died, the job goes on
    assert word(store, cell, "COMPLETING") == "queued"
    assert word(store, cell, "NODE_FAIL") == "lost"
    assert word(store, cell) == "lost"
    with store.claim(name):
        assert word(store, cell) == "running"
    write_status(store, name, Status("failed", error=("why",)))
    assert word(store, cell) == "failed"
    write_status(store, name, Status("preempted", job="7_0", attempts=1))
    assert word(store, cell, "PENDING") == "queued"
    assert word(store, cell, "PREEMPTED") == "preempted"
    assert word(store, cell) == "preempted"
    write_status(store, name, Status("stopped", attempts=1))
    assert word(store, cell) == "stopped"
    cancel(store, name)
    assert word(store, cell) == "cancelled"
    uncancel(store, [name])
    assert word(store, cell) == "stopped"
    store.add(record_of(cell, (16, [(90.0, 89.0)])))
    assert word(store, cell) == "done"


def test_where_the_cluster_does_not_answer_no_job_is_taken_for_gone(
    store: Store, cell: Cell
) -> None:
    silent = Queue(fault="squeue: no answer in 60 s")
    words = {"queued": "queued", "running": "unknown", "preempted": "queued", "failed": "failed"}
    for state, expected in words.items():
        write_status(store, cell.signature, Status(state, job="7_0", attempts=1))  # type: ignore[arg-type]
        board = Board(store, ask=lambda: silent)
        assert board.line(cell).word == expected
        assert board.fault == silent.fault


def test_lines_say_what_one_wants_to_know(store: Store, cell: Cell) -> None:
    status = Status("running", job="7_0", epoch=2, epochs=5, loss=0.5, val_top1_pct=70.0)
    status = replace(status, seconds_left=130.0, preempted=3)
    write_status(store, cell.signature, replace(status, host="vm", pid=os.getpid()))
    with store.claim(cell.signature):
        said = text("hand", Board(store, ask=lambda: queue("RUNNING")).lines([cell]))
    place = "epoch 3 of at most 5, loss 0.5000, held-out 70.00 %"
    assert said.splitlines() == [
        "hand: 1 cells; 1 running",
        f"  running   float seed 0 [{cell.signature}]: {place}, about 2 min left, "
        "preempted 3 times, job 7_0",
    ]
    waits = Queue({"7_0": Job("PENDING", "BeginTime")})  # it was killed, and is to begin again
    assert note_death(store, cell.signature, 2, "the job's step ended with signal 9")
    said = text("hand", Board(store, ask=lambda: waits).lines([cell]))
    assert f"{place}, preempted 3 times, lost once (the job's step ended with signal 9" in said
    assert said.endswith("job 7_0 (BeginTime)")
    said = text("hand", Board(store, ask=lambda: queue("TIMEOUT")).lines([cell]))
    assert said.splitlines()[0] == "hand: 1 cells; 1 lost"
    assert said.endswith("job 7_0 ended: timeout")
    write_status(store, cell.signature, Status("failed", error=("one", "two")))
    said = text("hand", Board(store, ask=Queue).lines([cell]))
    assert said.splitlines()[2:] == ["            one", "            two"]


def test_looking_asks_the_cluster_once_and_reads_no_record(
    store: Store, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(path: Path) -> None:
        raise AssertionError(path)

    cells = Asked(("recipe.epochs=1",), "paper", seeds=tuple(range(20))).cells(hand_table())
    done, waiting = cells[:20], cells[20:]
    for cell in done:
        store.add(record_of(cell, (16, [(90.0, 89.0)])))
    for cell in waiting:
        write_status(store, cell.signature, Status("queued", job="7_0"))
    asked: list[int] = []
    monkeypatch.setattr("quantable.store.store.read_record", unread)
    board = Board(store, ask=lambda: asked.append(1) or queue("PENDING"))  # type: ignore[func-returns-value]
    words = [line.word for line in board.lines([*done, *waiting])]
    assert words == ["done"] * 20 + ["queued"] * 20
    assert asked == [1]
    assert len(store.heads()) == 20
