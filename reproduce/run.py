"""Reproduce a table, or train a single run."""

import sys

from quantable.cli import entry, run_main

HELP = """
Reproduce a paper's table: train or compute what misses, then show it beside the published numbers.

  python reproduce/run.py +table=ad_quickstart
  python reproduce/run.py +table=ad_cifar10 budget=cpu data.root=<folder> seed=0,1,2
  python reproduce/run.py +table=ad_cifar10 action=plan
  python reproduce/run.py model=resnet20_cifar quantizer=lsq 'bits.inner=[4,4]'     (a single run)
  python reproduce/run.py -m +table=ad_quickstart seed=0,1,2                  (multirun)

Words:
  +table=<id>[,<id>]   tables to work on        action=run|plan      plan trains nothing
  rows=<row>[,<row>]   only these rows          seed=<n>[,<n>]       these seeds
  budget=paper|gpu|cpu|smoke                    format=terminal|markdown|csv|json|figures
  store=<folder>       records and checkpoints (default: runs)
  published=<file>     your own published numbers for one table (docs/add-a-table.md)
  <key>=<value>        any key of conf/run.yaml; wins over the table's own
"""


def multirun() -> None:
    """Let Hydra split a sweep into jobs, each with its own words."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig

    from quantable.config import CONF
    from quantable.names import UserError

    # Words of this command that are no keys of the run config: Hydra takes them as additions.
    own = ("rows=", "action=", "format=", "published=")
    sys.argv[1:] = [f"+{word}" if word.startswith(own) else word for word in sys.argv[1:]]

    @hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")
    def job(_: DictConfig) -> None:
        words = list(HydraConfig.get().overrides.task)
        try:
            run_main(words)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    job()


if __name__ == "__main__":
    if any(word in ("-m", "--multirun", "--cfg", "-c", "--info", "-i") for word in sys.argv[1:]):
        multirun()
    else:
        entry(run_main, HELP)
