"""Channels-last networks: no convolution meets the sizes for which oneDNN writes out of bounds."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quantable.networks.channels_last import to_channels_last

REGISTER = 16 if torch.cpu._is_avx512_supported() else 8


class Convolved(TorchDispatchMode):
    """Notes the input sizes of the convolutions that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.sizes.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def image(channels: int, height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, height, width, generator=random)
    return x.to(memory_format=torch.channels_last).requires_grad_()


def convolution(channels: int, stride: int | tuple[int, int]) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 8, 1, stride, bias=False)


# Of the functions of oneDNN only the one with the fault asks for sizes that the strides divide. The
# gradient is taken last: without the remedy it often ends the process (seen with AVX2: "free():
# invalid pointer", "corrupted size vs. prev_size", segmentation faults, a step that never ends).
@pytest.mark.parametrize(("height", "width", "stride"), [(28, 28, 2), (9, 12, 3), (7, 8, (1, 2))])
@pytest.mark.parametrize("channels", [1, 5, REGISTER - 1])
def test_narrow_strided_layers_have_exact_gradients(
    channels: int, height: int, width: int, stride: int | tuple[int, int]
) -> None:
    layer, x = convolution(channels, stride), image(channels, height, width)
    exact, exact_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    to_channels_last(layer)
    with Convolved() as convolved:
        y = layer(x)
    ((_, _, *size),) = convolved.sizes
    assert any(side % step for side, step in zip(size, layer.stride, strict=True))
    expected = exact(exact_x)
    torch.testing.assert_close(y, expected.float())
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, exact_x.grad.float())
    torch.testing.assert_close(layer.weight.grad, exact.weight.grad.float(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("channels", "height", "stride"), [(16, 28, 2), (5, 29, 2), (5, 28, 1), (5, 28, (1, 1))]
)
def test_other_layers_get_their_whole_input(
    channels: int, height: int, stride: int | tuple[int, int]
) -> None:
    layer, x = convolution(channels, stride), image(channels, height, 28)
    plain = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    to_channels_last(layer)
    with Convolved() as convolved:
        y = layer(x)
    assert convolved.sizes == [x.shape]
    assert torch.equal(y, plain(x))


def test_channels_that_are_cut_in_training_count() -> None:
    layer = convolution(16, stride=2)
    to_channels_last(layer)
    layer.weight.data = layer.weight.data[:, :5].clone()
    with Convolved() as convolved:
        layer(image(5, 28, 28))
    assert convolved.sizes == [(8, 5, 27, 27)]
