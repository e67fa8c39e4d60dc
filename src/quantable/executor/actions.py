"""What can be done with cells that run elsewhere: submit, look, watch, cancel."""

import os
import signal
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from quantable.base.errors import UserError
from quantable.executor.board import MOVING, Board, Line, Work, moving, text
from quantable.executor.inline import Failures
from quantable.executor.slurm import cancel_jobs
from quantable.executor.status import cancel
from quantable.executor.submit import submit
from quantable.store.record import cell_name
from quantable.store.store import Store, wait
from quantable.tables.cells import Cell

LOOK_SECONDS = 5.0  # between two looks at the cells
HANDED_AT_MOST = 3  # times that one command submits a cell whose jobs go without a word


def submit_all(works: Sequence[Work], store: Store) -> str:
    """Submit what is neither done nor in hand, and say how many cells that were."""
    cells = _cells(works)
    for cell in cells:
        name = cell.config["executor"]["name"]
        if name != "slurm":
            raise UserError(
                f"action=submit: executor={name} has no queue to submit to; take executor=slurm, "
                "or action=run to run the cells here"
            )
    n = submit(cells, store, again=True)
    return (
        f"{n} of {len(cells)} cells submitted; the others are done or in hand already.\n"
        "action=status shows where they stand, action=watch follows them to their end."
    )


def overview(works: Sequence[Work], store: Store) -> str:
    """Where every cell stands, table by table."""
    board = Board(store)
    return "\n".join(text(work.table.id, board.lines(work.cells)) for work in works)


def watch(works: Sequence[Work], store: Store) -> int:
    """Show where cells stand until nobody has one in hand; exit status 1 where one is not done.

    Cells of executor=slurm that nobody has in hand (their search is done now, or their job went
    without a word) are submitted; those that have failed are not.
    """
    return int(any(line.word != "done" for line in _follow(works, store)))


def run_jobs(works: Sequence[Work], store: Store) -> Failures:
    """Submit cells, and follow them to their end."""
    submit(_cells(works), store, again=True)
    return {
        line.cell.signature: "\n".join([f"{line.cell.label}: {line.word}", *_error(line)])
        for line in _follow(works, store)
        if line.word != "done"
    }


def unfinished(works: Sequence[Work], store: Store) -> str:
    """The cells that are not done, or nothing."""
    board, said = Board(store), []
    for work in works:
        left = [line for line in board.lines(work.cells) if line.word != "done"]
        if left:
            said.append(text(f"{work.table.id}: not done", left))
    return "\n".join(said)


def cancel_all(works: Sequence[Work], store: Store) -> str:
    """Stop what anybody has in hand, and say how many cells that were.

    Jobs are ended through the cluster. Processes of this machine get SIGTERM, on which they write
    their checkpoints; those of other machines, without a job, are told by their user alone.
    """
    lines = [line for line in Board(store).lines(_cells(works)) if line.word in MOVING]
    for line in lines:
        for signature in (line.cell.signature, line.cell.draft):
            if signature is not None:
                cancel(store, cell_name(signature, line.variant))
    cancel_jobs([line.job for line in lines if line.job is not None])
    for line in lines:
        holder = store.holder(line.name)
        if holder is not None and holder.here and holder.job is None:
            os.kill(holder.pid, signal.SIGTERM)
    return f"{len(lines)} cells cancelled; what they have done is kept"


def _cells(works: Sequence[Work]) -> list[Cell]:
    """Cells of all tables, each once."""
    cells = (cell for work in works for cell in work.cells)
    return list({cell.signature: cell for cell in cells}.values())


def _follow(works: Sequence[Work], store: Store) -> list[Line]:
    """Look until nobody has a cell in hand, showing each look; on no terminal only what changed."""
    console = Console(stderr=True)
    shown, handed = "", Counter[str]()
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            works = [Work(w.table, w.asked, [w.again(c) for c in w.cells]) for w in works]
            board = Board(store)
            tables = [board.lines(work.cells) for work in works]
            lines = [line for table in tables for line in table]
            now = "\n".join(text(w.table.id, t) for w, t in zip(works, tables, strict=True))
            if console.is_terminal:
                live.update(Text(now), refresh=True)
            brief = now.partition("\n")[0]
            if not console.is_terminal and brief != shown:
                shown = brief
                console.print(brief, highlight=False, markup=False)
            ours = [line.cell for line in lines if _is_left(line)]
            ours = [cell for cell in ours if handed[cell.signature] < HANDED_AT_MOST]
            handed.update(cell.signature for cell in ours)
            if not (ours and submit(ours, store, again=False)) and not moving(lines):
                break
            wait(LOOK_SECONDS)
    print(now)
    return lines


def _is_left(line: Line) -> bool:
    """Whether a cell is the cluster's to run, and nobody has it in hand."""
    slurm = line.cell.config["executor"]["name"] == "slurm"
    return slurm and line.word in ("missing", "stopped", "waiting") and line.variant is not None


def _error(line: Line) -> tuple[str, ...]:
    return () if line.status is None else line.status.error
