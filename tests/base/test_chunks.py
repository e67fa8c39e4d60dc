import pytest
import torch

from quantable.base.chunks import PIECE, pieces


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pieces_are_views_that_cover_every_element_once(layout: torch.memory_format) -> None:
    n = 5 * torch.get_num_threads()
    x = torch.zeros(n, 2, PIECE // 64, 32).to(memory_format=layout)  # one row is one piece
    by_row, by_channel = torch.zeros(n, 1, 1, 1), torch.zeros(1, 2, 1, 1)
    parts = pieces(x, by_row, by_channel, torch.zeros(()))
    assert len(parts) == 5
    for x_, by_row_, by_channel_, scalar in parts:
        x_ += 1
        by_row_ += 1
        assert x_.numel() == PIECE * torch.get_num_threads()
        assert by_channel_.shape == by_channel.shape
        assert scalar.dim() == 0
    assert (x == 1).all()
    assert (by_row == 1).all()


def test_one_row_longer_than_a_piece_and_an_empty_batch() -> None:
    assert len(pieces(torch.zeros(3, 9 * PIECE * torch.get_num_threads()))) == 3
    assert pieces(torch.zeros(0, 4)) == []
    assert len(pieces(torch.zeros(()))) == 1
