"""One cell: its complete config in, its record out."""

import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantable.allocation.choice import learned
from quantable.base.bits import FLOAT_BITS
from quantable.base.devices import count, together
from quantable.base.tick import Tell
from quantable.columns import COLUMNS
from quantable.columns.facts import Facts
from quantable.columns.training import complexity
from quantable.config.signature import portable, signature
from quantable.cost.hardware import Hardware, hardware_of
from quantable.data.images import Images
from quantable.integers.by_layer import ByLayer, measure
from quantable.logger.stream import Stream
from quantable.logger.wandb_run import About, CellRun, send
from quantable.networks.layers import LayerShape, uniform
from quantable.search.run import run_search
from quantable.store.bits_file import write_bits
from quantable.store.provenance import checkout
from quantable.store.record import (
    Calibration,
    DataFacts,
    Epoch,
    Phase,
    Provenance,
    Record,
    cell_name,
)
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.build import (
    Built,
    build,
    devices_of,
    fit,
    loading_of,
    module_of,
    on_gpus,
    part_of,
    trainer_of,
)
from quantable.training.calibration import Evenly, calibrate
from quantable.training.checkpoint import Keep, save
from quantable.training.classifier import Classifier
from quantable.training.evaluation import SPLITS, Evaluate, measured
from quantable.training.fallen import Fallen
from quantable.training.final_numbers import FinalNumbers
from quantable.training.finished import final_weights, load_plain
from quantable.training.integer_answers import in_integers

# Environment variables by which libraries take other kernels.
KERNEL_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    *("MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG"),
)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "torchmetrics", "numpy")


def run_cell(cell: Cell, store: Store, variant: str, tell: Tell) -> Record:
    """Train or search one cell, or take it up where it was left, and return its record."""
    config = dict(cell.config)
    arguments = cell, store.folder, variant
    if (twin := finished_twin(cell, store, variant)) is not None:
        return _copied(asked_again(cell, twin, store, variant), cell, store)
    with together(devices_of(config), _follow, arguments, gpus=on_gpus(config)):
        built = build(config, store, variant)
        if config["search"] is not None:
            folder = store.cell(cell_name(cell.signature, variant))
            return _copied(_searched(cell, built, folder, tell), cell, store)
        if config["recipe"]["epochs"] == 0:
            return _copied(_post_training(cell, built, store, variant), cell, store)
        return _trained(cell, built, store, variant, tell)


def _follow(cell: Cell, folder: Path, variant: str) -> None:
    """Train a cell on another device than the first, which keeps the results of all."""
    store = Store(folder)
    built = build(dict(cell.config), store, variant)
    _train(cell, built, store, variant, lambda *_: None, None)


def _trained(cell: Cell, built: Built, store: Store, variant: str, tell: Tell) -> Record:
    """Train, on several devices the first one's share, and keep the weights."""
    stream = _stream(cell, built, store, variant)
    module, keep, device = _train(cell, built, store, variant, tell, stream)
    save(module.net.state_dict(), store.weights(cell_name(cell.signature, variant)))
    origin, seconds = (keep.commit, keep.clean), keep.total_seconds()
    provenance = _provenance(cell, origin, device, seconds, keep.resumed)
    record = _record(cell, built, module.history, module.networks, module.finals, provenance)
    record = _with_integers(record, cell, store, built.images)
    if cell.config["quantizer"]["learns_bits"]:
        write_bits(learned(record, cell.config), store.bits(record.name))
    if stream is not None and stream.run is not None:
        stream.run.finish(record)
    return record


def _train(
    cell: Cell, built: Built, store: Store, variant: str, tell: Tell, stream: Stream | None
) -> tuple[Classifier, Keep, torch.device]:
    """Train from the checkpoint, where there is one, to the end."""
    config = dict(cell.config)
    folder = store.cell(cell_name(cell.signature, variant))
    net, quantize, recipe = built.net, built.quantize, config["recipe"]
    module = module_of(config, net, quantize, built.input_size, epochs=recipe["epochs"])
    if (teacher := _teacher(config, store, variant)) is not None:
        module.teach(teacher)
    commit, clean = cell.origin or checkout()
    keep = Keep(
        folder / "last.ckpt",
        every_seconds=config["trainer"]["checkpoint_seconds"],
        quantize=quantize,
        commit=commit,
        clean=clean,
    )
    keep.restore(module)
    if recipe["compile"]:
        # A graph for each batch size: with sizes unknown, the compiler fails at what is left of a
        # convolution's backward pass between two breaks (the edge paper's method).
        net.compile(dynamic=False)

    trainer = trainer_of(config)
    device = trainer.strategy.root_device
    loading = loading_of(config, device)
    # The epoch's history line first, what its weights say, the method's word on it, the checkpoint,
    # and its copy.
    looking = [FinalNumbers(quantize), Fallen(quantize)] if quantize else []
    ordered = [Evaluate(built.images, quantize, tell, loading), *looking, quantize, keep, stream]
    trainer.callbacks.extend(callback for callback in ordered if callback is not None)  # type: ignore[attr-defined]
    fit(trainer, module, built.images.train_batches(seed=cell.seed, **loading))
    return module, keep, device


def _stream(cell: Cell, built: Built, store: Store, variant: str) -> Stream | None:
    """What copies the history elsewhere during training, where that was asked for."""
    if (into := cell.config["logger"]) is None:
        return None

    name = cell_name(cell.signature, variant)
    config = portable(cell.config)
    about = About(cell.table, cell.row, cell.seed, cell.command, config)

    def begin() -> CellRun:
        return CellRun(name, about, into=into, folder=store.folder)

    return Stream(begin, built.quantize, built.shapes)


def _copied(record: Record, cell: Cell, store: Store) -> Record:
    """Copy a record elsewhere whole, where that was asked for."""
    if (into := cell.config["logger"]) is not None:
        send(record, into, store.folder)
    return record


def _post_training(cell: Cell, built: Built, store: Store, variant: str) -> Record:
    """Evaluate without training; a quantized network is calibrated on the training images before.

    The teacher, where there is one, is only compared with.
    """
    began, origin = time.perf_counter(), cell.origin or checkout()
    config, net, images = dict(cell.config), built.net, built.images
    device = trainer_of(config).strategy.root_device
    loading = loading_of(config, device)
    net.to(device)
    calibration = None
    if built.quantize is not None:
        batches = images.eval_batches("train", **loading)
        calibration = calibrate(
            net,
            Evenly(batches, images.sizes["train"], loading["batch_size"]),
            keep_batch_norms=config["recipe"].get("batch_norms") == "kept",
        )
    present = [split for split in SPLITS if images.sizes[split]]
    of_split = {split: images.eval_batches(split, **loading) for split in present}
    line = measured(net, images, of_split, _teacher(config, store, variant))
    save(net.state_dict(), store.weights(cell_name(cell.signature, variant)))
    seconds = time.perf_counter() - began
    history = [{"epoch": 0, "phase": 0, "seconds": seconds} | line]
    found = measure(built.quantize.final_layers()) if built.quantize else None
    finals = {} if found is None else {0: found}
    provenance = _provenance(cell, origin, device, seconds, resumed=0)
    record = _record(cell, built, history, (), finals, provenance, calibration)
    return _with_integers(record, cell, store, images)


def _with_integers(record: Record, cell: Cell, store: Store, images: Images) -> Record:
    """Let a run answer in integers where it declares the bits of its sums."""
    if cell.config["bits"]["accumulator"] is None:
        return record
    found, _ = in_integers(record, store.weights(record.name), images, cell.config)
    return record.model_copy(update={"integers": found})


def finished_twin(cell: Cell, store: Store, variant: str) -> Record | None:
    """The finished run that is this cell but for the bits of its sums, with its weights.

    Those bits change nothing before the end, unless the method trains for them: then its own config
    has them too.
    """
    bits = cell.config["bits"]
    if bits["accumulator"] is None or cell.config["search"] is not None:
        return None
    plain = signature({**cell.config, "bits": {**bits, "accumulator": None}})
    there = store.weights(cell_name(plain, variant)).is_file()
    return store.find(plain, variant) if there else None


def asked_again(cell: Cell, finished: Record, store: Store, variant: str) -> Record:
    """Record of a cell whose training, or calibration, a ``finished`` run has: with its integers.

    Trains nothing. The weights are read from the store, and kept under the cell's name too.
    """
    config = dict(cell.config)
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    weights, own = store.weights(finished.name), store.weights(cell_name(cell.signature, variant))
    found, by_layer = in_integers(finished, weights, part_of(config, "data.loader"), config)
    if own != weights:
        shutil.copyfile(weights, own)
    *before, last = finished.phases
    asked = {
        "integers": found.model_copy(update={"later": checkout()}),
        "phases": [*before, last.model_copy(update={"layers": by_layer})],
    }
    record = finished.model_copy(update=_identity(cell) | asked)
    if config["quantizer"]["learns_bits"]:
        write_bits(learned(record, config), store.bits(record.name))
    return record


def _teacher(config: dict[str, Any], store: Store, variant: str) -> nn.Module | None:
    """The float network to learn from and to compare with, in evaluation mode."""
    if config["teacher"] is None:
        return None
    net: nn.Module = part_of(config, "model.net")
    load_plain(net, final_weights(store.weights(cell_name(config["teacher"], variant)), "teacher"))
    return net.eval().requires_grad_(False)


def _record(
    cell: Cell,
    built: Built,
    lines: Sequence[Mapping[str, Any]],
    networks: Sequence[Mapping[str, Any]],
    finals: Mapping[int, ByLayer],
    provenance: Provenance,
    calibration: Calibration | None = None,
) -> Record:
    """Record of a run with the history ``lines``; the others as ``_phases`` has them."""
    shapes, quantize = built.shapes, built.quantize
    history = [Epoch.model_validate(line) for line in lines]
    fixed = quantize.bits if quantize else uniform(shapes, FLOAT_BITS)
    widths = {name: (b.weight, b.act) for name, b in fixed.items()}
    phases = _phases(history, widths, networks, finals)
    hardware = hardware_of(cell.config)
    if baseline_epochs := cell.config["recipe"]["epochs"]:
        _add_complexity(history, phases, shapes, hardware, baseline_epochs)
    best = max(history, key=lambda epoch: epoch.held_out_pct)
    facts = Facts(shapes, phases[-1].bit_map, hardware, phase=phases[-1])
    return Record(
        **_identity(cell),
        data=_data(built.images),
        metrics={"last": _metrics(history[-1]), "best": _metrics(best)},
        phases=phases,
        costs={name: column.value(facts) for name, column in COLUMNS.items() if not column.trained},
        history=history,
        calibration=calibration,
        provenance=provenance,
    )


def _searched(cell: Cell, built: Built, folder: Path, tell: Tell) -> Record:
    """Search instead of training."""
    origin = cell.origin or checkout()
    trainer = trainer_of(cell.config)
    device = trainer.strategy.root_device
    built.net.to(device)
    scores, resumed = run_search(dict(cell.config), built, folder, device, tell)
    reads_images = scores.images > 0
    return Record(
        **_identity(cell),
        data=_data(built.images, loaded=reads_images),
        metrics={},
        phases=[],
        costs={},
        history=[],
        scores=scores,
        provenance=_provenance(cell, origin, device, scores.seconds, resumed),
    )


def _identity(cell: Cell) -> dict[str, Any]:
    """Which question a record answers."""
    return {
        "signature": cell.signature,
        "table": cell.table,
        "row": cell.row,
        "seed": cell.seed,
        "budget": cell.config["budget"]["name"],
        "config": portable(cell.config),
    }


def _data(images: Images, *, loaded: bool = True) -> DataFacts:
    """The set; its sizes and fingerprint only where its images were looked at."""
    return DataFacts(
        title=images.title,
        variant=images.variant,
        sizes=dict(images.sizes) if loaded else {},
        sha256=images.sha256 if loaded else "",
    )


def _metrics(epoch: Epoch) -> dict[str, float]:
    names = ("epoch", "test_top1_pct", "val_top1_pct", "test_loss", "train_loss")
    known = {name: getattr(epoch, name) for name in names}
    return {name: value for name, value in known.items() if value is not None}


def _phases(
    history: Sequence[Epoch],
    fixed: dict[str, tuple[int, int]],
    networks: Sequence[Mapping[str, Any]],
    finals: Mapping[int, ByLayer],
) -> list[Phase]:
    """Group the history by phase; widths that do not change in training are ``fixed``.

    Widths that change within a phase, as a search's do, are those at its end.

    ``networks`` are the sizes of a network that was cut, each valid from its phase on; ``finals``
    what the weights at the end of a phase say.
    """
    phases: list[Phase] = []
    for epoch in history:
        if not phases or phases[-1].index != epoch.phase:
            sizes = [network for network in networks if network["phase"] <= epoch.phase][-1:]
            size = {name: value for one in sizes for name, value in one.items() if name != "phase"}
            place = {"index": epoch.phase, "first_epoch": epoch.epoch, "epochs": 0}
            known = {"bits": epoch.bits or fixed, "layers": finals.get(epoch.phase)}
            phases.append(Phase.model_validate(place | known | size))
        phases[-1].epochs += int(epoch.train_loss is not None)  # a line may be of no training
        phases[-1].bits = epoch.bits or fixed
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


def _provenance(
    cell: Cell, origin: tuple[str, bool], device: torch.device, seconds: float, resumed: int
) -> Provenance:
    on_gpu = device.type == "cuda"
    return Provenance(
        commit=origin[0],
        clean=origin[1],
        command=cell.command,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name(device) if on_gpu else _processor(),
        threads=torch.get_num_threads(),
        devices=count(),
        arithmetic=_arithmetic(device),
        wall_seconds=round(seconds, 1),
        resumed=resumed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _arithmetic(device: torch.device) -> dict[str, str]:
    """Libraries and settings by which two machines of one name may round sums otherwise."""
    if device.type == "cuda":
        tf32 = torch.backends.cudnn.allow_tf32
        found = {
            "CUDA": str(torch.version.cuda),
            "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "float32 convolutions": "tf32" if tf32 else "float32",
            "float32 products": torch.get_float32_matmul_precision(),
        }
    else:
        backends = {"MKL": torch.backends.mkl, "oneDNN": torch.backends.mkldnn}
        found = {name: "yes" if b.is_available() else "no" for name, b in backends.items()}
    return found | {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ}


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
