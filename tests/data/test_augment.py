import numpy as np
import pytest
import torch

from quantable.data.augment import crop_flip, keyed_generator


def reference(images, top, left, flip, padding):
    """Mirror, pad with zeros, cut: one image (h, w, k) after the other, in NumPy."""
    _, h, w, _ = images.shape
    out = []
    for image, y, x, mirror in zip(images, top, left, flip, strict=True):
        image = image[:, ::-1] if mirror else image
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        out.append(padded[y : y + h, x : x + w])
    return np.stack(out)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("h", "w", "padding"), [(5, 5, 0), (5, 5, 2), (6, 4, 3), (1, 7, 1)])
def test_crop_and_flip_are_the_numpy_ones(channels, h, w, padding) -> None:
    rng = np.random.default_rng(padding)
    places = [
        (y, x, f) for y in range(2 * padding + 1) for x in range(2 * padding + 1) for f in (0, 1)
    ]
    top, left, flip = np.array(places).T
    images = rng.integers(0, 256, (len(places), h, w, channels), np.uint8)
    ours = crop_flip(
        torch.from_numpy(images),
        torch.from_numpy(top),
        torch.from_numpy(left),
        torch.from_numpy(flip),
        padding=padding,
    )
    np.testing.assert_array_equal(ours.numpy(), reference(images, top, left, flip, padding))


def test_generators_depend_on_every_part_of_the_key() -> None:
    keys = [
        ("order", 0, 0),
        ("order", 0, 1),
        ("order", 1, 0),
        ("augment", 0, 0),
        ("order", 0, 0, 0),
    ]
    draws = {
        tuple(torch.randint(2**31, (4,), generator=keyed_generator(*k)).tolist()) for k in keys
    }
    assert len(draws) == len(keys)
