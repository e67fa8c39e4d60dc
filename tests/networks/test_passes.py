"""What a user is told of images that a network does not take."""

import pytest
import timm
from torch import nn

from quantable.base.errors import UserError
from quantable.networks.counting import layer_shapes


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "vit_tiny_patch16_224",
            32,
            r"VisionTransformer: .* 3x32x32 \(AssertionError: Input height",
        ),
        ("mixer_s32_224", 32, r"MlpMixer: .* 3x32x32 \(AssertionError: Input height"),
        (
            "inception_v3",
            32,
            r"InceptionV3: .* 3x32x32 \(RuntimeError: .*: choose data or a data\.",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_one_message(name: str, size: int, message: str) -> None:
    net = timm.create_model(name)
    with pytest.raises(UserError, match=message):
        layer_shapes(net, (3, size, size))
    assert all(module.training for module in net.modules())


def test_another_number_of_channels_is_one_message() -> None:
    with pytest.raises(
        UserError, match=r"Conv2d: it does not take images of 1x4x4 \(RuntimeError:"
    ):
        layer_shapes(nn.Conv2d(3, 2, 1), (1, 4, 4))
