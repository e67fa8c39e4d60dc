"""How well HAWQ traces of three seeds agree on the order of layers, by images and vectors.

    python benchmarks/hawq_ranking.py resnet20_cifar10.safetensors cifar10/train.parquet

The weights are those of akamaster/pytorch_resnet_cifar10 (resnet20-12fca82f). Each seed has images
and vectors of its own. All batches of a seed get the same vectors, so a search with fewer images or
vectors is a part of a larger one. Takes 15 minutes of one core.
"""

import argparse
import hashlib
import io
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from quantable.allocation.choice import counted
from quantable.allocation.knapsack import Budget, allocate
from quantable.base.bits import Bits
from quantable.methods.lsq import LSQ
from quantable.networks.cifar import resnet20_cifar
from quantable.networks.trace import layer_shapes
from quantable.search.hessian import Estimate, _products, hawq_loss
from quantable.store.record import Item

SEEDS, BATCH, IMAGES = 3, 64, 1000
MOST = {1: 256, 4: 64, 16: 32}  # the first so many batches of a seed have as many vectors
SHARE = 0.8  # of the compute at 4 bit
HIGH, LOW = Bits(4, 4), Bits(2, 2)


def main() -> None:
    """Measure the traces and print a line for each number of images and vectors."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path, help="parquet of CIFAR-10's training images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sha256 = hashlib.sha256(args.weights.read_bytes()).hexdigest()
    net = resnet20_cifar(10, 3, 1.0, "pad", str(args.weights), sha256).eval()
    macs = {shape.name: shape.macs for shape in layer_shapes(net, (3, 32, 32))[1:-1]}
    weights = {name: parameter_of(net, name).detach() for name in macs}
    begin = time.process_time()
    seeds = [samples(net, list(macs), args.images, seed) for seed in range(SEEDS)]
    print(f"{len(macs)} layers, {time.process_time() - begin:.0f} s of one core")
    print("images vectors  Kendall Spearman  at 2 bit, by all  below 0  within the error")
    for batches, most in MOST.items():
        for vectors in (16, 32, 64, 128, 256):
            if vectors <= most:
                images = min(batches * BATCH, IMAGES)
                found = [
                    estimates(
                        torch.stack([part[:vectors] for part in seed[:batches]]).sum(0), images
                    )
                    for seed in seeds
                ]
                print(f"{images:6} {vectors:7}  {agreement(found, weights, macs)}")


def parameter_of(net: nn.Module, name: str) -> Tensor:
    """Weight of a layer."""
    return net.get_parameter(f"{name}.weight")


def read(path: Path, first: int) -> tuple[Tensor, Tensor]:
    """IMAGES normalized images from the row ``first`` on, and their labels."""
    rows = pq.read_table(path).slice(first, IMAGES).to_pylist()
    pixels = [Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in rows]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in pixels])).permute(0, 3, 1, 2)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (x.float() / 255 - mean) / std, torch.tensor([row["label"] for row in rows])


def samples(net: nn.Module, layers: list[str], path: Path, seed: int) -> list[Tensor]:
    """Products v H v of each batch, vector and layer: (vectors, layers), summed over images."""
    x, y = read(path, seed * IMAGES)
    tensors = [parameter_of(net, name) for name in layers]
    found = []
    for i, (x_, y_) in enumerate(zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)):
        vectors = next(most for batches, most in MOST.items() if i < batches)
        generator = torch.Generator().manual_seed(seed)
        loss = F.cross_entropy(net(x_), y_, reduction="sum")
        found.append(_products(loss, tensors, vectors, generator))
    return found


def estimates(sums: Tensor, images: int) -> list[Estimate]:
    """Trace of each layer, of the mean loss over the images."""
    each = sums / images
    errors = each.std(0) / len(each) ** 0.5
    return [Estimate(*pair) for pair in zip(each.mean(0).tolist(), errors.tolist(), strict=True)]


def agreement(found: list[list[Estimate]], weights: dict[str, Tensor], macs: dict[str, int]) -> str:
    """Rank correlations of the traces, and of the layers at 2 bit how many every seed has there."""
    means = [[trace.mean for trace in traces] for traces in found]
    pairs = list(combinations(means, 2))
    kendall, spearman = (
        sum(rank(*pair).statistic for pair in pairs) / len(pairs)
        for rank in (kendalltau, spearmanr)
    )
    low = [at_low_bits(traces, weights, macs) for traces in found]
    below = [sum(trace.mean < 0 for trace in traces) for traces in found]
    within = [sum(abs(t.mean) <= t.standard_error for t in traces) for traces in found]
    common = f"{len(set.intersection(*low))} of {len(low[0])}"
    return f"{kendall:7.2f} {spearman:8.2f}  {common:>16}  {below} {within}"


def at_low_bits(
    traces: list[Estimate], weights: dict[str, Tensor], macs: dict[str, int]
) -> set[str]:
    """Layers that a selection puts to 2 bit."""
    loss = {}
    for (name, weight), trace in zip(weights.items(), traces, strict=True):
        low, high = (LSQ(b.weight, signed=True, batched=False).eval()(weight) for b in (LOW, HIGH))
        g = hawq_loss([(trace, low, high)])
        item = Item(layers=[name], loss={"2/2": g.mean}, error={"2/2": g.standard_error})
        loss[name] = {HIGH: 0.0, LOW: counted(item)["2/2"]}
    cost = {
        name: {bits: float(n * bits.weight) for bits in (HIGH, LOW)} for name, n in macs.items()
    }
    limit = SHARE * sum(of[HIGH] for of in cost.values())
    found = allocate(loss, [Budget("linear", "MAC x bit", cost, limit)])
    return {name for name, bits in found.bits.items() if bits == LOW}


if __name__ == "__main__":
    main()
