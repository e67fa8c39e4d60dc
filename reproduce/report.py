"""Show a table from the records there are; trains nothing and loads no torch."""

from quantable.cli import entry, report_main

HELP = """
Show a table from the records in the store and in reproduce/evidence.

  python reproduce/report.py +table=ad_cifar10
  python reproduce/report.py +table=ad_pim format=json
  python reproduce/report.py compare=runs,HEAD +table=ad_cifar10
  python reproduce/report.py sweep=runs sort=-top1_pct

Words:
  +table=<id>[,<id>]   tables to show; patterns such as ad_* are allowed
  sweep=<store>[,<store>]   runs without a table; other words choose some (docs/sweeps.md)
  sort=<column>        rows in the order of a column or word, from high to low: sort=-<column>
  format=terminal|markdown|csv|csv_semicolon|json|latex     printed
  format=html|figures|parquet               files below <store>/reports; html without a table: all
  format=wandb                              a report at Weights & Biases
  rows=<row>[,<row>]   only these rows          seed=<n>[,<n>]       these seeds
  budget=paper|gpu|cpu|smoke   (default: the largest with a record)
  store=<folder>       records (default: runs)
  compare=<A>,<B>      what changed, seed by seed tested: two stores, or two commits' evidence
  published=<file>     your own published numbers for one table (docs/add-a-table.md)
  <key>=<value>        as it was given to run.py
"""

if __name__ == "__main__":
    entry(report_main, HELP)
