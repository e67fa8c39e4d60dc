"""Cells to jobs: freeze what nobody has in hand, and hand it to the cluster. Returns at once."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from quantable.base.errors import UserError
from quantable.executor import slurm
from quantable.executor.board import MOVING, Board, Line
from quantable.executor.cluster import ask_queue, end, largest_array
from quantable.executor.frozen import freeze, keep_source
from quantable.executor.status import forget, queued, read_status, uncancel, write_status
from quantable.store.record import cell_name
from quantable.store.store import Store, wait
from quantable.tables.cells import Cell


class Refused(UserError):  # noqa: N818 - as NotTaken
    """The cluster takes only some cells, by name; ``limit``: it has as many as it takes."""

    def __init__(self, message: str, *, taken: Iterable[str], limit: bool) -> None:
        super().__init__(message)
        self.taken = frozenset(taken)
        self.limit = limit


def submit(cells: Sequence[Cell], store: Store, *, again: bool) -> int:
    """Submit the cells that are neither done nor in hand, and return how many those were.

    ``again``: also those that have failed or were cancelled. Of two submitters the second waits for
    the first, and finds its jobs. Raises ``Refused`` when the cluster has taken only some.
    """
    while True:
        with store.claim("submit") as claimed:
            if claimed:
                return _submit(cells, store, again)
        wait()


def _submit(cells: Sequence[Cell], store: Store, again: bool) -> int:
    board = Board(store)
    lines = board.lines(cells)
    skipped = {"done", *MOVING} | (set() if again else {"failed", "cancelled"})
    left = [line for line in lines if line.word not in skipped]
    uncancel(store, [line.name for line in left])
    left = [line for line in left if not line.alive]  # else its job was to be cancelled, and lives
    if not left:
        return 0
    source = keep_source(store)
    names = {line.name for line in left}
    ready = []
    for line in left:
        assert line.variant is not None
        freeze(line.cell, line.variant, store, source, threads=line.cell.config["executor"]["cpus"])
        needs = [cell_name(need, line.variant) for need in line.cell.needs]
        ready.append(
            slurm.Ready(
                line.name,
                line.cell.config["executor"],
                source,
                after=_jobs(needs, lines),
                behind=tuple(need for need in needs if need in names),
            )
        )
    _hand_over(slurm.arrays(ready, largest_array()), {line.name: line for line in left}, store)
    return len(left)


def _hand_over(arrays: Sequence[slurm.Array], lines: dict[str, Line], store: Store) -> None:
    """Submit array by array, each with its ids written down before the next."""
    left, jobs = list(arrays), dict[str, str]()
    while left:
        array = left.pop(0)
        try:
            jobs |= _send(array, lines, jobs, store)
        except slurm.NotTaken as fault:
            if fault.limit and len(array.cells) > 1:
                left[:0] = slurm.halves(array)
                continue
            said = _refusal(fault, len(jobs), len(lines))
            raise Refused(said, taken=jobs, limit=fault.limit) from fault


def _send(
    array: slurm.Array, lines: dict[str, Line], jobs: dict[str, str], store: Store
) -> dict[str, str]:
    """Submit one array; job ids by cell. What is refused stands where it stood before."""
    token = slurm.token()
    before = {cell.name: read_status(store, cell.name) for cell in array.cells}
    for i, cell in enumerate(array.cells):
        line = lines[cell.name]
        write_status(store, cell.name, queued(line.cell, line.status, f"{token}_{i}"))
    try:
        made = slurm.send(array, token, jobs, store)
    except BaseException:
        # An answer that did not come in time may be of jobs that were taken.
        taken = (ask_queue().submitted(f"{token}_{i}") for i in range(len(array.cells)))
        end([job for job in taken if job is not None])
        for name, status in before.items():
            if status is None:
                forget(store, name)
            else:
                write_status(store, name, status)
        raise
    for name, job in made.items():
        status = read_status(store, name)
        if status is not None and status.job is None:  # else the job has begun already
            write_status(store, name, replace(status, job=job))
    return made


def _refusal(fault: slurm.NotTaken, taken: int, cells: int) -> str:
    if not taken:
        return f"executor=slurm: {fault}: none of {cells} cells is submitted"
    more = "; the same command again, or action=watch, submits the others when jobs have ended"
    return f"executor=slurm: {fault}: {taken} of {cells} cells are submitted" + (
        more if fault.limit else ""
    )


def _jobs(needs: Sequence[str], lines: Sequence[Line]) -> tuple[str, ...]:
    """Jobs of earlier submissions that make what is needed."""
    made = (line.job for line in lines if line.name in needs and line.word in MOVING)
    return tuple(job for job in made if job is not None)
