"""Names of this project's own classes and functions in configs, which stay when modules move.

A signature, a record and a frozen cell call a target what it was first signed as; the code lies
where ``MOVED`` says, or still there. A target that has not moved needs no line here.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Any

from hydra.utils import get_object, instantiate

from quantable.base.content import SHA256, check_content

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
    """What a part of a config describes; its targets may be named as signed, or as today.

    Files are read with the content that their hashes say. A record keeps the hashes alone: what it
    describes is made without its files.
    """
    return instantiate(_for_builders(_renamed(config, lambda target: MOVED.get(target, target))))


def _for_builders(node: Any) -> Any:  # noqa: ANN401
    """Without hashes of files, and files that are none, where a builder has no such keyword."""
    if isinstance(node, list):
        return [_for_builders(part) for part in node]
    if not isinstance(node, dict):
        return node
    hashes = {k.removesuffix(SHA256): node[k] for k in map(str, node) if k.endswith(SHA256)}
    made = {key: _for_builders(value) for key, value in (dict.fromkeys(hashes) | node).items()}
    taken = _keywords(node.get(TARGET)) if hashes else ()
    for key, sha256 in hashes.items():
        if made[key] is not None:
            check_content(made[key], sha256, key)
        elif key not in taken:
            del made[key]
        if f"{key}{SHA256}" not in taken:
            del made[f"{key}{SHA256}"]
    return made


def _keywords(target: str | None) -> Collection[str]:
    try:
        return () if target is None else inspect.signature(get_object(target)).parameters
    except Exception:  # making it will say what is wrong
        return ()


def _renamed(node: Any, name: Callable[[str], str]) -> Any:  # noqa: ANN401
    if isinstance(node, dict):
        return {
            key: name(value) if key == TARGET else _renamed(value, name)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_renamed(value, name) for value in node]
    return node
