"""Speed of training batches for CIFAR-10: ours beside torchvision's transforms and DataLoader.

    python benchmarks/input_pipeline.py [--root <folder with CIFAR-10>] [--threads 1]

Both crop (padding 4), flip and normalize the same images in batches of 128, in one run, in turns.
Torchvision has two worker processes of one thread each, ours the main process with ``--threads``.
Decoding is not timed: both read arrays in memory. Without ``--root`` the images are random.
"""

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from quantable.data.images import Images
from quantable.data.sets import Arrays

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH = 128
ROUNDS = 5
WORKERS = 2


class Peer(Dataset[tuple[Tensor, int]]):
    """torchvision's CIFAR10: arrays to PIL images, one transform for each image."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, data: Images) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=data.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[row])), int(self.labels[row])


def images_per_second(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Speed of one pass, from the first batch on: starting workers is not counted."""
    iterator = iter(batches)
    next(iterator)
    begin = time.perf_counter()
    count = sum(len(y) for _, y in iterator)
    return count / (time.perf_counter() - begin)


def load(root: str | None) -> Images:
    """CIFAR-10 as conf describes it; with random pixels where there is no ``root``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("data/cifar10", overrides=[f"data.root={root}"] if root else [])
    data: Images = instantiate(config.data.loader)
    if root is None:
        rng = np.random.default_rng(0)
        pixels = {"train": rng.integers(0, 256, (45_000, 32, 32, 3), np.uint8)}
        data._arrays = Arrays(pixels, {"train": rng.integers(0, 10, 45_000)}, "random")
    return data


def main() -> None:
    """Measure in turns, print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    data = load(args.root)
    arrays = data.load()
    peer = DataLoader(
        Peer(arrays.images["train"][:12_800], arrays.labels["train"][:12_800], data),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    ours = {
        "ours, channels first": data.train_batches(BATCH, 0, "cpu"),
        "ours, channels last": data.train_batches(BATCH, 0, "cpu", channels_last=True),
    }
    speeds: dict[str, list[float]] = {"torchvision": [], **{name: [] for name in ours}}
    for epoch in range(ROUNDS):
        speeds["torchvision"].append(images_per_second(peer))
        for name, batches in ours.items():
            batches.epoch = epoch
            speeds[name].append(images_per_second(batches))

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    what = data.title if args.root else "random images of CIFAR-10's size"
    print(f"{what}; batch {BATCH}; ours {args.threads} thread(s), torchvision {WORKERS} workers")
    for name, median in medians.items():
        ratio = median / medians["torchvision"]
        print(f"{name:22} {median:9,.0f} images/s (median of {ROUNDS})  {ratio:5.1f}x")


if __name__ == "__main__":
    main()
