"""All-CNN-C, convolutions alone, without batch norm, at any width.

Springenberg, Dosovitskiy, Brox, Riedmiller, ICLR 2015 workshop, arXiv:1412.6806, Table 1 (C) with
strided convolutions for pooling; weights begin as in He et al., arXiv:1502.01852. Inputs are
``(n, in_channels, h, w)``, outputs ``(n, classes)``.
"""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from quantable.networks.cifar import scaled
from quantable.networks.weights import load_weights


def allcnn_c(
    classes: int,
    in_channels: int,
    width: float,
    dropout: bool,
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> nn.Module:
    """All-CNN-C: 96 and 192 channels, the last 3x3 convolution without padding.

    ``dropout``: the paper's, 0.2 of the image and 0.5 behind either layer of stride 2; else none.

    >>> net = allcnn_c(10, 3, width=1.0, dropout=True)
    >>> sum(p.numel() for p in net.parameters() if p.ndim > 1)
    1368480
    """
    net = AllCNN(scaled(96, width), scaled(192, width), classes, in_channels)
    if not dropout:
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return load_weights(net, weights, weights_sha256)


class AllCNN(nn.Sequential):
    """Nine convolutions ``conv1`` to ``conv9``, each with bias and ReLU, and the mean of the map.

    Seven are 3x3, the third and the sixth of these with stride 2 and dropout behind, the seventh
    without padding; two are 1x1, the second of which has a channel for each class.
    """

    def __init__(self, first: int, later: int, classes: int, in_channels: int) -> None:
        # channels, kernel, stride, padding
        plan = [(first, 3, 1, 1), (first, 3, 1, 1), (first, 3, 2, 1)]
        plan += [(later, 3, 1, 1), (later, 3, 1, 1), (later, 3, 2, 1)]
        plan += [(later, 3, 1, 0), (later, 1, 1, 0), (classes, 1, 1, 0)]
        layers: OrderedDict[str, nn.Module] = OrderedDict(drop0=nn.Dropout(0.2))
        c_in = in_channels
        for number, (c_out, kernel, stride, padding) in enumerate(plan, start=1):
            conv = nn.Conv2d(c_in, c_out, kernel, stride, padding)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # variance 2 / fan-in
            nn.init.zeros_(cast(Tensor, conv.bias))
            layers[f"conv{number}"], layers[f"relu{number}"] = conv, nn.ReLU()
            if stride == 2:
                layers[f"drop{number}"] = nn.Dropout(0.5)
            c_in = c_out
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, ``(n, classes)``."""
        scores: Tensor = super().forward(x).mean(dim=(2, 3))  # type: ignore[no-untyped-call]
        return scores
