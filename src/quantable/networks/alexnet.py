"""AlexNet in its two public shapes: with two groups, and torchvision's.

Krizhevsky et al., NeurIPS 2012: five convolutions and three linear layers; the second, fourth and
fifth convolution see half of their input each, as the two GPUs did. Krizhevsky, arXiv:1404.5997,
is the shape with one group that torchvision has, with weights. Inputs are ``(n, 3, h, w)``,
outputs ``(n, classes)``. Modules stand in the order in which they run, and every ReLU is a module
that runs once.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models import alexnet

from quantable.networks.weights import load_weights

GROUPS = 2


def alexnet_groups(classes: int, in_channels: int) -> nn.Module:
    """AlexNet with two groups, for images of 227x227; local response norms are left out.

    >>> sum(p.numel() for p in alexnet_groups(1000, in_channels=3).parameters() if p.ndim > 1)
    60954656
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(in_channels, 96, 11, stride=4)  # 55 x 55
    layers["relu1"] = nn.ReLU()
    layers["pool1"] = nn.MaxPool2d(3, stride=2)  # 27 x 27
    layers["conv2"] = nn.Conv2d(96, 256, 5, padding=2, groups=GROUPS)
    layers["relu2"] = nn.ReLU()
    layers["pool2"] = nn.MaxPool2d(3, stride=2)  # 13 x 13
    layers["conv3"] = nn.Conv2d(256, 384, 3, padding=1)
    layers["relu3"] = nn.ReLU()
    layers["conv4"] = nn.Conv2d(384, 384, 3, padding=1, groups=GROUPS)
    layers["relu4"] = nn.ReLU()
    layers["conv5"] = nn.Conv2d(384, 256, 3, padding=1, groups=GROUPS)
    layers["relu5"] = nn.ReLU()
    layers["pool5"] = nn.MaxPool2d(3, stride=2)  # 6 x 6
    layers["flatten"] = nn.Flatten()
    layers["drop6"] = nn.Dropout(0.5)
    layers["fc6"] = nn.Linear(256 * 6 * 6, 4096)
    layers["relu6"] = nn.ReLU()
    layers["drop7"] = nn.Dropout(0.5)
    layers["fc7"] = nn.Linear(4096, 4096)
    layers["relu7"] = nn.ReLU()
    layers["fc8"] = nn.Linear(4096, classes)
    return nn.Sequential(layers)


def alexnet_torchvision(
    classes: int, weights: str | None = None, weights_sha256: str | None = None
) -> nn.Module:
    """AlexNet as torchvision has it, one group, for images of 224x224.

    ``weights``: a file of tensors for it (``weights.load_weights``); None keeps the random ones.

    >>> sum(p.numel() for p in alexnet_torchvision(1000).parameters() if p.ndim > 1)
    61090496
    """
    return load_weights(alexnet(num_classes=classes), weights, weights_sha256)
