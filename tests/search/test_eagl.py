"""EAGL against SciPy's entropy of NumPy's histogram, and the entropies of known distributions."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from quantable.base.errors import UserError
from quantable.methods.lsq import LSQ, lsq
from quantable.quantization.grid import int_range
from quantable.search.eagl import entropy, first_step, histogram, item_entropy, levels, mse_step

N = 1_000_000


@pytest.fixture(autouse=True, params=[2**19, 64], ids=["whole", "pieces"])
def piece(request, monkeypatch) -> None:
    """Every test runs once with tensors in one piece and once with them cut."""
    monkeypatch.setattr("quantable.base.chunks.PIECE", request.param)


def weights() -> dict[str, Tensor]:
    """Weights (c_out, c_in, k_h, k_w) of four kinds."""
    generator = torch.Generator().manual_seed(0)
    random = 0.1 * torch.randn(16, 8, 3, 3, generator=generator)
    outlier = random.clone()
    outlier[3, 2, 1, 0] = 50.0
    return {
        "random": random,
        "constant": torch.full((16, 8, 3, 3), -0.25),
        "ternary": torch.randint(-1, 2, (16, 8, 3, 3), generator=generator) * 0.3,
        "outlier": outlier,
    }


def trained(bits: int, step: Tensor) -> LSQ:
    """A weight quantizer that has learned ``step``, a scalar or one per channel."""
    quantizer = LSQ(
        bits, signed=True, batched=False, per_channel=step.dim() > 0, channels=step.numel()
    )
    with torch.no_grad():
        quantizer.step.copy_(step)
    quantizer.initialized = True
    return quantizer


def by_numpy(weight: Tensor, step: Tensor, bits: int) -> np.ndarray:
    """Histogram of the integers, one bin around each level of the signed grid."""
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    steps = step.numpy().reshape(-1, 1, 1, 1)
    integers = np.round(np.clip(weight.numpy() / steps, q_min, q_max))
    return np.histogram(integers, bins=np.arange(q_min, q_max + 2) - 0.5)[0]


STEPS = {"per tensor": torch.tensor(0.07), "per channel": torch.linspace(0.01, 0.3, 16)}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("kind", weights())
def test_entropy_is_scipys_of_numpys_histogram(kind, step, bits) -> None:
    weight = weights()[kind]
    expected = by_numpy(weight, step, bits)
    found = levels(weight, trained(bits, step))
    assert found.tolist() == expected.tolist()
    assert entropy(found) == pytest.approx(stats.entropy(expected, base=2), abs=1e-12)
    assert item_entropy([(weight, trained(bits, step))]) == entropy(found)


def test_linked_group_has_the_entropy_of_the_added_histograms() -> None:
    members = list(zip(weights().values(), torch.tensor([0.03, 0.05, 0.1, 0.2]), strict=True))
    pooled = sum(by_numpy(weight, step, 4) for weight, step in members)
    found = item_entropy([(weight, trained(4, step)) for weight, step in members])
    assert found == pytest.approx(stats.entropy(pooled, base=2), abs=1e-12)


def test_one_bit_each_on_disjoint_levels_pools_to_two_bits() -> None:
    step = torch.tensor(1.0)
    members = [torch.tensor([0.0, 1.0]).repeat(8), torch.tensor([-5.0, 6.0]).repeat(8)]
    assert [item_entropy([(weight, trained(4, step))]) for weight in members] == [1.0, 1.0]
    assert item_entropy([(weight, trained(4, step)) for weight in members]) == 2.0


@pytest.mark.parametrize(
    ("integers", "bits"),
    [(list(range(-8, 8)), 4.0), ([3] * 7, 0.0), ([-1, 0, 0, 1], 1.5), ([], 0.0)],
    ids=["uniform", "one level", "quarter, half, quarter", "no weight"],
)
def test_entropies_by_hand(integers, bits) -> None:
    weight = 0.1 * torch.tensor(integers, dtype=torch.float32)
    assert item_entropy([(weight, trained(4, torch.tensor(0.1)))]) == bits


@pytest.mark.parametrize("bits", [1, 2, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_are_those_the_quantizer_computes_with(bits, dtype) -> None:
    weight = weights()["outlier"].to(dtype).contiguous(memory_format=torch.channels_last)
    step = torch.tensor(0.0625)  # a power of two: dividing by it again is exact
    quantized = trained(bits, step)(weight.float() if dtype == torch.bfloat16 else weight)
    values, counts = torch.unique(quantized / step, return_counts=True)
    q_min, q_max = int_range(bits, signed=True)
    grid = [-1, 1] if bits == 1 else range(q_min, q_max + 1)
    expected = dict.fromkeys(grid, 0) | dict(zip(values.tolist(), counts.tolist(), strict=True))
    found = levels(weight, trained(bits, step))
    assert len(found) == 2**bits
    assert found.tolist() == list(expected.values())


def test_untrained_quantizer_counts_with_its_starting_step_and_stays_untrained() -> None:
    weight = weights()["random"]
    quantizer = LSQ(4, signed=True, batched=False)
    start = 2 * weight.abs().mean() / 7**0.5  # Esser et al., Sec. 2.1
    assert levels(weight, quantizer).tolist() == by_numpy(weight, start, 4).tolist()
    torch.testing.assert_close(first_step(weight, 4), start)
    assert not quantizer.initialized


def test_mean_and_variance_leave_the_entropy_at_the_starting_step_alone() -> None:
    weight = weights()["random"]
    assert torch.equal(
        levels(weight, LSQ(4, signed=True, batched=False)),
        levels(8 * weight, LSQ(4, signed=True, batched=False)),
    )


def test_different_bit_widths_in_one_item_are_an_error() -> None:
    weight = weights()["random"]
    members = [(weight, trained(bits, torch.tensor(0.1))) for bits in (4, 2)]
    with pytest.raises(UserError, match=r"eagl: the layers of one item have \[2, 4\] bits"):
        item_entropy(members)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_an_error(value) -> None:
    weight = weights()["random"]
    weight[0, 0, 0, 0] = value
    with pytest.raises(UserError, match="not finite"):
        levels(weight, trained(4, torch.tensor(0.1)))


# Known distributions: the sheet's numbers have three or four digits, the rest is sampling.


def entropy_and_error(weight: Tensor, step: Tensor) -> tuple[float, float]:
    """Entropy at 4 bits, and four standard errors of it for so many samples."""
    counts = histogram(weight, step, -8, 7).numpy()
    p = counts[counts > 0] / counts.sum()
    deviation = np.sqrt((p * np.log2(p) ** 2).sum() - (p * np.log2(p)).sum() ** 2)
    return entropy(torch.from_numpy(counts)), 4 * float(deviation) / len(weight) ** 0.5


def gaussian() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(1))


def laplace() -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).laplace(size=N)).float()


@pytest.mark.parametrize(
    ("weight", "step", "bits"),
    [(gaussian(), 0.6031, 2.798), (laplace(), 0.7559, 2.862)],
    ids=["gaussian", "laplace"],
)
def test_entropy_at_lsqs_starting_step(weight, step, bits) -> None:
    found = first_step(weight, 4)
    assert float(found) == pytest.approx(step, abs=5e-5 + 4 * step / N**0.5)
    value, error = entropy_and_error(weight, found)
    assert value == pytest.approx(bits, abs=5e-4 + error)


def test_entropy_of_gaussian_weights_at_the_step_of_least_squared_error() -> None:
    step = mse_step(gaussian(), 4)
    assert float(step) == pytest.approx(0.34, abs=0.005)
    value, error = entropy_and_error(gaussian(), torch.tensor(0.34))
    assert value == pytest.approx(3.58, abs=0.005 + error)


def squared_error(weight: Tensor, step: Tensor, bits: int) -> float:
    return float((lsq(weight, step, *int_range(bits, signed=True)) - weight).square().sum())


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("kind", weights())
def test_no_step_of_a_fine_grid_has_less_squared_error(kind, bits) -> None:
    weight = weights()[kind].double()
    found = squared_error(weight, mse_step(weight, bits), bits)
    candidates = torch.linspace(1e-4, 1.2, 3000, dtype=torch.float64) * weight.abs().max()
    least = min(squared_error(weight, step, bits) for step in candidates)
    assert found <= least * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("integers", [[-1, 0, 1], [3, 6], [-8, 7, 1], [5]])
def test_weights_on_a_grid_are_found_without_error(integers) -> None:
    weight = 0.037 * torch.tensor(integers, dtype=torch.float64)
    assert squared_error(weight, mse_step(weight, 4), 4) == pytest.approx(0, abs=1e-25)


def test_weights_that_are_all_zero_have_the_least_step_and_no_entropy() -> None:
    weight = torch.zeros(4, 3)
    assert first_step(weight, 4) == mse_step(weight, 4) == torch.tensor(1.0)
    assert entropy(histogram(weight, mse_step(weight, 4), -8, 7)) == 0
