"""Cells to jobs: freeze what nobody has in hand, and hand it to the cluster. Returns at once."""

from collections.abc import Sequence

from quantable.executor import slurm
from quantable.executor.board import MOVING, Board, Line
from quantable.executor.frozen import freeze, keep_source
from quantable.executor.status import Status, queued, read_status, uncancel, write_status
from quantable.store.record import cell_name
from quantable.store.store import Store, wait
from quantable.tables.cells import Cell


def submit(cells: Sequence[Cell], store: Store, *, again: bool) -> int:
    """Submit the cells that are neither done nor in hand, and return how many those were.

    ``again``: also those that have failed or were cancelled. Of two submitters the second waits for
    the first, and finds its jobs.
    """
    while True:
        with store.claim("submit") as claimed:
            if claimed:
                return _submit(cells, store, again)
        wait()


def _submit(cells: Sequence[Cell], store: Store, again: bool) -> int:
    lines = Board(store).lines(cells)
    skipped = {"done", *MOVING} | (set() if again else {"failed", "cancelled"})
    left = [line for line in lines if line.word not in skipped]
    if not left:
        return 0
    source = keep_source(store)
    names = {line.name for line in left}
    uncancel(store, [line.name for line in left])
    ready = []
    for line in left:
        cell, options = line.cell, line.cell.config["executor"]
        assert line.variant is not None
        freeze(cell, line.variant, store, source, threads=options["cpus"])
        write_status(store, line.name, queued(cell, line.status))
        needs = [cell_name(need, line.variant) for need in cell.needs]
        ready.append(
            slurm.Ready(
                line.name,
                options,
                source,
                after=_jobs(needs, lines),
                behind=tuple(need for need in needs if need in names),
            )
        )
    for name, job in slurm.submit(ready, store).items():
        status = read_status(store, name)
        if status is not None and status.job is None:  # else the job has begun already
            write_status(store, name, Status(**(vars(status) | {"job": job})))
    return len(left)


def _jobs(needs: Sequence[str], lines: Sequence[Line]) -> tuple[str, ...]:
    """Jobs of earlier submissions that make what is needed."""
    made = (line.job for line in lines if line.name in needs and line.word in MOVING)
    return tuple(job for job in made if job is not None)
