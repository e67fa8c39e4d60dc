"""Long tensors in pieces that stay in a CPU's cache while several operations pass over them."""

import torch
from torch import Tensor

PIECE = 2**18
"""Elements of one piece for each thread: 1 MiB in float32, for the L3 cache. Pieces that fit into
L2 are so many that starting the operations costs more than L2 saves."""


def pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Matching views along dimension 0; the first tensor decides how many rows each has.

    A tensor that broadcasts along dimension 0 comes whole each time. There is one piece in compiled
    graphs, which fuse their operations, and on other devices.

    >>> x, low = torch.zeros(2**12, 2**10), torch.zeros(())
    >>> found = pieces(x, low)
    >>> sum(len(part) for part, _ in found), {whole.shape for _, whole in found}
    (4096, {torch.Size([])})
    """
    first = tensors[0]
    if first.dim() == 0 or first.device.type != "cpu" or torch.compiler.is_compiling():
        return [tensors]
    most = PIECE * torch.get_num_threads()
    if 0 < first.numel() <= most:
        return [tensors]
    n = len(first)
    rows = max(1, n * most // max(1, first.numel()))
    return [
        tuple(_rows(tensor, start, rows, like=first) for tensor in tensors)
        for start in range(0, n, rows)
    ]


def _rows(tensor: Tensor, start: int, rows: int, like: Tensor) -> Tensor:
    broadcasts = tensor.dim() < like.dim() or len(tensor) != len(like)
    return tensor if broadcasts else tensor[start : start + rows]
