"""Write the bundled fashion_mnist_mini: 1,000 training and 200 test images of each class.

    python tools/make_fashion_mnist_mini.py [folder of Fashion-MNIST's IDX files]

The default folder is that of the Debian package dataset-fashion-mnist (MIT licence). The first
images of each class are taken, in their original order, so the files come out the same every time.
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np

from quantable.data.archives import read_idx

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).resolve().parents[1] / "src/quantable/data/fashion_mnist_mini"
CLASSES = 10
PER_CLASS = {"train": 1000, "t10k": 200}


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first ``count`` images of each class, in their original order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in range(CLASSES)]))


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write uint8 values as a gzipped IDX file without a time stamp."""
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), compresslevel=9, mtime=0))


def main() -> None:
    """Write the four files."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCE
    TARGET.mkdir(exist_ok=True)
    for stem, count in PER_CLASS.items():
        labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz", dims=1)
        images = read_idx(source / f"{stem}-images-idx3-ubyte.gz", dims=3)
        rows = first_of_each(labels, count)
        write_idx(TARGET / f"{stem}-labels-idx1-ubyte.gz", labels[rows])
        write_idx(TARGET / f"{stem}-images-idx3-ubyte.gz", images[rows])
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
