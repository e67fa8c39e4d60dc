"""What is known of a cell on its way: one small JSON file each, replaced by rename.

Loads little more than the standard library: there is little time between a job's last signal and
its end.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from quantable.base.tick import Tick
from quantable.executor.cluster import NAME

if TYPE_CHECKING:
    from quantable.tables.cells import Cell

Word = Literal["queued", "running", "done", "failed", "preempted", "stopped", "cancelled"]
SETTLED = ("done", "failed", "cancelled")
ERROR_LINES = 8
MINE = ("state", "table", "row", "seed", "job", "host", "pid")  # of an attempt


class Place(Protocol):
    """A store, as far as it matters here."""

    folder: Path


@dataclass(frozen=True)
class Status:
    """Where a cell stands, as its last process wrote it.

    preempted: a job was told to stop; stopped: another process was, by a signal or from its
    keyboard. ``job`` is the cluster's, ``submission`` what its submitter called it before it had
    one. ``lost`` counts the attempts that ended without a word, ``deaths`` those in a row, of any
    kind, that had got no further than ``reached``, in epochs.
    """

    state: Word
    table: str | None = None
    row: str = ""
    seed: int = 0
    job: str | None = None
    submission: str | None = None
    host: str | None = None
    pid: int | None = None
    attempts: int = 0
    preempted: int = 0
    lost: int = 0
    deaths: int = 0
    reached: float = 0.0
    epoch: int | None = None
    epochs: int | None = None  # planned, at most
    batch: int | None = None
    batches: int | None = None  # of an epoch
    loss: float | None = None
    val_top1_pct: float | None = None
    seconds_left: float | None = None
    unit: str = "epoch"
    trouble: str | None = None
    error: tuple[str, ...] = ()
    updated: float = 0.0  # seconds since 1970

    @property
    def place(self) -> float:
        """How far the run is, in epochs."""
        return (self.epoch or 0) + (self.batch or 0) / (self.batches or 1)

    @property
    def tick(self) -> Tick | None:
        """The last that the run told of its place."""
        if self.epochs is None:
            return None
        known = {field.name: getattr(self, field.name) for field in fields(Tick)}
        counted = {"epoch": self.epoch or 0, "batch": self.batch or 0, "batches": self.batches or 1}
        return Tick(**(known | counted))


def read_status(store: Place, name: str) -> Status | None:
    """Status of a cell, or None where nobody wrote one."""
    try:
        content = json.loads(_path(store, name).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:  # of a disk that was full
        return None
    known = {field.name for field in fields(Status)}
    status = Status(**{key: value for key, value in content.items() if key in known})
    return replace(status, error=tuple(status.error))


def write_status(store: Place, name: str, status: Status) -> None:
    """Replace a cell's status; not flushed to the disk, as a later one replaces it anyhow."""
    path = _path(store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(asdict(replace(status, updated=time.time()))))
    os.replace(temporary, path)


def forget(store: Place, name: str) -> None:
    """Take a status back, of a cell that came into nobody's hands."""
    _path(store, name).unlink(missing_ok=True)


def queued(cell: "Cell", before: Status | None, submission: str | None = None) -> Status:
    """Status of a cell that is about to be queued; what it has been through stays known."""
    return replace(
        before or Status("queued"),
        state="queued",
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        job=None,
        submission=submission,
        host=socket.gethostname(),  # whether it was queued indeed is known while this process lives
        pid=os.getpid(),
        deaths=0,
        reached=0.0,
        seconds_left=None,
        error=(),
    )


def fail(store: Place, name: str, error: Iterable[str]) -> None:
    """Note that a cell has failed, and the last lines of why."""
    status = read_status(store, name) or Status("failed")
    last = tuple(error)[-ERROR_LINES:]
    write_status(store, name, replace(status, state="failed", error=last, seconds_left=None))


def begin_attempt(store: Place, name: str, status: Status) -> Status:
    """Write that a process takes the cell in hand, and count it; its place is known until it says.

    One that ran before and said no more was lost: killed, or gone with its machine.
    """
    before = read_status(store, name)
    now = replace(status, attempts=1)
    if before is not None:
        ours = status.job is not None and before.job in (None, status.job)
        now = replace(
            before,
            **{name: getattr(status, name) for name in MINE},
            submission=before.submission if ours else status.submission,
            attempts=before.attempts + 1,
            lost=before.lost + (before.state == "running"),
            reached=max(before.reached, before.place),
            seconds_left=None,
            error=(),
        )
    write_status(store, name, now)
    return now


def note_stop(store: Place, name: str, status: Status) -> Word:
    """Write how an attempt was told to stop, and return it; one that had not got on is a death."""
    word: Word = "preempted" if status.job is not None else "stopped"
    stopped = replace(
        status,
        state="cancelled" if cancelled(store, name) else word,
        deaths=0 if status.place > status.reached else status.deaths + 1,
        reached=max(status.reached, status.place),
        seconds_left=None,
    )
    again = stopped.preempted + (stopped.state == "preempted")
    write_status(store, name, replace(stopped, preempted=again))
    return stopped.state


def note_death(store: Place, name: str, retries: int, words: str) -> bool:
    """Count an attempt that ended without a word; False where it was one too many.

    Those count that came no further than the ones before: a run that gets on may be killed often.
    """
    status = read_status(store, name) or Status("queued")
    deaths = 1 if status.place > status.reached else status.deaths + 1
    dead = replace(
        status,
        state="failed" if deaths > retries else "queued",
        deaths=deaths,
        lost=status.lost + 1,
        reached=max(status.reached, status.place),
        seconds_left=None,
        error=(f"{words} (attempt {status.attempts})",),
    )
    write_status(store, name, dead)
    return dead.state == "queued"


def cancel(store: Place, name: str) -> None:
    """Ask that a cell be left alone; whoever has it in hand looks for this mark."""
    _mark(store, name).parent.mkdir(parents=True, exist_ok=True)
    _mark(store, name).touch()


def cancelled(store: Place, name: str) -> bool:
    """Whether a cell is to be left alone."""
    return _mark(store, name).exists()


def uncancel(store: Place, names: Sequence[str]) -> None:
    """Forget that cells were cancelled: they are asked for again."""
    for name in names:
        _mark(store, name).unlink(missing_ok=True)


def _path(store: Place, name: str) -> Path:
    return store.folder / "status" / f"{name}.json"


def _mark(store: Place, name: str) -> Path:
    return store.folder / "status" / f"{name}.cancelled"


def log_path(store: Place, name: str) -> Path:
    """File with everything that a cell's own processes print, and what is said of its runs."""
    return store.folder / "logs" / f"{name}.log"


def log(store: Place, name: str, line: str) -> None:
    """Add a line to a cell's log."""
    path = log_path(store, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def log_process(store: Place, name: str) -> None:
    """Add to a cell's log that this process takes the cell in hand."""
    log(store, name, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}, process {os.getpid()}")


def job_id() -> str | None:
    """Id of the SLURM job around this process, as ``squeue`` and ``scancel`` write it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def submission_id() -> str | None:
    """What the submitter of the job around this process has called it; None in other jobs."""
    name = os.environ.get("SLURM_JOB_NAME", "")
    if not name.startswith(NAME):
        return None
    return f"{name.removeprefix(NAME)}_{os.environ.get('SLURM_ARRAY_TASK_ID') or 0}"
