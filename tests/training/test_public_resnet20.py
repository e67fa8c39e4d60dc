"""The public ResNet-20, which nobody here trained, against a second implementation of all of it.

Here: images from the parquet file, the network from the file's own names, quantization by the
paper's formula; nothing of quantable. What it shares is torch's arithmetic, in the same order: two
orders of a sum differ by a rounding, which at 4 bit moves some inputs to the next level and gives
47 of 2,000 images another class. The weights, and the accuracy that their author's log has:
github.com/akamaster/pytorch_resnet_cifar10, resnet20-12fca82f.th.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from development_data import shared
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file
from torch import Tensor

from quantable.config.composition import compose_run
from quantable.run import run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.build import part_of
from quantable.training.finished import load_network

SHA256 = "3148b9c6525d27dba37779e83df6deada2ecc9f710e9a89c6ad58738f89f36ba"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of these weights, not CIFAR-10's own
CALIBRATION, BATCH = 1000, 50
RIGHT = {(8, 8): 1849, (6, 6): 1840, (4, 8): 1766, (4, 4): 1738}  # of 2,000 test images


def words(folder: Path, *more: str) -> list[str]:
    return [
        *("model=resnet20_cifar", "model.net.shortcuts=pad", f"model.net.weights_sha256={SHA256}"),
        f"model.net.weights={folder / 'weights/resnet20_cifar10.safetensors'}",
        *("data=cifar10", f"data.root={folder / 'data/cifar10'}", "data.val_images=0"),
        *(f"data.train_images={CALIBRATION}", f"data.mean={[*MEAN]}", f"data.std={[*STD]}"),
        *("recipe=post_training", "recipe.epochs=0", "recipe.batch_norms=kept"),
        *("trainer.accelerator=cpu", *more),
    ]


def run(folder: Path, *more: str) -> tuple[Record, np.ndarray, np.ndarray]:
    """Record of a run of the suite, and the kept network's classes of the test images."""
    asked = words(shared("."), *more)
    config = compose_run(asked) | {"seed": 0}
    loader, store = part_of(config, "data.loader"), Store(folder)
    cell = Cell(None, "run", 0, config, tuple(asked))
    record = run_cell(cell, store, loader.variant, lambda *_: None)
    net = load_network(record, store.weights(record.name))
    with torch.no_grad():
        batches = loader.eval_batches("test", BATCH, "cpu")
        parts = [(net(x).argmax(1), y) for x, y in batches]
    classes, labels = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return record, classes, labels


# The second implementation


def images(split: str, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Normalized images (n, 3, 32, 32), and their labels."""
    table = parquet.read_table(shared(f"data/cifar10/{split}.parquet")).take(rows)
    encoded = (image["bytes"] for image in table["img"].to_pylist())
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in encoded])
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x = torch.from_numpy(pixels).float() * (1 / (255 * std)) + -mean / std
    return x.permute(0, 3, 1, 2), table["label"].to_numpy()  # in memory, channels are last


def rows_of(n: int) -> np.ndarray:
    """Rows of the first ``n`` test images of the suite."""
    return np.random.RandomState(1).permutation(10_000)[:n] if n < 10_000 else np.arange(n)


Layer = Callable[[str, Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor]


def scores(x: Tensor, state: dict[str, Tensor], layer: Layer) -> Tensor:
    """He et al. 2016, Sec. 4.2, n = 3, option A; ``layer(name, input, product)`` may quantize."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return layer(name, x, lambda x, w: F.conv2d(x, w, None, stride, 1))

    def norm(name: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{part}"] for part in parts))

    x = norm("bn1", conv("conv1", x)).relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name, stride = f"layer{stage}.{block}", 1 + (stage > 1 and block == 0)
            out = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).relu()
            out = norm(f"{name}.bn2", conv(f"{name}.conv2", out))
            if stride == 2:
                x = x[:, :, ::2, ::2]
                x = torch.cat([0 * x[:, ::2], x, 0 * x[:, ::2]], 1)  # c to 2 c channels
            x = (out + x).relu()
    return layer("linear", x.mean((2, 3)), lambda x, w: F.linear(x, w, state["linear.bias"]))


def level(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Vasquez et al. 2021, Eq. 2."""
    n = 2**bits - 1
    q = ((x.clamp(low, high) - low) * n / (high - low)).round()
    return q * (high - low) / n + low


def calibrated(bits: tuple[int, int], state: dict[str, Tensor], x: Tensor) -> Layer:
    """Min-max with the first and last layer at 8 bit; ranges of inputs run along the batches."""
    ranges: dict[str, Tensor] = {}
    calibrating = True

    def layer(name: str, x: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        wide, narrow = bits if name not in ("conv1", "linear") else (8, 8)
        w = state[f"{name}.weight"]
        if calibrating:
            low = x.min() if name == "conv1" else torch.zeros(())  # behind a ReLU, all others
            now = torch.stack([low, x.max()])
            ranges[name] = now if name not in ranges else ranges[name] + 0.1 * (now - ranges[name])
        low, high = now if calibrating else ranges[name]
        return product(level(x, low, high, narrow), level(w, w.min(), w.max(), wide))

    for batch in x.split(BATCH):
        scores(batch, state, layer)
    calibrating = False
    return layer


def classes_of(x: Tensor, state: dict[str, Tensor], layer: Layer) -> np.ndarray:
    return torch.cat([scores(part, state, layer).argmax(1) for part in x.split(BATCH)]).numpy()


def floats(state: dict[str, Tensor]) -> Layer:
    return lambda name, x, product: product(x, state[f"{name}.weight"])


# Both


@pytest.fixture(scope="module")
def state() -> Iterator[dict[str, Tensor]]:
    path = shared("weights/resnet20_cifar10.safetensors")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    with torch.no_grad():
        yield load_file(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("n", "right"), [(500, 462), pytest.param(10_000, 9_173, marks=pytest.mark.slow)]
)
def test_float_answers_are_those_of_a_second_implementation(
    tmp_path: Path, state: dict[str, Tensor], n: int, right: int
) -> None:
    record, classes, labels = run(tmp_path, f"data.test_images={n}")
    x, y = images("test", rows_of(n))
    assert np.array_equal(y, labels)
    assert np.array_equal(classes_of(x, state, floats(state)), classes)
    assert (classes == y).sum() == right  # the author's log: 91.78 % of the original images
    assert record.history[0].test_top1_pct == pytest.approx(100 * right / n)
    assert record.costs["macs_m"] == pytest.approx(40.55104)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("bits", "right"), RIGHT.items())
def test_quantized_answers_are_those_of_a_second_implementation(
    tmp_path: Path, state: dict[str, Tensor], bits: tuple[int, int], right: int
) -> None:
    record, classes, labels = run(
        tmp_path, "data.test_images=2000", "quantizer=minmax", f"bits.inner={[*bits]}"
    )
    x, y = images("test", rows_of(2000))
    seen, _ = images("train", np.random.RandomState(0).permutation(50_000)[:CALIBRATION])
    assert np.array_equal(y, labels)
    theirs = classes_of(x, state, calibrated(bits, state, seen))
    assert np.array_equal(classes, theirs)
    assert (theirs == y).sum() == right
    assert record.history[0].test_top1_pct == pytest.approx(right / 20)
