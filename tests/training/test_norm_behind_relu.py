"""Networks of one's own with a batch norm behind each ReLU: what 8 bits cost them."""

from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import nn

from quantable.config.composition import compose_run
from quantable.data.images import Images
from quantable.run import run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.build import part_of
from quantable.training.evaluation import evaluate
from quantable.training.finished import load_network

TRAINED = [
    *("recipe=sgd_one_cycle", "recipe.epochs=3", "recipe.batch_size=64"),
    "recipe.optimizer.lr=0.02",
]
KEPT = ["recipe=post_training", "recipe.batch_norms=kept"]
SEEDS = range(3)  # of one run, two standard errors are 2 points


def conv_relu_norm(classes: int, in_channels: int) -> nn.Module:
    """Three convolutions, each with ReLU and batch norm in this order, and a classifier."""
    layers: list[nn.Module] = []
    for number in range(3):
        channels = 16 if number else in_channels
        layers += [nn.Conv2d(channels, 16, 3, stride=2 if number else 1), nn.ReLU()]
        layers += [nn.BatchNorm2d(16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))


class Runs:
    """Runs of the network on the packaged images."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, seed: int, *words: str, start: Record | None = None) -> Record:
        words = (*words, "trainer.threads=1", "trainer.accelerator=cpu")
        target = f"{conv_relu_norm.__module__}.{conv_relu_norm.__name__}"
        net = {"_target_": target, "classes": 10, "in_channels": 1}
        config = compose_run(words) | {"seed": seed, "model": {"name": "own", "net": net}}
        config["start"] = None if start is None else start.signature
        record = run_cell(
            Cell(None, "single", seed, config, words), self.store, "", lambda *_: None
        )
        self.store.add(record)
        self.check_read_back(record, part_of(config, "data.loader"))
        return record

    def check_read_back(self, record: Record, images: Images) -> None:
        net = load_network(record, self.store.weights(record.name))
        batches = images.eval_batches("test", 64, "cpu", channels_last=True)
        measured = evaluate(net, batches, images.classes, images.sizes["test"])
        assert measured.top1_pct == pytest.approx(top1_pct(record), abs=0.05)  # one of 2,000 images


def top1_pct(record: Record) -> float:
    return record.metrics["last"]["test_top1_pct"]


@pytest.mark.slow
def test_eight_bits_cost_at_most_a_point(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    runs = Runs(Store(tmp_path))
    float_runs = [runs(seed, *TRAINED, "quantizer=none") for seed in SEEDS]
    for method in ("minmax", "lsq"):
        words = [f"quantizer={method}", "bits.inner=[8,8]"]
        scratch = [runs(seed, *TRAINED, *words) for seed in SEEDS]
        begun = [runs(s, *TRAINED, *words, start=float_runs[s]) for s in SEEDS]
        for quantized in (scratch, begun):
            lost = mean(map(top1_pct, float_runs)) - mean(map(top1_pct, quantized))
            assert lost <= 1.0, method
        again = runs(0, *KEPT, *words, start=begun[0])  # ranges go on running, steps stay
        most = {"minmax": 1.5, "lsq": 0.05}[method]
        assert top1_pct(again) == pytest.approx(top1_pct(begun[0]), abs=most)
    torch.set_num_threads(threads)
