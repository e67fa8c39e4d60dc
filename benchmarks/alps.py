"""Time an ALPS search beside the bare one-epoch trainings in it, and with two worker processes.

    python benchmarks/alps.py --images 2000 --held-out 200 --repeats 3

ResNet-20 on the bundled images, 4 bit to 2 bit. The search builds its network, decodes its images,
reloads its start for every item, trains it for an epoch, evaluates it and keeps the result; the
bare trainings, without any of that, are the same steps in a plain loop. Both in turns, with two
threads; then the search with two processes of one thread.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from quantable.base.bits import Bits
from quantable.config.composition import compose_run
from quantable.search.alps import Alps
from quantable.search.run import Start, items_of
from quantable.store.store import Store
from quantable.training.build import build, part_of


def main() -> None:
    """Time all three in turns and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--items", type=int, default=None, help="only the first so many")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    config = compose_run(
        [
            *("model=resnet20_cifar", "data=fashion_mnist_mini", "quantizer=lsq", "search=alps"),
            *("recipe=lsq", "recipe.batch_size=64", "recipe.precision=bf16-mixed"),
            *(f"data.train_images={args.images}", f"data.val_images={args.held_out}"),
            *("trainer.threads=2", "trainer.accelerator=cpu"),
        ]
    )
    ways = {
        "bare trainings": lambda: bare(config, args.items),
        "ALPS": lambda: search(config, Alps(args.held_out, workers=1), args.items),
        "ALPS, two workers": lambda: search(config, Alps(args.held_out, workers=2), args.items),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            trained, took = way()
            seconds[name].append(took)
    base = statistics.median(seconds["bare trainings"])
    print(f"{trained} trainings of {args.images} images, {args.held_out} held out, 2 threads")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:18} {median:7.2f} s median, ratio {median / base:.3f}")


def opened(config: dict[str, Any], folder: Path, items: int | None) -> Start:
    """Build the start of a search."""
    built = build(config, Store(folder), "")
    assert built.quantize is not None
    found = items_of(built, Bits(4, 4), None)[:items]
    place, device = Store(folder).cell("search"), torch.device("cpu")
    return Start(config, built, built.quantize, found, Bits(2, 2), device, place, lambda *_: None)


def search(config: dict[str, Any], rule: Alps, items: int | None) -> tuple[int, float]:
    """Run the whole search in an empty store; its trainings and seconds."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trained = int(rule(opened(config, Path(folder), items)).epochs)
    return trained, time.perf_counter() - begin


def bare(config: dict[str, Any], items: int | None) -> tuple[int, float]:
    """Train as often, for an epoch each; seconds of the loops alone."""
    with tempfile.TemporaryDirectory() as folder:
        start = opened(config, Path(folder), items)
    net, images = start.built.net.train(), start.built.images
    batches = images.train_batches(64, seed=0, device="cpu", channels_last=True)
    begin = time.perf_counter()
    for item in [(), *start.items]:
        start.quantize.set_bits(dict.fromkeys(item, start.low))
        optimizer = part_of(config, "recipe.optimizer")(net.parameters())
        for x, y in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
        start.quantize.set_bits(dict.fromkeys(item, Bits(4, 4)))
    return len(start.items) + 1, time.perf_counter() - begin


if __name__ == "__main__":
    main()
