"""The memory format in which convolutions are fastest, and the way round a fault of oneDNN in it.

oneDNN 3.12 (torch 2.13) writes beyond its workspace in the weight gradient of a 1x1 convolution
that skips pixels, if its float32 input is channels-last with fewer channels than a vector register
holds numbers (github.com/uxlfoundation/oneDNN/issues/6035). It books ``pixels * channels`` numbers
and steps by ``pixels * register``: the gradient is wrong or the heap is destroyed, so that free()
aborts or a step does not end. Of oneDNN's functions one alone has the fault, and it takes only
inputs whose sizes the strides divide.
"""

import torch
from torch import Tensor, nn

# Float32 numbers in a register of this CPU, as oneDNN chooses it.
REGISTER = 16 if torch.cpu.get_capabilities().get("avx512_f") else 8


def to_channels_last(net: nn.Module) -> None:
    """Bring ``net`` into channels-last memory; its strided 1x1 convolutions avoid the fault."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in net.modules():
        if type(layer) is nn.Conv2d and _skips_pixels(layer):
            layer.__class__ = SkippingConv2d


class SkippingConv2d(nn.Conv2d):
    """A strided 1x1 convolution; narrow inputs come without last rows that no output reads.

    How many channels it has may change in training. The class is put under a network's own layer,
    and not a hook on it, because it must act behind the quantizer of the input.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type == "cpu" and x.shape[1] < REGISTER:
            x = _without_unread(x, self.stride)
        y: Tensor = super()._conv_forward(x, weight, bias)
        return y


def _skips_pixels(layer: nn.Conv2d) -> bool:
    plain = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
    return plain and layer.groups == 1 and layer.stride != (1, 1)


def _without_unread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """``x`` of a size that its strides do not divide: there oneDNN takes another function.

    Where they do not divide it anyway, every pixel at the edge may be read and ``x`` comes whole.
    """
    height, width = x.shape[2:]
    down, right = stride
    if height % down or width % right:
        return x
    return x[:, :, : height - int(down > 1), : width - int(right > 1)]
