"""The images of one split as they lie on disk: plain arrays, or encoded files (no torch)."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from quantable.base.errors import UserError

Array: TypeAlias = np.ndarray

# Formats of which Pillow keeps every bit, or whose images of more than 8 bits can be told. Others
# (TIFF, JPEG 2000, AVIF, PPM) it cuts to 8 bits without a word, and for EPS it starts a program.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")


@dataclass(frozen=True)
class Pixels:
    """Images stored as plain arrays. ``images``: (n, h, w, c) uint8; ``labels``: (n,) int64."""

    images: Array
    labels: Array
    folder: Path
    classes: ClassVar[None] = None  # arrays come without names of their classes

    def where(self, row: int) -> str:
        """Name image ``row`` in an error message."""
        return f"{self.folder}, image {row}"

    def decode(self, rows: Sequence[int], size: Sequence[int]) -> Array:
        """Images ``rows`` as (n, h, w, c) uint8; ``size`` is (c, h, w)."""
        c, h, w = size
        if self.images.shape[1:] != (h, w, c):
            shape = "x".join(map(str, self.images.shape[1:]))
            raise UserError(f"{self.folder}: images are {shape} (h x w x c), expected {h}x{w}x{c}")
        # Archives are read as views with the channels first; batches need rows without gaps.
        return np.ascontiguousarray(self.images[list(rows)])


@dataclass(frozen=True)
class Encoded:
    """Images stored as encoded files: their bytes or their paths, and who they are in an error."""

    items: Sequence[bytes | Path]
    labels: Array
    where: Callable[[int], str]
    classes: Sequence[str] | None  # name of each label, where the copy has names

    def taken(self, order: Array) -> "Encoded":
        """The rows in another order."""
        items = [self.items[row] for row in order]
        return Encoded(items, self.labels[order], lambda row: self.where(order[row]), self.classes)

    def decode(self, rows: Sequence[int], size: Sequence[int]) -> Array:
        """Images ``rows`` as (n, h, w, c) uint8; ``size`` is (c, h, w).

        One thread: for images of 32 to 64 pixels a pool of threads is slower than none.
        """
        c, h, w = size
        out = np.empty((len(rows), h, w, c), np.uint8)
        for target, row in zip(out, rows, strict=True):
            with open_image(self.items[row], self.where(row), channels=c) as image:
                if image.size != (w, h):
                    got = "x".join(map(str, image.size))
                    raise UserError(f"{self.where(row)}: image is {got}, expected {w}x{h} pixels")
                target[...] = np.asarray(image).reshape(h, w, c)
        return out


def open_image(item: bytes | Path, where: str, *, channels: int) -> Image.Image:
    """Decode one image completely, to grey (1 channel) or RGB (3) of 8 bits."""
    try:
        file = io.BytesIO(item) if isinstance(item, bytes) else item
        with Image.open(file, formats=FORMATS) as image:
            deep = deeper_than_8_bits(image)
            decoded = image.convert({1: "L", 3: "RGB"}[channels])
    except UnidentifiedImageError as error:
        raise UserError(f"{where}: image cannot be decoded (no {' or '.join(FORMATS)})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).split("<_io")[0].strip() or type(error).__name__
        raise UserError(f"{where}: image cannot be decoded ({reason})") from error
    if deep:
        raise UserError(f"{where}: image has {deep}, expected at most 8 bits per channel")
    return decoded


def deeper_than_8_bits(image: ImageFile) -> str | None:
    """What an opened image has more than 8 bits in a channel; None where it has not.

    A PNG of 16 bits is of the mode RGB, too: the decoder that waits for its pixels tells it.
    """
    if image.mode.startswith(("I", "F")) or any(";16B" in str(tile.args) for tile in image.tile):
        return f"16 bits per channel ({image.format}, mode {image.mode})"
    return None
