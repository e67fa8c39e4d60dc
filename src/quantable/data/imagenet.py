"""ImageNet: read while training, through timm's transforms for the weights' tag."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from quantable.base.errors import UserError, unknown
from quantable.base.signals import leave_group
from quantable.data.augment import keyed_generator
from quantable.data.images import WHOLE, Batch, Device, Share, check_batch_size
from quantable.data.rows import open_image
from quantable.data.sets import SetFacts, limit, rows_of_test
from quantable.data.streams import Rows, open_rows
from quantable.networks.input_sizes import Sizes, check_input_size

Key = tuple[int, int]  # row, and the seed of its augmentation


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from, and put them back afterwards."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPU
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


@dataclass(frozen=True)
class Decoded(Dataset[tuple[Tensor, int]]):
    """Rows as transformed tensors; a key holds the row and the seed of its augmentation."""

    rows: Rows
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        row, seed = key
        image = open_image(self.rows.item(row), self.rows.where(row), channels=3)
        with seeded(seed):
            x = self.transform(image)
        return x, int(self.rows.labels[row])


@dataclass
class StreamedBatches:
    """Batches of an epoch; the order and the augmentation follow from (``seed``, ``epoch``).

    ``chosen``: the rows of the split, ascending; ``seed`` None: each once and in this order.
    ``share``: of each batch in training, else of the rows; ``batch_size`` is of all shares.
    """

    data: Decoded
    chosen: Tensor
    batch_size: int
    seed: int | None
    workers: int
    device: Device
    channels_last: bool
    share: Share = WHOLE
    epoch: int = 0
    start: int = 0

    def __len__(self) -> int:
        n = len(self.chosen)
        if self.seed is not None:
            return n // self.batch_size
        return -(-len(range(n)[self.share.rows(n)]) // self._size)

    @property
    def _size(self) -> int:
        """Images of one batch of an evaluation."""
        return max(1, self.batch_size // self.share.of)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(
            self.data,
            batch_sampler=self.keys()[self.start :],
            num_workers=-(-self.workers // self.share.of),
            worker_init_fn=leave_group,
            generator=torch.Generator(),  # else the loader draws from the global generator
            pin_memory=torch.device(self.device).type == "cuda",
        )
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        try:
            for x, y in loader:
                x = x.to(self.device, non_blocking=True, memory_format=memory)
                yield x, y.to(self.device, non_blocking=True)
        except UserError as error:  # a worker's error comes wrapped in its traceback
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        self.start = 0

    def keys(self) -> list[list[Key]]:
        """Row and augmentation seed of every image of every batch."""
        rows = self.chosen
        if self.seed is not None:
            order = self.data.rows.order(keyed_generator("order", self.seed, self.epoch))
            rows = order[torch.isin(order, self.chosen)]
        generator = keyed_generator("augment", self.seed or 0, self.epoch)
        seeds = torch.randint(2**62, (len(rows),), generator=generator)
        keys = list(zip(rows.tolist(), seeds.tolist(), strict=True))
        size = self.batch_size
        if self.seed is not None:
            batches = [keys[i : i + size] for i in range(0, len(keys) - size + 1, size)]
            return [batch[self.share.rows(size)] for batch in batches]
        keys = keys[self.share.rows(len(keys))]
        return [keys[i : i + self._size] for i in range(0, len(keys), self._size)]


@dataclass(kw_only=True)
class StreamedImages(SetFacts):
    """ImageNet with the surface of ``Images``; its test images are the published validation set.

    ``tag``: full timm name of the weights (``resnet18.tv_in1k``): its preprocessing is used; that
    of its evaluation, whose size and crop may be others, for held-out and test images. A copy that
    holds only ``sample*.parquet`` has test images, used as they are: cropped already; as many as
    ``train_images`` says are taken out of them, to calibrate with. With ``counts.train`` 0 a copy
    needs no training images.
    """

    tag: str
    workers: int

    def load(self) -> None:
        """Look through the files; no image is decoded ahead."""
        self._chosen  # noqa: B018 - read for its errors

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images used of train, val and test."""
        return {split: len(rows) for split, rows in self._chosen.items()}

    @property
    def sha256(self) -> str:
        """Fingerprint of the files' names, sizes and labels, and of the rows used."""
        digest = hashlib.sha256()
        for rows in self._rows.values():
            digest.update(repr(rows.identity()).encode())
            digest.update(rows.labels.astype("<i8").data)
        for chosen in self._chosen.values():
            digest.update(chosen.numpy().astype("<i8").data)
        return digest.hexdigest()

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        device: Device,
        *,
        channels_last: bool = False,
        share: Share = WHOLE,
    ) -> StreamedBatches:
        """Training images through timm's training transform of the tag."""
        check_batch_size(batch_size, available=len(self._chosen["train"]))
        return self._batches("train", batch_size, seed, device, channels_last, share)

    def eval_batches(
        self,
        split: str,
        batch_size: int,
        device: Device,
        *,
        channels_last: bool = False,
        share: Share = WHOLE,
    ) -> StreamedBatches:
        """All images of ``split`` through timm's evaluation transform of the tag.

        Training images have the size and crop of the training.
        """
        self.require(split)
        check_batch_size(batch_size)
        return self._batches(split, batch_size, None, device, channels_last, share)

    def _batches(
        self,
        split: str,
        batch_size: int,
        seed: int | None,
        device: Device,
        channels_last: bool,
        share: Share,
    ) -> StreamedBatches:
        data = Decoded(
            self._rows["test" if split == "test" or self._test_only else "train"],
            self._transform(split, augmented=seed is not None),
        )
        return StreamedBatches(
            data, self._chosen[split], batch_size, seed, self.workers, device, channels_last, share
        )

    @property
    def _test_only(self) -> bool:
        return self.variant == "sample" or self.source.counts["train"] == 0

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        source, layout = self.source, self.source.layout()
        splits = ["test"] if self._test_only else ["train", "test"]
        rows = {split: open_rows(layout, source.splits[split]) for split in splits}
        for split, found in rows.items():
            expected = None if self.variant == "sample" else source.counts[split]
            found.labels = source.numbered(found)
            source.check(split, found, expected=expected)
        return rows

    @cached_property
    def _chosen(self) -> dict[str, Tensor]:
        source, rows = self.source, self._rows
        n_test = len(rows["test"].labels)
        if "train" not in rows:
            test = rows_of_test(n_test, n_test)
            apart = test[:0]
            if self.variant == "sample" and source.train_images is not None:
                wanted = limit("train_images", source.train_images, n_test - 1)
                apart = rows_of_test(n_test, wanted)
                test = np.setdiff1d(test, apart)
            left = limit("test_images", source.test_images, len(test))
            test = test[rows_of_test(len(test), left)]
            chosen = {"train": apart, "val": test[:0], "test": test}
        else:
            chosen = source.chosen(len(rows["train"].labels), n_test)
        return {split: torch.from_numpy(np.sort(found)) for split, found in chosen.items()}

    @property
    def train_size(self) -> tuple[int, ...]:
        """(c, h, w) of what is trained and calibrated on; images of a sample are of one size."""
        sizes = sizes_of(self.tag)
        check_input_size(self.input_size, self.tag, sizes)
        return self.input_size if self.variant == "sample" else sizes.trained

    def _transform(self, split: str, *, augmented: bool) -> Callable[[Image.Image], Tensor]:
        check_input_size(self.input_size, self.tag, sizes_of(self.tag))
        config = preprocessing(self.tag, tested=split != "train")
        if self.variant == "sample":  # cropped already: anything but normalizing would blur it
            normalize = transforms.Normalize(config["mean"], config["std"])
            exact = ExactSize(self.input_size)
            whole: Callable[[Image.Image], Tensor] = transforms.Compose(
                [exact, transforms.ToTensor(), normalize]
            )
            return whole
        made: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=augmented)
        return made


@dataclass(frozen=True)
class ExactSize:
    """Passes an image of the network's input size, and refuses any other."""

    input_size: Sequence[int]  # (c, h, w)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return ``image``."""
        _, h, w = self.input_size
        if image.size != (w, h):
            raise UserError(f"a sample image is {image.size}, expected the final crop of {w}x{h}")
        return image


def sizes_of(tag: str) -> Sizes:
    """Input sizes that timm gives the weights ``tag``."""
    sizes = (preprocessing(tag, tested=tested)["input_size"] for tested in (False, True))
    return Sizes(*map(tuple, sizes))


def preprocessing(tag: str, *, tested: bool) -> dict[str, Any]:
    """Input size, mean, std, interpolation and crop that timm gives the weights ``tag``.

    ``tested``: those that the weights' accuracy is published at, where they are others.
    """
    known = timm.list_pretrained()
    if tag not in known:
        raise unknown("timm weights", tag, known, "data.tag")
    config = timm.get_pretrained_cfg(tag)
    assert config is not None  # it is listed
    found = config.to_dict()  # type: ignore[no-untyped-call]
    return dict(
        resolve_data_config({}, pretrained_cfg=found, use_test_size=tested)  # type: ignore[no-untyped-call]
    )
