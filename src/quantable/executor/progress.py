"""Live progress of a table: a bar over its cells, a bar over the epochs of the current one."""

import time
from collections.abc import Callable
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

from quantable.store.record import Record
from quantable.tables.cells import Cell

Tell = Callable[[int, int, int, int], None]  # epoch, epochs planned, batch, batches


class Progress:
    """Two bars on a terminal; elsewhere one plain line for each finished cell."""

    def __init__(self, cells: int) -> None:
        self.console = Console(stderr=True)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.cells = cells
        self.settled = 0
        self.trained = 0
        self.began = time.perf_counter()
        self.overall = self.bars.add_task("cells", total=cells)
        self.current: dict[str, tuple[TaskID, float]] = {}  # bar and share done of each cell

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
        """Show a cell as being trained; what is returned moves its bar."""
        self.current[cell.label] = self.bars.add_task(cell.label, total=None), 0.0
        return partial(self.move, cell)

    def move(self, cell: Cell, epoch: int, planned: int, batch: int, batches: int) -> None:
        """Move a cell's bar: counted in batches of the planned epochs."""
        if self.bars.disable:
            return
        bar, _ = self.current[cell.label]
        done, total = epoch * batches + batch, planned * batches
        self.current[cell.label] = bar, min(done / total, 1)
        self.bars.update(bar, completed=done, total=total)
        shares = sum(share for _, share in self.current.values())
        words = f" (epoch {epoch + 1} of at most {planned})" if len(self.current) == 1 else ""
        # With the shares of unfinished cells, so that a time left is known early.
        self.bars.update(self.overall, completed=self.settled + shares, description=f"cells{words}")

    def finish(self, cell: Cell, record: Record) -> None:
        """Count a trained cell and say in one line what came out."""
        self.trained += 1
        self._settle(cell)
        took, left = time.perf_counter() - self.began, self.cells - self.settled
        result = "searched"
        if record.scores is None:
            result = f"top-1 {record.metrics['last']['test_top1_pct']:.2f} %"
        self.console.print(
            f"[{self.settled}/{self.cells}] {cell.row} seed {cell.seed}: {result}, "
            f"{record.provenance.wall_seconds:.0f} s"
            + (f"; about {took / self.trained * left:.0f} s left" if left else ""),
            highlight=False,
            markup=False,
        )

    def failed(self, cell: Cell) -> None:
        """Count a cell that ended with an error; its message comes at the end."""
        self._settle(cell)
        line = f"[{self.settled}/{self.cells}] {cell.row} seed {cell.seed}: failed"
        self.console.print(line, highlight=False, markup=False)

    def stop(self, cell: Cell) -> None:
        """Take a cell's bar away: it goes on later."""
        bar, _ = self.current.pop(cell.label, (None, 0.0))
        if bar is not None:
            self.bars.remove_task(bar)

    def skip(self, cell: Cell) -> None:
        """Count a cell that was done already."""
        self._settle(cell)

    def _settle(self, cell: Cell) -> None:
        self.stop(cell)
        self.settled += 1
        self.bars.update(self.overall, completed=self.settled, description="cells")
