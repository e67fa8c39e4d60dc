"""Original archives as plain arrays: CIFAR's pickles through a restricted reader, and IDX files."""

import gzip
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from quantable.base.errors import UserError
from quantable.data.rows import Array, Pixels


class ByteArray:
    """Stands in for a pickled NumPy array of uint8: only its shape and its bytes are taken."""

    value: Array

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, ByteType) or fortran or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("only plain arrays of uint8 are read")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape)


class ByteType:
    """Stands in for a pickled NumPy dtype; everything but uint8 is refused."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"array of type {code!r}: only uint8 is read")

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and fields: a uint8 has none."""


def new_array(*_: object) -> ByteArray:
    """Stand in for ``numpy._reconstruct``, whose arguments say nothing about the contents."""
    return ByteArray()


def latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, with which Python 3 writes bytes in old pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not read")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): ByteArray,
    ("numpy", "dtype"): ByteType,
    ("numpy.core.multiarray", "_reconstruct"): new_array,
    ("numpy._core.multiarray", "_reconstruct"): new_array,
    ("_codecs", "encode"): latin1,
}


class PlainUnpickler(pickle.Unpickler):
    """Reads arrays of uint8, lists, dicts, strings and numbers; calls no code of any package."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - the base class's type
        """Return the stand-in for an admitted name."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not plain data")
        return ADMITTED[module, name]


def load_pickle(path: Path) -> dict[bytes, Any]:
    """Read one of CIFAR's pickle files without running anything that is in it."""
    try:
        with path.open("rb") as file:
            value = PlainUnpickler(file, encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a damaged pickle raises nearly any type
        raise UserError(f"{path}: not a CIFAR batch: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get(b"data"), ByteArray):
        raise UserError(f"{path}: not a CIFAR batch: it has no array named 'data'")
    return value


@dataclass(frozen=True)
class CifarPickles:
    """CIFAR's own folders, ``cifar-10-batches-py`` and ``cifar-100-python``."""

    folder: Path
    files: Mapping[str, list[str]] = field(hash=False)
    label_key: bytes
    kind: ClassVar[str] = (
        "CIFAR's python archives, unpacked (cifar-10-batches-py, cifar-100-python)"
    )

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """Recognize the folder by its first training file."""
        if (folder / "data_batch_1").is_file():
            batches = [f"data_batch_{i}" for i in range(1, 6)]
            return cls(folder, {"train": batches, "test": ["test_batch"]}, b"labels")
        if (folder / "train").is_file() and (folder / "test").is_file():
            return cls(folder, {"train": ["train"], "test": ["test"]}, b"fine_labels")
        return None

    def heads(self) -> Iterator[bytes]:
        """None: the images are plain arrays."""
        return iter(())

    def read(self, names: Sequence[str]) -> Pixels:
        """Read the split that ``names`` call train or test."""
        files = self.files["train" if "train" in names else "test"]
        images, labels = zip(*(self._batch(self.folder / file) for file in files), strict=True)
        return Pixels(np.concatenate(images), np.concatenate(labels), self.folder)

    def _batch(self, path: Path) -> tuple[Array, Array]:
        batch = load_pickle(path)
        data: Array = batch[b"data"].value
        labels = batch.get(self.label_key)
        if data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
            raise UserError(f"{path}: 'data' has shape {data.shape}, expected (n, 3072)")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{path}: no list of whole numbers named '{self.label_key.decode()}'")
        if len(labels) != len(data):
            raise UserError(f"{path}: {len(data)} images but {len(labels)} labels")
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return images, np.array(labels, np.int64)


def read_idx(path: Path, *, dims: int) -> Array:
    """Read a (gzipped) IDX file of uint8: big-endian magic, ``dims`` sizes, then the bytes."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        magic, *shape = struct.unpack_from(f">{1 + dims}I", raw)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: not a complete IDX file ({error})") from error
    if magic != 0x800 + dims:
        raise UserError(f"{path}: magic number {magic:#x}, expected {0x800 + dims:#x} (IDX, uint8)")
    values = np.frombuffer(raw, np.uint8, offset=4 * (1 + dims))
    if values.size != np.prod(shape):
        raise UserError(f"{path}: {values.size} values, its header says {int(np.prod(shape))}")
    return values.reshape(shape)


@dataclass(frozen=True)
class Idx:
    """MNIST's four IDX files, gzipped or not."""

    folder: Path
    suffix: str
    kind: ClassVar[str] = "MNIST's IDX files (train-images-idx3-ubyte[.gz], t10k-...)"

    @classmethod
    def at(cls, folder: Path) -> Self | None:
        """Recognize the folder by its training images."""
        for suffix in (".gz", ""):
            if (folder / f"train-images-idx3-ubyte{suffix}").is_file():
                return cls(folder, suffix)
        return None

    def heads(self) -> Iterator[bytes]:
        """None: the images are plain arrays."""
        return iter(())

    def read(self, names: Sequence[str]) -> Pixels:
        """Read the split that ``names`` call train or test."""
        stem = "train" if "train" in names else "t10k"
        images = read_idx(self.folder / f"{stem}-images-idx3-ubyte{self.suffix}", dims=3)
        labels = self.labels(stem)
        if len(images) != len(labels):
            raise UserError(f"{self.folder}: {len(images)} {stem} images but {len(labels)} labels")
        return Pixels(images[..., None], labels.astype(np.int64), self.folder)

    def labels(self, stem: str) -> Array:
        """The labels of "train" or "t10k", one byte each."""
        return read_idx(self.folder / f"{stem}-labels-idx1-ubyte{self.suffix}", dims=1)
