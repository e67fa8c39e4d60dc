"""Writers of small sets in the accepted layouts."""

import gzip
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def file_bytes(image: np.ndarray, kind: str, **kw) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **kw)
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


def parquet_set(root, pixels, labels, kind="PNG", names=("train", "test"), **kw):
    items = [file_bytes(image, kind) for image in pixels]
    for name in names:
        write_parquet(root / f"{name}-00000-of-00001.parquet", items, labels.tolist(), **kw)


def class_folders(root, pixels, labels, splits=("train", "test"), kind="png"):
    for split in splits:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            path = root / split / f"class{label}" / f"{i:02}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
