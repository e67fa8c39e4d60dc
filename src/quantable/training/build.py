"""A run's config to its parts: images, network, quantizers, trainer.

Only here, in ``run`` and in searches are configs unpacked; all else gets plain keyword arguments.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn
from torch.func import functional_call

from quantable.base import devices
from quantable.base.content import SHA256
from quantable.base.errors import UserError
from quantable.base.freed_memory import keep_freed_memory
from quantable.config.files import unnamed
from quantable.config.numbers import own_numbers
from quantable.config.targets import make
from quantable.data.images import Images, Share, TrainBatches
from quantable.networks.channels_last import to_channels_last
from quantable.networks.counting import count
from quantable.networks.layers import LayerShape
from quantable.networks.passes import evaluate, probe
from quantable.networks.shapes import PACKAGED, read_network, shape_key, write_network
from quantable.networks.trace import trace
from quantable.quantization.quantize import Quantize
from quantable.store.bits_file import check_layers
from quantable.store.record import cell_name
from quantable.store.store import Store
from quantable.training.classifier import Classifier, Remaining
from quantable.training.finished import final_weights, load_plain, load_quantizers

logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no tips between our lines


@dataclass
class Built:
    """A run's images and network, traced, begun from another run's weights, and quantized."""

    images: Images
    net: nn.Module
    shapes: Sequence[LayerShape] = ()
    activation_macs: int = 0  # of products that are no layer's
    quantize: Quantize | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Of one image, (c, h, w)."""
        c, h, w = self.images.input_size
        return c, h, w


def build(config: dict[str, Any], store: Store, variant: str) -> Built:
    """Make what a config describes; for a search images are decoded only when it looks at them."""
    if config["trainer"]["threads"]:
        torch.set_num_threads(config["trainer"]["threads"])
    keep_freed_memory()
    pl.seed_everything(config["seed"], verbose=False)
    _check_files(config)
    images: Images = part_of(config, "data.loader")
    built = Built(images, part_of(config, "model.net"))
    net = built.net
    if config["recipe"]["channels_last"]:
        to_channels_last(net)
    found = count(net, built.input_size)
    built.shapes, built.activation_macs = found.layers, found.activation_macs
    check_is_its_state(net, config, built.input_size)
    try_training_images(net, config, images.train_size)
    if config["search"] is None:
        images.load()  # before anything is written
    _keep_shapes(config, built, store)
    if config["bits"]["file"] is not None:
        check_layers(
            config["bits"]["layers"], [s.name for s in built.shapes], config["bits"]["file"]
        )
    _begin(config, built, store, variant)
    return built


def _begin(config: dict[str, Any], built: Built, store: Store, variant: str) -> None:
    """Load the weights that the network begins with, and put its quantizers in."""
    net, start, quantize = built.net, None, None
    if config["quantizer"]["callback"] is not None:
        quantize = cast(Quantize, part_of(config, "quantizer.callback"))
    if config["start"] is not None:
        start = final_weights(store.weights(cell_name(config["start"], variant)), "start")
        prepare = None if quantize is None else partial(quantize.prepare, net, built.input_size)
        load_plain(net, start, prepare)
    if quantize is not None:
        quantize.attach(net, built.input_size)
        if start is not None:
            load_quantizers(quantize, start)
    built.quantize = quantize


def check_is_its_state(
    net: nn.Module, config: Mapping[str, Any], size: tuple[int, int, int]
) -> None:
    """Refuse a network that computes with what its state, all that is kept of it, does not hold.

    Another one is made, runs in training, and takes over the state of ``net``, as when a run is
    read back: it must answer alike for images (c, h, w). ``net`` and random numbers stay as they
    are.
    """
    with isolate_rng(include_cuda=False):
        other: nn.Module = make(config["model"]["net"])
        if config["recipe"]["channels_last"]:
            to_channels_last(other)
        with torch.no_grad(), suppress(Exception):  # what is not trained need not be able to
            other.train()(probe(net, size, batch=2))
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            mine, others = (evaluate(one, probe(net, size, batch=1)) for one in (net, other))
    if not torch.allclose(mine, others, rtol=0, atol=0, equal_nan=True):
        raise UserError(
            f"model.net: {type(net).__name__} computes with more than its parameters and "
            "persistent buffers, so that no run of it can be read back or taken up again: register "
            "tensors that are random, and numbers that change in training, as buffers"
        )


def try_training_images(net: nn.Module, config: Mapping[str, Any], size: tuple[int, ...]) -> None:
    """Refuse images (c, h, w) or a batch that ``net`` cannot be trained or calibrated on.

    A pass of two images at most tells, before any is decoded; ``net`` stays as it is.
    """
    batch, trained = config["recipe"]["batch_size"], config["recipe"]["epochs"] > 0
    if not trained and config["quantizer"]["callback"] is None:
        return
    n = min(2, batch) if trained else 2  # a calibration joins an image alone to others
    if (small := config["recipe"].get("small_images")) is not None:
        _try(net, n, (size[0], small["pixels"], small["pixels"]), "training")
    _try(net, n, size, "training" if trained else "calibration")


def _try(net: nn.Module, n: int, size: tuple[int, ...], what: str) -> None:
    """Pass ``n`` images through ``net``, or say why it does not take them for ``what``."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            functional_call(net, buffers, (torch.zeros(n, *size),))
    except (RuntimeError, ValueError, AssertionError) as error:
        choose = "choose a network for images of this size"
        if n == 1:
            choose = "choose recipe.batch_size=2 or more: a batch norm needs two values"
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model.net: {what} fails with batches of {n} of images {list(size)}: {said}; {choose}"
        ) from error


def weight_decay(recipe: Mapping[str, Any], quantize: Quantize | None) -> dict[str, float]:
    """Weight decay by layer name where the recipe ties it to the bits of the layer's weights."""
    by_bits = recipe["weight_decay_by_bits"]
    if by_bits is None or quantize is None:
        return {}
    widths = {name: bits.weight for name, bits in quantize.bits.items()}
    return {name: by_bits[width] for name, width in widths.items() if width in by_bits}


def module_of(
    config: Mapping[str, Any],
    net: nn.Module,
    quantize: Quantize | None,
    input_size: tuple[int, int, int],
    *,
    epochs: int,
) -> Classifier:
    """What trains ``net`` by the config's recipe, in a first phase of ``epochs``."""
    return Classifier(
        net,
        input_size=input_size,
        optimizer=part_of(config, "recipe.optimizer"),
        schedule=part_of(config, "recipe.schedule"),
        epochs=epochs,
        weight_decay=weight_decay(config["recipe"], quantize),
        decay_all=config["recipe"].get("weight_decay_of") is None,
        small_images=config["recipe"].get("small_images"),
        numbers=own_numbers(config),
    )


def part_of(config: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401
    """Instantiate what ``key`` of the config describes; a wrong argument is the user's mistake."""
    node: Any = config
    for part in key.split("."):
        node = node[part]
    if node is None:
        raise UserError(f"{key}: there is none; choose a recipe that trains, such as recipe=lsq")
    try:
        return make(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise UserError(f"{key}: {error}") from error


def trainer_of(config: Mapping[str, Any]) -> pl.Trainer:
    """Lightning's trainer without anything that writes or prints; the callbacks are ours.

    It knows of one device, this process's own: several are this project's affair (``ranks``).
    """
    several = devices.count() > 1
    return pl.Trainer(
        accelerator=config["trainer"]["accelerator"],
        devices=[devices.rank()] if several and on_gpus(config) else 1,
        plugins=[LightningEnvironment()],  # inside SLURM too, whose signals are ours to hear
        precision=config["recipe"]["precision"],
        max_epochs=-1,  # the module's phases end the run
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def on_gpus(config: Mapping[str, Any]) -> bool:
    """Whether a run uses CUDA."""
    return config["trainer"]["accelerator"] != "cpu" and torch.cuda.is_available()


def devices_of(config: Mapping[str, Any]) -> int:
    """Devices of a run; only training shares its work among several."""
    number: int = config["trainer"]["devices"]
    recipe = config["recipe"]
    if number == 1 or config["search"] is not None or recipe["epochs"] == 0:
        return 1
    if recipe["batch_size"] % number:
        raise UserError(
            f"trainer.devices={number}: they cannot share recipe.batch_size="
            f"{recipe['batch_size']} evenly; the batch is the recipe's and stays as large"
        )
    if recipe["compile"]:
        raise UserError(f"trainer.devices={number}: recipe.compile=true is for one device")
    return number


def fit(trainer: pl.Trainer, module: Classifier, batches: TrainBatches) -> None:
    """Train ``module`` from where it is to the end of its phases."""
    with warnings.catch_warnings():
        # Lightning 2.6 asks torch 2.13 for a name that is about to go; nothing a user can do.
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # who starts us knows
        trainer.fit(module, train_dataloaders=Remaining(module, batches))


def loading_of(config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Keywords of every loader of a run."""
    recipe = config["recipe"]
    return {
        "batch_size": recipe["batch_size"],
        "device": device,
        "channels_last": recipe["channels_last"],
        "share": Share(devices.rank(), devices.count()),
    }


def _check_files(config: Mapping[str, Any]) -> None:
    """Refuse to begin without a file that the signature says is read; a start has its weights."""
    groups = ["quantizer", "recipe", "search", *(["model"] if config["start"] is None else [])]
    for key, sha256 in (file for group in groups for file in unnamed(config[group], group)):
        raise UserError(
            f"{key}: the run reads a file of SHA-256 {sha256}: name it, or set "
            f"{key}{SHA256}=null to begin without"
        )


def _keep_shapes(config: dict[str, Any], built: Built, store: Store) -> None:
    """Trace what plan and report need, where no file says it, or not all, or of another network."""
    key = shape_key(config["model"], config["data"]["input_size"])
    kept = read_network(key, [PACKAGED, store.shapes])
    found = list(built.shapes), built.activation_macs
    if kept is None or kept.feeds is None or (kept.layers, kept.activation_macs) != found:
        write_network(key, trace(built.net, built.input_size), store.shapes)
