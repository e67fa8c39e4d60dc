"""Hydra's submitit launcher: each job is told as it ends, one that was stopped is no fault."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from hydra.core.utils import JobReturn, JobStatus

from quantable.base.errors import UserError
from quantable.base.signals import Preempted
from quantable.executor import launcher
from quantable.executor.cluster import Job, Queue
from quantable.executor.launcher import Told, wait_for_all


def job(folder: Path, number: int) -> submitit.SlurmJob:
    return submitit.SlurmJob(folder=folder, job_id=f"7_{number}", tasks=[0])


def end(job: submitit.SlurmJob, outcome: str, what: object) -> None:
    """Leave what a job leaves at its end."""
    job.paths.result_pickle.write_bytes(pickle.dumps((outcome, what)))


def returned(value: object, status: JobStatus = JobStatus.COMPLETED) -> JobReturn:
    return JobReturn(_return_value=value, status=status)


def test_each_job_is_told_as_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, said = [job(tmp_path, i) for i in range(4)], list[str]()
    queue = {f"7_{i}": Job("RUNNING") for i in range(4)}
    now = [0.0]

    def sleep(seconds: float) -> None:
        """The last is done first; one is cancelled; one fails; one is preempted too often."""
        now[0] += 10
        if now[0] == 10:
            end(jobs[3], "success", returned(0))
        if now[0] == 20:
            queue["7_0"] = Job("CANCELLED")
            end(jobs[1], "success", returned(UserError("no such row"), JobStatus.FAILED))
        if now[0] == 30:
            end(jobs[2], "error", "UncompletedJobError: Job not requeued because: timed-out")

    monkeypatch.setattr(launcher, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(launcher, "ask_queue", lambda: Queue(queue))
    words = [[f"seed={i}"] for i in range(4)]
    wait_for_all(jobs, words, said.append, lambda words: f"{words[0]}: top-1 90.00 %")
    again = "was stopped; the same command goes on from its checkpoint"
    assert said == [
        "[1/4] #3: seed=3: top-1 90.00 %",
        "[2/4] #1: failed: no such row",
        f"[3/4] #2: job 7_2 {again}",
        f"[4/4] #0: job 7_0 {again}",
    ]
    assert Told(jobs[3], words[3]).results()[0].return_value == 0
    for i in (0, 2):
        with pytest.raises(Preempted, match=rf"job 7_{i} \(seed={i}\) was stopped"):
            Told(jobs[i], words[i]).results()
