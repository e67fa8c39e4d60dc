"""Reproduce a table, or train a single run."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from quantable.cli import STOPPED, entry, run_main, sweep_main, work_of
from quantable.store.store import Store
from quantable.words import parse

MULTIRUN = ("-m", "--multirun")

HELP = """
Reproduce a paper's table: train or compute what misses, then show it beside the published numbers.

  python reproduce/run.py +table=ad_quickstart
  python reproduce/run.py +table=ad_cifar10 budget=cpu data.root=<folder> seed=0,1,2
  python reproduce/run.py +table=ad_cifar10 action=plan
  python reproduce/run.py model=resnet20_cifar quantizer=lsq 'bits.inner=[4,4]'     (a single run)
  python reproduce/run.py -m quantizer=lsq,pact 'bits.inner=[4,4],[2,2]'      (a sweep)

Words:
  +table=<id>[,<id>]   tables to work on; patterns such as ad_* too
  action=run|plan|hours|status|watch|submit|collect|cancel    (plan, hours and status train nothing)
  action=integers      what finished runs answer in integers; trains nothing (docs/integers.md)
  executor=inline|pool|slurm   here, side by side here, or on a cluster (docs/clusters.md)
  rows=<row>[,<row>]   only these rows          seed=<n>[,<n>]       these seeds
  budget=paper|gpu|cpu|smoke                    format=terminal|markdown|csv|json|figures
  store=<folder>       records and checkpoints (default: runs)
  published=<file>     your own published numbers for one table (docs/add-a-table.md)
  logger=wandb         stream every run to Weights & Biases as well; action=wandb_replay sends
                       the stored ones later (docs/wandb.md)
  objective=<number>   what a job returns to a sweeper (docs/sweeps.md)
  <key>=<value>        any key of conf/run.yaml; wins over the table's own
"""


def results_of(words: Sequence[str]) -> str:
    """What came out of the cells that a job's words mean."""
    from quantable.executor.progress import result

    parsed = parse(words)
    store = Store(parsed.store)
    cells = [cell for work in work_of(parsed) for cell in work.cells]
    found = ((cell, store.find(cell.signature, None)) for cell in cells)
    return "; ".join(f"{cell.label}: {result(record)}" for cell, record in found if record)


def sweep(words: Sequence[str]) -> int:
    """Run all combinations of words with several values, and report them as one table.

    They are runs like any others, unless words for Hydra name a launcher or sweeper of its own.
    """
    ours = [word for word in words if word not in MULTIRUN and not word.startswith("hydra")]
    flags = [word for word in ours if word.startswith("-")]
    elsewhere = flags or any(word.startswith("hydra") for word in words)
    action = next((w.partition("=")[2] for w in ours if w.startswith("action=")), "run")
    if elsewhere and action == "run":
        return launched(words)
    return sweep_main(ours)


def launched(words: Sequence[str]) -> int:
    """Let Hydra's sweeper and launcher start the jobs, and report them once they have ended."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from quantable.base.errors import UserError
    from quantable.base.places import CONF
    from quantable.cli import report_jobs
    from quantable.config.schema import RunConfig
    from quantable.executor.launcher import tell_of_each
    from quantable.words import CONTROL, jobs_of, sweep_words

    # Words of this command that are no keys of the run config: Hydra takes them as additions.
    own = tuple(f"{word}=" for word in {*CONTROL} - {*RunConfig.model_fields})
    words, folder = sweep_words(words)
    sys.argv[1:] = [f"+{word}" if word.startswith(own) else word for word in words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of as a traceback
    tell_of_each(partial(print, file=sys.stderr, flush=True), results_of)

    @hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")
    def job(_: DictConfig) -> float | list[float] | None:
        config = HydraConfig.get()
        basic = config.sweeper["_target_"].endswith(".BasicSweeper")  # goes through all values
        return one_job(list(config.overrides.task), judged=not basic)

    failed = None
    try:
        job()
    except HydraException as error:
        raise UserError(f"command line: {error}") from error
    except UserError as error:  # of one job; the others have run too
        failed = error
    if jobs := jobs_of(words, folder):
        report_jobs(jobs)
    if failed is not None:
        raise failed
    return 0


def one_job(words: Sequence[str], *, judged: bool) -> float | list[float] | None:
    """Do one job's work in the process that a launcher gave it; what a sweeper judges it by."""
    from quantable.base.errors import UserError
    from quantable.base.signals import Preempted
    from quantable.cli import job_main

    if "SLURM_JOB_ID" in os.environ:  # torch would take every core of the node
        share = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
        os.environ.setdefault("OMP_NUM_THREADS", share)
    try:
        return job_main(words, judged=judged)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # at once, in the job's own log
        raise
    except Preempted as stop:
        queue_again = signal.getsignal(signal.SIGUSR2)  # submitit's, now that all is saved
        if "SIGUSR2" in str(stop) and callable(queue_again):
            try:
                queue_again(signal.SIGUSR2, None)
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:  # else it was done: queueing a job again ends all of it
                    raise
        sys.exit(STOPPED)


if __name__ == "__main__":
    if any(word in (*MULTIRUN, "--cfg", "-c", "--info", "-i") for word in sys.argv[1:]):
        entry(sweep, HELP)
    else:
        entry(run_main, HELP)
