"""The recipe's optimizer and a method's own: who has which parameters, and their rates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.networks.counting import COUNTED
from quantable.quantization.channels import raw_weight
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
    net: nn.Module, weight_decay: Mapping[str, float], taken: set[int], *, decay_all: bool
) -> list[dict[str, Any]]:
    """All parameters but those ``taken``; weights of layers with their own decay in groups.

    Without ``decay_all`` only the weights of layers decay: no bias, no norm, no quantizer.
    """
    decayed: dict[float, list[Tensor]] = {}
    for name, decay in weight_decay.items():
        weight = raw_weight(net.get_submodule(name))
        if id(weight) in taken:
            raise UserError(f"own_optimizers: the weight of '{name}' is in two optimizers")
        decayed.setdefault(decay, []).append(weight)
    if not decay_all:
        layers = [module for module in net.modules() if isinstance(module, COUNTED)]
        weights = {id(raw_weight(layer)) for layer in layers}
        others = [p for p in net.parameters() if id(p) not in taken | weights]
        decayed[0.0] = others + decayed.get(0.0, [])
    apart = taken.union(id(weight) for weights in decayed.values() for weight in weights)
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in apart]}]
    return groups + [{"params": weights, "weight_decay": d} for d, weights in decayed.items()]
