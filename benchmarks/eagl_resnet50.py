"""Time EAGL on the 52 inner layers of ResNet-50 (23.4 M weights), beside NumPy and SciPy.

    python benchmarks/eagl_resnet50.py --threads 2 --repeats 9

Weights are random and in memory, steps are learned already; linked layers pool their histograms.
The peer quantizes with NumPy and takes SciPy's entropy of NumPy's histogram; both must agree.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import timm
import torch
from scipy import stats
from torch import Tensor

from quantable.methods.lsq import LSQ
from quantable.networks.trace import linked_layers
from quantable.search.eagl import first_step, item_entropy

Members = Sequence[tuple[Tensor, LSQ]]


def main() -> None:
    """Time both, in turns, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    items = members()
    ways: dict[str, Callable[[Members], float]] = {"EAGL": item_entropy, "NumPy, SciPy": by_scipy}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        found = {}
        for name, way in ways.items():
            begin = time.perf_counter()
            found[name] = [way(item) for item in items]
            seconds[name].append(time.perf_counter() - begin)
        np.testing.assert_allclose(found["EAGL"], found["NumPy, SciPy"], atol=1e-12)
    weights = sum(weight.numel() for item in items for weight, _ in item)
    print(f"{len(items)} items, {weights:,} weights, 4 bit, {args.threads} threads")
    for name, values in seconds.items():
        print(f"{name:14} {statistics.median(values):6.3f} s median, {min(values):6.3f} s least")


def members() -> list[Members]:
    """Weights and trained 4-bit quantizers of the network's items, without stem and classifier."""
    torch.manual_seed(0)
    net = timm.create_model("resnet50")
    return [
        [trained(net.get_submodule(name).weight.detach()) for name in item]  # type: ignore[operator]
        for item in linked_layers(net, (3, 64, 64))[1:-1]
    ]


def trained(weight: Tensor) -> tuple[Tensor, LSQ]:
    """A weight with a quantizer whose step stands for a learned one."""
    quantizer = LSQ(4, signed=True, batched=False)
    with torch.no_grad():
        quantizer.step.copy_(first_step(weight, 4))
    quantizer.initialized = True
    return weight, quantizer


def by_scipy(item: Members) -> float:
    """Entropy in bits by NumPy's histogram of the pooled integers."""
    counts = np.zeros(16, np.int64)
    for weight, quantizer in item:
        ratio = weight.numpy() / quantizer.step.detach().numpy()
        counts += np.histogram(np.round(np.clip(ratio, -8, 7)), bins=np.arange(-8, 9) - 0.5)[0]
    return float(stats.entropy(counts, base=2))


if __name__ == "__main__":
    main()
