"""Reproduce a table, or train a single run."""

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial

from quantable.cli import STOPPED, entry, run_main, work_of
from quantable.store.store import Store
from quantable.words import parse

HELP = """
Reproduce a paper's table: train or compute what misses, then show it beside the published numbers.

  python reproduce/run.py +table=ad_quickstart
  python reproduce/run.py +table=ad_cifar10 budget=cpu data.root=<folder> seed=0,1,2
  python reproduce/run.py +table=ad_cifar10 action=plan
  python reproduce/run.py model=resnet20_cifar quantizer=lsq 'bits.inner=[4,4]'     (a single run)
  python reproduce/run.py -m +table=ad_quickstart seed=0,1,2                  (multirun)

Words:
  +table=<id>[,<id>]   tables to work on; patterns such as ad_* too
  action=run|plan|hours|status|watch|submit|collect|cancel    (plan, hours and status train nothing)
  executor=inline|pool|slurm   here, side by side here, or on a cluster (docs/clusters.md)
  rows=<row>[,<row>]   only these rows          seed=<n>[,<n>]       these seeds
  budget=paper|gpu|cpu|smoke                    format=terminal|markdown|csv|json|figures
  store=<folder>       records and checkpoints (default: runs)
  published=<file>     your own published numbers for one table (docs/add-a-table.md)
  logger=wandb         stream every run to Weights & Biases as well; action=wandb_replay sends
                       the stored ones later (docs/wandb.md)
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


def multirun(words: Sequence[str]) -> int:
    """Let Hydra split a sweep into jobs, each with its own words; every job runs to its end."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import DictConfig

    from quantable.base.errors import UserError
    from quantable.base.places import CONF
    from quantable.base.signals import Preempted
    from quantable.config.schema import RunConfig
    from quantable.executor.launcher import tell_of_each
    from quantable.words import CONTROL

    # Words of this command that are no keys of the run config: Hydra takes them as additions.
    own = tuple(f"{word}=" for word in {*CONTROL} - {*RunConfig.model_fields})
    sys.argv[1:] = [f"+{word}" if word.startswith(own) else word for word in words]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of as a traceback
    tell_of_each(partial(print, file=sys.stderr, flush=True), results_of)

    @hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")
    def job(_: DictConfig) -> None:
        if "SLURM_JOB_ID" in os.environ:  # torch would take every core of the node
            share = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ["SLURM_CPUS_ON_NODE"]
            os.environ.setdefault("OMP_NUM_THREADS", share)
        try:
            run_main(list(HydraConfig.get().overrides.task))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # at once, in the job's own log
            raise
        except Preempted as stop:
            queue_again = signal.getsignal(signal.SIGUSR2)  # submitit's, now that all is saved
            if "SIGUSR2" in str(stop) and callable(queue_again):
                queue_again(signal.SIGUSR2, None)
            sys.exit(STOPPED)

    try:
        job()
    except HydraException as error:
        raise UserError(f"command line: {error}") from error
    return 0


if __name__ == "__main__":
    if any(word in ("-m", "--multirun", "--cfg", "-c", "--info", "-i") for word in sys.argv[1:]):
        entry(multirun, HELP)
    else:
        entry(run_main, HELP)
