"""The recipe's optimizer and a method's own: who has which parameters, and their rates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from quantable.base.errors import UserError
from quantable.quantization.face import OwnOptimizer


def make_optimizer(
    factory: Callable[..., torch.optim.Optimizer], parameters: Iterable[Any], key: str
) -> torch.optim.Optimizer:
    """An optimizer that remembers the learning rates which schedules multiply."""
    try:
        optimizer = factory(parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if group.get("foreach", False) is None:
            group["foreach"] = True  # torch chooses it on CUDA alone; on a CPU it saves calls
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group ``factor`` times the learning rate it began with."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def taken_parameters(net: nn.Module, own: Sequence[OwnOptimizer]) -> set[int]:
    """Ids of the parameters that a method's own optimizers have; each is in ``net``, and once."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    taken: set[int] = set()
    for parameter in (parameter for one in own for parameter in one.parameters):
        if id(parameter) not in names:
            raise UserError(
                f"own_optimizers: a parameter of size {list(parameter.shape)} is not of the "
                "network, so that no checkpoint would have it; put it into a module of `net`"
            )
        if id(parameter) in taken:
            raise UserError(f"own_optimizers: '{names[id(parameter)]}' is in two optimizers")
        taken.add(id(parameter))
    return taken


def parameter_groups(
    net: nn.Module, weight_decay: Mapping[str, float], taken: set[int]
) -> list[dict[str, Any]]:
    """All parameters but those ``taken``; weights of layers with their own decay in groups."""
    decayed: dict[float, list[nn.Parameter]] = {}
    for name, decay in weight_decay.items():
        layer = net.get_submodule(name)
        parametrized = is_parametrized(layer, "weight")
        weight = layer.parametrizations.weight.original if parametrized else layer.weight  # type: ignore[union-attr]
        if id(weight) in taken:
            raise UserError(f"own_optimizers: the weight of '{name}' is in two optimizers")
        decayed.setdefault(decay, []).append(weight)  # type: ignore[arg-type]
    apart = taken.union(id(weight) for weights in decayed.values() for weight in weights)
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in apart]}]
    return groups + [{"params": weights, "weight_decay": d} for d, weights in decayed.items()]
