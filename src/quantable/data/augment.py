"""Random crop and flip of a whole batch, on the device where the images are."""

import hashlib

import torch
from torch import Tensor


def keyed_generator(*key: int | str) -> torch.Generator:
    """CPU generator whose stream is a function of ``key`` alone; the global one is not touched.

    >>> a, b = keyed_generator("augment", 0, 1, 2), keyed_generator("augment", 0, 1, 2)
    >>> torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b))
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def crop(
    planes: Tensor, plane: Tensor, top: Tensor, left: Tensor, *, height: int, width: int
) -> Tensor:
    """Window i is cut out of ``planes[plane[i]]`` at (``top[i]``, ``left[i]``).

    ``planes``: (m, H, W, k); ``plane``, ``top``, ``left``: (n,). Returns (n, height, width, k). One
    row of a window is one run of ``width * k`` values: rows are gathered from a view that has such
    a run begin at every value. This copies memory and computes nothing per pixel.

    >>> planes = torch.arange(18).view(2, 3, 3, 1)
    >>> i = torch.tensor([0, 1])
    >>> crop(planes, i, top=i, left=i, height=2, width=2).flatten(1).tolist()
    [[0, 1, 3, 4], [13, 14, 16, 17]]
    """
    _, rows, columns, k = planes.shape
    flat, run = planes.reshape(-1), width * k
    runs = flat.as_strided((flat.numel() - run + 1, run), (1, 1))
    row = (plane * rows + top)[:, None] + torch.arange(height, device=planes.device)  # (n, height)
    starts = (row * columns + left[:, None]) * k
    return runs.index_select(0, starts.view(-1)).view(-1, height, width, k)


def crop_flip(planes: Tensor, top: Tensor, left: Tensor, flip: Tensor, *, padding: int) -> Tensor:
    """Mirror where ``flip``, pad with black, cut the window at (``top``, ``left``) of each plane.

    ``planes``: (m, h, w, k) uint8; ``top``, ``left``: (m,) in 0..2 ``padding``; ``flip``: (m,) of
    0 or 1. Returns (m, h, w, k).
    """
    m, h, w, k = planes.shape
    canvas = planes.new_zeros((2, m, h + 2 * padding, w + 2 * padding, k))  # as it is, mirrored
    inside = canvas[:, :, padding : padding + h, padding : padding + w]
    inside[0], inside[1] = planes, planes.flip(2)
    plane = flip * m + torch.arange(m, device=planes.device)
    return crop(canvas.flatten(0, 1), plane, top, left, height=h, width=w)
