"""Time a training step of the search for bit-widths (ResNet-20 on CIFAR-10) beside a float one.

A search step is forward, loss, backward, gradient clipping, RMSprop and projection, as a run does
them; every 20th, ``updating``, also takes the size penalty and trains steps and clips. Steps of all
variants are interleaved in one process, so that a busy machine slows all alike. The table has
medians, their ratios to the float step, and the mean ratio over 19 plain and one updating step.
Brevitas joins where it is installed (``pip install -e .[bench]``): weights and activations with a
learned bit-width each (``BitWidthImplType.PARAMETER``) at 4 bit, trained in every step.

    python benchmarks/edge_step.py --threads 2 --repeats 9
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from quantable.base.freed_memory import keep_freed_memory
from quantable.methods.edge import SEARCH, LearnedBits, StepAndClip
from quantable.networks.cifar import resnet20_cifar
from quantable.quantization.ste import rounding
from quantable.training.classifier import Classifier

INPUT_SIZE = (3, 32, 32)
CLASSES = 10
WARM_UP = 2  # steps: the first one sets steps and clips
UPDATE_EVERY = 20
BASE = "float"

Step = Callable[[], None]


def main() -> None:
    """Time every variant and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()  # as every run does
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.batch, *INPUT_SIZE).to(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (args.batch,))
    steps: dict[str, Step] = {BASE: training_step(network(), x, y)}
    for per_channel, of in ((False, "per tensor"), (True, "per channel")):
        for kind, names in (("STE", ("ste", "ste")), ("EWGS / InvTanh", ("ewgs", "invtanh"))):
            for every, how in ((10**9, ""), (1, ", updating")):
                make = partial(searching_step, per_channel, names, every, x, y)
                steps[f"{of}, {kind}{how}"] = make()
    if find_spec("brevitas"):
        for per_channel, of in ((False, "per tensor"), (True, "per channel")):
            steps[f"Brevitas, {of}"] = training_step(brevitas_network(per_channel), x, y)
    else:
        print("Brevitas is not installed and not timed: pip install -e .[bench]")
    print(f"{platform.machine()}, torch {torch.__version__}, batch {args.batch}, ", end="")
    print(f"{args.threads} threads, {args.repeats} repeats")
    report(interleaved(steps, args.repeats))


def network() -> nn.Module:
    """ResNet-20 with plain 1x1 shortcuts, channels last."""
    net = resnet20_cifar(classes=CLASSES, in_channels=3, width=1.0, shortcuts="plain")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def rmsprop(net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of conf/recipe/edge.yaml, at a rate that changes next to nothing."""
    options = {"alpha": 0.9, "momentum": 0.9, "eps": 1e-3, "foreach": True}  # as a run sets it
    return torch.optim.RMSprop(net.parameters(), lr=1e-6, **options)


def training_step(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """One step without a method."""
    optimizer = rmsprop(net)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def searching_step(
    per_channel: bool,
    roundings: tuple[str, str],
    every: int,
    x: torch.Tensor,
    y: torch.Tensor,
) -> Step:
    """One step of the method's second phase, with all that its hooks do."""
    net = network()
    of_weight, of_act = (rounding(name, 5e-3) for name in roundings)
    ours = LearnedBits(
        weight=partial(StepAndClip, batched=False, per_channel=per_channel, rounding=of_weight),
        act=partial(StepAndClip, batched=True, rounding=of_act),
        inner=[6, 6],
        ends=None,
        layers={},
        epochs=[1, 1, 1],
        target=[4.0, 4.0],
        kb_per_bit=None,
        accounting="edge",
        strength=1e-4,
        update_every=every,
        select_from=1.0,
        weight_decay=1e-5,
    )
    schedule = lambda progress, phase: 1.0  # noqa: E731
    module = Classifier(net, input_size=INPUT_SIZE, optimizer=rmsprop, schedule=schedule, epochs=1)
    trainer = SimpleNamespace()
    ours.setup(trainer, module, "fit")  # type: ignore[arg-type]
    module.phase, module.batches = SEARCH, 1000
    optimizer = rmsprop(net)

    def step() -> None:
        ours.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        for penalty in module.penalties:
            loss = loss + penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        ours.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
        optimizer.step()
        ours.on_train_batch_end(trainer, module)  # type: ignore[arg-type]

    return step


def brevitas_network(per_channel: bool) -> nn.Module:
    """ResNet-20 with Brevitas' quantizers of learned scale and bit-width."""
    from brevitas.inject.enum import BitWidthImplType
    from brevitas.nn import QuantConv2d, QuantIdentity, QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerTensorFloat

    class Weight(Int8WeightPerTensorFloat):  # type: ignore[misc]
        bit_width_impl_type = BitWidthImplType.PARAMETER
        bit_width = 4
        scaling_per_output_channel = per_channel

    class Act(Int8ActPerTensorFloat):  # type: ignore[misc]
        bit_width_impl_type = BitWidthImplType.PARAMETER
        bit_width = 4

    net = network()
    for name, layer in list(net.named_modules()):
        parent = net.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride)
            new = QuantConv2d(*sizes, layer.padding, bias=False, weight_quant=Weight)
        elif isinstance(layer, nn.Linear):
            new = QuantLinear(layer.in_features, layer.out_features, True, weight_quant=Weight)
        else:
            continue
        quantized = nn.Sequential(QuantIdentity(act_quant=Act), new)
        setattr(parent, name.rpartition(".")[2], new if name == "conv1" else quantized)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def interleaved(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant's steps: all variants once, then all again."""
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order: Iterator[str] = cycle(steps)
    for _ in range(repeats * len(steps)):
        name = next(order)
        began = time.perf_counter()
        steps[name]()
        seconds[name].append(time.perf_counter() - began)
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """Print medians and ratios; a search is 19 plain steps and one that updates."""
    base = statistics.median(seconds[BASE])
    print(f"{'step':44} {'ms':>8} {'ratio':>7} {'search':>7}")
    for name, times in seconds.items():
        ratio = statistics.median(times) / base
        search = ""
        if f"{name}, updating" in seconds:
            updating = statistics.median(seconds[f"{name}, updating"]) / base
            search = f"{((UPDATE_EVERY - 1) * ratio + updating) / UPDATE_EVERY:7.2f}"
        print(f"{name:44} {1000 * ratio * base:8.1f} {ratio:7.2f} {search:>7}")


if __name__ == "__main__":
    main()
