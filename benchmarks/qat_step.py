"""Time one training step (forward, loss, backward, SGD) of a CIFAR network, float and quantized.

All variants run in one process, their steps interleaved, so that a busy machine slows all alike.
The table shows medians and their ratios to the eager float step. ``--compiled`` adds the compiled
variants (minutes of compilation before the first number); Brevitas joins where it is installed
(``pip install -e .[bench]``).

    python benchmarks/qat_step.py --threads 2 --repeats 9 --compiled
    python benchmarks/qat_step.py --threads 1 --bf16 --channels-last --width 0.25
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantable.base.freed_memory import keep_freed_memory
from quantable.methods.activation_density import DensityMeter
from quantable.methods.lsq import LSQ
from quantable.methods.minmax import MinMax
from quantable.networks import cifar
from quantable.networks.channels_last import to_channels_last
from quantable.quantization.quantize import Quantize
from quantable.quantization.quantizer import Quantizer

BASE = "float, eager"
INPUT_SIZE = (3, 32, 32)
CLASSES = 10
WARM_UP = 3  # steps: the first ones set learned steps, fill caches and compile
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(cifar.resnet18_cifar, shortcuts="plain"),
    "resnet20": partial(cifar.resnet20_cifar, shortcuts="plain"),
    "vgg19": cifar.vgg19_cifar,
}

Step = Callable[[], None]


def main() -> None:
    """Time every variant and print the table."""
    args = arguments()
    keep_freed_memory()  # as every run does
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(args.batch, *INPUT_SIZE, device=args.device)  # (n, c, h, w)
    y = torch.randint(CLASSES, (args.batch,), device=args.device)
    float_network = partial(
        NETWORKS[args.network], classes=CLASSES, in_channels=INPUT_SIZE[0], width=args.width
    )
    every = variants(float_network, args.compiled)
    chosen = {name: make for name, make in every.items() if picked(name, args)}
    steps = {name: training_step(make(), x, y, args) for name, make in chosen.items()}
    sync = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    print(describe(args))
    report(interleaved(steps, args.repeats, sync))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies all channels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compiled", action="store_true", help="time compiled variants too")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="as with precision=bf16-mixed")
    parser.add_argument("--only", nargs="*", help="words of variants' names, beside the base")
    return parser.parse_args()


def variants(
    float_network: Callable[[], nn.Module], compiled: bool
) -> dict[str, Callable[[], nn.Module]]:
    """Each variant's name and what builds its network."""
    min_max = partial(quantized_network, float_network, MinMax)
    eager: dict[str, Callable[[], nn.Module]] = {
        "float": float_network,
        "float + density": lambda: with_density(float_network()),
        "LSQ W4A4": partial(quantized_network, float_network, LSQ),
        "min-max W4A4": min_max,
        "min-max W4A4 + density": lambda: with_density(min_max()),
    }
    found = {f"{name}, eager": make for name, make in eager.items()}
    if find_spec("brevitas"):
        found["Brevitas W4A4, eager"] = partial(brevitas_network, float_network)
    else:
        print("Brevitas is not installed and not timed: pip install -e .[bench]")
    if compiled:
        found |= {f"{name}, compiled": partial(compiled_network, eager[name]) for name in eager}
    return found


def picked(name: str, args: argparse.Namespace) -> bool:
    """Whether the command line asks for this variant."""
    return not args.only or name == BASE or any(word in name for word in args.only)


def quantized_network(float_network: Callable[[], nn.Module], method: type[Quantizer]) -> nn.Module:
    """The float network with 4-bit weights and activations, first and last layer included."""
    net = float_network()
    callback = Quantize(
        weight=partial(method, batched=False),
        act=partial(method, batched=True),
        inner=[4, 4],
        ends=None,
        layers={},
    )
    callback.attach(net, INPUT_SIZE)
    return net


def with_density(net: nn.Module) -> nn.Module:
    """Measure the density of every ReLU's outputs, as activation density does."""
    for module in [module for module in net.modules() if isinstance(module, nn.ReLU)]:
        DensityMeter(module)  # stays alive by its hook
    return net


def compiled_network(make: Callable[[], nn.Module]) -> nn.Module:
    """The network as one compiled graph; a graph break is an error."""
    net = make()
    net.compile(fullgraph=True)
    return net


def brevitas_network(float_network: Callable[[], nn.Module]) -> nn.Module:
    """The float network with Brevitas' 4-bit layers, scales learned or measured by its defaults."""
    from brevitas import nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat

    net = float_network()
    convs = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    for name in convs:
        conv = net.get_submodule(name)
        act = Int8ActPerTensorFloat if name == convs[0] else Uint8ActPerTensorFloat
        layer = qnn.QuantConv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride,
            padding=conv.padding, bias=False, weight_bit_width=4, input_quant=act,
            input_bit_width=4,
        )  # fmt: skip
        net.set_submodule(name, layer)
    linears = [name for name, module in net.named_modules() if type(module) is nn.Linear]
    for name in linears:
        linear = net.get_submodule(name)
        layer = qnn.QuantLinear(
            linear.in_features, linear.out_features, bias=True, weight_bit_width=4,
            input_quant=Uint8ActPerTensorFloat, input_bit_width=4,
        )  # fmt: skip
        net.set_submodule(name, layer)
    return net


def training_step(net: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Step:
    """One step of SGD with momentum on a fixed batch."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    net.to(x.device)
    if args.channels_last:
        to_channels_last(net)  # as every run does
    x = x.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def interleaved(steps: dict[str, Step], repeats: int, sync: Step) -> dict[str, list[float]]:
    """Milliseconds of each timed step, one step of every variant in turn."""
    for name, step in steps.items():
        begin = time.perf_counter()
        for _ in range(WARM_UP):
            step()
        sync()
        print(f"warm-up {name}: {time.perf_counter() - begin:.0f} s", flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            sync()
            begin = time.perf_counter()
            step()
            sync()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def describe(args: argparse.Namespace) -> str:
    """What was timed, and on what."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    layout = "channels last" if args.channels_last else "channels first"
    precision = "bf16-mixed" if args.bf16 else "float32"
    return (
        f"{args.network}, width {args.width}, batch {args.batch}, {precision}, {layout}, "
        f"{args.device} ({device or platform.machine()}), {args.threads} threads, "
        f"torch {torch.__version__}, {args.repeats} steps each"
    )


def report(times: dict[str, list[float]]) -> None:
    """Print medians, minima and the ratio of medians to the eager float step."""
    base = statistics.median(times[BASE])
    width = max(map(len, times))
    print(f"{'variant':{width}}  median ms    min ms   ratio")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:{width}}  {median:9.1f} {min(values):9.1f}  {median / base:6.3f}")


if __name__ == "__main__":
    main()
