"""Records, checkpoints and locks in one folder; any number of runners may share it."""

import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path

from quantable.base import lock
from quantable.base.errors import UserError
from quantable.base.files import write_json
from quantable.store.record import Head, Record, cell_name, distance, read_head, read_record


class Store:
    """A folder of records, final weights, bits files, unfinished cells, shapes and reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes = folder / "shapes"
        self.reports = folder / "reports"
        self._records = folder / "records"
        self._kept: dict[str, tuple[tuple[int, int, int], Record]] = {}
        self._listing: tuple[int, dict[str, list[str]]] = (-1, {})

    def records(self) -> list[Record]:
        """Read every record, in the order of their names."""
        return [self._read(f"{name}.json") for name in sorted(self.names())]

    def heads(self) -> list[Head]:
        """Read the first lines of every record: which question it answers."""
        return [read_head(self._records / f"{name}.json") for name in sorted(self.names())]

    def names(self) -> frozenset[str]:
        """Names of all records, from one listing."""
        return frozenset(name for names in self._listed().values() for name in names)

    def has(self, signature: str, variant: str | None) -> bool:
        """Whether a cell has its record; nothing is read."""
        return self._name(signature, variant) is not None

    def find(self, signature: str, variant: str | None) -> Record | None:
        """Return a cell's record; ``variant=None`` takes the data closest to the original."""
        name = self._name(signature, variant)
        return None if name is None else self._read(f"{name}.json")

    def variants(self, signature: str) -> list[str]:
        """Data variants on which a cell has a record, the closest to the original first."""
        return [name.partition("-")[2] for name in self._listed().get(signature, ())]

    def _name(self, signature: str, variant: str | None) -> str | None:
        if variant is not None:
            name = cell_name(signature, variant)
            return name if (self._records / f"{name}.json").exists() else None
        return next(iter(self._listed().get(signature, ())), None)

    def _read(self, file: str) -> Record:
        """Read a record once: it is written once, by rename."""
        path = self._records / file
        stat = path.stat()
        key = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if file not in self._kept or self._kept[file][0] != key:
            self._kept[file] = key, read_record(path)
        return self._kept[file][1]

    def _listed(self) -> dict[str, list[str]]:
        """Names of records by signature, the original data's first; listed anew after a change."""
        try:
            changed = self._records.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        if changed != self._listing[0]:
            names: dict[str, list[str]] = {}
            files = (Path(name) for name in os.listdir(self._records) if name[0] != ".")
            known = sorted(file.stem for file in files if file.suffix == ".json")
            for name in sorted(known, key=lambda name: distance(name.partition("-")[2])):
                names.setdefault(name.partition("-")[0], []).append(name)
            # A folder that changed just now may change again within one tick of its clock.
            young = time.time_ns() - changed < 2_000_000_000
            self._listing = (-1 if young else changed), names
        return self._listing[1]

    def weights(self, name: str) -> Path:
        """File of a finished cell's final weights: a state dict, loadable with weights_only."""
        return self.folder / "weights" / f"{name}.pt"

    def bits(self, name: str) -> Path:
        """Bits file that a search has ended in."""
        return self.folder / "bits" / f"{name}.json"

    def add(self, record: Record) -> Path:
        """Write a finished record once, and drop the checkpoint that led to it.

        Raises UserError where a number is NaN or infinite: the network's answers were not finite.
        """
        path = self.folder / "records" / f"{record.name}.json"
        try:
            write_json(path, record.model_dump(mode="json"))
        except ValueError as error:
            raise UserError(
                f"record {record.name}: a number of the run is not finite, such as the loss on "
                "test images: it diverged, and its weights are of no use; lower "
                "recipe.optimizer.lr or use more bits"
            ) from error
        shutil.rmtree(self.cell(record.name), ignore_errors=True)
        return path

    def cell(self, name: str) -> Path:
        """Folder of an unfinished cell."""
        return self.folder / "cells" / name

    def running(self, name: str) -> bool:
        """Whether a live runner holds the cell's lock."""
        return self.holder(name) is not None

    def holder(self, name: str) -> lock.Holder | None:
        """Live runner that holds the cell's lock."""
        return lock.hold(self._lock_path(name))

    def _lock_path(self, name: str) -> Path:
        return self.folder / "cells" / f"{name}.lock"

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Hold the cell's lock, or yield False when somebody else does.

        One left by a killed process of this machine is taken over at once, another machine's after
        two minutes without a sign of life.
        """
        return lock.claim(self._lock_path(name))


def wait(seconds: float = 1.0) -> None:
    """Pause between two looks at a cell that another runner trains."""
    time.sleep(seconds)
