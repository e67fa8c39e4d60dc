"""Hutchinson's traces against full Hessians, and their standard errors against the variance."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.config.composition import compose_run
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.quantization.quantize import Quantize
from quantable.search import hessian
from quantable.search.hessian import Estimate, bypassed, hawq_loss, hessian_traces, perturbation
from quantable.search.run import Start, run_search
from quantable.store.record import Scores
from quantable.store.store import Store
from quantable.training.build import Built, build, part_of

INPUT_SIZE = (2, 6, 6)
TRACE = Estimate(1.0, 0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    """Two convolutions, a shortcut and a linear layer, with batch norm in evaluation mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, bias=False), nn.Softplus(), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    return net.double().eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    """Images (n, 2, 6, 6) and labels (n,)."""
    x = torch.randn(n, *INPUT_SIZE, generator=seeded(1), dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=seeded(2))


def exact_traces(net: nn.Module, weights: dict[str, Tensor]) -> dict[str, float]:
    """Trace of each layer's diagonal block of the full Hessian of the mean loss."""
    x, y = images(12)
    names, sizes = list(weights), [w.numel() for w in weights.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        new = {n: part.view_as(weights[n]) for n, part in zip(names, parts, strict=True)}
        return F.cross_entropy(functional_call(net, new, x), y)

    flat = torch.cat([w.detach().flatten() for w in weights.values()])
    diagonal = torch.autograd.functional.hessian(loss, flat).diagonal()
    return {name: float(d.sum()) for name, d in zip(names, diagonal.split(sizes), strict=True)}


def conv_weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in net.named_parameters() if p.dim() > 1}


def test_traces_are_those_of_the_full_hessian() -> None:
    net = network()
    weights = conv_weights(net)
    found = hessian_traces(
        lambda batch: F.cross_entropy(net(batch[0]), batch[1]),
        [images(12)],
        weights,
        1000,
        seeded(3),
    )
    exact = exact_traces(net, weights)
    assert list(found) == list(exact) == ["0.weight", "4.weight", "7.weight"]
    for name, trace in found.items():
        assert abs(trace.mean - exact[name]) < 3 * trace.standard_error, name
        assert trace.standard_error < 0.1 * abs(exact[name]), name  # the comparison says something
    assert all(parameter.grad is None for parameter in net.parameters())


def test_batches_of_any_size_add_up_to_the_whole() -> None:
    net = network()
    x, y = images(12)
    parts = zip(x.split([7, 4, 1]), y.split([7, 4, 1]), strict=True)  # can be read once only

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1], reduction="sum") / 12

    whole = hessian_traces(loss, [(x, y)], conv_weights(net), 5, seeded(3))
    for name, trace in hessian_traces(loss, parts, conv_weights(net), 5, seeded(3)).items():
        assert trace.mean == pytest.approx(whole[name].mean, rel=1e-9)
        assert trace.standard_error == pytest.approx(whole[name].standard_error, rel=1e-9)


# The quadratic form w' A w / 2 in two layers, of two and four weights: its Hessian is A.


def quadratic(a: Tensor, vectors: int) -> tuple[Estimate, Estimate]:
    weights = {
        "one": torch.ones(2, dtype=torch.float64, requires_grad=True),
        "two": torch.ones(2, 2, dtype=torch.float64, requires_grad=True),
    }

    def loss(_: None) -> Tensor:
        w = torch.cat([weight.flatten() for weight in weights.values()])
        return w @ a @ w / 2

    traces = hessian_traces(loss, [None], weights, vectors, seeded(0))
    return traces["one"], traces["two"]


def test_diagonal_hessian_is_exact_with_any_vectors() -> None:
    diagonal = torch.arange(1.0, 7.0, dtype=torch.float64).diag()
    assert quadratic(diagonal, vectors=2) == (Estimate(3.0, 0.0), Estimate(18.0, 0.0))


def test_standard_error_is_the_root_of_the_known_variance_over_vectors() -> None:
    vectors = 4000
    a = torch.randn(6, 6, generator=seeded(5), dtype=torch.float64)
    a = a + a.T
    for trace, block in zip(quadratic(a, vectors), [range(2), range(2, 6)], strict=True):
        # v_l (A v)_l has each pair inside the block twice, each pair with another layer once.
        inside = sum((2 * a[i, j]) ** 2 for i in block for j in block if i < j)
        across = sum(a[i, j] ** 2 for i in block for j in range(6) if j not in block)
        expected = float((inside + across) / vectors) ** 0.5
        assert trace.standard_error == pytest.approx(expected, rel=0.05)
        assert abs(trace.mean - float(sum(a[i, i] for i in block))) < 3 * expected


def test_weights_that_the_loss_does_not_read_are_an_error() -> None:
    net = network()
    stray = {"copy": net[0].weight.detach().clone().requires_grad_()}
    x, y = images(4)
    with pytest.raises(RuntimeError, match="not have been used"):
        hessian_traces(lambda _: F.cross_entropy(net(x), y), [None], stray, 2, seeded(0))


@pytest.mark.parametrize(
    ("batches", "vectors", "message"),
    [([None], 1, "vectors=1: a standard error needs at least 2"), ([], 2, "no batch")],
)
def test_too_few_vectors_or_batches_are_an_error(batches, vectors, message) -> None:
    net = network()
    with pytest.raises(UserError, match=message):
        hessian_traces(
            lambda _: net(images(2)[0]).sum(), batches, conv_weights(net), vectors, seeded(0)
        )


def test_a_search_keeps_the_standard_error_of_each_loss(tmp_path: Path) -> None:
    words = ["model=resnet8_cifar", "data=fashion_mnist_mini", "quantizer=lsq", "search=hawq"]
    config = compose_run(
        [*words, "data.train_images=32", "search.rule.images=16", "search.rule.vectors=2"]
    )
    built = build(config, Store(tmp_path), "")
    scores, _ = run_search(config, built, tmp_path, torch.device("cpu"), lambda *_: None)
    assert [item.loss.keys() for item in scores.items] == [{"4/4", "2/2"}] * len(scores.items)
    assert [item.error.keys() for item in scores.items] == [{"2/2"}] * len(scores.items)
    assert all(item.error["2/2"] > 0 for item in scores.items)
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_fewer_bits_are_for_the_output_channels_of_every_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = {"0": 0, "1": 1, "2": 0, "4": 0}  # dimension of the weight that has them
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, 4), nn.ConvTranspose2d(3, 5, 3), nn.ConvTranspose2d(5, 5, 3, groups=5),
        nn.Flatten(), nn.Linear(5 * 11 * 11, 10),
    )  # fmt: skip
    config = compose_run(["data.train_images=8", "search=hawq", "search.rule.batch_size=8"])
    images = part_of(config, "data.loader")
    quantize = Quantize(
        weight=partial(LSQ, batched=False, per_channel=True), act=partial(LSQ, batched=True),
        inner=[4, 4], ends=None, layers={},
    )  # fmt: skip
    quantize.attach(net, images.input_size)
    seen = []
    monkeypatch.setattr(hessian, "hawq_loss", lambda members: seen.extend(members) or TRACE)
    items, low = [(name,) for name in outputs], Bits(2, 2)
    cpu, built = torch.device("cpu"), Built(images, net, quantize=quantize)
    start = Start(config, built, quantize, items, low, cpu, tmp_path, lambda *_: None)
    hessian.HessianTrace(vectors=2, images=8, batch_size=8)(start)
    for (_, *both), dim in zip(seen, outputs.values(), strict=True):
        for weight, bits in zip(both, (low.weight, 4), strict=True):
            for channel in weight.unbind(dim):
                assert channel.unique().numel() <= 2**bits


# Perturbation and the product, by hand; quantizers out of the way.


def test_score_is_mean_trace_times_squared_difference_summed_over_layers() -> None:
    high = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    low = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert perturbation(low, high) == 0.3125  # 0.5^2 + 0.25^2
    one = (Estimate(8.0, 0.5), low, high)
    two = (Estimate(-3.0, 0.5), low.flatten()[:3], high.flatten()[:3])
    assert hawq_loss([one]) == Estimate(8 / 4 * 0.3125, 0.5 / 4 * 0.3125)
    assert hawq_loss([one, two]) == Estimate(
        8 / 4 * 0.3125 - 3 / 3 * 0.3125, 0.5 / 4 * 0.3125 + 0.5 / 3 * 0.3125
    )


@pytest.mark.parametrize("method", [LSQ, MinMax])
def test_bypassed_network_is_the_float_one_and_comes_back(method) -> None:
    x, y = images(12)
    net, plain = network(), network()
    callback = Quantize(
        weight=partial(method, batched=False), act=partial(method, batched=True),
        inner=[4, 4], ends=[8, 8], layers={},
    )  # fmt: skip
    callback.attach(net, INPUT_SIZE)
    net.double().train()(x)  # sets the steps or ranges
    net.load_state_dict(
        {k: v for k, v in plain.state_dict().items() if "running" in k}, strict=False
    )
    net.eval()
    quantized = net(x)

    def loss(batch: tuple[Tensor, Tensor], of: nn.Module) -> Tensor:
        return F.cross_entropy(of(batch[0]), batch[1])

    with bypassed(net):
        weights = {f"{name}.weight": net.get_submodule(name).weight for name in callback.bits}
        assert torch.equal(net(x), plain(x))
        found = hessian_traces(partial(loss, of=net), [(x, y)], weights, 3, seeded(0))
    assert torch.equal(net(x), quantized)
    assert not torch.equal(quantized, plain(x))
    assert found == hessian_traces(
        partial(loss, of=plain), [(x, y)], conv_weights(plain), 3, seeded(0)
    )


def test_quantizers_come_back_after_an_error() -> None:
    net = nn.Sequential(MinMax(2, signed=True, batched=True))
    x = torch.linspace(-1, 1, 9)[None]
    quantized = net(x)

    def failing() -> None:
        with bypassed(net):
            assert torch.equal(net(x), x)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert torch.equal(net(x), quantized)


def test_eager_quantizers_stop_the_second_derivative() -> None:
    weight = torch.randn(4, 3, generator=seeded(0)).requires_grad_()
    quantizer = LSQ(4, signed=True, batched=False)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        hessian_traces(lambda _: quantizer(weight).exp().sum(), [None], {"w": weight}, 2, seeded(0))
