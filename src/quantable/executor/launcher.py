"""Hydra's submitit launcher, telling of each job as it ends instead of nothing until all have."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantable.base.signals import Preempted
from quantable.executor.cluster import ask_queue, without_outer_job

# From SLURM 22.05 on a step does not have its job's cores unless it is told.
CORES = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'
LOOK_SECONDS = 1.0  # between two looks at files
ASK_SECONDS = 15.0  # between two looks at the queue; a job gone for so long has left no result


def tell_of_each(say: Callable[[str], object], result: Callable[[Sequence[str]], str]) -> None:
    """Let Hydra's launcher ``say`` what came out of a job, ``result`` of its words, as it ends.

    A job that was stopped and not queued again ends the command by ``Preempted`` once the others
    have ended: its cell goes on from its checkpoint. To be called once in a process; where submitit
    is not installed, nothing is changed.
    """
    try:
        import submitit
    except ImportError:
        return
    submit = submitit.AutoExecutor.map_array

    def telling(executor: Any, launcher: Any, overrides: Sequence[Any], *more: Any) -> list[Told]:  # noqa: ANN401
        if executor.cluster == "slurm":
            executor.update_parameters(slurm_setup=[*(launcher.params["setup"] or []), CORES])
        with without_outer_job():
            jobs = submit(executor, launcher, overrides, *more)
        words = [[word for word in own if not word.startswith("hydra")] for own in overrides]
        wait_for_all(jobs, words, say, result)
        return [Told(job, own) for job, own in zip(jobs, words, strict=True)]

    submitit.AutoExecutor.map_array = telling  # type: ignore[method-assign, assignment]


@dataclass(frozen=True)
class Told:
    """A job that has ended, as the launcher takes it."""

    job: Any  # of submitit
    words: Sequence[str]

    def results(self) -> list[Any]:
        """What the job has returned; ``Preempted`` where it was stopped."""
        if not self.job.paths.result_pickle.exists():
            raise self._stopped()
        import submitit

        try:
            found: list[Any] = self.job.results()
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as why:
            if "UncompletedJobError" in str(why):  # stopped once more than it may be
                raise self._stopped() from why
            raise
        return found

    def _stopped(self) -> Preempted:
        return Preempted(f"job {self.job.job_id} ({' '.join(self.words)}) was stopped")


def wait_for_all(
    jobs: Sequence[Any],
    words: Sequence[Sequence[str]],
    say: Callable[[str], object],
    result: Callable[[Sequence[str]], str],
) -> None:
    """Wait until every job has a result, or is gone; one line for each."""
    left = dict(enumerate(jobs))
    missed: dict[int, float] = {}  # since when a job is gone
    asked = time.monotonic()
    while left:
        now = time.monotonic()
        if now - asked >= ASK_SECONDS:
            asked, queue = now, ask_queue()
            for i in left:
                here = getattr(left[i], "_process", None) is not None
                there = here or queue.fault is not None or queue.alive(left[i].job_id)
                missed = {n: t for n, t in missed.items() if n != i or not there}
                if not there:
                    missed.setdefault(i, now)
        for i in list(left):
            over = left[i].paths.result_pickle.exists()
            if over or now - missed.get(i, now) >= ASK_SECONDS or _ended_here(left[i]):
                job = Told(left.pop(i), words[i])
                done = len(jobs) - len(left)
                say(f"[{done}/{len(jobs)}] #{i}: {_came(job, result)}")
        time.sleep(LOOK_SECONDS if left else 0.0)


def _ended_here(job: Any) -> bool:  # noqa: ANN401
    """Whether a job of this machine (submitit's local executor) has ended without a result."""
    process = getattr(job, "_process", None)
    return process is not None and process.poll() is not None


def _came(job: Told, result: Callable[[Sequence[str]], str]) -> str:
    from hydra.core.utils import JobStatus

    try:
        (found,) = job.results()
    except Preempted:
        return f"job {job.job.job_id} was stopped; the same command goes on from its checkpoint"
    except Exception as error:
        return f"failed: {str(error).splitlines()[0]}"
    if found.status != JobStatus.COMPLETED:
        return f"failed: {found._return_value}"
    return result(job.words)
