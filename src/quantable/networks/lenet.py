"""LeNet-5 as Caffe has it: 20 and 50 maps of 5x5, then 500 and the classes.

LeCun et al., Proceedings of the IEEE 86, 1998, whose maps are fewer. Caffe's has a ReLU behind the
first linear layer alone; here one stands behind each convolution too, so that all inner data are
at least 0. Inputs are ``(n, in_channels, 28, 28)``, outputs ``(n, classes)``.
"""

from collections import OrderedDict

from torch import nn


def lenet5(classes: int, in_channels: int) -> nn.Module:
    """LeNet-5 for images of 28x28.

    >>> sum(p.numel() for p in lenet5(10, in_channels=1).parameters())
    431080
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(in_channels, 20, 5)  # 24 x 24
    layers["relu1"] = nn.ReLU()
    layers["pool1"] = nn.MaxPool2d(2)
    layers["conv2"] = nn.Conv2d(20, 50, 5)  # 8 x 8
    layers["relu2"] = nn.ReLU()
    layers["pool2"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(50 * 4 * 4, 500)
    layers["relu3"] = nn.ReLU()
    layers["fc2"] = nn.Linear(500, classes)
    return nn.Sequential(layers)
