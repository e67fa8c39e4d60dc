"""What sums a layer can make of its integer weights, whatever its data are. Exact, in int64."""

from torch import Tensor


def sum_range(weight: Tensor, data: tuple[int, int], bias: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Least and greatest sum of each output channel: two (c_out,) int64.

    ``weight`` is int64 (c_out, c_in / groups, ...), ``data`` the least and the greatest datum,
    ``bias`` int64 (c_out,). With :math:`S_+` and :math:`S_-`, the sums of :math:`|w|` over a
    channel's positive and negative weights, they are :math:`b + lo S_+ - hi S_-` and
    :math:`b + hi S_+ - lo S_-`. Where the data can be 0, every partial sum in every order lies
    between these and 0.

    >>> import torch
    >>> sum_range(torch.tensor([[3, -1], [2, 2]]), (0, 15), torch.tensor([5, -1]))
    (tensor([-10,  -1]), tensor([50, 59]))
    """
    flat = weight.flatten(1)
    above, below = flat.clamp(min=0).sum(1), flat.clamp(max=0).neg().sum(1)
    low, high = data
    least, greatest = low * above - high * below, high * above - low * below
    return (least, greatest) if bias is None else (least + bias, greatest + bias)
