"""Every accepted layout of every set: the same first batches, and one epoch of training."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from written_sets import (
    class_folders,
    idx_set,
    parquet_set,
    tiny_folders,
    write_cifar10,
    write_cifar100,
)

from quantable.base.places import ROOT
from quantable.config.composition import compose_run
from quantable.data.known import OF_SET, classes_of
from quantable.data.layouts import LAYOUTS, find_layout
from quantable.run import run_cell
from quantable.store.store import Store
from quantable.tables.cells import Cell

# SHA-256 of the first batches from parquet without names, at commit e3d2031: none of them moved.
FIRST = {
    "cifar10": "792cdbaf4b80d4a369b5c590f78ff98086c987f788bcde60769752407992bbf1",
    "cifar100": "294409e048de209086a96fc6804d9030b99b7d9dc49f7bd91c44f2461b434bb4",
    "fashion_mnist": "e23ccd69e7c205e9c4088b7124728dc3e2caf95801b7995b177c725b29ac7150",
    "fashion_mnist_mini": "e23ccd69e7c205e9c4088b7124728dc3e2caf95801b7995b177c725b29ac7150",
    "tiny_imagenet": "fbc86e1b8c3be55fc6f15fa74d5781e1bdbd6c11d03e453a0b6d79bea8f21336",
    "imagenet": "64eecdcf3af9b852ff15216b64c4985fb804dcc644ecaa8f3e33cb3f7f3ea701",
}


def images_of(set_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Two images of each class, one of ImageNet's; class by class, as folders have them."""
    n = len(classes_of(OF_SET[set_id]))
    shape = {"fashion": (28, 28), "tiny": (64, 64, 3), "imagenet": (4, 5, 3)}
    labels = np.arange(n).repeat(1 if set_id == "imagenet" else 2)
    size = shape.get(set_id.split("_")[0], (32, 32, 3))
    return np.random.default_rng(0).integers(0, 256, (len(labels), *size), np.uint8), labels


def unpacked(write: Callable[..., None], root: Path, *images: np.ndarray) -> None:
    """IDX files that are not gzipped."""
    import gzip

    write(root, *images)
    for path in root.glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def gzipped(root: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """IDX files, of images with a channel."""
    idx_set(root, pixels[..., None], labels)


def layouts_of(set_id: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """Every way to write the set."""
    names = classes_of(OF_SET[set_id])
    folders = [name.replace("/", "-") for name in names]
    test = {"tiny_imagenet": "val", "imagenet": "val"}.get(set_id, "test")
    column = {"cifar100": "fine_label"}.get(set_id, "label")
    splits = ("train", test)
    numbers = [str(i) for i in range(len(names))]
    if set_id != "imagenet":
        yield "class folders, counted", partial(class_folders, splits=splits)
    yield "class folders, numbered", partial(class_folders, splits=splits, classes=numbers)
    yield "class folders, named", partial(class_folders, splits=splits, classes=folders)
    yield "parquet", partial(parquet_set, names=splits, image="image", label=column)
    yield "parquet, named", partial(parquet_set, names=splits, label=column, classes=[*names])
    if set_id == "cifar10":
        yield "archive", write_cifar10
    if set_id == "cifar100":
        yield "archive", write_cifar100
    if set_id == "tiny_imagenet":
        yield "archive", partial(tiny_folders, classes=names)
    if OF_SET[set_id] == "Fashion-MNIST":
        yield "IDX, gzipped", gzipped
        yield "IDX", partial(unpacked, gzipped)


CASES = [(set_id, name, write) for set_id in OF_SET for name, write in layouts_of(set_id)]


def words(set_id: str, root: Path, n: int) -> list[str]:
    """What makes the written images a complete set."""
    held = 4 if set_id == "imagenet" else n // 10
    counts = (f"data.counts.train={n}", f"data.counts.test={n}", f"data.val_images={held}")
    limits = ("data.train_images=16", "data.test_images=8")
    return [f"data.root={root}", *counts, *limits]


def batches(set_id: str, root: Path, n: int, *, channels_last: bool) -> Iterator[torch.Tensor]:
    """The first batch of each split; but ImageNet's training order is its layout's."""
    tag = {"tag": "resnet18.tv_in1k", "workers": 0} if set_id == "imagenet" else {}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = instantiate(compose(f"data/{set_id}", words(set_id, root, n)).data.loader, **tag)
    found = [data.eval_batches(s, 8, "cpu", channels_last=channels_last) for s in ("val", "test")]
    if set_id != "imagenet":
        found.append(data.train_batches(8, 0, "cpu", channels_last=channels_last))
    for each in found:
        yield from next(iter(each))


NETS = {"imagenet": ["model=timm", "model.net.name=lcnet_050.ra2_in1k", "data.loader.workers=0"]}
NET = ["model=resnet8_cifar", "model.net.width=0.25"]


def trained(set_id: str, store: Store, *more: str) -> float:
    """Loss of one epoch of the budget smoke, on what is left of the images."""
    few = ("budget=smoke", "recipe.epochs=1", "recipe.batch_size=8", "quantizer=lsq")
    machine = ("trainer.threads=1", "trainer.accelerator=cpu")
    asked = [*NETS.get(set_id, NET), f"data={set_id}", *few, *machine, *more]
    cell = Cell(None, "single", 0, compose_run(asked) | {"seed": 0}, tuple(asked))
    (epoch,) = run_cell(cell, store, "", lambda *_: None).history
    return epoch.train_loss


def test_discovery() -> None:
    assert OF_SET.keys() == FIRST.keys() == {p.stem for p in (ROOT / "conf/data").glob("*.yaml")}
    assert len(CASES) == 36


@pytest.mark.slow
@pytest.mark.parametrize(("set_id", "name", "write"), CASES, ids=[f"{s}, {n}" for s, n, _ in CASES])
def test_first_batches_and_an_epoch(tmp_path, set_id, name, write) -> None:
    pixels, labels = images_of(set_id)
    root, n = tmp_path / "set", len(labels)
    write(root, pixels, labels)
    layout = find_layout(root)
    assert layout is not None
    assert type(layout) in LAYOUTS
    digests = set()
    for channels_last in (False, True):
        digest = hashlib.sha256()
        for tensor in batches(set_id, root, n, channels_last=channels_last):
            digest.update(tensor.contiguous().numpy().tobytes())
        digests.add(digest.hexdigest())
    assert digests == {FIRST[set_id]}
    for memory in ("false", "true"):
        more = (*words(set_id, root, n), f"recipe.channels_last={memory}")
        assert np.isfinite(trained(set_id, Store(tmp_path / memory), *more))
