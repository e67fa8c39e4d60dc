"""Names of this project's own classes and functions in configs, which stay when modules move.

A signature, a record and a frozen cell call a target what it was first signed as; the code lies
where ``MOVED`` says, or still there. A target that has not moved needs no line here.
"""

from collections.abc import Callable
from typing import Any

from hydra.utils import instantiate

TARGET = "_target_"
MOVED: dict[str, str] = {  # first signed as -> where it is today
    "quantable.models.cifar.resnet18_cifar": "quantable.networks.cifar.resnet18_cifar",
    "quantable.models.cifar.resnet20_cifar": "quantable.networks.cifar.resnet20_cifar",
    "quantable.models.cifar.resnet8_cifar": "quantable.networks.cifar.resnet8_cifar",
    "quantable.models.cifar.vgg19_cifar": "quantable.networks.cifar.vgg19_cifar",
    "quantable.models.squeezenext.sqnxt23_w2": "quantable.networks.squeezenext.sqnxt23_w2",
    "quantable.models.timm.timm_network": "quantable.networks.timm.timm_network",
    "quantable.quantize.Quantize": "quantable.quantization.quantize.Quantize",
    "quantable.ste.rounding": "quantable.quantization.ste.rounding",
    "quantable.recipe.constant": "quantable.training.schedule.constant",
    "quantable.recipe.one_cycle": "quantable.training.schedule.one_cycle",
}


def signed_as(config: Any) -> Any:  # noqa: ANN401 - any part of a config
    """Copy of a config, or a part of it, whose targets are named as they were first signed.

    >>> signed_as({"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    {'optimizer': {'_target_': 'torch.optim.SGD', 'lr': 0.1}}
    """
    first = {today: first for first, today in MOVED.items()}
    return _renamed(config, lambda target: first.get(target, target))


def make(config: Any) -> Any:  # noqa: ANN401 - what the target makes
    """What a part of a config describes; its targets may be named as signed, or as today."""
    return instantiate(_renamed(config, lambda target: MOVED.get(target, target)))


def _renamed(node: Any, name: Callable[[str], str]) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        return {
            key: name(value) if key == TARGET else _renamed(value, name)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_renamed(value, name) for value in node]
    return node
