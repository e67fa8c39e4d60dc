"""After a job's step: is it to be queued again? Exit status 0 means yes.

``python -m quantable.executor.requeue <store> <retries> <exit status of the step>``: the job's own
script asks, since a process that was killed cannot.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantable.executor.status import (
    SETTLED,
    Status,
    cancelled,
    fail,
    job_id,
    note_death,
    read_status,
    submission_id,
)

AGAIN = 75  # as quantable.executor.work has it, which takes seconds to load
TOO_SHORT = (
    "stopped {} times in a row before it got any further: the time limit or what is left of it "
    "after the signal is too short (executor.minutes, executor.signal_seconds)"
)


@dataclass
class At:
    """A store by its folder."""

    folder: Path


def again(store: At, retries: int, code: int) -> bool:
    """Whether the cell of this job is to go on in a further attempt.

    A job that no cell knows of is not: the cell is in other hands by now, or nobody's.
    """
    mine = [(name, status) for name, status in _statuses(store) if _is_mine(status)]
    if not mine or any(s.state in SETTLED or cancelled(store, name) for name, s in mine):
        return False
    # A cell whose bits a search has chosen has a name from before; the younger status is its own.
    name, status = max(mine, key=lambda pair: pair[1].updated)
    if code == AGAIN or status.state == "preempted":
        if status.deaths > retries:
            fail(store, name, [TOO_SHORT.format(status.deaths)])
        return status.deaths <= retries
    return note_death(store, name, retries, f"the job's step ended with {_said(code)}")


def _statuses(store: At) -> Iterator[tuple[str, Status]]:
    for path in (store.folder / "status").glob("*.json"):
        if (status := read_status(store, path.stem)) is not None:
            yield path.stem, status


def _is_mine(status: Status) -> bool:
    """Whether a status is of this job, also where its submitter has not yet written its id."""
    if status.job is None:
        return status.submission is not None and status.submission == submission_id()
    return status.job == job_id()


def _said(code: int) -> str:
    """An exit status, as bash has it: of a process that a signal has ended 128 and its number.

    >>> _said(2), _said(137)
    ('exit status 2', 'signal 9')
    """
    return f"signal {code - 128}" if code > 128 else f"exit status {code}"


if __name__ == "__main__":
    folder, retries, code = sys.argv[1:]
    sys.exit(0 if again(At(Path(folder)), int(retries), int(code)) else 1)
