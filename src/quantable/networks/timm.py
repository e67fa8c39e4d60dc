"""Any timm network by its full ``name.tag``, with weights from a local file. Nothing downloads."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from quantable.base.errors import UserError, unknown


def timm_network(
    name: str,
    classes: int,
    in_channels: int,
    weights: str | None,
    weights_sha256: str | None,
) -> nn.Module:
    """The timm network ``name``, ``(n, in_channels, h, w)`` to ``(n, classes)``.

    ``name`` holds timm's tag (``resnet18.tv_in1k``): the tag names the weights, and with them the
    preprocessing; only where a network has a single tag, or none, may it be left out.
    ``weights``: a local ``.safetensors`` file or a PyTorch state dict, loaded strictly after its
    SHA-256 was compared with ``weights_sha256``; None starts from timm's random initialization.

    >>> net = timm_network("mobilenetv2_100.ra_in1k", 10, 3, weights=None, weights_sha256=None)
    >>> net.get_classifier()
    Linear(in_features=1280, out_features=10, bias=True)
    """
    network = timm.create_model(
        full_name(name), pretrained=False, num_classes=classes, in_chans=in_channels
    )
    if weights is not None:
        _load(network, Path(weights).expanduser(), weights_sha256)
    return network


def full_name(name: str) -> str:
    """``name`` with its tag; raises where it is unknown, or its tag is missing and not unique.

    >>> full_name("mobilenetv2_100")
    'mobilenetv2_100.ra_in1k'
    """
    known = timm.list_models(include_tags=True)
    if name in known:
        return name
    tagged = [candidate for candidate in known if candidate.startswith(f"{name}.")]
    if len(tagged) == 1:
        return tagged[0]
    if tagged:
        raise UserError(
            f"model.net.name: '{name}' has {len(tagged)} sets of weights: "
            f"name one of {', '.join(tagged)}."
        )
    raise unknown("timm network", name, known, "model.net.name")


def _load(network: nn.Module, path: Path, sha256: str | None) -> None:
    if not path.is_file():
        raise UserError(f"model.net.weights: no file '{path}'; null starts from random weights.")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise UserError(
            f"model.net.weights_sha256={sha256 or 'null'}: the SHA-256 of '{path}' is {actual}. "
            "If it is the file you mean, set model.net.weights_sha256 to that."
        )
    try:
        network.load_state_dict(_state_dict(path), strict=True)
    except RuntimeError as error:  # names the missing, unexpected and misshapen tensors
        raise UserError(f"model.net.weights: '{path}' does not fit the network. {error}") from error


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(
            f"model.net.weights: '{path}' holds more than plain tensors, or is broken: "
            "a .safetensors file or a PyTorch state dict is needed."
        ) from error
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            f"model.net.weights: '{path}' is a checkpoint with {', '.join(weights)}: "
            "save its state dict alone."
        )
    return cast(Mapping[str, Tensor], weights)
