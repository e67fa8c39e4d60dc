"""NASNet-A mobile has the public counts, by layers as the authors' code and as torch have them."""

from quantable.networks.shapes import PACKAGED, read_shapes

KEY = "nasnet_mobile-classes=1001-in_channels=3-3x224x224"


def test_nasnet_mobile_has_the_public_counts() -> None:
    shapes = read_shapes(KEY, [PACKAGED])
    assert shapes is not None
    *convolutions, classifier = shapes
    depthwise = [s for s in convolutions if s.groups == s.c_in]
    pointwise = [s for s in convolutions if s.kernel == (1, 1)]
    # A separable convolution is one of the authors' layers and two of torch's: 16 cells have ten.
    assert len(depthwise) == 16 * 10
    assert len(convolutions) - len(depthwise) == 196 == 160 + 35 + 1
    assert len(pointwise) == 160 + 35
    assert sum(shape.weights for shape in convolutions) == 4_196_240
    assert classifier.weights == 1056 * 1001 == 1_057_056
    assert sum(shape.weights for shape in shapes) == 5_253_296
    # The public checkpoint's 564 million multiply-adds, here with the 1001st class.
    assert round(sum(shape.macs for shape in shapes) / 1e6) == 564
