"""Writers of small sets in the accepted layouts."""

import gzip
import io
import json
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
    if names := kw.pop("classes", None):
        features = {label: {"names": names, "_type": "ClassLabel"}}
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
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


def write_cifar100(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """One file a split, with the labels of the 20 coarse classes beside the fine ones."""
    folder.mkdir(parents=True)
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1).copy()
    batch = {b"data": flat, b"fine_labels": labels.tolist(), b"coarse_labels": [0] * len(labels)}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def idx_set(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("train", "t10k"):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", pixels[..., 0])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", labels)


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


def parquet_set(root, pixels, labels, kind="PNG", names=("train", "test"), **kw):
    items = [file_bytes(image, kind) for image in pixels]
    for name in names:
        write_parquet(root / f"{name}-00000-of-00001.parquet", items, labels.tolist(), **kw)


def class_folders(root, pixels, labels, splits=("train", "test"), kind="png", classes=None):
    for split in splits:
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            name = f"class{label}" if classes is None else classes[label]
            path = root / split / name / f"{i:02}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def tiny_folders(root, pixels, labels, classes):
    """Tiny-ImageNet's archive: an uncompressed format under the names that it has."""
    notes = []
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        wnid = classes[label]
        train, val = root / "train" / wnid / "images", root / "val" / "images"
        for path in (train / f"{wnid}_{i:04}.JPEG", val / f"val_{i}.JPEG"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file_bytes(image, "PNG"))
        notes.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t1\t1\n")
    (root / "val" / "val_annotations.txt").write_text("".join(notes))
