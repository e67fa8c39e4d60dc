"""Encoded images read one at a time, in orders that are random and still fast to read."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quantable.base.errors import UserError
from quantable.data.folders import ClassFolders
from quantable.data.layouts import Layout
from quantable.data.parquet import Parquet, columns_of, image_bytes, label_values, open_parquet

WINDOW = 16  # parquet row groups that are shuffled together; as many are held by each worker


class Rows(Protocol):
    """The encoded images of one split, read one at a time."""

    labels: np.ndarray
    classes: Sequence[str] | None

    def where(self, row: int) -> str:
        """Name of a row in an error message."""

    def item(self, row: int) -> bytes | Path:
        """One encoded image."""

    def order(self, generator: torch.Generator) -> Tensor:
        """A random order in which the rows can be read at speed."""

    def identity(self) -> list[tuple[str, int]]:
        """Name and number of bytes of every file."""


class FolderRows:
    """Images in class folders: any order is as fast as another."""

    def __init__(self, layout: ClassFolders, names: Sequence[str]) -> None:
        rows = layout.read(names)
        self.items, self.labels, self.classes = rows.items, rows.labels, rows.classes
        self.folder = layout.folder

    def where(self, row: int) -> str:
        """Path of one image."""
        return str(self.items[row])

    def item(self, row: int) -> bytes | Path:
        """Path of one image."""
        return self.items[row]

    def order(self, generator: torch.Generator) -> Tensor:
        """Random permutation of the rows."""
        return torch.randperm(len(self.labels), generator=generator)

    def identity(self) -> list[tuple[str, int]]:
        """Name and number of bytes of every image."""
        paths = [path for path in self.items if isinstance(path, Path)]
        return [(str(p.relative_to(self.folder)), p.stat().st_size) for p in paths]


class ParquetRows:
    """Images in parquet shards: a row group is the least that can be read."""

    def __init__(self, layout: Parquet, names: Sequence[str]) -> None:
        self.groups: list[tuple[Path, int]] = []
        labels: list[np.ndarray] = []
        self.starts = [0]
        for path in layout.files(names):
            with open_parquet(path) as file:
                _, label = columns_of(file, path)
                labels.append(label_values(file.read(columns=[label])[label], path))
                for group in range(file.num_row_groups):
                    self.groups.append((path, group))
                    self.starts.append(self.starts[-1] + file.metadata.row_group(group).num_rows)
        self.labels = np.concatenate(labels)
        self.classes = layout.classes(names)

    def where(self, row: int) -> str:
        """File, row group and row of one image."""
        path, group, line = self._place(row)
        return f"{path}, row group {group}, row {line}"

    def item(self, row: int) -> bytes | Path:
        """Bytes of one image, out of its row group."""
        path, group, line = self._place(row)
        return read_group(path, group)[line]

    def order(self, generator: torch.Generator) -> Tensor:
        """Row groups in random order, and the rows of each ``WINDOW`` groups among each other."""
        groups = torch.randperm(len(self.groups), generator=generator).tolist()
        windows = [groups[i : i + WINDOW] for i in range(0, len(groups), WINDOW)]
        parts = [torch.cat([self._rows(group) for group in window]) for window in windows]
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])

    def identity(self) -> list[tuple[str, int]]:
        """Name and number of bytes of every shard."""
        return [
            (path.name, path.stat().st_size) for path in dict.fromkeys(p for p, _ in self.groups)
        ]

    def _place(self, row: int) -> tuple[Path, int, int]:
        group = bisect_right(self.starts, row) - 1
        return *self.groups[group], row - self.starts[group]

    def _rows(self, group: int) -> Tensor:
        return torch.arange(self.starts[group], self.starts[group + 1])


@lru_cache(maxsize=WINDOW)
def read_group(path: Path, number: int) -> list[bytes]:
    """Encoded images of one row group."""
    with open_parquet(path) as file:
        image, _ = columns_of(file, path)
        column = file.read_row_group(number, columns=[image])[image]
    return image_bytes(column, path)


def open_rows(layout: Layout, names: Sequence[str]) -> Rows:
    """The rows of one split, for the two layouts that ImageNet comes in."""
    if isinstance(layout, Parquet):
        return ParquetRows(layout, names)
    if isinstance(layout, ClassFolders):
        return FolderRows(layout, names)
    raise UserError(f"{layout.folder}: ImageNet is read from class folders or parquet")
