"""After a job's step: is it to be queued again? Exit status 0 means yes.

``python -m quantable.executor.requeue <store> <retries> <exit status of the step>``: the job's own
script asks, since a process that was killed cannot.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from quantable.executor.status import SETTLED, cancelled, fail, job_id, note_death, read_status

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
    """Whether the cell of this job is to go on in a further attempt."""
    job = job_id()
    for path in (store.folder / "status").glob("*.json"):
        status = read_status(store, path.stem)
        if status is None or status.job != job:
            continue
        if status.state in SETTLED or cancelled(store, path.stem):
            return False
        if code == AGAIN or status.state == "preempted":
            if status.deaths > retries:
                fail(store, path.stem, [TOO_SHORT.format(status.deaths)])
            return status.deaths <= retries
        words = f"the job's step ended with exit status {code}"
        return note_death(store, path.stem, retries, words)
    return code == AGAIN


if __name__ == "__main__":
    folder, retries, code = sys.argv[1:]
    sys.exit(0 if again(At(Path(folder)), int(retries), int(code)) else 1)
