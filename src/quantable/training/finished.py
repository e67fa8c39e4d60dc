"""A finished run's network, as it was at the end of training: quantized, and cut where it was."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantable.base.errors import UserError
from quantable.config.targets import make
from quantable.networks.channels_last import to_channels_last
from quantable.quantization.channels import shrink_to
from quantable.quantization.quantize import Quantize
from quantable.store.record import Record

WEIGHT, ACT = "parametrizations.weight.0", "act_quantizer"  # where a layer has its quantizers
QUANTIZER = re.compile(rf"\.({re.escape(WEIGHT)}|{ACT})\.")
PLAIN = re.compile(r"\.parametrizations\.(weight|bias)\.original$")  # a layer's own tensors
EXTRA = "_extra_state"  # of a quantizer, as torch calls it: what is no tensor
LAYERS = ("bits.layers", "quantizer.callback.layers")  # their keys are names with dots


def load_network(record: Record, weights: Path) -> nn.Module:
    """Build the network of ``record``, load its final ``weights`` and put it into evaluation mode.

    ``weights`` is ``weights/<record name>.pt`` of the store. Inputs are normalized images
    (n, c, h, w), outputs class scores (n, classes), computed in float32 with fake quantizers.
    """
    return load_quantized(record, weights)[0]


def load_quantized(record: Record, weights: Path) -> tuple[nn.Module, Quantize | None]:
    """The same network, and what its quantizers hang on; None where it is float."""
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; weights are kept where the run was trained")
    config = nested(record.config)
    net: nn.Module = make(config["model"]["net"])  # without the first weights, whose place is gone
    if config["recipe"]["channels_last"]:
        to_channels_last(net)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    quantize: Quantize | None = None
    if config["quantizer"]["callback"] is not None:
        quantize = cast(Quantize, make(config["quantizer"]["callback"]))
        quantize.signed = signed_in(state)
        quantize.attach(net, config["data"]["input_size"])
    shrink_to(net, state)
    net.load_state_dict(state)
    return net.eval(), quantize


def signed_in(state: Mapping[str, Any]) -> set[str] | None:
    """Layers with a signed input, as their quantizers' states say; None of older states."""
    found = {
        QUANTIZER.split(key)[0]: value.tolist()
        for key, value in state.items()
        if QUANTIZER.search(key) and key.endswith(f".{EXTRA}")
    }
    if any(len(facts) < 4 for facts in found.values()):
        return None
    return {name for name, (*_, input_signed) in found.items() if input_signed}


def final_weights(path: Path, key: str) -> dict[str, Any]:
    """State dict of a finished run; ``key`` is the config's word for that run."""
    if not path.is_file():
        raise UserError(
            f"{key}={path.stem.partition('-')[0]}: {path} is missing; train that run in this store"
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_plain(
    net: nn.Module, state: Mapping[str, Any], prepare: Callable[[], None] | None = None
) -> None:
    """Load weights and batch norms of a run, quantized or not, into the float network ``net``.

    Where they do not fit, ``net`` is first prepared as a method does.
    """
    plain = {
        PLAIN.sub(r".\1", name): value
        for name, value in state.items()
        if not QUANTIZER.search(name)
    }
    if prepare is not None and _others(net, plain):
        prepare()
    if others := _others(net, plain):
        raise UserError(
            f"start, teacher: the weights are of another network: {len(others)} of its tensors "
            f"are missing or of another size here, such as {others[0]}"
        )
    net.load_state_dict(plain)


def _others(net: nn.Module, plain: Mapping[str, Tensor]) -> list[str]:
    """Tensors that ``net`` or ``plain`` has alone, or of another size."""
    own = net.state_dict()
    others = [n for n in own if n not in plain or own[n].shape != plain[n].shape]
    return [*others, *(name for name in plain if name not in own)]


def load_quantizers(quantize: Quantize, state: Mapping[str, Any]) -> None:
    """Take over the quantizers of a run that are of the same kind and bits; others begin anew."""
    places = [(quantize.weight_quantizers, WEIGHT), (quantize.act_quantizers, ACT)]
    for quantizers, place in places:
        for name, quantizer in quantizers.items():
            prefix = f"{name}.{place}."
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            if _sizes(own) == _sizes(quantizer.state_dict()) and own[EXTRA][0] == quantizer.bits:
                quantizer.load_state_dict(own)


def _sizes(state: Mapping[str, Tensor]) -> dict[str, torch.Size | None]:
    """Which tensors a quantizer has, and how large: of one kind and granularity they are equal."""
    return {name: None if name == EXTRA else tensor.shape for name, tensor in state.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Undo the dotted keys of a record's config.

    >>> nested({"a.b": 1, "a.c.d": 2, "e": 3})
    {'a': {'b': 1, 'c': {'d': 2}}, 'e': 3}
    >>> nested({"bits.layers.layer1.0.conv1": [4, 4]})
    {'bits': {'layers': {'layer1.0.conv1': [4, 4]}}}
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        place = next((place for place in LAYERS if key.startswith(f"{place}.")), None)
        if place is None:
            *parents, leaf = key.split(".")
        else:
            parents, leaf = place.split("."), key[len(place) + 1 :]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
