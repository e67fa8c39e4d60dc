"""Live progress of a table: a bar over its cells, a bar over the epochs of the current one."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from quantable.record import Record
from quantable.table import Cell


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
        self.current = self.bars.add_task("", total=None, visible=False)

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

    def start(self, cell: Cell) -> None:
        """Show a cell as being trained."""
        name = f"{cell.row} seed {cell.seed}"
        self.bars.update(self.current, description=name, completed=0, total=None, visible=True)

    def tell(self, epoch: int, planned: int, batch: int, batches: int) -> None:
        """Move the cell's bar: counted in batches of the planned epochs."""
        if self.bars.disable:
            return
        done = epoch * batches + batch
        words = f"epoch {epoch + 1} of at most {planned}"
        self.bars.update(self.current, completed=done, total=planned * batches)
        share = min(
            done / (planned * batches), 1
        )  # of this cell, so that a time left is known early
        self.bars.update(
            self.overall, completed=self.settled + share, description=f"cells ({words})"
        )

    def finish(self, cell: Cell, record: Record) -> None:
        """Count a trained cell and say in one line what came out."""
        self.trained += 1
        self._settle()
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
        self._settle()
        line = f"[{self.settled}/{self.cells}] {cell.row} seed {cell.seed}: failed"
        self.console.print(line, highlight=False, markup=False)

    def skip(self) -> None:
        """Count a cell that was done already."""
        self._settle()

    def _settle(self) -> None:
        self.settled += 1
        self.bars.update(self.overall, completed=self.settled, description="cells")
        self.bars.update(self.current, visible=False)
