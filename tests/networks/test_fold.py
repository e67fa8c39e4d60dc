"""Folded networks answer as before; what cannot be folded is refused by name."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.base.errors import UserError
from quantable.networks.cifar import resnet20_cifar
from quantable.networks.fold import fold_batch_norms

IMAGE = (3, 32, 32)


def randomised(net: nn.Module) -> nn.Module:
    """The network in float64, its norms with statistics, scales and shifts of their own."""
    torch.manual_seed(0)
    for module in net.double().modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)  # below zero, too
            nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet20_cifar(10, 3, 0.5, "plain"),
        lambda: timm.create_model("mobilenetv2_035", num_classes=10),
        lambda: timm.create_model("tf_efficientnet_lite0", num_classes=10),
    ],
    ids=["resnet20", "mobilenetv2", "lite0"],
)
def test_the_answer_stays(make) -> None:
    net = randomised(make()).eval()
    x = torch.randn(4, *IMAGE, dtype=torch.float64)
    norms = sum(isinstance(module, _BatchNorm) for module in net.modules())
    with torch.no_grad():
        before = net(x)
        layers = fold_batch_norms(net, IMAGE)
        torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    assert len(set(layers)) == norms > 15
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())
    assert fold_batch_norms(net, IMAGE) == []


def test_one_channel_by_hand() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.BatchNorm1d(1, eps=0.0))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[3.0, -1.0]]))
        net[1].bias.fill_(5.0)
        net[2].running_mean.fill_(1.0), net[2].running_var.fill_(4.0)
        net[2].weight.fill_(6.0), net[2].bias.fill_(0.5)
    fold_batch_norms(net, (2, 1, 1))
    assert net[1].weight.tolist() == [[9.0, -3.0]]  # 6 / sqrt(4) = 3
    assert net[1].bias.item() == 0.5 + (5 - 1) * 3


class Around(nn.Module):
    """A convolution and a norm, and something between or beside."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x):
        y = self.conv(x)
        if self.how == "relu":
            return self.bn(y.relu())
        if self.how == "relu in place":
            return self.bn(y.relu_())
        if self.how == "beside":
            return self.bn(y) * (y > 0)
        if self.how == "twice":
            return self.bn(self.bn(y))
        if self.how == "layer twice":
            return self.bn(self.conv(x) + 0 * y)
        return self.bn(y)


class Scaled(nn.BatchNorm2d):
    """Does more than a batch norm."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("relu", "does not read the result of a convolution or linear layer"),
        ("relu in place", "does not read the result of a convolution or linear layer"),
        ("beside", "the result of layer '1.conv' has other readers too"),
        ("twice", "it runs 2 times"),
        ("layer twice", "does not read the result"),
    ],
)
def test_what_cannot_be_folded_is_refused_and_left_as_it_was(how: str, why: str) -> None:
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), Around(how))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=rf"batch norm '1\.bn' \(BatchNorm2d\) cannot be.*{why}"):
        fold_batch_norms(net, IMAGE)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_norms_of_another_kind_are_refused() -> None:
    for norm, why in (
        (Scaled(4), "may do more"),
        (nn.BatchNorm2d(4, track_running_stats=False), "keeps no statistics"),
    ):
        with pytest.raises(UserError, match=f"batch norm '1'.*{why}"):
            fold_batch_norms(nn.Sequential(nn.Conv2d(3, 4, 3), norm), IMAGE)
