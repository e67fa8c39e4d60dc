"""Weights of a network from a local file. Nothing downloads, and nothing in a file is executed."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from quantable.base.content import check_content
from quantable.base.errors import UserError

KEY = "model.net.weights"


def load_weights(
    network: nn.Module,
    weights: str | None,
    weights_sha256: str | None,
    theirs: Mapping[str, str] | None = None,
) -> nn.Module:
    """Return ``network`` with the tensors of a file, matched by name, none missing or left over.

    ``weights``: a ``.safetensors`` file or a PyTorch state dict, whose SHA-256 must be
    ``weights_sha256``; None leaves the network as it is. ``theirs``: modules that files may call by
    another name, and the network's own. UserError names the tensors that do not fit.
    """
    if weights is None:
        return network
    check_content(weights, weights_sha256, KEY)
    state = _state_dict(Path(weights).expanduser())
    ours = {_renamed(name, theirs or {}): value for name, value in state.items()}
    state = ours if len(ours) == len(state) else state  # which has both names: one is left over
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:  # names the missing, unexpected and misshapen tensors
        raise UserError(f"{KEY}: '{weights}' does not fit the network. {error}") from error
    return network


def _renamed(name: str, theirs: Mapping[str, str]) -> str:
    """Name of a tensor whose module may be called otherwise.

    >>> _renamed("linear.bias", {"linear": "fc"}), _renamed("linear1.bias", {"linear": "fc"})
    ('fc.bias', 'linear1.bias')
    """
    module, dot, tensor = name.partition(".")
    return f"{theirs.get(module, module)}{dot}{tensor}"


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(
            f"{KEY}: '{path}' holds more than plain tensors, or is broken: "
            "a .safetensors file or a PyTorch state dict is needed."
        ) from error
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            f"{KEY}: '{path}' is a checkpoint with {', '.join(weights)}: save its state dict alone."
        )
    return cast(Mapping[str, Tensor], weights)
