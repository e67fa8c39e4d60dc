"""Small real sets, written on the fly in every accepted layout."""

import gzip
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from quantable.data.sets import ImageSet

CLASSES = 3


@pytest.fixture
def pixels() -> np.ndarray:
    """Twelve images (n, h, w, c) of 32 x 32."""
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    """0, 1, 2, 0, 1, 2, ..."""
    return np.arange(12) % CLASSES


def file_bytes(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, items: list[bytes | None], labels: list[int | None], **kw) -> None:
    rows = [{"bytes": item, "path": None} for item in items]
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = kw.pop("image", "img")
    label = kw.pop("label", "label")
    table = pa.table({image: pa.array(rows, struct_type), label: pa.array(labels, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **kw)


def write_cifar10(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """Five training batches and a test batch, as the original has them (pickle protocol 2)."""
    folder.mkdir(parents=True)
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    parts = np.array_split(np.arange(len(pixels)), 5)
    names = [f"data_batch_{i}" for i in range(1, 6)]
    for name, rows in [*zip(names, parts, strict=True), ("test_batch", np.arange(len(pixels)))]:
        batch = {b"data": np.ascontiguousarray(flat[rows]), b"labels": labels[rows].tolist()}
        raw = pickle.dumps(batch | {b"batch_label": b"batch"}, protocol=2)
        # Python 2's NumPy called the module by its old name.
        (folder / name).write_bytes(raw.replace(b"numpy._core.", b"numpy.core."))


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def image_set() -> Callable[..., ImageSet]:
    """Describe a set of 12 training and 12 test images under a folder."""

    def describe(root: Path, **changes) -> ImageSet:
        facts = {
            "id": "cifar10",
            "title": "CIFAR-10",
            "classes": CLASSES,
            "input_size": [3, 32, 32],
            "root": str(root),
            "splits": {"train": ["train"], "test": ["test", "val"]},
            "counts": {"train": 12, "test": 12},
            "lossless": True,
            "val_images": 2,
            "train_images": None,
            "test_images": None,
        }
        return ImageSet(**facts | changes)

    return describe
