"""One cell as a run of Weights & Biases: its id is the record's name, its step the epoch. No torch.

The store is the truth and this is a copy of it: whatever a copy misses is sent from the history, so
a run that was killed, or watched only in part, or not at all, ends as one complete run. What counts
as sent is what arrived: on the server, or offline in the files of earlier attempts, since W&B's
own process loses what it has not yet written when it is killed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.store.record import Epoch, Record

SPLITS = ("train", "val", "test")
ONLINE = ("online", "shared", "run")  # W&B's modes that have a server
FINISH_SECONDS = 120.0
"""A finished cell waits this long for the network; a replay sends what was left."""


def ready(*, online: bool = False) -> None:
    """Refuse before the first training what W&B would refuse in the middle of it.

    ``online``: whether a server is needed, as for a replay.
    """
    wandb = library()
    try:
        mode = wandb.setup().settings.mode
        logged_in = mode in ONLINE and wandb.login()
    except wandb.Error as error:
        raise UserError(
            f"logger=wandb: {error} Run `wandb login` or set WANDB_API_KEY; WANDB_MODE=offline "
            "needs no key, and action=wandb_replay sends stored histories later"
        ) from error
    finally:
        wandb.teardown()  # its process is not for the processes that this one may start
    if online and not logged_in:
        raise UserError(
            f"logger=wandb: W&B is switched to {mode}; this needs its server: run `wandb online`, "
            "or set WANDB_MODE=online"
        )


def library() -> Any:  # noqa: ANN401 - an optional module
    """The ``wandb`` module, imported only when it is used."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError(
            "logger=wandb: the package wandb is not installed: pip install 'quantable[wandb]'"
        ) from error
    return wandb


class CellRun:
    """A cell's run, begun or taken up again.

    ``into`` names project and entity, ``folder`` holds the files (``WANDB_DIR`` goes before it).
    Runs are grouped by table; their job type is the row, a tag the budget.
    """

    def __init__(
        self,
        name: str,
        *,
        into: Mapping[str, Any],
        folder: Path,
        table: str | None,
        row: str,
        seed: int,
        config: Mapping[str, Any],
    ) -> None:
        wandb = library()
        place = Path(os.environ.get("WANDB_DIR") or folder)
        place.mkdir(parents=True, exist_ok=True)  # W&B would silently take another
        try:
            self.run = wandb.init(
                id=name,
                resume="allow",
                project=into["project"],
                entity=into["entity"],
                dir=str(place),
                group=table or "single run",
                job_type=row,
                name=f"{row} seed {seed}",
                tags=[config["budget.name"]],
                config=dict(config),
                allow_val_change=True,  # of what is not part of the signature, such as hardware
                settings=wandb.Settings(
                    console="off",
                    finish_timeout=FINISH_SECONDS,
                    max_end_of_run_history_metrics=0,  # of what it would print
                    max_end_of_run_summary_metrics=0,
                ),
            )
        except wandb.Error as error:
            raise UserError(
                f"logger=wandb: {error} Where there is no network: WANDB_MODE=offline"
            ) from error
        self.lost = False  # W&B failed us: the rest is for a replay
        self.sent = self._arrived()

    def _arrived(self) -> set[int]:
        """Epochs that earlier attempts have sent."""
        if not self.run.offline:
            return set(range(self.run.starting_step))
        own = Path(self.run.settings.sync_file)
        earlier = own.parent.parent.glob(f"offline-run-*/{own.name}")
        return {step for path in earlier if path != own for step in steps_in(path)}

    def line(
        self, epoch: Epoch, fixed: Mapping[str, Bits], steps: Mapping[str, float] | None = None
    ) -> None:
        """Send one line of the history, unless it was.

        ``fixed``: bits where the line has none; ``steps``: sizes after this epoch.
        """
        if epoch.epoch in self.sent:
            return
        values = metrics(epoch, fixed) | dict(steps or {})
        self._try(lambda: self.run.log(values, step=epoch.epoch, commit=True))
        self.sent.add(epoch.epoch)

    def finish(self, record: Record) -> None:
        """Send what misses of a finished cell's history, then its summary, and wait for both."""
        bits = {phase.index: phase.bit_map for phase in record.phases}
        for epoch in record.history:
            self.line(epoch, bits[epoch.phase])
        self._try(lambda: self.run.summary.update(summary(record)))
        self._try(self.run.finish)

    def stop(self) -> None:
        """End an attempt that will be taken up again, or that failed; all it has is written."""
        self._try(lambda: self.run.finish(exit_code=1))

    def _try(self, act: Callable[[], object]) -> None:
        """Do what a fault of W&B's must not end: a copy never ends the run that it copies."""
        if self.lost:
            return
        try:
            act()
        except Exception as error:
            self.lost = True
            rest = "the run goes on; action=wandb_replay sends the rest"
            print(f"W&B: {type(error).__name__}: {error}: {rest}", file=sys.stderr)


def steps_in(path: Path) -> set[int]:
    """Steps of the history in an offline run's file, as far as it is whole; by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    quiet = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet)
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return {line["history"]["step"].get("num", 0) for line in lines if line["type"] == "history"}


def metrics(epoch: Epoch, fixed: Mapping[str, Bits]) -> dict[str, float]:
    """One line of the history under W&B's names: a slash makes a section.

    >>> line = Epoch(epoch=3, phase=0, test_top1_pct=50.0, test_loss=1.5, seconds=2.0)
    >>> metrics(line, {"fc": Bits(4, 8)})  # doctest: +NORMALIZE_WHITESPACE
    {'epoch': 3, 'phase': 0, 'test/top1_pct': 50.0, 'test/loss': 1.5, 'seconds': 2.0,
     'bits/weight/fc': 4, 'bits/act/fc': 8}
    """
    values: dict[str, float] = {}
    for key, value in epoch.model_dump(exclude={"own", "bits"}, exclude_none=True).items():
        split, _, rest = key.partition("_")
        values[f"{split}/{rest}" if split in SPLITS else key] = value
    for key, number in epoch.own.items():
        by_layer = number if isinstance(number, dict) else {}
        values |= {f"{key}/{layer}": value for layer, value in by_layer.items()}
        values |= {} if isinstance(number, dict) else {key: number}
    changing = {name: Bits(*pair) for name, pair in (epoch.bits or {}).items()}
    for name, bits in (changing or fixed).items():
        values |= {f"bits/weight/{name}": bits.weight, f"bits/act/{name}": bits.act}
    return values


def summary(record: Record) -> dict[str, Any]:
    """What W&B shows of a finished cell beside its last line: costs, results, origin."""
    values: dict[str, Any] = {f"cost/{n}": c for n, c in record.costs.items() if c is not None}
    for which, found in record.metrics.items():
        values |= {f"{which}/{name}": value for name, value in found.items()}
    if record.history and record.history[-1].training_complexity is not None:
        values["training_complexity"] = record.history[-1].training_complexity
    if record.scores is not None:
        about = record.scores.model_dump(include={"rule", "unit", "seconds", "images", "epochs"})
        values |= {f"search/{name}": value for name, value in about.items()}
        for item in record.scores.items:
            values |= {f"loss/{item.layers[0]}/{bits}": loss for bits, loss in item.loss.items()}
            values |= {f"error/{item.layers[0]}/{bits}": e for bits, e in item.error.items()}
    about = record.provenance.model_dump(include={"commit", "clean", "wall_seconds", "resumed"})
    return values | about | {"data": record.data.title, "data_variant": record.data.variant}


def send(record: Record, into: Mapping[str, Any], folder: Path) -> int | None:
    """Send a whole record; what the server has of it stays. Returns the number of new lines.

    None where W&B failed.
    """
    run = CellRun(
        record.name,
        into=into,
        folder=folder,
        table=record.table,
        row=record.row,
        seed=record.seed,
        config=record.config,
    )
    before = len(run.sent)
    run.finish(record)
    return None if run.lost else len(run.sent) - before


def replay(records: Iterable[Record], into: Mapping[str, Any], folder: Path) -> None:
    """Send stored records to the server, each line of their histories once."""
    ready(online=True)
    for record in records:
        name = f"{record.row} seed {record.seed} [{record.name}]"
        new = send(record, into, folder)
        if new is None:
            raise UserError(f"{name}: not sent whole; the same command goes on")
        print(f"{name}: {new} of {len(record.history)} epochs sent")
