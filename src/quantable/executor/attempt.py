"""One attempt at one cell, in this process: train, keep its status up to date, add the record."""

import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from quantable.base.errors import UserError
from quantable.base.signals import Preempted, heed, note
from quantable.base.tick import Tell, Tick
from quantable.executor.cluster import was_cancelled
from quantable.executor.progress import Lines, trouble_of
from quantable.executor.status import (
    ERROR_LINES,
    Status,
    begin_attempt,
    cancel,
    cancelled,
    job_id,
    log,
    note_stop,
    read_status,
    submission_id,
    write_status,
)
from quantable.store.record import Record, cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell

EVERY_SECONDS = 2.0  # between two writes of the status


def attempt(cell: Cell, store: Store, variant: str, tell: Tell) -> Record:
    """Run a cell whose lock this process holds; whatever ends it stands in its status and log."""
    name = cell_name(cell.signature, variant)
    status = begin_attempt(store, name, _mine(cell))
    say = partial(log, store, name)
    lines = Lines(cell, say, status.trouble)
    watch = _Watch(store, name, status, (lines, tell))
    try:
        from quantable.run import run_cell  # torch only where something is trained

        heed()
        record = run_cell(cell, store, variant, watch)
        store.add(record)
    except (Preempted, KeyboardInterrupt) as stop:
        job = watch.status.job
        if job is not None and was_cancelled(job):  # by hand: nobody is to queue it again
            cancel(store, name)
        say(f"{cell.label} {note_stop(store, name, watch.status)}: {stop or 'interrupted'}")
        raise
    except BaseException as error:
        words = _lines(error)
        write_status(store, name, replace(watch.status, state="failed", error=words))
        say(f"{cell.label} failed: {words[-1] if words else type(error).__name__}")
        raise
    done = replace(watch.status, state="done", seconds_left=None, error=())
    write_status(store, name, replace(done, trouble=trouble_of(record)))
    lines.end(record)
    return record


def note_done(store: Store, name: str) -> None:
    """Write down that a cell is done, where its record came from elsewhere."""
    before = read_status(store, name)
    if before is not None and before.state != "done":
        write_status(store, name, replace(before, state="done", seconds_left=None, error=()))


class _Watch:
    """Keeps a cell's status up to date while it runs."""

    def __init__(self, store: Store, name: str, begun: Status, tells: Sequence[Tell]) -> None:
        self.store = store
        self.name = name
        self.begun = begun
        self.tells = tells
        self.tick: Tick | None = None
        self.first: tuple[float, int] | None = None  # when the first batch was done, and which
        self.written = time.monotonic()

    @property
    def status(self) -> Status:
        """The status of now; made only where it is needed, as ticks come with every batch."""
        return self.begun if self.tick is None else replace(self.begun, **vars(self.tick))

    def __call__(self, tick: Tick) -> None:
        now, done = time.monotonic(), tick.done
        self.first = self.first or (now, done)
        since, first = self.first
        left = None
        if done > first:
            left = (now - since) / (done - first) * max(tick.total - done, 0)
        self.tick = replace(tick, seconds_left=left)
        for tell in self.tells:
            tell(self.tick)
        if now - self.written >= EVERY_SECONDS:
            self.written = now
            write_status(self.store, self.name, self.status)
            if cancelled(self.store, self.name):  # from a machine that cannot signal this one
                note()


def _mine(cell: Cell) -> Status:
    """Status of a cell that this process takes in hand."""
    return Status(
        "running",
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        job=job_id(),
        submission=submission_id(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def _lines(error: BaseException) -> tuple[str, ...]:
    """Last lines of what an error says: of a user's mistake its message alone."""
    if isinstance(error, UserError | NotImplementedError):
        return tuple(str(error).splitlines()[-ERROR_LINES:])
    text = "".join(traceback.format_exception(error))
    return tuple(text.splitlines()[-ERROR_LINES:])
