"""Small real sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantable.data.sets import ImageSet

CLASSES = 3


@pytest.fixture
def pixels() -> np.ndarray:
    """Twelve images (n, h, w, c) of 32 x 32."""
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture
def labels() -> np.ndarray:
    """0, 1, 2, 0, 1, 2, ..."""
    return np.arange(12) % CLASSES


@pytest.fixture
def image_set() -> Callable[..., ImageSet]:
    """Describe a set of 12 training and 12 test images under a folder."""

    def describe(root: Path, **changes) -> ImageSet:
        facts = {
            "id": "cifar10",
            "title": "CIFAR-10",
            "classes": CLASSES,
            "input_size": [3, 32, 32],
            "root": str(root),
            "splits": {"train": ["train"], "test": ["test", "val"]},
            "counts": {"train": 12, "test": 12},
            "part": False,
            "lossless": True,
            "val_images": 2,
            "train_images": None,
            "test_images": None,
        }
        return ImageSet(**facts | changes)

    return describe
