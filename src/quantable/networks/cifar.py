"""Networks for small images: VGG19 and the CIFAR ResNets, with batch norm, at any width.

Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556 (VGG19, here with batch norm and one linear
layer); He et al., CVPR 2016, arXiv:1512.03385 (ResNet-18 with a 3x3 stem and no max-pool; the
CIFAR ResNets of Sec. 4.2). Inputs are ``(n, in_channels, h, w)``, outputs ``(n, classes)``.
Modules stand in the order in which they run, and every ReLU is a module that runs once, so that a
hook on it sees one layer's output.

``shortcuts`` of a ResNet, where a block changes the shape (He et al., Sec. 3.3 and 4.2): "plain" is
option B, a 1x1 convolution; "pad" is option A, every second pixel and channels of zeros, without
parameters; "all" is option C, a 1x1 convolution in every block, also where nothing changes.
``weights``: a file of tensors for it (``weights.load_weights``); None keeps the random ones.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from quantable.base.errors import UserError, unknown
from quantable.networks.weights import load_weights

MIN_CHANNELS = 8
SHORTCUTS = ("plain", "pad", "all")
THEIRS = {"linear": "fc"}  # the classifier of the public CIFAR ResNets, and ours

Shortcuts = Literal["plain", "pad", "all"]


def vgg19_cifar(classes: int, in_channels: int, width: float) -> nn.Module:
    """VGG19 with batch norm and one linear layer; 28x28 to 64x64 inputs and beyond.

    >>> sum(p.numel() for p in vgg19_cifar(10, in_channels=3, width=1.0).parameters() if p.ndim > 1)
    20024000
    """
    stages = [[64] * 2, [128] * 2, [256] * 4, [512] * 4, [512] * 4]
    return VGG([[scaled(c, width) for c in stage] for stage in stages], classes, in_channels)


def resnet18_cifar(
    classes: int,
    in_channels: int,
    width: float,
    shortcuts: Shortcuts,
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> nn.Module:
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pool: widths 64, 128, 256, 512."""
    net = _resnet([64, 128, 256, 512], 2, classes, in_channels, width, shortcuts)
    return load_weights(net, weights, weights_sha256, THEIRS)


def resnet20_cifar(
    classes: int,
    in_channels: int,
    width: float,
    shortcuts: Shortcuts,
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> nn.Module:
    """ResNet-20: widths 16, 32, 64, three blocks each; with shortcuts "pad" the paper's own.

    >>> sum(p.numel() for p in resnet20_cifar(10, 3, width=1.0, shortcuts="pad").parameters())
    269722
    """
    net = _resnet([16, 32, 64], 3, classes, in_channels, width, shortcuts)
    return load_weights(net, weights, weights_sha256, THEIRS)


def resnet8_cifar(
    classes: int,
    in_channels: int,
    width: float,
    shortcuts: Shortcuts,
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> nn.Module:
    """ResNet-8: widths 16, 32, 64, one block each."""
    net = _resnet([16, 32, 64], 1, classes, in_channels, width, shortcuts)
    return load_weights(net, weights, weights_sha256, THEIRS)


def scaled(channels: int, width: float) -> int:
    """``width * channels`` as the nearest integer (halves to even), at least 8.

    >>> scaled(64, 0.25), scaled(16, 0.25), scaled(64, 1.0)
    (16, 8, 64)
    """
    if width <= 0:
        raise UserError(f"model.net.width={width}: a width multiplier is above 0; 1.0 is full size")
    return max(MIN_CHANNELS, round(width * channels))


def _resnet(
    channels: Sequence[int],
    blocks: int,
    classes: int,
    in_channels: int,
    width: float,
    shortcuts: Shortcuts,
) -> nn.Module:
    if shortcuts not in SHORTCUTS:
        raise unknown("shortcut rule", shortcuts, SHORTCUTS, "model.net.shortcuts")
    stages = [scaled(c, width) for c in channels]
    return ResNet(stages, blocks, classes, in_channels, shortcuts)


class VGG(nn.Module):
    """3x3 convolutions with batch norm and ReLU, a max-pool behind each stage, one linear layer.

    The pools round up, so that 28x28 images (28, 14, 7, 4, 2, 1) pass all five.
    """

    def __init__(self, stages: Sequence[Sequence[int]], classes: int, in_channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        c_in, number = in_channels, 0
        for stage, widths in enumerate(stages, start=1):
            for c_out in widths:
                number += 1
                layers[f"conv{number}"] = conv3x3(c_in, c_out, stride=1)
                layers[f"bn{number}"] = nn.BatchNorm2d(c_out)
                layers[f"relu{number}"] = nn.ReLU()
                c_in = c_out
            layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
        self.features = nn.Sequential(layers)
        self.fc = nn.Linear(c_in, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, ``(n, classes)``."""
        scores: Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return scores


class Pad(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, and ``extra`` channels of zeros.

    Half of them stand in front of the input's own channels, the odd one behind.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.front, self.behind, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """The picked pixels, ``(n, c + extra, h / stride, w / stride)``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.front, self.behind))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, a 1x1 convolution with batch norm, Pad."""

    def __init__(self, c_in: int, c_out: int, stride: int, shortcuts: Shortcuts) -> None:
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(c_out, c_out, stride=1)
        self.bn2 = nn.BatchNorm2d(c_out)
        changes = stride != 1 or c_in != c_out
        self.shortcut: nn.Module = Pad(c_out - c_in, stride) if changes else nn.Identity()
        if shortcuts == "all" or (shortcuts == "plain" and changes):
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            bn = nn.BatchNorm2d(c_out)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=bn))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, ``(n, c_out, h / stride, w / stride)``."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y: Tensor = self.relu2(out + self.shortcut(x))
        return y


class ResNet(nn.Module):
    """3x3 stem, stages ``layer1``, ``layer2``, ... (stride 2 from the second), mean, ``fc``."""

    def __init__(
        self,
        stages: Sequence[int],
        blocks: int,
        classes: int,
        in_channels: int,
        shortcuts: Shortcuts,
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, stages[0], stride=1)
        self.bn1 = nn.BatchNorm2d(stages[0])
        self.relu1 = nn.ReLU()
        self.stages = len(stages)
        c_in = stages[0]
        for number, c_out in enumerate(stages, start=1):
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if number > 1 and block == 0 else 1
                stage.append(BasicBlock(c_in, c_out, stride, shortcuts))
                c_in = c_out
            self.add_module(f"layer{number}", stage)
        self.fc = nn.Linear(c_in, classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, ``(n, classes)``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        scores: Tensor = self.fc(x.mean(dim=(2, 3)))
        return scores


def conv3x3(c_in: int, c_out: int, stride: int) -> nn.Conv2d:
    """3x3 convolution that keeps the map's size at stride 1; batch norm brings the bias."""
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


def init_convolutions(network: nn.Module) -> None:
    """He et al., arXiv:1502.01852: normal, variance 2 / fan-out; Linear keeps PyTorch's default."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
