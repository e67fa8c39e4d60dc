"""What can be done with cells that run elsewhere: submit, look, watch, cancel."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from quantable.base.errors import UserError
from quantable.executor.board import MOVING, Board, Line, Work, moving, text, times
from quantable.executor.cluster import end
from quantable.executor.inline import Failures
from quantable.executor.status import cancel, cancelled
from quantable.executor.submit import Refused, submit
from quantable.store.record import cell_name
from quantable.store.store import Store, wait
from quantable.tables.cells import Cell

LOOK_SECONDS = 5.0  # between two looks at the cells
HANDED_AT_MOST = 3  # times that one command submits a cell that does not get on


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
    said = [text(work.table.id, board.lines(work.cells)) for work in works]
    return "\n".join([*said, *_unasked(board)])


def _unasked(board: Board) -> list[str]:
    """What to say where the cluster could not be asked."""
    if board.fault is None:
        return []
    return [f"{board.fault}: of jobs it says what they last wrote, not whether they still are"]


def watch(works: Sequence[Work], store: Store) -> int:
    """Show where cells stand until nobody has one in hand; exit status 1 where one is not done.

    Cells of executor=slurm that nobody has in hand (their search is done now, or their job went
    without a word) are submitted, and it says so; those that have failed, or that a person has
    cancelled, are not.
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
    their checkpoints; all others look for the mark that is left in the store. Raises UserError
    where the cluster does not end a job.
    """
    board = Board(store)
    # What was cancelled while the cluster did not answer is to be ended still.
    lines = [line for line in board.lines(_cells(works)) if line.word in MOVING or line.alive]
    for line in lines:
        for signature in (line.cell.signature, line.cell.draft):
            if signature is not None:
                cancel(store, cell_name(signature, line.variant))
    jobs = [line.job for line in lines if line.job is not None and line.submitted]
    left, fault = end(jobs)
    for line in lines:
        holder = store.holder(line.name)
        if holder is not None and holder.here and holder.job is None:
            os.kill(holder.pid, signal.SIGTERM)
    if fault is not None:
        raise UserError(
            f"{fault}: {len(left)} of {len(lines)} cells may still have their jobs: "
            f"{', '.join(left)}. The store says that they are cancelled: a job that runs looks "
            "there, writes its checkpoint and ends, and one that waits ends when it begins. Give "
            "action=cancel again when the cluster answers"
        )
    return f"{len(lines)} cells cancelled; what they have done is kept"


def _cells(works: Sequence[Work]) -> list[Cell]:
    """Cells of all tables, each once."""
    cells = (cell for work in works for cell in work.cells)
    return list({cell.signature: cell for cell in cells}.values())


def _follow(works: Sequence[Work], store: Store) -> list[Line]:
    """Look until nobody has a cell in hand, showing each look; on no terminal only what changed."""
    console = Console(stderr=True)
    hands = Hands(store, lambda said: console.print(said, highlight=False, markup=False))
    shown = ""
    with Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            works = [Work(w.table, w.asked, [w.again(c) for c in w.cells]) for w in works]
            board = Board(store)
            tables = [board.lines(work.cells) for work in works]
            lines = [line for table in tables for line in table]
            said = [text(w.table.id, t) for w, t in zip(works, tables, strict=True)]
            now = "\n".join([*said, *_unasked(board)])
            if console.is_terminal:
                live.update(Text(now), refresh=True)
            brief = "\n".join([now.partition("\n")[0], *_unasked(board)])
            if not console.is_terminal and brief != shown:
                shown = brief
                console.print(brief, highlight=False, markup=False)
            if not hands.over(lines) and not moving(lines):
                break
            wait(LOOK_SECONDS)
    print(now)
    return lines


class Hands:
    """Hands cells of executor=slurm in that nobody has in hand, and says each time that it does.

    What a person has cancelled is left alone, and marked, as the cluster forgets it.
    """

    def __init__(self, store: Store, say: Callable[[str], object]) -> None:
        self.store = store
        self.say = say
        self.times = Counter[str]()  # that a cell was handed in since it got on, by its name
        self.places: dict[str, float] = {}
        self.full: int | None = None  # cells in hand when the cluster took no more

    def over(self, lines: Sequence[Line]) -> bool:
        """Hand in what is left; whether anything was."""
        self._leave(lines)
        in_hand = sum(line.word in MOVING for line in lines)
        if self.full is not None and in_hand >= self.full:
            return False
        ours = [line for line in lines if _is_left(line) and self._gets_on(line)]
        handed = self._submitted(ours, in_hand) if ours else []
        self.times.update(line.name for line in handed)
        again = [line for line in handed if line.status is not None and line.status.attempts]
        if len(handed) > len(again):
            self.say(f"{len(handed) - len(again)} cells handed in")
        for line in again:
            self.say(f"{line.cell.label}: {line.word}; handed in again")
        return bool(handed)

    def _leave(self, lines: Sequence[Line]) -> None:
        """Remember what was cancelled through the cluster."""
        for line in lines:
            if line.word == "cancelled" and not cancelled(self.store, line.name):
                cancel(self.store, line.name)
                self.say(f"{line.cell.label}: cancelled (job {line.job}); left alone")

    def _submitted(self, lines: Sequence[Line], in_hand: int) -> list[Line]:
        """Submit; those of ``lines`` that the cluster has taken."""
        try:
            submit([line.cell for line in lines], self.store, again=False)
        except Refused as why:
            self.full = in_hand + len(why.taken)
            if not why.limit or not self.full:
                raise
            self.say(str(why))
            return [line for line in lines if line.name in why.taken]
        self.full = None
        return list(lines)

    def _gets_on(self, line: Line) -> bool:
        """Whether a cell got on since it was handed in, or was not so too often without."""
        place = 0.0 if line.status is None else line.status.place
        if place > self.places.get(line.name, 0.0):
            self.times[line.name] = 0
        self.places[line.name] = place
        if self.times[line.name] == HANDED_AT_MOST:
            self.times[line.name] += 1  # said once
            self.say(f"{line.cell.label}: {line.word} {times(HANDED_AT_MOST)}; left alone")
        return self.times[line.name] < HANDED_AT_MOST


def _is_left(line: Line) -> bool:
    """Whether a cell is the cluster's to run, and nobody has it in hand."""
    slurm = line.cell.config["executor"]["name"] == "slurm"
    words = ("missing", "preempted", "stopped", "lost", "waiting")
    return slurm and line.word in words and line.variant is not None


def _error(line: Line) -> tuple[str, ...]:
    return () if line.status is None else line.status.error
