"""SqueezeNext with 23 blocks at twice the width (2.0-SqNxt-23), as the edge paper trained it.

Gholami et al., CVPR Workshops 2018, arXiv:1803.10615. Where the paper leaves a choice (padding of
the stem, biases in front of batch norm, which blocks narrow their input), it is that of the public
checkpoint's network, sqnxt23_w2 of github.com/osmr/imgclsmob, whose counts the edge paper has.
Inputs are ``(n, in_channels, h, w)``, outputs ``(n, classes)``. Modules stand in the order in which
they run, and every ReLU is a module that runs once.
"""

from collections import OrderedDict

from torch import Tensor, nn

STEM, HEAD = 128, 256
STAGES = ((64, 6), (128, 6), (256, 8), (512, 1))  # channels, blocks; stride 2 from the second on


def sqnxt23_w2(classes: int, in_channels: int) -> nn.Module:
    """2.0-SqNxt-23, for images of about 224x224.

    >>> sum(parameter.numel() for parameter in sqnxt23_w2(1000, in_channels=3).parameters())
    2583752
    """
    return SqueezeNext(classes, in_channels)


class Block(nn.Module):
    """Narrow twice by 1x1, filter by 1x3 and 3x1, widen by 1x1, and add a shortcut.

    The inner channels are those of the input divided by 1 at stride 2, by 4 where the block has
    fewer channels than its input, and else by 2; only then is the shortcut the identity.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and c_in <= c_out
        inner = c_in // (2 if same else 4 if stride == 1 else 1)
        self.shortcut: nn.Module = nn.Identity() if same else _conv(c_in, c_out, (1, 1), stride)
        self.narrow1 = _conv(c_in, inner, (1, 1), stride)
        self.narrow2 = _conv(inner, inner // 2, (1, 1))
        self.row = _conv(inner // 2, inner, (1, 3))
        self.column = _conv(inner, inner, (3, 1))
        self.widen = _conv(inner, c_out, (1, 1))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, ``(n, c_out, h / stride, w / stride)``."""
        shortcut = self.shortcut(x)
        out = self.widen(self.column(self.row(self.narrow2(self.narrow1(x)))))
        y: Tensor = self.relu(out + shortcut)
        return y


class SqueezeNext(nn.Module):
    """7x7 stem and max-pool, four stages, a 1x1 convolution, mean, ``fc``."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = _conv(in_channels, STEM, (7, 7), stride=2, padding=(1, 1))
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        c_in = STEM
        self.stages = nn.Sequential()
        for number, (c_out, blocks) in enumerate(STAGES):
            stage = nn.Sequential()
            for block in range(blocks):
                stage.append(Block(c_in, c_out, stride=2 if number and not block else 1))
                c_in = c_out
            self.stages.append(stage)
        self.head = _conv(c_in, HEAD, (1, 1))
        self.fc = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, ``(n, classes)``."""
        x = self.head(self.stages(self.pool(self.stem(x))))
        scores: Tensor = self.fc(x.mean(dim=(2, 3)))
        return scores


def _conv(
    c_in: int,
    c_out: int,
    kernel: tuple[int, int],
    stride: int = 1,
    padding: tuple[int, int] | None = None,
) -> nn.Module:
    """Convolution with a bias, batch norm, ReLU; without ``padding`` a stride of 1 keeps the map.

    He et al., arXiv:1502.01852: uniform, variance 2 / fan-in; biases start at 0.
    """
    same = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=same if padding is None else padding)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None, "a convolution has a bias unless told otherwise"
    nn.init.zeros_(conv.bias)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out), relu=nn.ReLU()))
