"""One cell: its complete config in, its record out. The only module that unpacks a config."""

import logging
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from quantable.allocator import keep_freed_memory
from quantable.classifier import Classifier, Evaluate, Keep, Stream, Tell, save
from quantable.columns import COLUMNS, Facts, Hardware, complexity, hardware_of, uniform
from quantable.config import ROOT, portable
from quantable.data.images import Images
from quantable.layers import FLOAT_BITS, LayerShape
from quantable.names import UserError
from quantable.quantize import Quantize
from quantable.record import DataFacts, Epoch, Phase, Provenance, Record, cell_name
from quantable.shapes import PACKAGED, read_shapes, shape_key, write_shapes
from quantable.store import Store
from quantable.table import Cell
from quantable.trace import layer_shapes

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips between our lines
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "numpy")


def run_cell(cell: Cell, store: Store, variant: str, tell: Tell) -> Record:
    """Train one cell, or take it up where it was left, and return its record."""
    config = dict(cell.config)
    folder = store.cell(cell_name(cell.signature, variant))
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    keep_freed_memory()
    pl.seed_everything(cell.seed, verbose=False)

    images: Images = _build(config, "data.loader")
    images.load()
    net: nn.Module = _build(config, "model.net")
    recipe = config["recipe"]
    if recipe["channels_last"]:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    c, h, w = images.input_size
    input_size = (c, h, w)
    shapes = layer_shapes(net, input_size)
    _keep_shapes(config, shapes, store)
    module = Classifier(
        net,
        input_size=input_size,
        optimizer=_build(config, "recipe.optimizer"),
        schedule=_build(config, "recipe.schedule"),
        epochs=recipe["epochs"],
    )
    quantize: Quantize | None = None
    if config["quantizer"]["callback"] is not None:
        quantize = _build(config, "quantizer.callback")
        assert quantize is not None
        quantize.attach(net, input_size)
    commit, clean = _commit()
    keep = Keep(
        folder / "last.ckpt",
        every_seconds=config["trainer"]["checkpoint_seconds"],
        quantize=quantize,
        commit=commit,
        clean=clean,
    )
    keep.restore(module)
    if recipe["compile"]:
        net.compile()

    trainer = _trainer(config)
    device = trainer.strategy.root_device
    loading = {
        "batch_size": recipe["batch_size"],
        "device": device,
        "channels_last": recipe["channels_last"],
    }
    # The epoch's history line first, then the method's word on it, then the checkpoint.
    ordered = [Evaluate(images, tell, loading), quantize, keep]
    trainer.callbacks.extend(callback for callback in ordered if callback is not None)  # type: ignore[attr-defined]
    stream = Stream(module, images.train_batches(seed=cell.seed, **loading))
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch 2.13 for a name that is about to go; nothing a user can do.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        trainer.fit(module, train_dataloaders=stream)
    save(net.state_dict(), store.weights(cell_name(cell.signature, variant)))
    return _record(cell, images, shapes, module, quantize, keep, device)


def _build(config: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401
    """Instantiate what ``key`` of the config describes; a wrong argument is the user's mistake."""
    node: Any = config
    for part in key.split("."):
        node = node[part]
    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise UserError(f"{key}: {error}") from error


def _trainer(config: dict[str, Any]) -> pl.Trainer:
    return pl.Trainer(
        accelerator=config["trainer"]["accelerator"],
        devices=1,
        precision=config["recipe"]["precision"],
        max_epochs=-1,  # the module's phases end the run
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _keep_shapes(config: dict[str, Any], shapes: Sequence[LayerShape], store: Store) -> None:
    """Trace once: what plan and report need without torch."""
    key = shape_key(config["model"], config["data"]["input_size"])
    if read_shapes(key, [PACKAGED, store.shapes]) is None:
        write_shapes(key, shapes, store.shapes)


def _record(
    cell: Cell,
    images: Images,
    shapes: Sequence[LayerShape],
    module: Classifier,
    quantize: Quantize | None,
    keep: Keep,
    device: torch.device,
) -> Record:
    history = [Epoch.model_validate(line) for line in module.history]
    fixed = quantize.bits if quantize else uniform(shapes, FLOAT_BITS)
    widths = {name: (b.weight, b.act) for name, b in fixed.items()}
    phases = _phases(history, widths, module.networks)
    hardware = hardware_of(cell.config)
    _add_complexity(history, phases, shapes, hardware, cell.config["recipe"]["epochs"])
    best = max(history, key=lambda epoch: epoch.val_top1_pct)
    facts = Facts(shapes, phases[-1].bit_map, hardware, phase=phases[-1])
    return Record(
        signature=cell.signature,
        table=cell.table,
        row=cell.row,
        seed=cell.seed,
        budget=cell.config["budget"]["name"],
        config=portable(cell.config),
        data=DataFacts(
            title=images.title,
            variant=images.variant,
            sizes=dict(images.sizes),
            sha256=images.sha256,
        ),
        metrics={"last": _metrics(history[-1]), "best": _metrics(best)},
        phases=phases,
        costs={name: column.value(facts) for name, column in COLUMNS.items() if not column.trained},
        history=history,
        provenance=_provenance(cell, keep, device),
    )


def _metrics(epoch: Epoch) -> dict[str, float]:
    names = ("epoch", "test_top1_pct", "val_top1_pct", "test_loss", "train_loss")
    return {name: getattr(epoch, name) for name in names}


def _phases(
    history: Sequence[Epoch],
    fixed: dict[str, tuple[int, int]],
    networks: Sequence[Mapping[str, Any]],
) -> list[Phase]:
    """Group the history by phase; widths that do not change in training are ``fixed``.

    ``networks`` are the sizes of a network that was cut, each valid from its phase on.
    """
    phases: list[Phase] = []
    for epoch in history:
        if not phases or phases[-1].index != epoch.phase:
            sizes = [network for network in networks if network["phase"] <= epoch.phase][-1:]
            size = {name: value for one in sizes for name, value in one.items() if name != "phase"}
            place = {"index": epoch.phase, "first_epoch": epoch.epoch, "epochs": 0}
            phases.append(Phase.model_validate(place | {"bits": epoch.bits or fixed} | size))
        phases[-1].epochs += 1
    return phases


def _add_complexity(
    history: Sequence[Epoch],
    phases: Sequence[Phase],
    shapes: Sequence[LayerShape],
    hardware: Hardware,
    baseline_epochs: int,
) -> None:
    """Write the training complexity of the epochs so far beside each epoch."""
    for epoch in history:
        done = [
            (
                min(phase.epochs, epoch.epoch - phase.first_epoch + 1),
                phase.bit_map,
                phase.shapes or shapes,
            )
            for phase in phases[: epoch.phase + 1]
        ]
        epoch.training_complexity = complexity(done, shapes, hardware, baseline_epochs)


def _provenance(cell: Cell, keep: Keep, device: torch.device) -> Provenance:
    on_gpu = device.type == "cuda"
    return Provenance(
        commit=keep.commit,
        clean=keep.clean,
        command=cell.command,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        threads=torch.get_num_threads(),
        wall_seconds=round(keep.total_seconds(), 1),
        resumed=keep.resumed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor() -> str:
    """Model of the CPU, as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return (
                    f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
                )
    return platform.processor() or platform.machine()


def _commit() -> tuple[str, bool]:
    """Commit of the checkout and whether nothing changed since; elsewhere ("unknown", False)."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    try:
        return git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "src", "conf") == ""
    except FileNotFoundError:  # no git on this machine
        return "unknown", False
