"""A finished run's network, as it was at the end of training: quantized, and cut where it was."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn

from quantable.channels import shrink_to
from quantable.names import UserError
from quantable.quantize import Quantize
from quantable.record import Record

LAYERS = ("bits.layers", "quantizer.callback.layers")  # their keys are names with dots


def load_network(record: Record, weights: Path) -> nn.Module:
    """Build the network of ``record``, load its final ``weights`` and put it into evaluation mode.

    ``weights`` is ``weights/<record name>.pt`` of the store. Inputs are normalized images
    (n, c, h, w), outputs class scores (n, classes), computed in float32 with fake quantizers.
    """
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; weights are kept where the run was trained")
    config = nested(record.config)
    node = config["model"]["net"]
    if "weights_sha256" in node:  # a record keeps the hash of the first weights, not their place
        node["weights"] = None
    net: nn.Module = instantiate(node)
    if config["recipe"]["channels_last"]:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config["quantizer"]["callback"] is not None:
        quantize: Quantize = instantiate(config["quantizer"]["callback"])
        quantize.attach(net, config["data"]["input_size"])
    state = torch.load(weights, map_location="cpu", weights_only=True)
    shrink_to(net, state)
    net.load_state_dict(state)
    return net.eval()


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
