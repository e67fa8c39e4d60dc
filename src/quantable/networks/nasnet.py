"""NASNet-A mobile (4 @ 1056): the cells of timm, which has the large network alone.

Zoph et al., CVPR 2018, arXiv:1707.07012; wiring and widths are those of the authors' public mobile
network: four cells a stage at 44, 88 and 176 channels, a stem of 32 and two stem cells at a quarter
and a half of 44. There, a stage's first cell also reads what its reduction cell reads; in the large
network it is the cell before. Inputs are ``(n, in_channels, h, w)``, outputs ``(n, classes)``.
"""

import torch.nn.functional as F
from timm.models.nasnet import (
    CellStem0,
    CellStem1,
    FirstCell,
    NormalCell,
    ReductionCell0,
)
from torch import Tensor, nn

STEM, CHANNELS, STAGES, CELLS = 32, 44, 3, 4
PADDING = "same"


def nasnet_mobile(classes: int, in_channels: int) -> nn.Module:
    """NASNet-A mobile, for images of about 224x224; without the auxiliary head.

    >>> sum(parameter.numel() for parameter in nasnet_mobile(1000, in_channels=3).parameters())
    5289978
    """
    return NASNetMobile(classes, in_channels)


class NASNetMobile(nn.Module):
    """Stem, three stages with a reduction cell between two, ReLU, mean, ``fc``."""

    def __init__(self, classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, STEM, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(STEM, eps=1e-3)
        self.stem_0 = CellStem0(STEM, CHANNELS // 4, PADDING)
        self.stem_1 = CellStem1(STEM, CHANNELS // 2, PADDING)
        self.cells = nn.ModuleList()
        prev, last = CHANNELS, 2 * CHANNELS  # channels of the two outputs before the next cell
        for number in range(STAGES):
            c = CHANNELS * 2**number
            if number:
                self.cells.append(ReductionCell0(prev, c, last, c, PADDING))
                prev, last = last, 4 * c
            self.cells.append(FirstCell(prev, c // 2, last, c, PADDING))
            prev, last = last, 6 * c
            for _ in range(CELLS - 1):
                self.cells.append(NormalCell(prev, c, last, c, PADDING))
                prev, last = last, 6 * c
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, ``(n, classes)``."""
        x = self.bn(self.conv(x))
        prev = self.stem_0(x)
        x = self.stem_1(x, prev)
        for cell in self.cells:
            prev, x = x, cell(x, prev)
        scores: Tensor = self.fc(F.relu(x).mean(dim=(2, 3)))
        return scores
