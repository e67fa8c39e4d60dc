"""Time a training step with real bit-widths beside one with uniform bits (ResNet-20, CIFAR-10).

A search step is forward, loss and penalty, backward, both optimizers and the clamp of the widths,
as a run does them; a uniform step has the same quantizers at 4 bit. Steps of all variants are
interleaved in one process, so that a busy machine slows all alike. The table has medians, their
ratios to the uniform step of the same quantizers, and the bytes that the backward pass keeps, which
count each storage once and no parameter. Brevitas joins where it is installed
(``pip install -e .[bench]``): a learned bit-width for each weight (``BitWidthImplType.PARAMETER``).

    python benchmarks/dfq_step.py --threads 2 --repeats 9
"""

import argparse
import platform
import statistics
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from edge_step import CLASSES, INPUT_SIZE, Step, interleaved, network
from torch import Tensor, nn

from quantable.base.freed_memory import keep_freed_memory
from quantable.config.composition import compose_run
from quantable.quantization.searched import SearchedBits
from quantable.training.build import module_of, part_of

DFQ = ["quantizer=dfq", "bits.inner=[4,32]", "bits.ends=null"]
FRACBITS = ["quantizer=fracbits", "bits.inner=[4,4]", "bits.ends=null"]
FIXED, SEARCHED = (f"quantizer.callback.epochs={epochs}" for epochs in ("[0,1]", "[1,1]"))
# variant -> its words, and the variant that it is compared with
VARIANTS = {
    "float": (["quantizer=none"], "float"),
    "DFQ, uniform": ([*DFQ, FIXED], "DFQ, uniform"),
    "DFQ, search": ([*DFQ, SEARCHED], "DFQ, uniform"),
    "FracBits, uniform": ([*FRACBITS, FIXED], "FracBits, uniform"),
    "FracBits, search": ([*FRACBITS, SEARCHED], "FracBits, uniform"),
}
BREVITAS = "Brevitas, learned bit-width of weights"


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
    steps, against = {}, {name: base for name, (_, base) in VARIANTS.items()}
    for name, (words, _) in VARIANTS.items():
        steps[name] = training_step(words, x, y)
    if find_spec("brevitas"):
        steps[BREVITAS], against[BREVITAS] = plain_step(brevitas_network(), x, y), "DFQ, uniform"
    else:
        print("Brevitas is not installed and not timed: pip install -e .[bench]")
    print(f"{platform.machine()}, torch {torch.__version__}, batch {args.batch}, ", end="")
    print(f"{args.threads} threads, {args.repeats} repeats")
    kept = {name: kept_bytes(step) for name, step in steps.items()}
    medians = {
        name: statistics.median(times) for name, times in interleaved(steps, args.repeats).items()
    }
    print(f"{'step':42} {'ms':>8} {'ratio':>7} {'kept MB':>9} {'ratio':>7}")
    for name, base in against.items():
        ratios = medians[name] / medians[base], kept[name] / kept[base]
        print(f"{name:42} {1000 * medians[name]:8.1f} {ratios[0]:7.3f}", end="")
        print(f" {kept[name] / 1e6:9.1f} {ratios[1]:7.3f}")


def training_step(words: list[str], x: Tensor, y: Tensor) -> Step:
    """One step of a run's first phase with all that the method's hooks do."""
    config = compose_run(["model=resnet20_cifar", "data=cifar10", *words])
    net = network()
    if config["quantizer"]["callback"] is None:
        return plain_step(net, x, y)
    method: SearchedBits = part_of(config, "quantizer.callback")
    module = module_of(config, net, method, INPUT_SIZE, epochs=1)
    trainer = SimpleNamespace()
    method.setup(trainer, module, "fit")  # type: ignore[arg-type]
    module.batches = 1000
    optimizer = module.configure_optimizers()

    def step() -> None:
        module.optimizer_zero_grad(0, 0, optimizer)
        loss = F.cross_entropy(net(x), y)
        for penalty in module.penalties:
            loss = loss + penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        for each in (optimizer, *module.optimizers_beside):
            each.step()
        method.on_train_batch_end(trainer, module)  # type: ignore[arg-type]

    return step


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> Step:
    """One step without a method."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, foreach=True)  # as conf/recipe/adam

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def kept_bytes(step: Step) -> int:
    """Bytes of all storages that a step's backward pass keeps, without those of parameters."""
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # or another tensor would get its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def brevitas_network() -> nn.Module:
    """ResNet-20 whose weights have Brevitas' quantizers of learned scale and bit-width."""
    from brevitas.inject.enum import BitWidthImplType
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8WeightPerTensorFloat

    class Weight(Int8WeightPerTensorFloat):  # type: ignore[misc]
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
        setattr(parent, name.rpartition(".")[2], new)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


if __name__ == "__main__":
    main()
