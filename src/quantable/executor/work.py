"""One frozen cell in one process: ``python -m quantable.executor.work <store>/frozen/<name>.yaml``.

Exit status: 0 done, 75 stopped with a checkpoint (the same command goes on), 2 a mistake in what
was asked, 1 any other fault. Nothing is composed here, and threads are set before torch is there.
"""

import os
import signal
import sys
import time
import traceback
from contextlib import AbstractContextManager
from pathlib import Path

from quantable.base.errors import UserError
from quantable.base.signals import Preempted, heed, listen
from quantable.base.tick import Tell, Tick
from quantable.executor.attempt import attempt, note_done
from quantable.executor.expected import expected
from quantable.executor.frozen import Frozen, decided, thaw
from quantable.executor.status import cancelled, fail, log_path, log_process, read_status
from quantable.store.bits_file import write_bits
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Cell

AGAIN = 75  # EX_TEMPFAIL
POLL_SECONDS = 2.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def work(path: Path) -> int:
    """Bring a frozen cell to its end; the exit status."""
    listen()
    store = Store(path.resolve().parents[1])
    log_process(store, path.stem)
    with _logged(log_path(store, path.stem)):
        try:
            frozen = thaw(path)
            threads = frozen.config["trainer"]["threads"]
            if threads is not None:
                os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
            _finish(frozen, store)
        except (Preempted, KeyboardInterrupt):
            return AGAIN
        except (UserError, NotImplementedError) as error:
            print(f"error: {error}", file=sys.stderr)
            return _failed(store, path.stem, str(error), 2)
        except OSError as error:  # a full disk, a folder that may not be written
            print(f"error: {error}", file=sys.stderr)
            return _failed(store, path.stem, str(error), 2)
        except Exception:
            traceback.print_exc()
            return _failed(store, path.stem, traceback.format_exc(), 1)
        return 0


def _failed(store: Store, name: str, error: str, code: int) -> int:
    """Note a fault of the cell's own; ``attempt`` has done so where it came that far."""
    status = read_status(store, name)
    if status is None or status.state != "failed":
        fail(store, name, error.splitlines())
    return code


def _finish(frozen: Frozen, store: Store) -> None:
    """Wait for what the cell needs and for another runner that holds it, then run it."""
    cell, parent = frozen.cell, os.getppid()
    for need in cell.needs:
        _wait_for(need, frozen, store)
    cell = decided(cell, store, frozen.variant)
    name = cell_name(cell.signature, frozen.variant)
    while not store.has(cell.signature, frozen.variant):
        heed()
        if cancelled(store, name):
            _say("cancelled before it began")
            raise Preempted("cancelled")
        with store.claim(name) as claimed:
            if claimed and not store.has(cell.signature, frozen.variant):
                attempt(cell, store, frozen.variant, _told(cell, parent))
        if not claimed:
            time.sleep(POLL_SECONDS)
    if cell.bits is not None:
        write_bits(cell.bits, store.bits(cell.bits_name))
    for written in {name, frozen.name}:
        note_done(store, written)


def _wait_for(need: str, frozen: Frozen, store: Store) -> None:
    """Wait for a run that the cell begins with, as long as anybody is about to make it."""
    name = cell_name(need, frozen.variant)
    while not store.has(need, frozen.variant):
        heed()
        status = read_status(store, name)
        if not store.running(name) and (status is None or status.state in ("failed", "cancelled")):
            word = "is not in the store" if status is None else status.state
            raise UserError(f"{frozen.cell.label}: needs run {need}, which {word}")
        time.sleep(POLL_SECONDS)


def _told(cell: Cell, parent: int) -> Tell:
    """Say how long the cell may take; end as on a signal when ``parent`` is gone.

    That started this process, and without it nobody waits for this one.
    """
    if cell.config["executor"]["name"] == "slurm" and (said := expected([cell])) is not None:
        _say(said)  # a pool has said it to its user

    def tell(tick: Tick) -> None:
        del tick
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return tell


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _logged(AbstractContextManager[None]):  # noqa: N801 - used like a function
    """Everything that this process and its children print goes to the end of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.kept = [os.dup(1), os.dup(2)]
        with self.path.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for handle, number in zip(self.kept, (1, 2), strict=True):
            os.dup2(handle, number)
            os.close(handle)


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
