"""Live progress of a table: a bar over its cells, a bar over the epochs of the current one."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from quantable.base.tick import Tell, Tick
from quantable.store.record import Record
from quantable.store.trouble import trouble
from quantable.tables.cells import Cell

LINE_SECONDS = 60.0  # between two lines on a cell where no terminal is
WIDE = 110  # columns of a terminal that also has room for counts and the time so far


class Lines:
    """Plain lines on one cell: when it begins, and one a minute while it tells its place.

    Call it with each tick. ``trouble`` is what was said of an earlier attempt.
    """

    def __init__(self, cell: Cell, say: Callable[[str], None], trouble: str | None = None) -> None:
        self.cell = cell
        self.say = say
        self.said = time.monotonic()
        self.trouble = trouble
        say(f"{cell.label} begins: run {cell.signature}, {_planned(cell)}")

    def __call__(self, tick: Tick) -> None:  # noqa: D102
        now = time.monotonic()
        if now - self.said >= LINE_SECONDS:
            self.said = now
            self.say(f"{self.cell.label}: {tick}")
        self.warn(tick.trouble)

    def warn(self, trouble: str | None) -> None:
        """Say once that the training comes to nothing."""
        if trouble is not None and self.trouble is None:
            self.say(f"{self.cell.label} {trouble}")
        self.trouble = trouble or self.trouble

    def end(self, record: Record) -> None:
        """Say what came out."""
        self.warn(trouble_of(record))
        self.say(f"{self.cell.label}: {result(record)}")


def result(record: Record) -> str:
    """What came out of a run, in a few words."""
    took = f"{record.provenance.wall_seconds:.0f} s"
    if record.scores is not None:
        return f"searched, {took}"
    return f"top-1 {record.metrics['last']['test_top1_pct']:.2f} %, {took}"


def trouble_of(record: Record) -> str | None:
    """What is wrong with a finished training."""
    losses = [epoch.train_loss for epoch in record.history]
    return trouble(losses, record.config["data.classes"])


def _planned(cell: Cell) -> str:
    """What a cell is about to do."""
    epochs = cell.config["recipe"]["epochs"]
    if cell.config["search"] is not None:
        return "a search"
    if cell.config["quantizer"]["learns_bits"]:
        return "in phases that learn the bit-widths"
    return f"{epochs} epochs planned" if epochs else "without training"


class Progress:
    """Two bars on a terminal; elsewhere plain lines, also while a cell is trained."""

    def __init__(self, cells: int) -> None:
        self.console = Console(stderr=True)
        wide = self.console.width >= WIDE
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            *([MofNCompleteColumn(), TimeElapsedColumn()] if wide else []),
            TimeRemainingColumn(),
            TextColumn("{task.fields[measures]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.cells = cells
        self.settled = 0
        self.trained = 0
        self.began = time.perf_counter()
        self.overall = self.bars.add_task("cells", total=cells, measures="")
        self.current: dict[str, tuple[TaskID, float]] = {}  # bar and share done, by signature
        self.lines: dict[str, Lines] = {}  # instead, where no terminal is
        self.warned: set[str] = set()  # cells whose training comes to nothing, by signature

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def start(self, cell: Cell) -> Tell:
        """Show a cell as being trained; what is returned shows how far it is."""
        if self.bars.disable:
            self.lines[cell.signature] = Lines(cell, self.say)
        else:
            bar = self.bars.add_task(cell.label, total=None, measures="")
            self.current[cell.signature] = bar, 0.0
        return partial(self.move, cell)

    def move(self, cell: Cell, tick: Tick) -> None:
        """Move a cell's bar, counted in batches of the planned epochs, or let its lines say it."""
        self._warn(cell, tick.trouble)
        if self.bars.disable:
            self.lines[cell.signature](replace(tick, trouble=None))
            return
        bar, _ = self.current[cell.signature]
        self.current[cell.signature] = bar, min(tick.done / tick.total, 1)
        self.bars.update(bar, completed=tick.done, total=tick.total, measures=tick.measures)
        shares = sum(share for _, share in self.current.values())
        words = f" ({tick.place})" if len(self.current) == 1 else ""
        # With the shares of unfinished cells, so that a time left is known early.
        self.bars.update(self.overall, completed=self.settled + shares, description=f"cells{words}")

    def finish(self, cell: Cell, record: Record) -> None:
        """Count a trained cell and say in one line what came out."""
        self.trained += 1
        self._settle(cell)
        took, left = time.perf_counter() - self.began, self.cells - self.settled
        self._warn(cell, trouble_of(record))
        self.say(
            f"[{self.settled}/{self.cells}] {cell.label}: {result(record)}"
            + (f"; about {took / self.trained * left:.0f} s left" if left else "")
        )

    def failed(self, cell: Cell) -> None:
        """Count a cell that ended with an error; its message comes at the end."""
        self._settle(cell)
        self.say(f"[{self.settled}/{self.cells}] {cell.label}: failed")

    def _warn(self, cell: Cell, trouble: str | None) -> None:
        """Say once that a cell's training comes to nothing."""
        if trouble is not None and cell.signature not in self.warned:
            self.warned.add(cell.signature)
            self.say(f"{cell.label} {trouble}")

    def say(self, line: str) -> None:
        """Print a line at once, above the bars where there are some."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def stop(self, cell: Cell) -> None:
        """Take a cell's bar away: it goes on later."""
        self.lines.pop(cell.signature, None)
        bar, _ = self.current.pop(cell.signature, (None, 0.0))
        if bar is not None:
            self.bars.remove_task(bar)

    def skip(self, cell: Cell) -> None:
        """Count a cell that was done already."""
        self._settle(cell)

    def leave_out(self, cell: Cell) -> None:
        """Count a cell that turned out to be none, and say why."""
        self._settle(cell)
        self.say(f"[{self.settled}/{self.cells}] {cell.row} seed {cell.seed}: {cell.impossible}")

    def _settle(self, cell: Cell) -> None:
        self.stop(cell)
        self.settled += 1
        self.bars.update(self.overall, completed=self.settled, description="cells")
