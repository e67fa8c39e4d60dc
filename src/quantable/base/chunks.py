"""Long tensors in pieces that stay in a CPU's cache while several operations pass over them."""

from typing import Any

import torch
from torch import Tensor

PIECE = 2**20
"""Elements of one piece for each thread: 4 MiB in float32, for the L3 cache. Between convolutions
starting an operation costs so much that smaller pieces take longer, although they fit into L2."""


def pieces(first: Tensor, *others: Tensor | float) -> list[tuple[Any, ...]]:
    """Matching views along dimension 0; the first tensor decides how many rows each has.

    A number, or a tensor that broadcasts along dimension 0, comes whole each time. There is one
    piece in compiled graphs, which fuse their operations, and on other devices.

    >>> x, low = torch.zeros(2**12, 2**10), torch.zeros(())
    >>> found = pieces(x, low)
    >>> sum(len(part) for part, _ in found), {whole.shape for _, whole in found}
    (4096, {torch.Size([])})
    """
    together = (first, *others)
    if first.dim() == 0 or first.device.type != "cpu" or torch.compiler.is_compiling():
        return [together]
    most = PIECE * torch.get_num_threads()
    if 0 < first.numel() <= most:
        return [together]
    n = len(first)
    rows = max(1, n * most // max(1, first.numel()))
    return [
        tuple(_rows(part, start, rows, like=first) for part in together)
        for start in range(0, n, rows)
    ]


def widened(piece: Tensor) -> Tensor:
    """A piece in at least float32, itself where it is that: nothing here computes in 16 bits."""
    return piece if piece.dtype in (torch.float32, torch.float64) else piece.float()


def workplace(out: Tensor, given: Tensor, wide: Tensor) -> Tensor:
    """Where to compute what ends in ``out`` from ``wide``, which is ``given`` widened.

    ``out`` itself where that is wide enough, else the widened copy or, where there is none, a
    place of its size.
    """
    if out.dtype == wide.dtype:
        return out
    return wide if wide is not given else torch.empty_like(wide)


def _rows(part: Tensor | float, start: int, rows: int, like: Tensor) -> Tensor | float:
    if not isinstance(part, Tensor) or part.dim() < like.dim() or len(part) != len(like):
        return part
    return part[start : start + rows]
