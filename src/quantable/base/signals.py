"""Signals of a scheduler: noted when they come, obeyed where nothing is lost.

A handler that saves would do so in the middle of a step, and hangs now and then. Here it only notes
the signal; training looks for it between two batches, and an evaluation between two of its own.
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM's at a preemption or before a time limit, Lightning's habit, submitit's habit."""

Handler = Callable[[int, FrameType | None], object] | int | None
T = TypeVar("T")


class Preempted(Exception):  # noqa: N818 - no error: the run goes on elsewhere
    """The run was asked to stop; the same command goes on where it stopped."""


def listen() -> dict[int, Handler]:
    """Note ``SIGNALS`` from now on, and forget earlier ones; returns the handlers there were.

    Only the main thread may call this. A scheduler may signal the whole group: processes that a
    run starts ``ignore`` the signals, or ``leave_group`` where they are ended by SIGTERM.
    """
    _noted.clear()
    return {number: signal.signal(number, _note) for number in SIGNALS}


def listen_before_others() -> None:
    """Take the signals back from who came in between: Lightning's own handler ends a fit at once.

    Does nothing where nobody listens.
    """
    if signal.getsignal(signal.SIGUSR1) is _note:
        for number in SIGNALS:
            signal.signal(number, _note)


def ignore() -> None:
    """Leave ``SIGNALS`` to the process that started this one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_group(worker: int) -> None:
    """Make a loader's worker deaf to signals for its group, not to its owner's SIGTERM."""
    os.setpgid(0, 0)


def noted() -> bool:
    """Whether a signal has come."""
    return bool(_noted)


def heed() -> None:
    """Raise ``Preempted`` if a signal has come."""
    if _noted:
        stop()


def note() -> None:
    """Have the run stop as if SIGTERM had come, where somebody wants that who cannot signal it."""
    _note(signal.SIGTERM, None)


def stop() -> NoReturn:
    """Raise ``Preempted``, also where another process of the run has the signal."""
    name = signal.Signals(_noted[0]).name if _noted else "a signal for another device"
    raise Preempted(f"stopped by {name}")


def heeding(items: Iterable[T]) -> Iterator[T]:
    """Pass ``items`` on, and ``heed`` before each."""
    for item in items:
        heed()
        yield item


_noted: list[int] = []  # since ``listen``


def _note(number: int, frame: FrameType | None) -> None:
    _noted.append(number)
