"""Layer shapes of the AD paper's networks, written by hand from the architectures' definitions."""

from quantable.base.bits import Bits
from quantable.networks.layers import LayerShape

VGG19_BLOCKS = [(64, 2), (128, 2), (256, 4), (512, 4), (512, 4)]  # (channels, convolutions)
RESNET18_STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]  # (channels, stride), two blocks each


def conv(name: str, c_in: int, c_out: int, kernel: int, side_in: int, side_out: int) -> LayerShape:
    """A square convolution: N^2 I inputs, p^2 I O weights, M^2 I p^2 O MACs."""
    weights = kernel**2 * c_in * c_out
    return LayerShape(name, side_out**2 * weights, weights, side_in**2 * c_in)


def linear(name: str, c_in: int, c_out: int) -> LayerShape:
    return LayerShape(name, c_in * c_out, c_in * c_out, c_in, kind="linear")


def vgg19(side: int = 32, classes: int = 10, narrower: int = 1) -> list[LayerShape]:
    """Sixteen convolutions, a 2x2 max-pool behind each block, one linear layer on a 1x1 map."""
    layers: list[LayerShape] = []
    c_in = 3
    for c_full, count in VGG19_BLOCKS:
        c_out = c_full // narrower
        for _ in range(count):
            layers.append(conv(f"conv{len(layers) + 1}", c_in, c_out, 3, side, side))
            c_in = c_out
        side //= 2
    return [*layers, linear("fc", c_in, classes)]


def resnet18(
    side: int = 32, classes: int | None = 100, narrower: int = 1, *, all_shortcuts: bool = True
) -> list[LayerShape]:
    """3x3 stem without pooling, four stages of two blocks; ``classes=None`` has no classifier."""
    c_in = 64 // narrower
    layers = [conv("conv1", 3, c_in, 3, side, side)]
    for stage, (c_full, first_stride) in enumerate(RESNET18_STAGES, start=1):
        c_out = c_full // narrower
        for block, stride in enumerate((first_stride, 1)):
            name, side_out = f"layer{stage}.{block}", side // stride
            layers.append(conv(f"{name}.conv1", c_in, c_out, 3, side, side_out))
            layers.append(conv(f"{name}.conv2", c_out, c_out, 3, side_out, side_out))
            if all_shortcuts or c_in != c_out:
                layers.append(conv(f"{name}.shortcut", c_in, c_out, 1, side, side_out))
            c_in, side = c_out, side_out
    return layers if classes is None else [*layers, linear("fc", c_in, classes)]


def uniform(layers: list[LayerShape], bits: int) -> dict[str, Bits]:
    return {layer.name: Bits(bits, bits) for layer in layers}


def ends_at_16(layers: list[LayerShape], bits: int) -> dict[str, Bits]:
    ends = {layers[0].name: Bits(16, 16), layers[-1].name: Bits(16, 16)}
    return uniform(layers, bits) | ends
