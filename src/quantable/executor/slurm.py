"""Cells as jobs of a SLURM cluster, through submitit: arrays, their options, dependencies.

A job runs one frozen cell. Its script queues it again after a checkpoint was asked for (preemption,
time limit) and after a kill, as long as the cell gets on; a fault of the cell's own ends it.
"""

import json
import re
import shlex
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantable.base.errors import UserError
from quantable.executor.cluster import NAME, without_outer_job
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


@dataclass(frozen=True)
class Array:
    """Cells of one class of resources that wait for the same jobs; ``parallel`` run at a time."""

    cells: Sequence[Ready]
    parallel: int


class NotTaken(Exception):  # noqa: N818 - in what is said of it
    """What sbatch says when it refuses an array; ``limit``: of its size, or of jobs of a user."""

    @property
    def limit(self) -> bool:
        """Whether a smaller array may be taken."""
        return re.search(r"limit|array spec|Max\w*(Jobs|Submit)", str(self), re.I) is not None


def arrays(cells: Sequence[Ready], most: int | None) -> list[Array]:
    """One array for each resource class and stage, of at most ``most`` cells.

    A cell whose needs are in the same submission is of a later stage than they are. The arrays of
    one class share its executor.max_parallel.
    """
    made: list[Array] = []
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
            size = most or len(members)
            parts = [members[i : i + size] for i in range(0, len(members), size)]
            share = max(members[0].executor["max_parallel"] // len(parts), 1)
            made += [Array(part, share) for part in parts]
        left = [cell for cell in left if waiting & set(cell.behind)]
    return made


def halves(array: Array) -> list[Array]:
    """Two smaller arrays in place of one."""
    middle, share = len(array.cells) // 2, max(array.parallel // 2, 1)
    return [Array(array.cells[:middle], share), Array(array.cells[middle:], share)]


def token() -> str:
    """A name for one call of sbatch, by which its jobs are known before their ids are."""
    return uuid.uuid4().hex[:8]


def send(array: Array, token: str, jobs: Mapping[str, str], store: Store) -> dict[str, str]:
    """Submit one array; job ids by cell. ``jobs`` are those of the arrays before it."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("executor=slurm: pip install 'quantable[slurm]' (submitit)") from error
    folder = (store.folder / "slurm").resolve()
    cells, options = array.cells, array.cells[0].executor
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
    wanted = _parameters(options, cells[0].source, store, sorted(before))
    wanted |= {"job_name": f"{NAME}{token}", "array_parallelism": array.parallel}
    executor.update_parameters(**wanted)
    paths = [frozen_path(store, cell.name).resolve() for cell in cells]
    try:
        with without_outer_job():
            submitted = executor.map_array(step, paths)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise NotTaken(_said(str(error))) from error
    return {cell.name: job.job_id for cell, job in zip(cells, submitted, strict=True)}


def _said(error: str) -> str:
    r"""What sbatch said, on one line.

    >>> _said("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job failed")
    'sbatch: QOSMaxSubmitJobPerUserLimit; Batch job failed'
    """
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in error.splitlines()]
    return "sbatch: " + ("; ".join(line for line in lines if line) or "it failed without a word")


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
    again = f"{_python(options)} -m quantable.executor.requeue {folder} {options['retries']} $code"
    requeue = options["more"].get("requeue", True)
    wanted = {
        **{key: _text(options[key]) for key in ("partition", "account", "qos", "constraint")},
        "gpus_per_node": options["gpus"] or None,
        "cpus_per_task": options["cpus"],
        "ntasks_per_node": 1,
        "nodes": 1,
        "mem": None if options["memory_gib"] is None else f"{options['memory_gib'] * 1024:.0f}M",
        "signal_delay_s": options["signal_seconds"],
        "dependency": f"afterany:{':'.join(before)}" if before else None,
        # A signal for the whole job is not to end the script, which bash would without a trap.
        "setup": [
            "trap : USR1 USR2",
            *options["setup"],
            f"export PYTHONPATH={place}",
            *threads,
            # From SLURM 22.05 on a step does not have its job's cores unless it is told.
            f"export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-{options['cpus']}}}",
        ],
        "teardown": [
            "code=$?",
            "[ $code -eq 0 ] && exit 0",
            *([f"{again} && scontrol requeue $SLURM_JOB_ID"] if requeue else []),
            "exit $code",
        ],
        "additional_parameters": _flags({"requeue": True} | dict(options["more"])),
    }
    known = {key: value for key, value in wanted.items() if value is not None}
    return known | {"time": options["minutes"]}  # null too: submitit would ask for five minutes


def _text(value: object) -> str | None:
    """A setting as SLURM reads it: names that are numbers, and lists, are text.

    >>> _text(3090), _text(["short", "long"]), _text(None)
    ('3090', 'short,long', None)
    """
    if isinstance(value, list):
        return ",".join(map(str, value))
    return None if value is None else str(value)


def _flags(more: Mapping[str, Any]) -> dict[str, Any]:
    """Options of sbatch: one that is true has no value, one that is false is left out.

    >>> _flags({"requeue": False, "hold": True, "exclusive": False, "nodelist": ["n1", "n2"]})
    {'hold': True, 'nodelist': 'n1,n2', 'no-requeue': True}
    """
    kept = {key: value for key, value in more.items() if value is not False}
    flags = {key: value if value is True else _text(value) for key, value in kept.items()}
    return flags | ({"no-requeue": True} if more.get("requeue") is False else {})


def _python(options: Mapping[str, Any]) -> str:
    """Words that start Python on a node: this one, or that of the container."""
    container = options["container"]
    return shlex.quote(sys.executable) if container is None else f"{container} python3"
