import pytest

from quantable.base.errors import UserError
from quantable.quantization import grid


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [False, True])
def test_a_grid_has_two_to_the_bits_levels(bits: int, signed: bool) -> None:
    q_min, q_max = grid.int_range(bits, signed=signed)
    skipped = 1 if (q_min, q_max) == grid.BINARY else 0  # signed 1 bit: -1 and +1, not 0
    assert q_max - q_min + 1 - skipped == 2**bits
    assert grid.intervals(bits) == 2**bits - 1


def test_only_the_signed_one_bit_grid_is_binary() -> None:
    ranges = [grid.int_range(bits, signed=signed) for bits in range(1, 17) for signed in (0, 1)]
    assert ranges.count(grid.BINARY) == 1
    assert grid.int_range(1, signed=True) == grid.BINARY


@pytest.mark.parametrize("bits", [0, 17, 32, -1, 4.0, True, "4"])
def test_other_widths_are_refused(bits: object) -> None:
    with pytest.raises(UserError, match=f"bits={bits}: a quantization grid has 1 to 16 bits"):
        grid.check(bits)  # type: ignore[arg-type]
