"""Image sets that fit in memory: decoded once, augmented by whole batches on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from quantable.base.errors import UserError
from quantable.data.augment import crop_flip, keyed_generator
from quantable.data.sets import Arrays, SetFacts, read_once

Batch = tuple[Tensor, Tensor]
Device: TypeAlias = torch.device | str


@dataclass(frozen=True)
class Share:
    """Which part of a batch, or of a split, one of several devices has: the ``index``-th ``of``."""

    index: int = 0
    of: int = 1

    def rows(self, n: int) -> slice:
        """Its rows of ``n``; those of all shares follow each other without gap or overlap.

        >>> [range(10)[Share(i, 3).rows(10)] for i in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
        """
        return slice(n * self.index // self.of, n * (self.index + 1) // self.of)


WHOLE = Share()


@dataclass(frozen=True)
class Split:
    """One split on the device.

    ``pixels``: uint8, (n, h, w, c) where batches are ``channels_last``, else (n, c, h, w);
    ``labels``: (n,) int64; ``scale``, ``shift``: (c,) float32 that normalize a value of 0..255.
    """

    pixels: Tensor
    labels: Tensor
    scale: Tensor
    shift: Tensor
    channels_last: bool

    def __len__(self) -> int:
        return len(self.labels)

    def planes(self, x: Tensor) -> Tensor:
        """The batch as (m, h, w, k): one plane per image, or one per image and channel."""
        return x if self.channels_last else x.flatten(0, 1).unsqueeze(-1)

    def normalize(self, planes: Tensor) -> Tensor:
        """Planes of 0..255 as a float32 batch (n, c, h, w), (value / 255 - mean) / std."""
        c = len(self.scale)
        if self.channels_last:
            m, h, w, _ = planes.shape
            flat = planes.view(m, h, w * c).float()  # long rows: the channel is the fast axis
            flat.mul_(self.scale.repeat(w)).add_(self.shift.repeat(w))
            return flat.view(m, h, w, c).permute(0, 3, 1, 2)
        x = planes.view(-1, c, *planes.shape[1:3]).float()
        return x.mul_(self.scale[:, None, None]).add_(self.shift[:, None, None])


@dataclass
class TrainBatches:
    """One epoch of augmented batches; iterate again for another, after setting ``epoch``.

    Batch i of an epoch is a function of (``seed``, ``epoch``, i): with ``start`` = i an iteration
    goes on exactly where an unbroken one would be. The last partial batch is left out. ``share`` is
    taken of each batch, whose order and augmentation are those of the whole. With ``pixels`` its
    images are scaled to that many a side after they were augmented.
    """

    split: Split
    batch_size: int
    seed: int
    padding: int
    flip: bool
    share: Share = WHOLE
    epoch: int = 0
    start: int = 0
    pixels: int | None = None

    def __len__(self) -> int:
        return len(self.split) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        generator = keyed_generator("order", self.seed, self.epoch)
        order = torch.randperm(len(self.split), generator=generator)
        order = order.to(self.split.labels.device)
        for i in range(self.start, len(self)):
            yield self.batch(i, order[i * self.batch_size :][: self.batch_size])
        self.start = 0

    def batch(self, i: int, rows: Tensor) -> Batch:
        """Batch ``i`` of the epoch: images ``rows``, augmented by the batch's own generator."""
        generator = keyed_generator("augment", self.seed, self.epoch, i)
        n, offsets = len(rows), 2 * self.padding + 1
        window = torch.randint(offsets, (2, n), generator=generator)
        flip = torch.randint(2 if self.flip else 1, (1, n), generator=generator)
        mine = self.share.rows(n)
        n, rows = mine.stop - mine.start, rows[mine]
        draws = torch.cat([window, flip])[:, mine].to(rows.device)
        planes = self.split.planes(self.split.pixels.index_select(0, rows))
        top, left, mirror = draws.repeat_interleave(len(planes) // n, dim=1)
        planes = crop_flip(planes, top, left, mirror, padding=self.padding)
        x = self.split.normalize(planes)
        if self.pixels is not None:
            x = interpolate(x, (self.pixels, self.pixels), mode="bilinear", antialias=True)
        return x, self.split.labels.index_select(0, rows)


@dataclass(frozen=True)
class EvalBatches:
    """Every image of a split's share once, in order, not augmented; the last batch may be smaller.

    ``batch_size``: of all shares together.
    """

    split: Split
    batch_size: int
    share: Share = WHOLE

    def __len__(self) -> int:
        return len(self._begins())

    def _begins(self) -> range:
        rows = self.share.rows(len(self.split))
        return range(rows.start, rows.stop, max(1, self.batch_size // self.share.of))

    def __iter__(self) -> Iterator[Batch]:
        begins = self._begins()
        for begin in begins:
            part = slice(begin, min(begin + begins.step, begins.stop))
            planes = self.split.planes(self.split.pixels[part])
            yield self.split.normalize(planes), self.split.labels[part]


def first_images(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The first ``count`` images of ``batches``.

    >>> pairs = [(torch.zeros(4, 1), torch.zeros(4))] * 3
    >>> [len(y) for _, y in first_images(iter(pairs), 6)]
    [4, 2]
    """
    for x, y in batches:
        yield x[:count], y[:count]
        count -= len(y)
        if count <= 0:
            return


@dataclass(kw_only=True)
class Images(SetFacts):
    """An image set in memory. Nothing is decoded before ``load``, which the batches call.

    ``mean``, ``std``: per channel, of pixels in 0..1; ``crop_padding``: pixels of black around the
    image before a window of its size is cut; ``flip``: mirror half of the training images.
    """

    mean: Sequence[float]
    std: Sequence[float]
    crop_padding: int
    flip: bool
    _arrays: Arrays | None = field(default=None, init=False, repr=False)

    def load(self) -> Arrays:
        """Decode the images that are used, once."""
        if self._arrays is None:
            self._arrays = read_once(self.source)
        return self._arrays

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images used of train, val and test."""
        return {split: len(labels) for split, labels in self.load().labels.items()}

    @property
    def sha256(self) -> str:
        """Fingerprint of the decoded images and labels that are used."""
        return self.load().sha256

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: Device,
        *,
        channels_last: bool = False,
        share: Share = WHOLE,
    ) -> TrainBatches:
        """Augmented batches of the training images on ``device``, or its share of each."""
        split = self.split("train", device, channels_last=channels_last)
        check_batch_size(batch_size, available=len(split))
        padding, flip = self.crop_padding, self.flip
        return TrainBatches(split, batch_size, seed, padding=padding, flip=flip, share=share)

    def eval_batches(
        self,
        split: str,
        batch_size: int,
        device: Device,
        *,
        channels_last: bool = False,
        share: Share = WHOLE,
    ) -> EvalBatches:
        """All images of ``split``, or a share of them, on ``device``, not augmented."""
        check_batch_size(batch_size)
        whole = self.split(split, device, channels_last=channels_last)
        return EvalBatches(whole, batch_size, share)

    def split(self, name: str, device: Device, *, channels_last: bool) -> Split:
        """The pixels and labels of a split on ``device``."""
        self.require(name)
        images, labels = self.load().images[name], self.load().labels[name]
        if not len(self.mean) == len(self.std) == images.shape[-1]:
            raise UserError(f"data.mean, data.std: {images.shape[-1]} values each, one per channel")
        pixels = torch.from_numpy(images)
        if not channels_last:
            pixels = pixels.permute(0, 3, 1, 2).contiguous()
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return Split(
            pixels.to(device),
            torch.from_numpy(labels).to(device),
            scale=(1 / (255 * std)).to(device),
            shift=(-mean / std).to(device),
            channels_last=channels_last,
        )


def check_batch_size(batch_size: int, *, available: int | None = None) -> None:
    """Raise for a batch of nothing, or above the ``available`` training images."""
    if batch_size < 1 or (available is not None and batch_size > available):
        above = "" if available is None else f", at most the {available} training images"
        raise UserError(f"batch_size={batch_size}: at least 1{above}")
