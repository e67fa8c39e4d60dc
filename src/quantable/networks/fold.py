r"""Batch norms that stand right behind a convolution or linear layer, folded into it.

With the norm's scale :math:`\gamma`, shift :math:`\beta`, running mean and variance, in evaluation

.. math:: w' = w \gamma / \sqrt{var + \epsilon}, \qquad
    b' = \beta + (b - mean) \gamma / \sqrt{var + \epsilon}
"""

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.base.errors import UserError
from quantable.networks.counting import COUNTED, TRANSPOSED, counted_layers
from quantable.networks.operands import check_operands
from quantable.networks.passes import evaluate, hooked, named, probe

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d)
ACTIVE = "timm.layers.norm_act"  # module of norms that have dropout and activation within


def fold_batch_norms(network: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Fold every batch norm of ``network``, in place; the names of the layers that took one.

    For images (c, h, w), in evaluation: statistics no longer follow the batches of a training. A
    norm becomes an identity, one with an activation within (timm) that activation. Each must read
    the very result of one layer, which nothing else reads; both run once in a forward pass.

    Raises UserError, by name, for a norm that cannot be folded; the network is then as it was.
    """
    norms = {name: module for name, module in named(network) if isinstance(module, _BatchNorm)}
    if not norms:
        return []
    seen = _look(network, input_size, norms)
    layers = counted_layers(network)
    pairs = {name: _producer(name, norm, seen, layers) for name, norm in norms.items()}
    check_operands(network, input_size, weights=list(pairs.values()), inputs=[])
    _check_only_readers(network, input_size, pairs)
    for name, layer in pairs.items():
        fold(layers[layer], norms[name])
        network.set_submodule(name, _left_of(norms[name]))
    return list(pairs.values())


@torch.no_grad()
def fold(layer: nn.Module, norm: _BatchNorm) -> None:
    """Take the scale and shift of ``norm`` into weight and bias, computed in float64."""
    weight = cast(nn.Parameter, layer.weight)
    mean, var = (cast(Tensor, t).double() for t in (norm.running_mean, norm.running_var))
    scale = (var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight.double())
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    bias = -mean if layer.bias is None else cast(Tensor, layer.bias).double() - mean
    shape = [-1] + [1] * (weight.dim() - 1)
    weight.copy_(weight.double() * scale.view(shape))
    layer.bias = nn.Parameter((shift + bias * scale).to(weight), weight.requires_grad)


def _left_of(norm: _BatchNorm) -> nn.Module:
    """What a norm does beside normalizing."""
    if type(norm) in PLAIN:
        return nn.Identity()
    parts: list[tuple[str, nn.Module]] = [("drop", norm.drop), ("act", norm.act)]  # type: ignore[list-item]
    return nn.Sequential(OrderedDict(parts)).train(norm.training)


@dataclass
class _Seen:
    """Calls in one forward pass, by name: results of layers, inputs of norms."""

    calls: dict[str, int] = field(default_factory=dict)
    results: dict[str, tuple[Tensor, int]] = field(default_factory=dict)  # with their versions
    inputs: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


def _look(
    network: nn.Module, input_size: tuple[int, int, int], norms: dict[str, _BatchNorm]
) -> _Seen:
    """See who hands which tensor to whom: one changed in place between has another version."""
    seen = _Seen()

    def before(name: str) -> Any:  # noqa: ANN401
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            seen.inputs[name] = args[0], args[0]._version

        return note

    def note(name: str, _: tuple[Any, ...], out: Tensor) -> None:
        seen.calls[name] = seen.calls.get(name, 0) + 1
        seen.results[name] = out, out._version

    watched = {name: module for name, module in named(network) if isinstance(module, COUNTED)}
    handles = [norm.register_forward_pre_hook(before(name)) for name, norm in norms.items()]
    try:
        with torch.no_grad(), hooked({**watched, **norms}, note):
            evaluate(network, probe(network, input_size, batch=1))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _producer(name: str, norm: _BatchNorm, seen: _Seen, layers: dict[str, nn.Module]) -> str:
    """Name of the layer whose very result ``norm`` reads."""
    if not (type(norm) in PLAIN or type(norm).__module__ == ACTIVE):
        raise _refusal(name, norm, "it may do more than to normalize")
    if norm.running_mean is None:
        raise _refusal(name, norm, "it keeps no statistics")
    if seen.calls.get(name) != 1:
        raise _refusal(name, norm, f"it runs {seen.calls.get(name, 0)} times in a forward pass")
    x, version = seen.inputs[name]
    made = [layer for layer, (out, v) in seen.results.items() if out is x and v == version]
    made = [layer for layer in made if layer in layers]
    if not made:
        raise _refusal(name, norm, "it does not read the result of a convolution or linear layer")
    (layer,) = made
    if seen.calls[layer] != 1:
        raise _refusal(name, norm, f"layer '{layer}' runs {seen.calls[layer]} times")
    if isinstance(layers[layer], TRANSPOSED):
        raise _refusal(name, norm, f"layer '{layer}' is transposed")
    if isinstance(layers[layer], nn.Linear) and x.dim() != 2:
        raise _refusal(name, norm, f"layer '{layer}' has its channels in another dimension")
    return layer


def _check_only_readers(
    network: nn.Module, input_size: tuple[int, int, int], pairs: dict[str, str]
) -> None:
    """Refuse a norm beside which something else reads the layer's result.

    NaN in that result, which no operation hides, must change nothing while the norm's is held.
    """
    modules = dict(named(network))
    norms = {name: modules[name] for name in pairs}
    held: dict[str, Tensor] = {}
    with torch.no_grad():
        x = probe(network, input_size, batch=1)
        with hooked(norms, lambda name, _, out: held.update({name: out.clone()})):
            whole = evaluate(network, x)

        def alone(some: Collection[str]) -> bool:
            handles = [
                handle
                for name in some
                for handle in (
                    modules[pairs[name]].register_forward_hook(_poisoned),
                    modules[name].register_forward_hook(_held(held[name])),
                )
            ]
            try:
                return torch.equal(evaluate(network, x), whole)
            finally:
                for handle in handles:
                    handle.remove()

        if alone(pairs):
            return
        name = next(name for name in pairs if not alone([name]))
    raise _refusal(name, norms[name], f"the result of layer '{pairs[name]}' has other readers too")


def _poisoned(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    return torch.full_like(out, torch.nan)


def _held(result: Tensor) -> Callable[..., Tensor]:
    return lambda *_: result.clone()  # what follows may change it in place


def _refusal(name: str, norm: nn.Module, why: str) -> UserError:
    return UserError(f"batch norm '{name}' ({type(norm).__name__}) cannot be folded: {why}")
