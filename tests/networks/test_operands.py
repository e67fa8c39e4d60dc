"""Layers that multiply what their quantizers return, and layers that do not, each made by hand."""

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from quantable.base.errors import UserError
from quantable.networks.operands import check_operands

RGB = (3, 6, 6)


class Changed(nn.Conv2d):
    """A convolution of what ``change`` makes of its weight and input."""

    def __init__(self, change):
        super().__init__(3, 4, 3)
        self.change = change
        self.scale = nn.Parameter(torch.full((), 0.5))
        self.gain = nn.Parameter(torch.ones(()))  # this and the next do nothing before they learn
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x):
        weight, x = self.change(self, self.weight, x)
        return F.conv2d(x, weight)


def named_twice(net, weight, x):
    net.again = net._parameters["weight"]
    return net.again, x


WEIGHTS = {
    "scaled": lambda net, w, x: (net.scale * w, x),
    "shifted": lambda net, w, x: (w - w.mean(), x),
    "standardized": lambda net, w, x: ((w - w.mean()) / w.std(), x),
    "normalized": lambda net, w, x: (F.normalize(w), x),
    "negated": lambda net, w, x: (-w, x),
    "without signs": lambda net, w, x: (w.abs(), x),
    "rounded": lambda net, w, x: (w.round(), x),
    "clipped": lambda net, w, x: (w.clamp(-1, 1), x),
    "signs alone": lambda net, w, x: (w.sign(), x),
    "pruned": lambda net, w, x: (w.where(w > 0, 0), x),
    "a part": lambda net, w, x: (w[:, :, 1:, 1:], x),
    "padded": lambda net, w, x: (F.pad(w, (1, 1, 1, 1)), x),
    "almost the same": lambda net, w, x: (w * 1.001, x),
    "another": lambda net, w, x: (torch.ones_like(w), x),
    "scaled when it has learned": lambda net, w, x: (net.gain * w, x),
    "shifted when it has learned": lambda net, w, x: (w + net.offset, x),
}
INPUTS = {
    "scaled": lambda net, w, x: (w, x * net.scale),
    "shifted": lambda net, w, x: (w, x + 1),
    "without signs": lambda net, w, x: (w, x.abs()),
    "pooled": lambda net, w, x: (w, F.avg_pool2d(x, 2)),
    "rounded": lambda net, w, x: (w, x.round()),
    "signs alone": lambda net, w, x: (w, x.sign()),
    "another": lambda net, w, x: (w, torch.ones_like(x)),
    "scaled when it has learned": lambda net, w, x: (w, x * net.gain),
    "shifted when it has learned": lambda net, w, x: (w, x + net.offset),
}
NEITHER = {
    "as they are": lambda net, w, x: (w, x),
    "moved": lambda net, w, x: (w.transpose(2, 3), x.flip(-1).roll(2, -1)),
    "cut": lambda net, w, x: (w, x[..., 1:]),
    "padded with zeros": lambda net, w, x: (w, F.pad(x, (1, 2, 1, 2))),
    "padded with itself": lambda net, w, x: (w, F.pad(x, (1, 1, 1, 1), "reflect")),
    "copied": lambda net, w, x: (w.clone(), x.contiguous(memory_format=torch.channels_last)),
    "by another name": named_twice,
}


def behind_a_convolution(layer):
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), layer)


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_changed_weights_are_refused(change):
    with pytest.raises(
        NotImplementedError, match=r"quantizer: layer '2' \(Changed\) changes its we"
    ):
        check_operands(behind_a_convolution(Changed(change)), RGB)


@pytest.mark.parametrize("change", INPUTS.values(), ids=INPUTS.keys())
def test_changed_inputs_are_refused(change):
    with pytest.raises(
        NotImplementedError, match=r"layer '2' \(Changed\) changes its input before"
    ):
        check_operands(behind_a_convolution(Changed(change)), RGB)


@pytest.mark.parametrize("change", NEITHER.values(), ids=NEITHER.keys())
def test_what_stays_on_the_grid_passes(change):
    check_operands(behind_a_convolution(Changed(change)), RGB)


@pytest.mark.parametrize("make", [StdConv2d, ScaledStdConv2d])
def test_weight_standardized_convolutions_are_refused_where_their_weight_is_quantized(make):
    net = behind_a_convolution(nn.Sequential(make(3, 4, 3), make(4, 4, 1)))
    message = (
        rf"'2\.0' \({make.__name__}\) \(and 1 more\) changes its weight.*32 bits in bits\.layers"
    )
    with pytest.raises(NotImplementedError, match=message):
        check_operands(net, RGB)
    check_operands(net, RGB, weights=["0"])


@pytest.mark.parametrize("normalize", [weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weight_made_of_other_parameters_is_refused(normalize):
    net = behind_a_convolution(normalize(nn.Conv2d(3, 4, 1)))
    with pytest.raises(NotImplementedError, match=r"layer '2' .* computes its weight from other"):
        check_operands(net, RGB)
    check_operands(net, RGB, weights=["0"])


class Twice(nn.Module):
    """A public report's: the second input is 50 times the first."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        small = self.stem(x).relu()
        return self.fc((self.conv(small) + self.conv(50 * small)).relu().mean((2, 3)))


def test_layer_that_runs_twice_is_refused_where_its_input_is_quantized():
    with pytest.raises(NotImplementedError, match=r"layer 'conv' \(Conv2d\) runs more than once"):
        check_operands(Twice(), RGB)
    check_operands(Twice(), RGB, inputs=["stem", "fc"])


@pytest.mark.parametrize(
    "layer",
    [
        Conv2dSame(3, 4, 3, stride=2),
        *(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode=m)
            for m in ("reflect", "circular", "replicate")
        ),
        nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 3, 5, groups=3, padding=2)),
        nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(3, 6, 4, groups=3)),
        nn.Linear(6, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_torch_and_padded_ones_of_timm_pass(layer):
    check_operands(behind_a_convolution(layer), RGB)


class Tokens(nn.Module):
    """A linear layer on a tensor whose memory torch cannot flatten: its weight is repeated."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.fc(x.expand(2, *x.shape[1:]).permute(2, 0, 3, 1))


def test_a_linear_layer_on_any_tensor_passes():
    check_operands(Tokens(), RGB)


def test_the_network_is_left_as_it_was():
    net = behind_a_convolution(Changed(WEIGHTS["scaled"]))
    weights = {name: (weight, weight.clone()) for name, weight in net.named_parameters()}
    with pytest.raises(NotImplementedError):
        check_operands(net, RGB)
    with pytest.raises(UserError):
        check_operands(net, (5, 6, 6))
    assert [name for name, _ in net.named_parameters()] == list(weights)
    for name, weight in net.named_parameters():
        assert weight is weights[name][0]
        assert torch.equal(weight, weights[name][1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(module.training for module in net.modules())
