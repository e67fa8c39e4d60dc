"""Time the training loop of a run beside a plain PyTorch loop and plain Lightning, same batches.

    python benchmarks/loop.py [--network resnet20_cifar] [--width 1.0] [--batches 30] [--turns 7]

All train the same network with the same optimizer on the same loader's batches, in bfloat16 mixed
precision and channels last. An epoch of each in turns; what is compared is the median of an epoch's
steps in each turn, from the first batch's end to the last one's, so that no evaluation and no
checkpoint of an epoch's end is in it. Ours has the callbacks of a run.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base.freed_memory import keep_freed_memory
from quantable.config.composition import compose_run
from quantable.data.images import Images, TrainBatches
from quantable.training.build import fit, loading_of, module_of, part_of, trainer_of
from quantable.training.checkpoint import Keep
from quantable.training.evaluation import Evaluate

Batch = tuple[Tensor, Tensor]
Epoch = Callable[[], list[float]]  # trains one, and says when each of its batches ended


def main() -> None:
    """Time all three and print the table."""
    args = arguments()
    keep_freed_memory()  # as every run does
    torch.set_num_threads(args.threads)
    config = compose_run(
        [
            *("recipe=cpu", f"model={args.network}", f"model.net.width={args.width}"),
            *("recipe.small_images=null", "recipe.epochs=1", "trainer.accelerator=cpu"),
            f"trainer.threads={args.threads}",
            f"data.train_images={args.batches * 64}",
            *("data.val_images=64", "data.test_images=64"),
        ]
    )
    images: Images = part_of(config, "data.loader")
    loading = loading_of(config, torch.device("cpu"))
    batches = images.train_batches(seed=0, **loading)
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "plain PyTorch": partial(plain_epoch, config, batches),
            "plain Lightning": partial(lightning_epoch, config, batches),
            "quantable": partial(own_epoch, config, images, batches, Path(folder)),
        }
        report(ways, args.turns)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--network", default="resnet20_cifar", help="a name of conf/model")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batches", type=int, default=30, help="of an epoch, of 64 images")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def network(config: dict) -> nn.Module:
    """A new network of the config."""
    torch.manual_seed(0)
    net: nn.Module = part_of(config, "model.net")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def plain_epoch(config: dict, batches: TrainBatches) -> list[float]:
    """The loop that everybody writes."""
    net, ends = network(config), []
    optimizer = part_of(config, "recipe.optimizer")(net.parameters(), foreach=True)
    for x, y in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends.append(time.perf_counter())
    return ends


class Plain(pl.LightningModule):
    """The module that everybody writes."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config, self.net = config, network(config)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy."""
        x, y = batch
        return cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The recipe's."""
        optimizer = part_of(self.config, "recipe.optimizer")
        return optimizer(self.parameters(), foreach=True)  # type: ignore[no-any-return]


class Watch(pl.Callback):
    """Notes when each batch ended, behind all other callbacks."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


class Again(Iterable[Batch]):
    """Batches whose place Lightning does not know, as a run's."""

    def __init__(self, batches: TrainBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterable[Batch]:  # type: ignore[override]
        return iter(self.batches)


def lightning_epoch(config: dict, batches: TrainBatches) -> list[float]:
    """Lightning with nothing of ours."""
    watch = Watch()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        precision="bf16-mixed",
        enable_checkpointing=False,
        callbacks=[watch],
        **quiet,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # as `fit` does
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        trainer.fit(Plain(config), Again(batches))
    return watch.ends


def own_epoch(config: dict, images: Images, batches: TrainBatches, folder: Path) -> list[float]:
    """A run's own epoch."""
    module = module_of(config, network(config), None, config["data"]["input_size"], epochs=1)
    trainer, watch = trainer_of(config), Watch()
    loading = loading_of(config, torch.device("cpu"))
    keep = Keep(folder / "last.ckpt", every_seconds=600, quantize=None, commit="", clean=True)
    looking = Evaluate(images, None, lambda tick: None, loading)
    trainer.callbacks += [looking, keep, watch]  # type: ignore[attr-defined]
    fit(trainer, module, batches)
    return watch.ends


def report(ways: dict[str, Epoch], turns: int) -> None:
    """Run the ways in turns and print medians, and the medians of their ratios in a turn."""
    steps: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns + 1):  # the first one warms up
        for name, epoch in ways.items():
            ends = epoch()
            found = [after - before for before, after in pairwise(ends)]
            steps[name].append(statistics.median(found))
    first = next(iter(ways))
    print(f"{'loop':<16} {'step, ms':>9} {'ratio':>7} {'least':>7} {'most':>7}")
    for name, found in steps.items():
        ratios = [own / base for own, base in zip(found[1:], steps[first][1:], strict=True)]
        median = statistics.median(ratios)
        step = 1e3 * statistics.median(found[1:])
        print(f"{name:<16} {step:9.2f} {median:7.3f} {min(ratios):7.3f} {max(ratios):7.3f}")


if __name__ == "__main__":
    main()
