"""Weight magnitude by hand."""

import torch

from quantable.search.magnitude import magnitude


def test_mean_is_per_weight_and_pooled_over_layers() -> None:
    big, small = torch.full((4, 3, 1, 1), -2.0), torch.full((2, 2), 0.5)
    assert magnitude([big]) == 2.0
    assert magnitude([big, small]) == (12 * 2.0 + 4 * 0.5) / 16
    assert magnitude([big.repeat(5, 1, 1, 1)]) == 2.0  # size alone changes nothing


def test_many_half_precision_weights_do_not_saturate() -> None:
    assert magnitude([torch.full((300, 300), 3.0, dtype=torch.float16)]) == 3.0
