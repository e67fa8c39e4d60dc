"""Where cells stand, from the files of their store and the cluster's queue: nothing is written."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from quantable.data.sets import ImageSet
from quantable.executor.cluster import Job, Queue, ask_queue, past
from quantable.executor.status import Status, cancelled, read_status
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import Table

MOVING = ("running", "queued", "unknown")  # somebody has these in hand, or may have
WORDS = (
    *("done", "running", "queued", "unknown", "waiting", "failed", "cancelled"),
    *("preempted", "stopped", "lost", "missing"),
)
SHOWN_DONE = 50  # more of them are only counted


@dataclass(frozen=True)
class Work:
    """A table, what is asked of it, and the cells that this means."""

    table: Table
    asked: Asked
    cells: Sequence[Cell]

    def again(self, cell: Cell) -> Cell:
        """Look again at a cell that waited for a search."""
        if cell.search is None or self.asked.find(cell.search, cell.config) is None:
            return cell
        return self.asked.cell(self.table, cell.row, cell.config["budget"]["name"], cell.seed)


@dataclass(frozen=True)
class Line:
    """One cell. ``variant`` is of the data on this machine, None where the set is not here.

    Nobody has these in hand: preempted (by the cluster, which does not queue it again), stopped (by
    a signal or a keyboard), lost (its job or process went without a word), cancelled (by a person),
    waiting (for a search), missing (never begun). unknown: the cluster cannot be asked.
    """

    cell: Cell
    variant: str | None
    word: str
    status: Status | None = None
    job: str | None = None  # the cluster's, that has, or had, the cell in hand
    about: Job | None = None  # what the cluster says of it
    alive: bool = False  # whether it waits or runs

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return cell_name(self.cell.signature, self.variant)

    @property
    def submitted(self) -> bool:
        """Whether the job was made for this cell, and is no shell that somebody works in."""
        status = self.status
        return status is not None and (status.submission is not None or status.state == "queued")


@dataclass
class Variants:
    """Looks at the images on this machine, at each set once."""

    _known: dict[str, str | None] = field(default_factory=dict)

    def __call__(self, config: Mapping[str, Any]) -> str | None:
        """Variant of the images of a run config; None where they are not here."""
        data = config["data"]
        source = ImageSet(**{fact.name: data[fact.name] for fact in fields(ImageSet)})
        key = repr(source)
        if key not in self._known:
            self._known[key] = source.variant if source.is_here() else None
        return self._known[key]


@dataclass
class Board:
    """Looks cells up; one board is one look at the cluster's queue and at the images."""

    store: Store
    ask: Callable[[], Queue] = ask_queue
    _variants: Variants = field(default_factory=Variants)

    def lines(self, cells: Iterable[Cell]) -> list[Line]:
        """Look at every cell."""
        looks = [self._look(cell) for cell in cells]
        jobs = [look.job for look in looks if look.job is not None and look.word != "done"]
        forgotten = [job for job in dict.fromkeys(jobs) if job not in self.queue.jobs]
        ended = past(forgotten) if forgotten and self.queue.fault is None else {}
        return [self._judged(look, ended) for look in looks]

    def line(self, cell: Cell) -> Line:
        """Look at one cell."""
        return self.lines([cell])[0]

    @cached_property
    def queue(self) -> Queue:
        """The cluster's queue, asked once, and only if a job is to be looked up."""
        return self.ask()

    @property
    def fault(self) -> str | None:
        """Why the queue could not be asked, where it was to be."""
        asked: Queue | None = vars(self).get("queue")
        return None if asked is None else asked.fault

    def variant(self, cell: Cell) -> str | None:
        """Variant of the cell's images on this machine."""
        return self._variants(cell.config)

    def _look(self, cell: Cell) -> Line:
        """What files say of a cell, and its job."""
        variant = self.variant(cell)
        name = cell_name(cell.signature, variant)
        if self.store.has(cell.signature, variant):
            return Line(cell, variant, "done", read_status(self.store, name))
        names = [cell_name(s, variant) for s in (cell.signature, cell.draft) if s]
        known = ((name, read_status(self.store, name)) for name in names)
        name, status = next(((n, s) for n, s in known if s is not None), (names[0], None))
        job = None
        if status is not None and status.state != "done":
            job = status.job
            if job is None and status.submission is not None:
                job = self.queue.submitted(status.submission)
        return Line(cell, variant, self._word(cell, name, status), status, job)

    def _word(self, cell: Cell, name: str, status: Status | None) -> str:
        """Where a cell stands by its files; of one with a job, if that is gone."""
        if self.store.running(name):
            return "running"
        if status is None or status.state == "done":  # the latter without its record
            return "missing" if cell.search is None else "waiting"
        if status.state == "failed":
            return "failed"
        if cancelled(self.store, name):
            return "cancelled"
        if status.state == "queued" and status.job is None and _alive(status):
            return "queued"
        if status.state == "queued" and not status.attempts:
            return "missing" if status.job is None else "lost"
        return {"queued": "lost", "running": "lost", "preempted": "preempted"}.get(
            status.state, "stopped"
        )

    def _judged(self, look: Line, ended: Mapping[str, Job]) -> Line:
        """What a cell's job means for it."""
        status = look.status
        if look.job is None:
            asked = status is not None and status.submission is not None and self.queue.fault
            return replace(look, word="unknown") if asked and look.word == "missing" else look
        queue = self.queue
        about = queue.jobs.get(look.job) or ended.get(look.job)
        line = replace(look, about=about, alive=queue.alive(look.job))
        if look.word not in ("queued", "preempted", "stopped", "lost", "missing"):
            return line
        if queue.fault is not None:
            assert status is not None
            told = status.state in ("queued", "preempted")  # the cluster was to go on
            return replace(line, word="queued" if told else "unknown")
        state = "" if about is None else about.state
        if line.alive or state == "COMPLETING":
            return replace(line, word="queued")
        ended_as = {"CANCELLED": "cancelled", "PREEMPTED": "preempted"}
        return replace(line, word=ended_as.get(state, line.word))


def _alive(status: Status) -> bool:
    """Whether the process that queued a cell for itself is still there, as far as one can see."""
    if status.host != socket.gethostname() or status.pid is None:
        return True
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def text(title: str, lines: Sequence[Line]) -> str:
    """Lines of one table for a terminal."""
    counts = Counter(line.word for line in lines)
    total = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    out = [f"{title}: {len(lines)} cells; {total}"]
    brief = counts["done"] > SHOWN_DONE
    for line in lines:
        if brief and line.word == "done":
            continue
        place = f"after search {line.cell.search}" if line.cell.search else line.name
        out.append(f"  {line.word:9} {line.cell.label} [{place}]{_details(line)}")
        if line.word == "failed" and line.status is not None:
            out += [f"            {words}" for words in line.status.error]
    return "\n".join(out)


def _details(line: Line) -> str:
    said = [*_place(line), *_past(line), *_job(line)]
    return f": {', '.join(said)}" if said else ""


def _place(line: Line) -> Iterator[str]:
    """Epoch, loss and accuracy, also of a cell that waits to go on."""
    status = line.status
    if status is not None and line.word != "done" and (tick := status.tick) is not None:
        yield str(tick if line.word == "running" else replace(tick, seconds_left=None))


def _past(line: Line) -> Iterator[str]:
    """What a cell has been through."""
    status = line.status
    if status is not None and status.trouble:
        yield status.trouble
    if status is None or line.word == "done":
        return
    if status.preempted:
        yield f"preempted {times(status.preempted)}"
    if status.lost:
        why = f" ({status.error[-1]})" if status.error and line.word != "failed" else ""
        yield f"lost {times(status.lost)}{why}"


def _job(line: Line) -> Iterator[str]:
    """The cluster's job, and why it waits or how it ended."""
    if line.job is None:
        return
    about = line.about
    if line.word in MOVING:
        waits = about is not None and about.reason not in ("", "None")
        yield f"job {line.job}" + (f" ({about.reason})" if about and waits else "")
    elif line.word == "cancelled" and line.alive:
        yield f"job {line.job} is still in the queue; action=cancel tries again"
    elif line.word in ("lost", "preempted"):
        yield f"job {line.job} " + (f"ended: {about.state.lower()}" if about else "is gone")


def times(n: int) -> str:
    """How often, in words.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if n == 1 else f"{n} times"


def moving(lines: Iterable[Line]) -> bool:
    """Whether anybody has any of the cells in hand."""
    return any(line.word in MOVING for line in lines)
