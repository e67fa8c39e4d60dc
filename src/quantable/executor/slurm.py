"""Cells as jobs of a SLURM cluster, through submitit: arrays, dependencies, cancelling, the queue.

A job runs one frozen cell. Its script queues it again after a checkpoint was asked for (preemption,
time limit) and after a kill, as long as the cell gets on; a fault of the cell's own ends it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantable.base.errors import UserError
from quantable.executor.frozen import frozen_path
from quantable.executor.work import THREAD_VARIABLES, work
from quantable.store.store import Store


@dataclass(frozen=True)
class Ready:
    """A frozen cell that may be submitted.

    ``after``: jobs that must have ended before, and ``behind``: names of cells of the same
    submission for whose jobs the same holds.
    """

    name: str
    executor: Mapping[str, Any]  # conf/executor/slurm.yaml, as resolved for this cell
    source: str
    after: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()


def submit(cells: Sequence[Ready], store: Store) -> dict[str, str]:
    """Submit one array for each resource class and stage; job ids by cell.

    A cell whose needs are in the same submission is of a later stage than they are.
    """
    jobs: dict[str, str] = {}
    left = list(cells)
    while left:
        waiting = {cell.name for cell in left}
        now = [cell for cell in left if not waiting & set(cell.behind)]
        assert now, "cells wait for each other"
        classes: dict[str, list[Ready]] = {}
        for cell in now:
            key = json.dumps([cell.source, dict(cell.executor)], sort_keys=True, default=str)
            classes.setdefault(key + str(bool(cell.after or cell.behind)), []).append(cell)
        for members in classes.values():
            jobs |= _submit_array(members, jobs, store)
        left = [cell for cell in left if cell.name not in jobs]
    return jobs


def _submit_array(cells: Sequence[Ready], jobs: Mapping[str, str], store: Store) -> dict[str, str]:
    """Submit cells of one resource class as one array."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("executor=slurm: pip install 'quantable[slurm]' (submitit)") from error
    folder = (store.folder / "slurm").resolve()
    options = cells[0].executor
    python = (
        shlex.join([*shlex.split(options["container"]), "python3"])
        if options["container"]
        else None
    )
    try:
        executor = submitit.SlurmExecutor(folder, python=python)
    except RuntimeError as error:
        raise UserError(f"executor=slurm: {error}") from error
    before = {job for cell in cells for job in cell.after}
    before |= {jobs[name] for cell in cells for name in cell.behind}
    executor.update_parameters(**_parameters(options, cells[0].source, store, sorted(before)))
    paths = [frozen_path(store, cell.name).resolve() for cell in cells]
    try:
        submitted = executor.map_array(step, paths)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(f"executor=slurm: {error}") from error
    return {cell.name: job.job_id for cell, job in zip(cells, submitted, strict=True)}


def step(path: Path) -> None:
    """What a job does: its process ends with the cell's exit status."""
    code = work(path)
    if code:
        sys.exit(code)


def _parameters(
    options: Mapping[str, Any], source: str, store: Store, before: Sequence[str]
) -> dict[str, Any]:
    """What submitit writes into the script of the jobs."""
    place = shlex.quote(str((store.folder / source / "src").resolve()))
    threads = [f"export {name}={options['cpus']}" for name in THREAD_VARIABLES]
    folder = shlex.quote(str(store.folder.resolve()))
    again = f"{_python(options)} -m quantable.executor.requeue {folder}"
    wanted = {
        "job_name": "quantable",
        "partition": options["partition"],
        "account": options["account"],
        "qos": options["qos"],
        "constraint": options["constraint"],
        "gpus_per_node": options["gpus"] or None,
        "cpus_per_task": options["cpus"],
        "ntasks_per_node": 1,
        "nodes": 1,
        "mem": None if options["memory_gib"] is None else f"{options['memory_gib'] * 1024:.0f}M",
        "array_parallelism": options["max_parallel"],
        "signal_delay_s": options["signal_seconds"],
        "dependency": f"afterany:{':'.join(before)}" if before else None,
        # A signal for the whole job is not to end the script, which bash would without a trap.
        "setup": ["trap : USR1 USR2", *options["setup"], f"export PYTHONPATH={place}", *threads],
        "teardown": [
            "code=$?",
            "[ $code -eq 0 ] && exit 0",
            f"if {again} {options['retries']} $code; then scontrol requeue $SLURM_JOB_ID; fi",
            "exit $code",
        ],
        "additional_parameters": {"requeue": True} | dict(options["more"]),
    }
    known = {key: value for key, value in wanted.items() if value is not None}
    return known | {"time": options["minutes"]}  # null too: submitit would ask for five minutes


def _python(options: Mapping[str, Any]) -> str:
    """Words that start Python on a node: this one, or that of the container."""
    container = options["container"]
    return shlex.quote(sys.executable) if container is None else f"{container} python3"


Queue = Mapping[str, str]  # why a job waits, such as Resources, by job id; "None" where it runs


def queue() -> Queue | None:
    """Why each of the user's jobs waits that SLURM still has; None on a machine without SLURM."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", "--format=%i %r"]
    done = subprocess.run(
        [*command, f"--user={os.getuid()}"], capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        return None
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())


def cancel_jobs(jobs: Sequence[str]) -> None:
    """End jobs, queued or running; those are told first, and write their checkpoints."""
    if jobs:
        subprocess.run(["scancel", *jobs], check=False, capture_output=True, timeout=60)
