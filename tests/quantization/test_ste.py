from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from quantable.base.errors import UserError
from quantable.quantization.ste import (
    ROUNDINGS,
    gradient_side,
    round_ste,
    rounding,
    sign_ste,
    straight_through,
)


def test_value_is_exact_even_where_the_gradient_side_is_infinite() -> None:
    value = torch.tensor([0.1, 2.0, -3.0])
    out = straight_through(value, grad_of=torch.tensor([torch.inf, torch.nan, 1.0]))
    assert torch.equal(out, value)


def test_gradient_goes_to_one_side_only() -> None:
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    (straight_through(value, grad_of=5 * x) * torch.tensor([1.0, 7.0])).sum().backward()
    assert value.grad is None
    assert x.grad is not None
    assert x.grad.tolist() == [5.0, 35.0]


def test_round_half_to_even_and_sign_of_zero() -> None:
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert round_ste(halves).tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]
    assert sign_ste(torch.tensor([-0.0, 0.0, -1e-30])).tolist() == [1.0, 1.0, -1.0]


def test_second_derivative_is_that_of_the_gradient_side() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    (first,) = torch.autograd.grad(round_ste(x**2), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    assert (first.item(), second.item()) == (6.0, 2.0)


# The other gradients of rounding, each as a closed form of the error e = u - round(u) and of g

DELTA = 0.3
U = np.concatenate([np.linspace(-3, 3, 241), [-0.5, 0.5, 1.5, 2.5, 0.0, 2.0, 0.49999]])
G = np.where(np.arange(U.size) % 3 == 0, -1.0, 0.7) * (np.arange(U.size) % 7)  # zeros too
CLOSED = {
    "ste": lambda e, g: g,
    "psgd": lambda e, g: g + DELTA * g * np.abs(e),
    "ewgs": lambda e, g: g + DELTA * np.abs(g) * e,
    "acos": lambda e, g: g + DELTA * g * np.sin(np.pi * e) / 2,
    "tanh": lambda e, g: g + DELTA * np.abs(g) * np.tanh(4 * e) / 2,
    "invtanh": lambda e, g: g + DELTA * np.abs(g) * np.arctanh(1.9 * e) / np.arctanh(0.95) / 2,
}


def gradient(name: str, u: np.ndarray, g: np.ndarray, delta: float = DELTA) -> np.ndarray:
    x = torch.tensor(u, requires_grad=True)
    rounding(name, delta)(x).backward(torch.tensor(g))
    assert x.grad is not None
    return x.grad.numpy()


def test_eight_gradients_and_one_value() -> None:
    assert len(ROUNDINGS) == 8
    for name in ROUNDINGS:
        value = rounding(name, DELTA)(torch.tensor(U))
        np.testing.assert_array_equal(value.numpy(), np.round(U), err_msg=name)


@pytest.mark.parametrize("name", CLOSED)
def test_gradient_is_the_closed_form(name: str) -> None:
    expected = CLOSED[name](U - np.round(U), G)
    np.testing.assert_allclose(gradient(name, U, G), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(("name", "half"), [("ewgs", 0.5), ("tanh", 0.482), ("invtanh", 0.5)])
def test_a_half_pulls_towards_the_level_it_went_to(name: str, half: float) -> None:
    """0.5 goes to 0 and 1.5 to 2: their errors are 0.5 and -0.5, whatever the sign of g."""
    found = gradient(name, np.array([0.5, 1.5]), np.array([-2.0, -2.0]))
    np.testing.assert_allclose(found, [-2 + 2 * DELTA * half, -2 - 2 * DELTA * half], rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "draw"),
    [("gaussian", torch.randn), ("uniform", lambda n, dtype: torch.rand(n, dtype=dtype) - 0.5)],
)
def test_noise_is_that_of_torchs_generator(name: str, draw: Callable[..., Tensor]) -> None:
    torch.manual_seed(5)
    noise = draw(U.size, dtype=torch.float64).numpy()
    torch.manual_seed(5)
    found = gradient(name, U, G)
    np.testing.assert_allclose(found, G * (1 + DELTA * noise), rtol=1e-14)


@pytest.mark.parametrize(("name", "spread"), [("gaussian", 1.0), ("uniform", 12**-0.5)])
def test_noise_has_the_mean_and_spread_of_its_distribution(name: str, spread: float) -> None:
    torch.manual_seed(0)
    n = 40_000
    noise = (gradient(name, np.full(n, 0.3), np.full(n, 2.0)) / 2 - 1) / DELTA
    assert abs(noise.mean()) < 4 * spread / n**0.5
    assert noise.std() == pytest.approx(spread, rel=0.03)
    if name == "uniform":
        assert -0.5 <= noise.min() < -0.49
        assert 0.49 < noise.max() <= 0.5


def test_straight_through_is_the_function_that_quantizers_have_fast_forms_for() -> None:
    assert rounding("ste", 0.0) is round_ste


def test_unknown_names_and_strengths_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown rounding 'ewg'\. Nearest: ewgs"):
        rounding("ewg", DELTA)
    with pytest.raises(UserError, match=r"rounding.delta=-1: the strength is a number from 0 on"):
        rounding("ewgs", -1)


def test_gradient_of_a_value_between_levels_is_in_units_of_their_distance() -> None:
    x = torch.tensor([1.30, 1.45, 1.70], dtype=torch.float64, requires_grad=True)
    low = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    side = gradient_side(x, low, scale, rounding("ewgs", DELTA))
    side.backward(torch.tensor([1.0, -2.0, 3.0]))
    expected = [1 - 0.4 * DELTA, -2 - 2 * 0.1 * DELTA, 3 + 3 * 0.4 * DELTA]
    torch.testing.assert_close(x.grad, torch.tensor(expected, dtype=torch.float64))
    assert low.grad is scale.grad is None
