"""One table of promises for every method that conf/quantizer names."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from quantable.base.errors import UserError
from quantable.quantization.quantizer import Quantizer
from quantable.quantization.ste import ROUNDINGS

CONF = Path(__file__).parents[2] / "conf"
CHANNELS = 6


def quantizer_nodes() -> dict[str, Any]:
    """Each file's quantizers as ``<file>-weight`` and ``<file>-act``; the float file has none."""
    nodes = {}
    bits = {"bits": OmegaConf.load(CONF / "bits" / "uniform.yaml")}  # which some refer to
    for path in sorted((CONF / "quantizer").glob("*.yaml")):
        callback = OmegaConf.merge(OmegaConf.load(path), bits).callback
        for operand in ("weight", "act"):
            if callback is not None and operand in callback:
                nodes[f"{path.stem}-{operand}"] = callback[operand]
    return nodes


NODES = quantizer_nodes()
BITS = range(1, 17)


def test_discovery() -> None:
    files = {path.stem: path.read_text() for path in (CONF / "quantizer").glob("*.yaml")}
    own = {name for name, text in files.items() if "defaults:" not in text}  # else another's
    assert {name.rpartition("-")[0] for name in NODES} == own - {"none"}
    assert len(NODES) >= 12
    made = {node: instantiate(NODES[node])(bits=4, signed=True, channels=1) for node in NODES}
    positive = {node for node in NODES if made[node].positive}
    a2q = {"a2q-act", "a2q_plus-act"}
    assert positive == {"lsq-weight", "lsq-act", "pact-act", "fracbits-act"} | a2q
    learning = {node for node in NODES if list(made[node].parameters())}
    # The first projects (test_edge.py), the last learn logarithms.
    assert learning - positive == {"edge-weight", "edge-act", "a2q-weight", "a2q_plus-weight"}


@pytest.fixture(params=NODES, ids=str)
def make(request):
    node = NODES[request.param]

    def make(bits: int, *, per_channel: bool, signed: bool, **more: Any) -> Quantizer:
        factory = instantiate(node, per_channel=per_channel, **more)
        return factory(bits=bits, signed=signed, channels=CHANNELS)

    return make


def values(*, signed: bool) -> Tensor:
    """(6, 6, 5, 5): dimension 0 and 1 both have as many elements as there are channels."""
    x = torch.linspace(-20, 30, CHANNELS * CHANNELS * 25).sin().reshape(CHANNELS, CHANNELS, 5, 5)
    return 2 * x if signed else (2 * x).relu()


def most_levels(out: Tensor, quantizer: Quantizer) -> int:
    """Distinct values in a tensor, or the most in any channel."""
    if not quantizer.per_channel:
        return out.unique().numel()
    return max(part.unique().numel() for part in out.unbind(int(quantizer.batched)))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_promises(make, bits: int, per_channel: bool, signed: bool) -> None:
    quantizer = make(bits, per_channel=per_channel, signed=signed)
    x = values(signed=signed).requires_grad_()
    out = quantizer(x)
    assert out.shape == x.shape
    assert most_levels(out, quantizer) <= 2**bits
    assert torch.equal(deepcopy(quantizer)(x), out)
    out.square().sum().backward()
    for name, tensor in [("input", x), *quantizer.named_parameters()]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name


@pytest.mark.parametrize("compiling", [False, True], ids=["eager", "compiling"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_what_is_not_finite_becomes_no_level(
    make, bits: int, per_channel: bool, signed: bool, compiling: bool, monkeypatch
) -> None:
    """NaN stays NaN, as in ``clamp``; infinity does too, or is clipped as a large number is."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    fresh = make(bits, per_channel=per_channel, signed=signed)
    set_before = deepcopy(fresh)
    set_before(values(signed=signed))
    at = torch.zeros(values(signed=signed).shape, dtype=torch.bool)
    at[0, 2, 3, 4] = at[3, 1, 0, 0] = True
    for quantizer in (fresh, set_before):
        for training in (False, True):
            quantizer.train(training)

            def with_value(value: float, quantizer: Quantizer = quantizer) -> Tensor:
                return deepcopy(quantizer)(values(signed=signed).masked_fill(at, value))[at]

            assert with_value(torch.nan).isnan().all()
            for side in (1, -1):
                out, clipped = with_value(side * torch.inf), with_value(side * 1e30)
                assert (out.isfinite().logical_not() | (out == clipped)).all()
        for value in (torch.nan, torch.inf):
            with pytest.raises(UserError, match="a value is not finite: the network has diverged"):
                quantizer.levels(values(signed=signed).masked_fill(at, value))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of torch's compiler
@pytest.mark.parametrize("bits", [1, 4])
def test_compiled_quantizers_hand_nan_on(make, bits: int) -> None:
    torch.compiler.reset()
    quantizer = make(bits, per_channel=False, signed=True)
    quantizer(values(signed=True))
    compiled = torch.compile(quantizer, fullgraph=True)
    x = values(signed=True)
    x[0, 0, 0, 0] = torch.nan
    for training in (True, False):
        quantizer.train(training)
        assert compiled(x)[0, 0, 0, 0].isnan()


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_a_learned_step_or_clip_below_zero_is_set_anew_and_said(make, per_channel, capsys) -> None:
    quantizer = make(4, per_channel=per_channel, signed=True)
    if quantizer.positive is None:
        return
    undisturbed = quantizer(values(signed=True))
    with torch.no_grad():
        learned = getattr(quantizer, quantizer.positive)
        kept = learned.clone()
        learned.flatten()[0] = -0.5
    quantizer.eval()(values(signed=True))
    assert learned.min() == -0.5  # evaluation keeps nothing
    for _ in range(2):
        assert torch.equal(quantizer.train()(values(signed=True)), undisturbed)
        assert torch.equal(learned, kept)
    said = capsys.readouterr().err
    assert said.count(f"the {quantizer.positive} fell to 0 in training") == 1


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", BITS)
def test_integers_and_scale_are_what_evaluation_computes_with(
    make, bits: int, per_channel: bool, signed: bool
) -> None:
    quantizer = make(bits, per_channel=per_channel, signed=signed)
    x = values(signed=signed)
    for _ in range(2):  # before the first training batch, and after it
        found = quantizer.levels(x)
        assert quantizer.training
        out = deepcopy(quantizer).eval()(x)
        if found is None:
            assert torch.equal(out, x)
        else:
            integers, scale, offset = found
            assert integers.dtype == torch.int64
            of_one = integers.unbind(int(quantizer.batched)) if per_channel else [integers]
            spans = [part.max() - part.min() for part in of_one]  # each has a lowest of its own
            assert max(spans) <= max(2, 2**bits - 1)  # binary: -1 and 1
            span = scale.max().item() * 2**bits
            last_bit = torch.finfo(torch.float32).eps * max(span, out.abs().max().item())
            torch.testing.assert_close(scale * integers + offset, out, rtol=0, atol=2 * last_bit)
        quantizer(x)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [1, 4, 16])
@pytest.mark.parametrize("training", [True, False])
def test_constant_tensors_are_finite(make, bits, per_channel, value, training) -> None:
    quantizer = make(bits, per_channel=per_channel, signed=True).train(training)
    x = torch.full((CHANNELS, CHANNELS, 5, 5), value, requires_grad=True)
    for _ in range(2):
        out = quantizer(x)
        out.sum().backward()
        assert out.isfinite().all()
        assert out.unique().numel() == 1
        assert all(
            p.grad.isfinite().all() for p in (x, *quantizer.parameters()) if p.grad is not None
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_is_float32_under_autocast(make, dtype) -> None:
    x = values(signed=True)
    quantizer = make(8, per_channel=False, signed=True)
    in_float32 = deepcopy(quantizer)(x.to(dtype).float())
    wide = deepcopy(quantizer)(x)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(deepcopy(quantizer)(x.to(dtype)), in_float32.to(dtype))
        # Rounded once, as autocast would in front of the layer.
        assert torch.equal(deepcopy(quantizer)(x), wide.to(dtype))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_gradients_of_16_bit_tensors_are_those_of_float32(make, bits, per_channel, signed) -> None:
    """The same numbers in float32, and a cast at both ends, say what they are."""
    x = values(signed=signed).bfloat16()
    upstream = torch.arange(x.numel()).cos().reshape(x.shape).bfloat16()
    results = []
    for narrow in (True, False):
        quantizer = make(bits, per_channel=per_channel, signed=signed)
        for _ in range(2):  # the second batch meets a step or range that is set
            given = x.clone().requires_grad_()
            out = quantizer(given) if narrow else quantizer(given.float()).bfloat16()
            quantizer.zero_grad()
            out.backward(upstream)
        results.append((out, given.grad, [p.grad for p in quantizer.parameters()]))
    (out, grad, learned), (wide_out, wide_grad, wide_learned) = results
    assert out.dtype == grad.dtype == torch.bfloat16
    assert torch.equal(out, wide_out)
    assert torch.equal(grad, wide_grad)
    for ours, theirs in zip(learned, wide_learned, strict=True):
        assert torch.equal(ours, theirs)


def test_layout_is_kept(make) -> None:
    x = values(signed=True)[:, :, :4].contiguous(memory_format=torch.channels_last).requires_grad_()
    out = make(4, per_channel=False, signed=True)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.square().sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


ROUNDING = "quantable.quantization.ste.rounding"


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4])
def test_every_rounding_has_the_same_values_and_its_own_gradient(make, bits, per_channel) -> None:
    gradients: dict[str, Tensor] = {}
    outs: dict[str, Tensor] = {}
    upstream = torch.arange(values(signed=True).numel()).cos().reshape(values(signed=True).shape)
    for name in ROUNDINGS:
        torch.manual_seed(0)
        node = {"_target_": ROUNDING, "name": name, "delta": 0.2}
        x = values(signed=True).requires_grad_()
        quantizer = make(bits, per_channel=per_channel, signed=True, rounding=node)
        outs[name] = quantizer(x)
        outs[name].backward(upstream)
        gradients[name] = x.grad
    for name, out in outs.items():
        assert torch.equal(out, outs["ste"]), name
        # f is from -1 to 1, but for normal noise. In the norm: where a method normalizes, each
        # element's gradient has a share of the others'.
        change = (gradients[name] - gradients["ste"]).norm() / gradients["ste"].norm()
        assert change <= (0.6 if name == "gaussian" else 0.2) * (1 + 1e-3), name
        assert name == "ste" or change > 0.01, name


def test_state_comes_back(make) -> None:
    quantizer = make(4, per_channel=False, signed=True)
    quantizer(values(signed=True))
    quantizer.bits = 3
    quantizer(values(signed=True) / 3)
    restored = make(8, per_channel=False, signed=True)
    restored.load_state_dict(quantizer.state_dict())
    x = values(signed=True) / 2
    assert restored.bits == 3
    assert torch.equal(restored.eval()(x), quantizer.eval()(x))
