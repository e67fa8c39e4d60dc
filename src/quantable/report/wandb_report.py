"""A table as a report of Weights & Biases: our own table and verdicts, and plots over its runs.

The table comes from the records, so that it has every row, also those that no run stands for; the
plots are W&B's, over runs chosen by their ids, which are the records' names.
"""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from quantable.base.errors import UserError
from quantable.columns import COLUMNS
from quantable.report.history import numbers_in
from quantable.report.render import by_row, heading, markdown, word_keys
from quantable.report.reporter import Reporter
from quantable.report.schema import Report
from quantable.store.record import Record

TITLE = 128  # characters that W&B allows


def publish(reporter: Reporter, folder: Path) -> str:
    """Save the table's report on the server; its address.

    Without a server a report cannot be: the table alone is kept, in a run below ``folder``, which
    is returned.
    """
    from quantable.logger.wandb_run import library, ready

    wandb = library()
    row, seed = next(iter(reporter.table.rows)), reporter.seeds[0]
    into = reporter.cell(row, reporter.budget, seed).config["logger"]
    try:
        offline = wandb.setup().settings.mode == "offline"
    finally:
        wandb.teardown()
    if offline:
        return _kept(wandb, reporter, into, folder)
    ready(online=True)
    try:
        entity = into["entity"] or wandb.Api().default_entity
        page = build(reporter.report(), records(reporter), into["project"], entity)
        return str(page.save().url)
    except (wandb.Error, ValueError) as error:
        hint = "Stream or replay the runs first (docs/wandb.md)."
        raise UserError(f"format=wandb: {error} {hint}") from error


def _kept(wandb: Any, reporter: Reporter, into: Mapping[str, Any], folder: Path) -> str:  # noqa: ANN401 - an optional module
    """Keep the table in a run of its own that `wandb sync` sends."""
    report = reporter.report()
    place = Path(os.environ.get("WANDB_DIR") or folder)
    place.mkdir(parents=True, exist_ok=True)  # W&B would silently take another
    with wandb.init(
        project=into["project"],
        entity=into["entity"],
        dir=str(place),
        group=reporter.table.kept_as,
        job_type="report",
        name=report.table,
        settings=wandb.Settings(console="off"),
    ) as run:
        head, body = numbers(report)
        run.log({"results": wandb.Table(columns=head, data=body)})
        kept = Path(run.dir).parent
    return f"{kept}: the table alone, as a report needs the server; `wandb sync` sends it"


def numbers(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Head and body of a report's rows as numbers: of each column the mean, then its deviation."""
    keys = word_keys(report)
    columns = list(dict.fromkeys(entry.column for entry in report.rows))
    head = ["row", *keys, "seeds"]
    for column in columns:
        head += [heading(column), f"{heading(column)}, std"]
    body = []
    for row, entries in by_row(report).items():
        found = [entry.measured for entry in entries]
        seeds = max((m.n for m in found if m is not None and m.data is not None), default=0)
        line: list[Any] = [entries[0].label, *(report.words[row][key] for key in keys), seeds]
        for measured in found:
            line += [None, None] if measured is None else [measured.mean, measured.std]
        body.append(line)
    return head, body


def records(reporter: Reporter) -> list[Record]:
    """Runs behind a table, each once, in the order of its rows, then of seeds."""
    rows = reporter.asked.chosen_rows(reporter.table)
    found = (facts.record for row in rows for facts in reporter.row_facts(row).facts)
    return list({record.name: record for record in found if record is not None}.values())


def build(report: Report, runs: Sequence[Record], project: str, entity: str) -> Any:  # noqa: ANN401
    """Build the report's object, a ``wandb_workspaces.reports.v2.Report``; nothing is sent."""
    try:
        wr: Any = import_module("wandb_workspaces.reports.v2")
    except ModuleNotFoundError as error:
        raise UserError(
            "format=wandb: the package wandb-workspaces is not installed: "
            "pip install 'quantable[wandb]'"
        ) from error
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(report))]
    if runs:
        chosen = f"Metric('ID') in {[run.name for run in runs]!r}"
        runset = wr.Runset(project=project, entity=entity, name=report.table, filters=chosen)
        blocks += [
            wr.H2(text="Runs"),
            wr.PanelGrid(runsets=[runset], panels=_panels(report, runs, wr)),
        ]
    title = f"{report.table}: {report.title}"
    return wr.Report(
        project=project,
        entity=entity,
        title=title if len(title) <= TITLE else f"{title[: TITLE - 1]}…",
        description=f"{report.source}; budget {report.budget}",
        blocks=blocks,
        width="fluid",
    )


def _panels(report: Report, runs: Sequence[Record], wr: Any) -> list[Any]:  # noqa: ANN401 - an optional module
    """Accuracy against each cost of the table, bits by layer, and what epochs brought."""
    known = dict.fromkeys(entry.column for entry in report.rows if entry.measured is not None)
    costs = [column for column in known if not COLUMNS[column].trained]
    accuracy = heading("top1_pct")
    panels = [
        wr.ScatterPlot(
            title=f"{accuracy} against {heading(column)}",
            x=wr.SummaryMetric(f"cost/{column}"),
            y=wr.SummaryMetric("last/test_top1_pct"),
        )
        for column in costs
    ]
    layers = dict.fromkeys(layer for run in runs for phase in run.phases for layer in phase.bits)
    for operand, title in (("weight", "Weight bits"), ("act", "Activation bits")):
        if layers:
            names = [f"bits/{operand}/{layer}" for layer in layers]
            panels.append(wr.BarPlot(title=f"{title} by layer", metrics=names, orientation="v"))
        about = f"{title} over epochs"
        panels.append(wr.LinePlot(title=about, x="epoch", metric_regex=f"bits/{operand}/.*"))
    panels += [
        wr.LinePlot(title=accuracy, x="epoch", y=["test/top1_pct", "train/top1_pct"]),
        wr.LinePlot(title="Loss", x="epoch", y=["train/loss", "test/loss"]),
    ]
    for name in dict.fromkeys(name for run in runs for name in numbers_in(run, by_layer=True)):
        title = f"{name} by layer"
        panels.append(wr.LinePlot(title=title, x="epoch", metric_regex=f"{name}/.*"))
    for i, panel in enumerate(panels):  # two beside each other; the grid is 24 wide
        panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
    return panels
