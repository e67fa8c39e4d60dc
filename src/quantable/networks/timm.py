"""Any timm network by its full ``name.tag``, with weights from a local file. Nothing downloads."""

import timm
from torch import nn

from quantable.base.errors import UserError, unknown
from quantable.networks.weights import load_weights


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
    ``weights``: a file of tensors for it (``weights.load_weights``); None starts from timm's random
    initialization.

    >>> net = timm_network("mobilenetv2_100.ra_in1k", 10, 3, weights=None, weights_sha256=None)
    >>> net.get_classifier()
    Linear(in_features=1280, out_features=10, bias=True)
    """
    network = timm.create_model(
        full_name(name), pretrained=False, num_classes=classes, in_chans=in_channels
    )
    return load_weights(network, weights, weights_sha256)


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
