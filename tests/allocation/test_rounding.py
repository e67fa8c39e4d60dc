"""Rounding real bit-widths: never above the budget, and the best of all offsets by brute force."""

import numpy as np
import pytest

from quantable.allocation.rounding import round_widths
from quantable.base.errors import UserError

LEAST, MOST = 2, 16


def drawn(seed: int, layers: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Sizes, real widths and a target, as of a network: large layers are a hundred times larger."""
    draw = np.random.default_rng(seed)
    sizes = np.exp(draw.uniform(np.log(100), np.log(10_000), layers)).astype(int)
    return sizes, draw.uniform(LEAST, MOST, layers), draw.uniform(LEAST, MOST)


def rounded(sizes: np.ndarray, real: np.ndarray, limit: float) -> np.ndarray:
    found = round_widths(
        dict(enumerate(real.tolist())),
        lambda bits: sum(int(size) * bits[i] for i, size in enumerate(sizes)),
        limit,
        least=LEAST,
        most=MOST,
    )
    return np.array([found[i] for i in range(len(real))])


@pytest.mark.parametrize("layers", range(1, 31))
def test_total_bits_are_at_most_the_targets(layers: int) -> None:
    for seed in range(34):  # 1,020 cases in all
        sizes, real, target = drawn(seed, layers)
        bits = rounded(sizes, real, target * sizes.sum())
        assert (sizes * bits).sum() <= target * sizes.sum(), seed
        assert bits.min() >= LEAST, seed
        assert bits.max() <= MOST, seed


def at(real: np.ndarray, offset: float) -> np.ndarray:
    return np.clip(np.floor(real + offset), LEAST, MOST).astype(int)


@pytest.mark.parametrize("layers", range(1, 5))
def test_the_offset_is_the_best_of_all_and_single_layers_follow_it(layers: int) -> None:
    for seed in range(50):
        check_against_every_offset(*drawn(seed, layers))


def check_against_every_offset(sizes: np.ndarray, real: np.ndarray, target: float) -> None:
    real = np.round(real * 64) / 64  # then every width steps up at an offset that is tried
    limit = target * sizes.sum()
    fitting = [
        d for d in np.arange(-14, 14 + 1 / 64, 1 / 64) if (sizes * at(real, d)).sum() <= limit
    ]
    expected = at(real, fitting[-1])
    bound = min(fitting[-1] + 1 / 64, 14)  # no width steps up below this offset
    below = real + bound - expected
    for i in np.argsort(-below, kind="stable"):
        more = expected + (np.arange(len(real)) == i)
        if below[i] > 0 and more[i] <= MOST and (sizes * more).sum() <= limit:
            expected = more
    assert rounded(sizes, real, limit).tolist() == expected.tolist()


def test_equal_widths_at_a_whole_target_are_uniform() -> None:
    sizes = np.array([432, 2304, 9216, 640])
    for bits in (2, 3, 8, 16):
        assert rounded(sizes, np.full(4, 5.3), bits * sizes.sum()).tolist() == [bits] * 4


def test_a_budget_below_the_least_widths_is_refused() -> None:
    with pytest.raises(UserError, match="budget 30: with all operands at 2 bits it takes 40"):
        rounded(np.array([10, 10]), np.array([4.0, 4.0]), 30)
