"""Time integer kernels with sums of 16 bit beside the same ones with sums of 32 bit, on this host.

    pip install -e .[bench]
    python benchmarks/accumulators.py --repeats 21

One layer of All-CNN-C for one image: conv5, 192 outputs of 1,728 terms at 64 positions. Four forms,
each compiled by numba for this processor: a dot product over the terms, or an outer product whose
lanes are positions; operands kept in 8 or 16 bit. Times are the processor's own, of interleaved
pairs, so that a busy machine slows both alike; the ratio is the quotient of each pair's, its median
and quartiles. All sums are compared with int64, those of 16 bit wrapped around. Beside them stands
the best route to 32-bit sums that torch has.

Claim AC-2 (de Bruin et al. 2020, a speedup of near 2) is about an Arm processor: there the two
forms whose multiplication is NEON's own are judged, at least 1.7. On any other processor nothing
is: the ratio depends on form, shape and compiler more than on the sums.
"""

import argparse
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import njit

C_OUT, TERMS, POSITIONS = 192, 1728, 64
FORMS = [("dot", 8), ("dot", 16), ("outer", 8), ("outer", 16)]
JUDGED = [("dot", 16), ("outer", 8)]  # on Arm, by VMLA.I16 and VMLAL.S8 beside VMLAL.S16
LEAST = 1.7  # of AC-2 on an Arm processor
FLAGS = ("avx2", "avx512bw", "avx_vnni", "avx512_vnni", "asimd", "asimddp", "i8mm", "neon")
MULTIPLY = re.compile(
    r"\b(v?pmull[wd]|v?pmaddwd|v?pmaddubsw|v?pdp\w+|v?mlal?\.\w+|[su]?mlal?2?|sdot)\b"
)

Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def dot_kernel(kind: type[np.signedinteger[Any]]) -> Kernel:
    """Sums over terms of ``w`` (c_out, K) and ``x`` (positions, K)."""

    def run(w: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        for o in range(w.shape[0]):
            for p in range(x.shape[0]):
                total = kind(0)
                for k in range(w.shape[1]):
                    total = kind(total + kind(kind(w[o, k]) * kind(x[p, k])))
                out[o, p] = total

    return njit(run)


def outer_kernel(kind: type[np.signedinteger[Any]]) -> Kernel:
    """Adds each term of ``w`` (c_out, K) times a line of ``x`` (K, positions)."""

    def run(w: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        out[:] = 0
        for o in range(w.shape[0]):
            for k in range(w.shape[1]):
                factor = kind(w[o, k])
                for p in range(x.shape[1]):
                    out[o, p] = kind(out[o, p] + kind(factor * kind(x[k, p])))

    return njit(run)


def main() -> None:
    """Time every form and print the row of this host."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=21)
    args = parser.parse_args()
    torch.set_num_threads(1)
    arm = platform.machine() in ("aarch64", "arm64", "armv7l", "armv8l")
    print(f"{platform.machine()}: {processor()}; one thread")
    print(f"{'form':16} {'16 bit ms':>10} {'32 bit ms':>10} {'32 / 16':>8} {'quartiles':>14}")
    best = float("inf")
    for form, operand_bits in FORMS:
        times, seen = timed(form, operand_bits, args.repeats)
        ratios = [wide / short for short, wide in zip(times[16], times[32], strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        short, wide = (statistics.median(times[bits]) * 1e3 for bits in (16, 32))
        best = min(best, short)
        name = f"{form}, int{operand_bits}"
        print(f"{name:16} {short:10.3f} {wide:10.3f} {ratio:8.2f} {low:7.2f}{high:7.2f}  {seen}")
        if arm and (form, operand_bits) in JUDGED:
            word = "holds" if ratio >= LEAST else "does not hold"
            print(f"{'':16} AC-2, measured: {word} (at least {LEAST})")
    route = int_mm(args.repeats) * 1e3
    print(f"torch._int_mm, 32-bit sums: {route:.3f} ms, {route / best:.2f} of the best 16-bit form")
    if not arm:
        print("AC-2, measured: not run, the claim is about an Arm processor")


def timed(form: str, operand_bits: int, repeats: int) -> tuple[dict[int, list[float]], str]:
    """Processor seconds of a form with both sums, in turns, and the multiplications in its code."""
    random = np.random.default_rng(0)
    operand = {8: np.int8, 16: np.int16}[operand_bits]
    w = random.integers(-7, 8, (C_OUT, TERMS)).astype(operand)
    x = random.integers(0, 16, (POSITIONS, TERMS)).astype(operand)
    exact = w.astype(np.int64) @ x.astype(np.int64).T
    given = x if form == "dot" else np.ascontiguousarray(x.T)
    runs, seen = {}, []
    for bits, kind in ((16, np.int16), (32, np.int32)):
        kernel = (dot_kernel if form == "dot" else outer_kernel)(kind)
        out = np.empty((C_OUT, POSITIONS), kind)
        kernel(w, given, out)  # compiles
        if not np.array_equal(out, exact.astype(kind)):
            raise RuntimeError(f"{form}, int{operand_bits}, {bits}-bit sums: not the exact sums")
        (code,) = kernel.inspect_asm().values()  # type: ignore[attr-defined]
        seen.append(f"{bits}: {' '.join(sorted(set(MULTIPLY.findall(code)))) or 'none known'}")
        runs[bits] = (kernel, out)
    times: dict[int, list[float]] = {16: [], 32: []}
    for _ in range(repeats):
        for bits, (kernel, out) in runs.items():
            begin = time.thread_time()
            kernel(w, given, out)
            times[bits].append(time.thread_time() - begin)
    return times, "; ".join(seen)


def int_mm(repeats: int) -> float:
    """Median processor seconds of the same product by torch's own int8 kernel."""
    w = torch.randint(-7, 8, (C_OUT, TERMS), dtype=torch.int8)
    x = torch.randint(0, 16, (TERMS, POSITIONS), dtype=torch.int8)
    seconds = []
    for _ in range(repeats + 1):  # the first one sets up
        begin = time.thread_time()
        torch._int_mm(w, x)
        seconds.append(time.thread_time() - begin)
    return statistics.median(seconds[1:])


def processor() -> str:
    """Model and vector extensions that such kernels may use, as Linux names them."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    known = [flag for flag in FLAGS if flag in text.split()]
    return f"{model[1] if model else platform.processor() or 'unknown'}, {' '.join(known) or '-'}"


if __name__ == "__main__":
    main()
