"""A2Q and A2Q+: the equations by hand, the promise in exact integers, and Brevitas beside them."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import MAY_LACK
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base.errors import UserError
from quantable.methods.a2q import A2Q, A2QPlus, AccumulatorAware, a2q, project_onto_l1_ball
from quantable.methods.lsq import LSQ
from quantable.quantization.grid import int_range
from quantable.quantization.quantizer import Layer
from quantable.training.classifier import Classifier
from quantable.training.schedule import constant

METHODS = {"a2q": A2Q, "a2q_plus": A2QPlus}
BOTH = pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)


def quantizer(
    kind: type[A2Q], accumulator: int, data: int, *, bits: int = 4, channels: int, signed: bool
) -> A2Q:
    """A weight's quantizer in a layer whose input has ``data`` bits."""
    made = kind(
        bits,
        signed=True,
        batched=False,
        accumulator_bits=accumulator,
        per_channel=True,
        channels=channels,
    )
    made.layer = Layer("conv", "conv", signed, LSQ(data, signed=signed, batched=True))
    return made


# The equations


@pytest.mark.parametrize(
    ("accumulator", "data", "expected"),  # sheets of the papers' limits, two decimals
    [(16, 4, (2047.94, 4368.93)), (14, 6, (127.98, 260.03)), (12, 8, (8.00, 16.05))],
)
def test_limits_are_those_of_the_papers(accumulator, data, expected) -> None:
    found = [
        float(quantizer(kind, accumulator, data, channels=1, signed=False).l1_limit)
        for kind in METHODS.values()
    ]
    assert found == pytest.approx(expected, abs=0.0051)
    assert found[1] / found[0] == pytest.approx(2 ** (data + 1) / (2**data - 1))


V = torch.tensor([2.0, -1.1, 0.55, -0.05, 0.0], dtype=torch.float64)  # of l1 norm 3.7


@pytest.mark.parametrize(
    ("limit", "levels"),
    [
        (100.0, [7, -5, 2, 0, 0]),  # g / s = 18.5: 10, -5.5, 2.75, -0.25 steps, clipped at 7
        (9.25, [5, -2, 1, 0, 0]),  # half of them
    ],
)
def test_values_and_gradients_are_those_of_the_equation(limit: float, levels: list[int]) -> None:
    v, s, g = V.clone().requires_grad_(), torch.tensor(0.2).double(), torch.tensor(3.7).double()
    s.requires_grad_()
    g.requires_grad_()
    out = a2q(v, v.abs().sum(), s, g, limit, q_max=7)
    q = torch.tensor(levels).double()
    torch.testing.assert_close(out, q * 0.2)
    u = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.1]).double()
    out.backward(u)
    inside = torch.tensor([float(limit < 10), 1, 1, 1, 1]).double()  # what is clipped has none
    reach, r, u_in = min(18.5, limit), V / 3.7, u * inside
    expected_v = 0.2 * reach / 3.7 * (u_in - V.sign() * (u_in * r).sum())
    torch.testing.assert_close(v.grad, expected_v)
    limited = limit < 18.5
    torch.testing.assert_close(g.grad, 0 * g if limited else (u_in * r).sum())
    of_reach = 0 if limited else (u_in * r * 18.5).sum()
    torch.testing.assert_close(s.grad, (u * q).sum() - of_reach)


def test_a2q_plus_centres_each_channel() -> None:
    v = torch.tensor([[0.9, 0.1, 0.2, 0.0], [-3.0, -3.0, -3.0, -3.0]])
    made = quantizer(A2QPlus, 32, 8, channels=2, signed=False)
    torch.testing.assert_close(made.centred(v)[0], torch.tensor([0.6, -0.2, -0.1, -0.3]))
    # s = 0.9 / 7 and g = 1.2, uncentred: the centred norm of 1.2 is kept
    assert made.levels(v).integers.tolist() == [[4, -1, 0, -2], [0, 0, 0, 0]]
    third = torch.full((1, 144), 1 / 3)  # whose mean in float32 is another number
    assert third.mean() != third[0, 0]
    assert (made.centred(third) == 0).all()


# The promise


def assert_fits(q: Tensor, made: A2Q) -> None:
    """The norm of every channel of ``q``, and what the extreme data of its layer make of it."""
    q, layer = q.flatten(1), made.layer
    assert int(q.abs().sum(1).max()) <= made.l1_limit
    low, high = int_range(layer.input_bits, signed=layer.input_signed)
    above, below = q.clamp(min=0).sum(1), -q.clamp(max=0).sum(1)
    most = 2 ** (made.accumulator_bits - 1)
    assert (high * above - low * below).max() <= most - 1
    assert (low * above - high * below).min() >= -most


def rows(draw: Any) -> Tensor:
    """Weights of a few channels, also such as no training gives."""
    c, k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 16, 144, 577]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    noise = torch.randn(c, k, generator=generator)
    shape = draw(st.sampled_from(["plain", "far", "equal", "signs", "few", "zero", "one", "skew"]))
    return {
        "plain": noise * 0.05,
        "far": 1 + noise * 1e-6,  # a mean far above the spread
        "equal": torch.full((c, k), 0.3),
        "signs": noise.sign() * 0.1,
        "few": noise * (noise.abs() > 1.5),
        "zero": torch.zeros(c, k),
        "one": torch.eye(c, k) * -0.7,
        "skew": noise.exp() - 0.5,
    }[shape]


@st.composite
def cases(draw: Any) -> tuple[Tensor, A2Q]:
    weights, kind = rows(draw), draw(st.sampled_from([A2Q, A2QPlus]))
    signed, data = draw(st.booleans()), draw(st.integers(1, 8))
    if kind is A2QPlus and signed and data == 1:
        data = 2
    made = quantizer(
        kind,
        draw(st.integers(2, 20)),
        data,
        bits=draw(st.integers(2, 8)),
        channels=len(weights),
        signed=signed,
    )
    made(weights.clone())
    with torch.no_grad():  # wherever training takes them
        made.log2_step += draw(st.floats(-6, 2))
        made.log2_norm += draw(st.floats(-2, 8))
    return weights, made


@settings(deadline=None, max_examples=300)
@given(cases())
def test_no_input_overflows(case: tuple[Tensor, A2Q]) -> None:
    """The extreme input of each sign, in exact integers: it is beyond every partial sum too."""
    weights, made = case
    found = made.levels(weights)
    assert (found.offset == 0).all()
    assert found.integers.abs().max() <= 2 ** (made.bits - 1) - 1
    assert_fits(found.integers, made)


# What training begins with


def test_projection_is_the_nearest_point_of_the_ball() -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(50, 40, generator=generator).double()
    v[1] = 0
    v[2] = 0.5  # ties
    radius = torch.linspace(0.01, 40, 50).double()
    found = project_onto_l1_ball(v, radius)
    norm, inside = found.abs().sum(1), v.abs().sum(1) <= radius
    assert 10 < inside.sum() < 40
    assert torch.equal(found[inside], v[inside])
    torch.testing.assert_close(norm[~inside], radius[~inside])
    # Conditions of Karush, Kuhn and Tucker: what stays is lowered by one number, which what does
    # not stay is no larger than.
    for row, projected in zip(v[~inside], found[~inside], strict=True):
        kept = projected != 0
        lowered = (row - projected)[kept] * row[kept].sign()
        assert lowered.max() - lowered.min() < 1e-12
        assert (projected[kept].sign() == row[kept].sign()).all()
        assert (row[~kept].abs() <= lowered.max() + 1e-12).all()
    torch.testing.assert_close(project_onto_l1_ball(found, radius), found)


@BOTH
def test_the_first_batch_sets_step_and_norm_and_projects_in_place(kind: type[A2Q]) -> None:
    v = torch.randn(6, 90, generator=torch.Generator().manual_seed(3))
    v[0] *= 1e-4
    made = quantizer(kind, 11, 4, channels=6, signed=False)
    limit, step = float(made.l1_limit), v.abs().amax(1) / 7
    weight, held = nn.Parameter(v.clone()), made.log2_step
    looked_at = made.eval()(weight)
    assert torch.equal(weight, v)  # evaluation keeps nothing
    assert not made.initialized
    assert torch.equal(made.train()(weight), looked_at)
    assert made.log2_step is held
    torch.testing.assert_close(2**made.log2_step, step)
    torch.testing.assert_close(2**made.log2_norm, torch.minimum(v.abs().sum(1), step * limit))
    torch.testing.assert_close(weight.detach(), project_onto_l1_ball(v, step * limit))
    assert not torch.equal(weight, v)

    restored = quantizer(kind, 11, 4, channels=6, signed=False)
    restored.load_state_dict(made.state_dict())
    elsewhere = nn.Parameter(v.clone())  # weights that training has moved
    restored(elsewhere)
    assert torch.equal(elsewhere, v)  # are not projected again
    restored.bits = 3
    restored(elsewhere)
    torch.testing.assert_close(2**restored.log2_step, v.abs().amax(1) / 3)


@BOTH
def test_channels_of_zeros_and_constants_learn(kind: type[A2Q]) -> None:
    v = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    v[0], v[1] = 0, 0.25
    weight = nn.Parameter(v)
    made = quantizer(kind, 10, 4, channels=3, signed=False)
    optimizer = torch.optim.SGD([weight, *made.parameters()], lr=0.1)
    target = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    for step in range(60):
        loss = (made(weight) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert weight.isfinite().all()
        if step == 0:
            first = loss.item()
    assert loss.item() < first
    assert (made.levels(weight.detach()).integers[:2] != 0).any(dim=1).all()


# A network

SIZE = (1, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(128, 12),  # its input is signed
        nn.ReLU(),
        nn.Linear(12, 2),
    )


def method(kind: type[A2Q] = A2Q, accumulator: int | None = 12, **changes: Any) -> AccumulatorAware:
    return AccumulatorAware(
        **{
            "weight": partial(kind, batched=False, per_channel=True, accumulator_bits=accumulator),
            "act": partial(LSQ, batched=True),
            "free": partial(LSQ, batched=False, per_channel=True),
            "inner": [4, 4],
            "ends": [8, 8],
            "layers": {},
            "strength": 1e-3,
        }
        | changes
    )


def test_ends_are_free_unless_they_are_like_the_others() -> None:
    ours = method()
    ours.attach(network(), SIZE)
    assert set(ours.free_of_accumulator) == {"0", "7"}
    assert set(ours.limited) == {"2", "5"}
    kinds = {name: type(found) for name, found in ours.weight_quantizers.items()}
    assert kinds == {"0": LSQ, "2": A2Q, "5": A2Q, "7": LSQ}
    assert ours.limited["2"].l1_limit * 16 == ours.limited["5"].l1_limit * 8 == 2**11 - 1
    all_limited = method(ends=None)
    all_limited.attach(network(), SIZE)
    assert set(all_limited.limited) == {"0", "2", "5", "7"}
    assert not all_limited.free_of_accumulator


@BOTH
def test_sums_fit_after_every_step(kind: type[A2Q]) -> None:
    ours, net = method(kind, accumulator=9), network()
    with torch.no_grad():
        net[2].weight[1] = 0
    module = Classifier(
        net,
        input_size=SIZE,
        optimizer=partial(torch.optim.SGD, lr=0.5),
        schedule=constant,
        epochs=1,
    )
    ours.setup(None, module, "fit")
    (penalty,) = module.penalties
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    for _ in range(8):
        x = torch.randn(16, *SIZE, generator=generator)
        (cross_entropy(net(x), x.mean((1, 2, 3)).gt(0).long()) + penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        for found in ours.final_layers():
            if found.name not in ours.free_of_accumulator:
                assert_fits(found.integers, ours.limited[found.name])


def test_penalty_is_the_hinge_on_every_channels_norm() -> None:
    ours, net = method(accumulator=10), network()
    ours.attach(net, SIZE)
    net(torch.randn(4, *SIZE))
    expected = 0.0
    with torch.no_grad():
        for found in ours.limited.values():
            found.log2_norm += torch.linspace(-1, 1, len(found.log2_norm))
            s, g = 2**found.log2_step, 2**found.log2_norm
            expected += sum(max(0.0, x) for x in (g - s * float(found.l1_limit)).tolist())
    assert expected > 0
    assert ours.penalty().item() == pytest.approx(1e-3 * expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulator": None}, r"bits\.accumulator: say how many bits the sums have"),
        ({"inner": [4, 32]}, r"layer '2': its input is in float"),
        ({"layers": {"5": [1, 4]}}, r"layer '5': of one bit there is the level 0 alone"),
        (
            {"accumulator": 6, "layers": {"5": [4, 8]}},
            r"bits\.accumulator=6: too few for layer '5', whose input has 8 bits: .* 0\.242",
        ),
        ({"kind": A2QPlus, "layers": {"5": [4, 1]}}, r"layer '5': the limit of A2Q\+ is for"),
    ],
    ids=["none", "float", "one", "few", "sign"],
)
def test_what_cannot_be_limited_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**changes).attach(network(), SIZE)


# Brevitas, 0.13.4: the authors' own. CI installs it; it is in no lock, as it pins setuptools.

CONFIGURATIONS = [
    (*widths, accumulator)
    for accumulator, widths in product(
        (32, 20, 16, 14, 12, 10, 8),
        [(8, 8, True), (8, 8, False), (4, 4, False), (6, 5, False), (3, 8, False), (2, 2, False)],
    )
]


def brevitas_integers(
    kind: type[A2Q], v: Tensor, widths: tuple[int, int, bool, int], at_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, log2 s and log2 g of Brevitas' layer with the weight ``v``, s times ``at_step``.

    It has two s, which are equal as long as nothing is trained (since 0.11): the inner one counts.
    """
    from brevitas.nn import QuantConv2d
    from brevitas.quant import (
        Int8AccumulatorAwareWeightQuant,
        Int8AccumulatorAwareZeroCenterWeightQuant,
    )
    from brevitas.quant_tensor import IntQuantTensor

    weight_bits, data_bits, signed, accumulator = widths
    conv = QuantConv2d(
        *(v.shape[1], v.shape[0], v.shape[2:]),
        bias=False,
        weight_quant=Int8AccumulatorAwareZeroCenterWeightQuant
        if kind is A2QPlus
        else Int8AccumulatorAwareWeightQuant,
        weight_bit_width=weight_bits,
        weight_accumulator_bit_width=accumulator,
    ).to(v.dtype)
    conv.weight.data.copy_(v)
    conv.weight_quant.init_tensor_quant()
    conv.to(v.dtype)
    pre = conv.weight_quant.tensor_quant.pre_scaling_impl
    pre.scaling_impl.value.data += torch.tensor(at_step, dtype=v.dtype).log2()
    scale, zero, bits = (torch.tensor(float(x), dtype=v.dtype) for x in (1, 0, data_bits))
    images = torch.zeros(1, v.shape[1], 8, 8, dtype=v.dtype)
    q = conv.quant_weight(IntQuantTensor(images, scale, zero, bits, signed, False))
    integers = q.int(float_datatype=False).long()
    return integers, pre.scaling_impl.value.detach(), pre.value.detach()


@pytest.mark.slow  # with its installation
@pytest.mark.filterwarnings("ignore")  # those of Brevitas and of torch's compiler for it
@pytest.mark.parametrize(
    ("kind", "dtype"),
    # A2Q+ centres in float64: in float32 one weight in ten million lies on the other side
    [(A2Q, torch.float32), (A2Q, torch.float64), (A2QPlus, torch.float64)],
    ids=["a2q-32", "a2q-64", "a2q_plus-64"],
)
def test_integers_are_those_of_brevitas(kind: type[A2Q], dtype: torch.dtype) -> None:
    if MAY_LACK:
        pytest.importorskip(
            "brevitas", reason="Brevitas, of the extra bench, pins setuptools: not in the lock"
        )
    v = torch.randn(64, 96, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.05
    differ = 0
    for widths in CONFIGURATIONS:
        bits, data, signed, accumulator = widths
        for at_step in (1.0, 0.97):
            theirs, log2_step, log2_norm = brevitas_integers(kind, v, widths, at_step)
            made = quantizer(kind, accumulator, data, bits=bits, channels=64, signed=signed)
            made.to(dtype)(v.clone())
            if at_step == 1:
                torch.testing.assert_close(made.log2_step.detach(), log2_step.flatten())
            with torch.no_grad():
                made.log2_step.copy_(log2_step.flatten())
                made.log2_norm.copy_(log2_norm.flatten())
            ours = made.levels(v).integers
            differ += int((ours != theirs).sum())
    assert len(CONFIGURATIONS) == 42
    assert differ == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_projection_is_that_of_brevitas() -> None:
    if MAY_LACK:
        pytest.importorskip(
            "brevitas", reason="Brevitas, of the extra bench, pins setuptools: not in the lock"
        )
    from brevitas_examples.imagenet_classification.a2q.ep_init import (
        euclidean_projection_onto_l1_ball,
    )

    v = torch.randn(64, 864, generator=torch.Generator().manual_seed(0))
    v[1] = 0.5
    radius = torch.logspace(-2, 3, 64)
    theirs = [
        euclidean_projection_onto_l1_ball(row.clone(), r.item())
        for row, r in zip(v, radius, strict=True)
    ]
    ours = project_onto_l1_ball(v, radius)
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=2e-6)
