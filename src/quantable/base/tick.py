"""How far a run is, as it tells while it goes on. Loads nothing but the standard library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A place in a run: after ``batch`` of the ``batches`` of epoch ``epoch``, which is from 0 on.

    A search counts its items instead of epochs, each when it is done.

    >>> str(Tick(2, 12, 8, 10, loss=0.5321, val_top1_pct=71.2, seconds_left=7300))
    'epoch 3 of at most 12, loss 0.5321, held-out 71.20 %, about 2 h 1 min left'
    >>> str(Tick(2, 12, 1, 1, unit="item"))
    'item 3 of 12 done'
    """

    epoch: int
    epochs: int  # planned, at most
    batch: int
    batches: int  # of an epoch
    loss: float | None = None  # mean over the epoch so far, as it was at most seconds ago
    val_top1_pct: float | None = None  # held-out accuracy after the last whole epoch
    seconds_left: float | None = None
    unit: str = "epoch"
    trouble: str | None = None  # what is wrong with the training, as the last epoch's loss says

    @property
    def done(self) -> int:
        """Batches so far."""
        return self.epoch * self.batches + self.batch

    @property
    def total(self) -> int:
        """Batches planned, at most."""
        return self.epochs * self.batches

    @property
    def place(self) -> str:
        """The place, in words."""
        if self.unit == "epoch":
            return f"epoch {self.epoch + 1} of at most {self.epochs}"
        return f"{self.unit} {self.epoch + 1} of {self.epochs} done"

    @property
    def measures(self) -> str:
        """What the run has come to, in words; nothing where nothing is known."""
        return ", ".join(self._measures())

    def _measures(self) -> Iterator[str]:
        if self.loss is not None:
            yield f"loss {self.loss:.4f}"
        if self.val_top1_pct is not None:
            yield f"held-out {self.val_top1_pct:.2f} %"

    def __str__(self) -> str:
        left = self.seconds_left
        words = [self.place, *self._measures()]
        return ", ".join(words if left is None else [*words, f"about {duration(left)} left"])


Tell = Callable[[Tick], None]


def duration(seconds: float) -> str:
    """A time in two units at most.

    >>> duration(0.25), duration(42), duration(130), duration(7300), duration(150000)
    ('0.25 s', '42 s', '2 min', '2 h 1 min', '41 h')
    """
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes < 600 else "")
