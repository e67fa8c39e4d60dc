"""Cells one after the other in this process; any number of such runners may share a store."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from quantable.base.errors import UserError
from quantable.base.signals import heed, listen
from quantable.executor.attempt import attempt, note_done
from quantable.executor.board import Board, Work
from quantable.executor.expected import expected
from quantable.executor.progress import Progress
from quantable.executor.status import log_process
from quantable.store.bits_file import write_bits
from quantable.store.record import cell_name
from quantable.store.store import Store, wait
from quantable.tables.cells import Cell

Failures = dict[str, str]  # message by signature


def run_inline(work: Work, store: Store) -> Failures:
    """Train what misses, waiting for cells that another runner holds."""
    failures: Failures = {}
    board, waiting = Board(store), list(work.cells)
    todo = [cell for cell in waiting if not store.has(cell.signature, board.variant(cell))]
    if not todo:
        return failures
    with listening(), Progress(len(waiting)) as progress:
        if (said := expected(todo)) is not None:
            progress.say(said)
        while waiting:
            now = (work.again(cell) for cell in waiting)
            left = [c for c in now if not _settle(c, store, board.variant(c), progress, failures)]
            if len(left) == len(waiting):
                heed()
                wait()
            waiting = left
    return failures


def failed_need(cell: Cell, failures: Failures) -> str | None:
    """What to say of a cell that cannot be run, as one that it needs has failed."""
    for need in cell.needs:
        if need in failures:
            return f"{cell.label}: needs run {need}, which failed"
    return None


def _settle(
    cell: Cell, store: Store, variant: str | None, progress: Progress, failures: Failures
) -> bool:
    """Bring one cell to its end; False while another runner holds it, or one that it needs."""
    if cell.impossible is not None:
        progress.leave_out(cell)
        return True
    if (message := failed_need(cell, failures)) is not None:
        failures[cell.signature] = message
        progress.failed(cell)
        return True
    if any(not store.has(need, variant) for need in cell.needs):
        return False
    name = cell_name(cell.signature, variant)
    with store.claim(name) as claimed:
        if not claimed:
            return False
        if store.has(cell.signature, variant):
            progress.skip(cell)
        else:
            assert variant is not None
            log_process(store, name)
            try:
                record = attempt(cell, store, variant, progress.start(cell))
            except (UserError, NotImplementedError) as error:
                failures[cell.signature] = f"{cell.label}: {error}"
                progress.failed(cell)
                return True
            progress.finish(cell, record)
    if cell.bits is not None:
        write_bits(cell.bits, store.bits(cell.bits_name))
    note_done(store, name)
    return True


@contextmanager
def listening() -> Iterator[None]:
    """Hear a scheduler's signals while something is trained."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = listen()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
