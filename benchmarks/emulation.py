"""Time exact sums in integers beside the float32 convolution that they emulate (192->192, 3x3).

Weights and data have 4 bits, so that one float32 convolution is exact. Accumulators are as narrow
as a line needs: in 14 bits no partial sum of these data overflows in the stated order, in 13 bits
0.4 % of the sums have one after some 48 channels that may, and in 11 bits nearly all. Steps are
interleaved in one process and timed by the processor's clock, so that a busy machine slows all
alike; the table has medians and their ratios to the convolution.

    python benchmarks/emulation.py --threads 1 --repeats 21
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantable.base.freed_memory import keep_freed_memory
from quantable.integers.emulation import Product, wrap

BASE = "float32 convolution"
WRAPPED, AT_RISK, SATURATED = "wrapped", "at risk in some order", "saturated, none at risk in order"
ACCEPTED = {WRAPPED: 1.15, AT_RISK: 2.2, SATURATED: 4.0}  # ratios, at most


def main() -> None:
    """Time every step and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()  # as every run does
    torch.set_num_threads(args.threads)
    steps = made(args.batch)
    print(f"{platform.machine()}, torch {torch.__version__}, batch {args.batch}, ", end="")
    print(f"{args.threads} threads, {args.repeats} repeats")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(1 + args.repeats):  # the first one checks the arithmetic
        for name, step in steps.items():
            begin = time.process_time()
            step()
            if repeat:
                seconds[name].append(time.process_time() - begin)
    base = statistics.median(seconds[BASE])
    print(f"{'step':34} {'ms':>8} {'ratio':>7} {'accepted':>9}")
    for name, times in seconds.items():
        ms, ratio = 1000 * statistics.median(times), statistics.median(times) / base
        print(f"{name:34} {ms:8.2f} {ratio:7.2f} {ACCEPTED.get(name, ''):>9}")


def made(batch: int) -> dict[str, Callable[[], Tensor]]:
    """The steps, on Gaussian weights and uniform data."""
    random = torch.Generator().manual_seed(0)
    weight = (1.8 * torch.randn(192, 192, 3, 3, generator=random)).round().clamp(-7, 7)
    q = torch.randint(16, (batch, 192, 8, 8), generator=random).float()
    layer = nn.Conv2d(192, 192, 3, padding=1, bias=False)
    product = Product(weight.long(), (0, 15), None, layer)
    return {
        BASE: partial(F.conv2d, q, weight, padding=1),
        "sums": partial(product.sums, q),
        WRAPPED: lambda: wrap(product.sums(q), 12),
        AT_RISK: partial(product.at_risk, q, 14),
        SATURATED: partial(product.saturated, q, 14),
        "saturated, 0.4 % at risk": partial(product.saturated, q, 13),
        "saturated, all added up": partial(product.saturated, q, 11),
    }


if __name__ == "__main__":
    main()
