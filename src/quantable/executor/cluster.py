"""What the cluster says of its jobs, and asking it to end some: squeue, sacct, scontrol, scancel.

Loads little more than the standard library: a job asks between its last signal and its end.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

NAME = "quantable-"  # jobs of a submission are called so, with its token
SECONDS = 60.0  # until a command of the cluster is taken to have failed
AT_ONCE = 500  # job ids in one command
ENDED = frozenset(
    (
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"),
        *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"),
    )
)
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
OF_A_JOB = ("SBATCH_", "SRUN_", "SLURMD_", "SUBMITIT_", "PMI", "OMPI_")
DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, as ``squeue`` lists it."""

    state: str  # such as PENDING, RUNNING, CANCELLED
    reason: str = ""  # why it waits, such as Resources
    name: str = ""


@dataclass(frozen=True)
class Queue:
    """The user's jobs by id, the lately ended too; ``fault`` says why the cluster was not asked."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    fault: str | None = None

    def alive(self, job: str | None) -> bool:
        """Whether a job waits or runs; one that is being ended does not."""
        about = self.jobs.get(job or "")
        return about is not None and about.state not in {*ENDED, "COMPLETING"}

    def submitted(self, submission: str | None) -> str | None:
        """Id of the job of a submission, ``<token>_<its place in the array>``."""
        token, _, place = (submission or "").partition("_")
        ids = (job for job, about in self.jobs.items() if about.name == NAME + token)
        return next((job for job in ids if (job.partition("_")[2] or "0") == place), None)


def ask_queue() -> Queue:
    """Ask the queue once, with the jobs that ended within the controller's memory (MinJobAge)."""
    words = ["--noheader", "--array", "--states=all", f"--user={os.getuid()}"]
    out, fault = call("squeue", *words, "--format=%i|%T|%j|%r")
    lines = (line.split("|", 3) for line in out.splitlines() if line.count("|") >= 3)
    return Queue({job: Job(state, why, name) for job, state, name, why in lines}, fault)


def past(jobs: Sequence[str]) -> dict[str, Job]:
    """How jobs ended that the queue has forgotten, where the cluster keeps accounts (sacct)."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    words = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    out = ""
    for part in _parts(jobs):
        out += call("sacct", *words, f"--jobs={','.join(part)}")[0]
    lines = (line.split("|") for line in out.splitlines() if line.count("|") == 1)
    return {job: Job(state.split()[0]) for job, state in lines if state}  # "CANCELLED by 1000"


def was_cancelled(job: str) -> bool:
    """Whether somebody has cancelled a job, whose last signals its processes hear now."""
    out, _ = call("scontrol", "show", "job", "--oneliner", job, seconds=10.0)
    return "JobState=CANCELLED" in out.split()


def largest_array() -> int | None:
    """Tasks that one array may have (MaxArraySize); None where the cluster does not say."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config")[0], re.M)
    return int(found[1]) if found and int(found[1]) > 0 else None


def end(jobs: Sequence[str]) -> tuple[list[str], str | None]:
    """Cancel jobs; those that may live on nevertheless, and what the cluster said of it.

    A job that had ended by itself is a fault to scancel, and none here.
    """
    faults = [call("scancel", *part)[1] for part in _parts(jobs)]
    said = "; ".join(dict.fromkeys(fault for fault in faults if fault is not None)) or None
    if said is None:
        return [], None
    queue = ask_queue()
    left = [job for job in jobs if queue.fault is not None or queue.alive(job)]
    return left, said if left else None


def call(command: str, *words: str, seconds: float = SECONDS) -> tuple[str, str | None]:
    """What a command of the cluster prints, and why it failed; None where it did not."""
    quiet = ("SQUEUE_", "SCANCEL_", "SACCT_")  # a user's own habits of looking at the queue
    environ = {name: value for name, value in os.environ.items() if not name.startswith(quiet)}
    try:
        done = subprocess.run(
            [command, *words], capture_output=True, text=True, timeout=seconds, env=environ
        )
    except FileNotFoundError:
        return "", f"{command}: there is no such command on this machine"
    except subprocess.TimeoutExpired:
        return "", f"{command}: no answer in {seconds:.0f} s"
    if done.returncode == 0:
        return done.stdout, None
    said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
    return done.stdout, said if said.startswith(command) else f"{command}: {said}"


def _parts(jobs: Sequence[str]) -> Iterator[Sequence[str]]:
    for i in range(0, len(jobs), AT_ONCE):
        yield jobs[i : i + AT_ONCE]


@contextmanager
def without_outer_job() -> Iterator[None]:
    """Hide what a job around this process says of itself: options of sbatch would be among it.

    What selects the cluster stays. Outside a job a user's SBATCH_* variables are wishes, and stay.
    """
    within = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith("SLURM_") and name not in KEPT)
        or (within and (name.startswith(OF_A_JOB) or name in DEVICES))
    }
    try:
        yield
    finally:
        os.environ.update(hidden)
