"""Records, checkpoints and locks in one folder; any number of runners may share it."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

from quantable.record import Record, cell_name, read_record, write_json


class Store:
    """A folder of records, final weights, bits files, unfinished cells, shapes and reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes = folder / "shapes"
        self.reports = folder / "reports"

    def records(self) -> list[Record]:
        """Read every record, in the order of their names."""
        return [read_record(path) for path in sorted((self.folder / "records").glob("*.json"))]

    def find(self, signature: str, variant: str | None) -> Record | None:
        """Return a cell's record; ``variant=None`` takes the original data's before a copy's."""
        folder = self.folder / "records"
        if variant is not None:
            path = folder / f"{cell_name(signature, variant)}.json"
            return read_record(path) if path.exists() else None
        paths = sorted(folder.glob(f"{signature}*.json"), key=lambda path: len(path.name))
        return read_record(paths[0]) if paths else None

    def weights(self, name: str) -> Path:
        """File of a finished cell's final weights: a state dict, loadable with weights_only."""
        return self.folder / "weights" / f"{name}.pt"

    def bits(self, name: str) -> Path:
        """Bits file that a search has ended in."""
        return self.folder / "bits" / f"{name}.json"

    def add(self, record: Record) -> Path:
        """Write a finished record once, and drop the checkpoint that led to it."""
        path = self.folder / "records" / f"{record.name}.json"
        write_json(path, record.model_dump(mode="json"))
        shutil.rmtree(self.cell(record.name), ignore_errors=True)
        return path

    def cell(self, name: str) -> Path:
        """Folder of an unfinished cell."""
        return self.folder / "cells" / name

    def running(self, name: str) -> bool:
        """Whether a live runner holds the cell's lock."""
        if not self._lock_path(name).exists():
            return False
        with self.claim(name) as claimed:
            return not claimed

    def _lock_path(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.lock"

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Hold the cell's lock, or yield False when somebody else does.

        The lock is a file made with O_EXCL that names host and process: one left by a killed
        process of this host is taken over.
        """
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = SoftFileLock(path)
        try:
            # The first try removes a dead holder's file, the second takes its place.
            lock.acquire(timeout=0.2, poll_interval=0.05)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def wait(seconds: float = 1.0) -> None:
    """Pause between two looks at a cell that another runner trains."""
    time.sleep(seconds)
