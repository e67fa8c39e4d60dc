"""The public hubs' parquet layout: a column of encoded images and one of labels (no torch)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from quantable.base.errors import UserError
from quantable.data.rows import Encoded

if TYPE_CHECKING:  # pyarrow takes a tenth of a second to import: only where a file is read
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


def parquet_files(folder: Path, name: str = "") -> list[Path]:
    """The parquet files in ``folder`` whose names begin with ``name``, sorted, but hidden ones."""
    found = folder.glob(f"{name}*.parquet")
    return sorted(path for path in found if not path.name.startswith("."))


@contextmanager
def open_parquet(path: Path) -> Iterator["pq.ParquetFile"]:
    """Open one file; whatever is wrong with it is an error that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason})") from error


def columns_of(file: "pq.ParquetFile", path: Path) -> tuple[str, str]:
    """Names of the image and of the label column."""
    names: list[str] = file.schema_arrow.names
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    if image is None or label is None:
        raise UserError(
            f"{path}: columns {', '.join(names)}; expected one of {', '.join(IMAGE_COLUMNS)} "
            f"({{bytes, path}}) and one of {', '.join(LABEL_COLUMNS)} (int)"
        )
    return image, label


def image_bytes(column: "pa.ChunkedArray", path: Path) -> list[bytes]:
    """The encoded images of a ``{bytes, path}`` column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise UserError(f"{path}: the image column is {column.type}, expected struct<bytes, path>")
    encoded: list[bytes] = pc.struct_field(column, "bytes").to_pylist()
    for row, value in enumerate(encoded):
        if not value:
            raise UserError(f"{path}, row {row}: no image bytes")
    return encoded


def label_values(column: "pa.ChunkedArray", path: Path) -> np.ndarray:
    """The labels as int64."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise UserError(f"{path}: labels are {column.type}, expected whole numbers")
    if column.null_count:
        raise UserError(f"{path}, row {column.to_pylist().index(None)}: no label")
    labels: np.ndarray = column.to_numpy()
    return labels.astype(np.int64)


def class_names(file: "pq.ParquetFile", label: str) -> Sequence[str] | None:
    """What the hubs' metadata calls the classes of the column ``label``."""
    raw = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(raw or b"")["info"]["features"][label]["names"]
    except (ValueError, LookupError, TypeError):  # written by others: any may be missing
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


@dataclass(frozen=True)
class Parquet:
    """``train*.parquet``, ``test*.parquet`` or ``valid*.parquet``, in shards or not."""

    folder: Path
    kind: ClassVar[str] = (
        "parquet of the public hubs (train*.parquet, test*.parquet or valid*.parquet; columns "
        "img|image {bytes, path}, label|fine_label)"
    )

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """Recognize the folder by any parquet file."""
        return cls(folder) if parquet_files(folder) else None

    def heads(self) -> Iterator[bytes]:
        """Every image, out of one row group at a time."""
        for path in parquet_files(self.folder):
            with open_parquet(path) as file:
                image, _ = columns_of(file, path)
                for group in range(file.num_row_groups):
                    # Without the paths, and by no thread: 60,000 images of CIFAR-10 in 0.1 s.
                    part = file.read_row_group(group, [f"{image}.bytes"], use_threads=False)
                    for chunk in part[image].chunks if image in part.column_names else ():
                        yield from (value or b"" for value in chunk.field("bytes").to_pylist())

    def count(self, names: Sequence[str]) -> int:
        """Number of images of a split, from the files' footers."""
        total = 0
        for path in self.files(names):
            with open_parquet(path) as file:
                total += file.metadata.num_rows
        return total

    def files(self, names: Sequence[str]) -> list[Path]:
        """The shards of the first split of ``names`` that is there."""
        for name in names:
            if files := parquet_files(self.folder, name):
                return files
        raise UserError(f"{self.folder}: no {' or '.join(f'{n}*.parquet' for n in names)}")

    def read(self, names: Sequence[str]) -> Encoded:
        """Read the split, still encoded."""
        items: list[bytes] = []
        labels: list[np.ndarray] = []
        origins: list[tuple[Path, int]] = []
        for path in self.files(names):
            with open_parquet(path) as file:
                image, label = columns_of(file, path)
                table = file.read(columns=[image, label])
            labels.append(label_values(table[label], path))
            items += image_bytes(table[image], path)
            origins += [(path, row) for row in range(table.num_rows)]

        def where(row: int) -> str:
            path, line = origins[row]
            return f"{path}, row {line}"

        return Encoded(items, np.concatenate(labels), where, self.classes(names))

    def labels(self, names: Sequence[str]) -> Encoded:
        """The split without its images."""
        found: list[np.ndarray] = []
        for path in self.files(names):
            with open_parquet(path) as file:
                _, label = columns_of(file, path)
                found.append(label_values(file.read(columns=[label])[label], path))
        where = f"{self.folder}, {names[0]}, row"
        labels = np.concatenate(found)
        return Encoded((), labels, lambda row: f"{where} {row}", self.classes(names))

    def classes(self, names: Sequence[str]) -> Sequence[str] | None:
        """Names of the classes, which all files must have in the same order; None without any."""
        first: tuple[Path, Sequence[str]] | None = None
        for path in (*parquet_files(self.folder)[:1], *self.files(names)):
            with open_parquet(path) as file:
                found = class_names(file, columns_of(file, path)[1])
            if found is not None and first is not None and found != first[1]:
                raise UserError(f"{path}: its classes are numbered otherwise than in {first[0]}")
            first = first if found is None else (path, found)
        return None if first is None else first[1]
