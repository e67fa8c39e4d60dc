"""Where cells stand, from the files of their store and the cluster's queue: nothing is written."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from quantable.data.sets import ImageSet
from quantable.executor.slurm import Queue, queue
from quantable.executor.status import Status, cancelled, read_status
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.tables.cells import Asked, Cell
from quantable.tables.schema import Table

MOVING = ("running", "queued")  # somebody has these in hand
WORDS = ("done", "running", "queued", "waiting", "failed", "cancelled", "stopped", "missing")
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

    stopped: begun, and nobody has it in hand; waiting: for a search, and nobody has that in hand.
    """

    cell: Cell
    variant: str | None
    word: str
    status: Status | None = None
    reason: str | None = None  # why the cluster lets its job wait

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return cell_name(self.cell.signature, self.variant)

    @property
    def job(self) -> str | None:
        """The cluster's job that has, or had, the cell in hand."""
        return None if self.status is None else self.status.job


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
    ask: Callable[[], Queue | None] = queue
    _queue: list[Queue | None] = field(default_factory=list)
    _variants: Variants = field(default_factory=Variants)

    def lines(self, cells: Iterable[Cell]) -> list[Line]:
        """Look at every cell."""
        return [self.line(cell) for cell in cells]

    def line(self, cell: Cell) -> Line:
        """Look at one cell."""
        variant = self.variant(cell)
        if self.store.has(cell.signature, variant):
            return Line(cell, variant, "done")
        names = [
            cell_name(signature, variant) for signature in (cell.signature, cell.draft) if signature
        ]
        known = ((name, read_status(self.store, name)) for name in names)
        name, status = next(((n, s) for n, s in known if s is not None), (names[0], None))
        word = self._word(cell, name, status)
        line = Line(cell, variant, word, status)
        reason = self.jobs.get(line.job) if word == "queued" and line.job and self.jobs else None
        return line if reason == "None" else replace(line, reason=reason)

    @property
    def jobs(self) -> Queue | None:
        """The cluster's queue, asked once."""
        if not self._queue:
            self._queue.append(self.ask())
        return self._queue[0]

    def variant(self, cell: Cell) -> str | None:
        """Variant of the cell's images on this machine."""
        return self._variants(cell.config)

    def _word(self, cell: Cell, name: str, status: Status | None) -> str:
        if self.store.running(name):
            return "running"
        if status is None or status.state == "done":  # the latter without its record
            return "missing" if cell.search is None else "waiting"
        if status.state == "failed":
            return "failed"
        if cancelled(self.store, name):
            return "cancelled"
        if status.job is not None:
            return self._of_job(status)
        if status.state == "queued":
            return "queued" if _alive(status) else "missing"
        return "stopped"

    def _of_job(self, status: Status) -> str:
        jobs = self.jobs
        if jobs is None:  # not on this machine: what the job's last process wrote has to do
            return "stopped" if status.state == "running" else "queued"
        if status.job not in jobs:
            return "stopped" if status.attempts else "missing"
        return "queued"


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
    status = line.status
    if status is None:
        return ""
    said = []
    if line.word in ("running", "stopped") and (tick := status.tick) is not None:
        said.append(str(tick if line.word == "running" else replace(tick, seconds_left=None)))
    if status.preempted:
        said.append(f"preempted {times(status.preempted)}")
    if status.deaths:
        said.append(f"killed {times(status.deaths)}")
    if line.word in MOVING and line.job is not None:
        said.append(f"job {line.job}" + (f" ({line.reason})" if line.reason else ""))
    return f": {', '.join(said)}" if said else ""


def times(n: int) -> str:
    """How often, in words.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if n == 1 else f"{n} times"


def moving(lines: Iterable[Line]) -> bool:
    """Whether anybody has any of the cells in hand."""
    return any(line.word in MOVING for line in lines)
