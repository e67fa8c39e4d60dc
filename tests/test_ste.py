import torch

from quantable.ste import round_ste, sign_ste, straight_through


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
