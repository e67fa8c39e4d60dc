"""One cell as a run of Weights & Biases: its id is the record's name, its step the epoch. No torch.

The store is the truth and this is a copy of it: whatever a copy misses is sent from the history, so
a run that was killed, or watched only in part, or not at all, ends as one complete run. What counts
as sent is what arrived: on the server, or offline in the files of earlier attempts, since W&B's
own process loses what it has not yet written when it is killed.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.store.record import Epoch, Record
from quantable.tables.schema import SINGLE

SPLITS = ("train", "val", "test")
PLACE = ("+table=", "rows=", "seed=", "budget=")  # words of a command that a run has by name
OF_METHODS = (["quantable", "methods"], ["quantable", "search"])
LONGEST = 128  # characters of a name that W&B takes
WITHOUT = "the run goes on without it; action=wandb_replay sends later what it misses"
DELETED = re.compile(r"HTTP 409|deleted")  # how a server refuses the id of a run that was deleted
DELETED_AT_MOST = 3
ONLINE = ("online", "shared", "run")  # W&B's modes that have a server
BEGIN_SECONDS = 60.0  # for the server's answer; then a cell goes on without it
FINISH_SECONDS = 30.0
"""A cell that ends or is stopped waits this long for the network; a replay sends what was left."""
REPLAY_SECONDS = 600.0


def ready(*, online: bool = False) -> None:
    """Refuse before the first training what only the user can mend: no package, no key.

    A server that does not answer is said, and no reason to train nothing. ``online``: it is needed,
    as for a replay.
    """
    wandb = library()
    try:
        mode = wandb.setup().settings.mode
        logged_in = mode in ONLINE and wandb.login()
    except wandb.Error as error:
        if not online and isinstance(error, wandb.errors.CommError):  # nobody answers
            print(f"W&B: {error}: {WITHOUT}", file=sys.stderr)
            return
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


@dataclass(frozen=True)
class About:
    """What a run is called, grouped and found by."""

    table: str | None
    row: str
    seed: int
    command: str  # the words that run it alone
    config: Mapping[str, Any]  # as a record keeps it

    @classmethod
    def of(cls, record: Record) -> Self:
        """Of a finished cell."""
        command = record.provenance.command
        return cls(record.table, record.row, record.seed, command, record.config)

    @property
    def group(self) -> str:
        """Table, row and the user's own words; without a table what tells the run from others.

        >>> About("ad_cifar10", "ad", 1, "python run.py +table=x rows=ad seed=1 a.b=2", {}).group
        'ad_cifar10 ad a.b=2'
        >>> About("single", "run", 1, "python run.py budget=cpu seed=1 quantizer=lsq", {}).group
        'quantizer=lsq'
        >>> About("single", "quantizer=lsq, a.b=2", 1, "python run.py a.b=2 c=3", {}).group
        'quantizer=lsq, a.b=2'
        """
        words = [word for word in shlex.split(self.command) if "=" in word]
        own = [word for word in words if not word.startswith(PLACE)]
        if self.table in (None, SINGLE):
            named = [self.row] if self.row != "run" else own
            return _cut(" ".join(named) or str(self.config.get("model.name")))
        return _cut(" ".join([str(self.table), self.row, *own]))

    @property
    def name(self) -> str:
        """Of the run itself."""
        end = f" seed {self.seed}"
        return _cut(self.group, LONGEST - len(end)) + end

    @property
    def named(self) -> dict[str, Any]:
        """Config of the run: what it is under plain names, then every key."""
        config = self.config
        return {
            "table": self.table,
            "row": self.row,
            "seed": self.seed,
            "budget": config["budget.name"],
            "network": config["model.name"],
            "data": config["data.id"],
            "method": method_of(config),
            **config,
        }


def method_of(config: Mapping[str, Any]) -> str:
    """Method of a run, or the rule of a search, by the name of its file; "float" of neither.

    >>> method_of({"quantizer.callback.weight._target_": "quantable.methods.lsq.LSQ"})
    'lsq'
    """
    keys = ("search.rule", "quantizer.callback", "quantizer.callback.weight")
    targets = (str(config.get(f"{key}._target_")).split(".") for key in keys)
    return next((t[2] for t in targets if t[:2] in OF_METHODS), "float")


def _cut(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


class CellRun:
    """A cell's run, begun or taken up again; whatever W&B does, nothing is raised here.

    ``into`` has project, entity and tags, ``folder`` holds the files (``WANDB_DIR`` goes before
    it). Its id is ``name``, or one beside it where the server had a run of that id deleted.
    """

    def __init__(
        self,
        name: str,
        about: About,
        *,
        into: Mapping[str, Any],
        folder: Path,
        patience: float | None = None,
    ) -> None:
        self.patience = FINISH_SECONDS if patience is None else patience
        self.lost = False  # W&B failed us: the rest is for a replay
        self.run: Any = None
        self.sent: set[int] = set()
        self._try(lambda: self._begin(name, about, into, folder))

    def _begin(self, name: str, about: About, into: Mapping[str, Any], folder: Path) -> None:
        wandb, place = library(), Path(os.environ.get("WANDB_DIR") or folder)
        place.mkdir(parents=True, exist_ok=True)  # W&B would silently take another
        kept = folder / "wandb_ids" / name
        first = int(kept.read_text()) if kept.exists() else 1
        for n in range(first, first + DELETED_AT_MOST):
            try:
                self.run = self._init(name if n == 1 else f"{name}.{n}", about, into, place)
                break
            except wandb.Error as error:
                if not DELETED.search(str(error)) or n == first + DELETED_AT_MOST - 1:
                    raise
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(str(n + 1))
        self.sent = self._arrived()

    def _init(self, id_: str, about: About, into: Mapping[str, Any], place: Path) -> Any:  # noqa: ANN401
        """Begin a run of W&B's, or take it up."""
        wandb = library()
        return wandb.init(
            id=id_,
            resume="allow",
            project=into["project"],
            entity=into["entity"],
            dir=str(place),
            group=about.group,
            job_type=about.row,
            name=about.name,
            tags=[about.config["budget.name"], *into["tags"]],
            config=about.named,
            allow_val_change=True,  # of what is not part of the signature, such as hardware
            settings=wandb.Settings(
                console="off",
                reinit="create_new",  # one that W&B has lost is not gone on with
                init_timeout=BEGIN_SECONDS,
                finish_timeout=self.patience,
                finish_timeout_raises=True,
                max_end_of_run_history_metrics=0,  # of what it would print
                max_end_of_run_summary_metrics=0,
            ),
        )

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
        self._try(lambda: self._add_files(record))
        self._try(lambda: self.run.finish())

    def _add_files(self, record: Record) -> None:
        """Add the record itself, and its results as a table."""
        wandb = library()
        artifact = wandb.Artifact(f"record-{record.name}", type="record")
        with artifact.new_file("record.json") as file:
            file.write(record.model_dump_json(indent=1))
        self.run.log_artifact(artifact)
        columns, rows = results(record)
        self.run.summary.update({"results": wandb.Table(columns=columns, data=rows)})

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
            print(f"W&B: {type(error).__name__}: {error}: {WITHOUT}", file=sys.stderr)


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


def results(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Results and costs as columns and rows of a table: one for the last epoch, one for the best.

    Of a search, one for each item and choice of bits.
    """
    if record.scores is not None:
        rows = [[",".join(i.layers), b, n] for i in record.scores.items for b, n in i.loss.items()]
        return ["layers", "bits", f"loss [{record.scores.unit}]"], rows
    costs = {name: cost for name, cost in record.costs.items() if cost is not None}
    names = list(dict.fromkeys(name for found in record.metrics.values() for name in found))
    place = [record.table, record.row, record.seed, record.budget]
    return ["table", "row", "seed", "budget", "which", *names, *costs], [
        [*place, which, *(found.get(name) for name in names), *costs.values()]
        for which, found in record.metrics.items()
    ]


def send(
    record: Record, into: Mapping[str, Any], folder: Path, patience: float | None = None
) -> int | None:
    """Send a whole record; what the server has of it stays. Returns the number of new lines.

    None where W&B failed, or took longer than ``patience`` seconds at the end.
    """
    run = CellRun(record.name, About.of(record), into=into, folder=folder, patience=patience)
    before = len(run.sent)
    run.finish(record)
    return None if run.lost else len(run.sent) - before


def replay(records: Iterable[Record], into: Mapping[str, Any], folder: Path) -> None:
    """Send stored records to the server, each line of their histories once."""
    ready(online=True)
    for record in records:
        name = f"{record.row} seed {record.seed} [{record.name}]"
        new = send(record, into, folder, REPLAY_SECONDS)
        if new is None:
            raise UserError(f"{name}: not sent whole; the same command goes on")
        print(f"{name}: {new} of {len(record.history)} epochs sent")
