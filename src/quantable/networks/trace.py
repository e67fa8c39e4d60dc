"""How the layers of a float network hang together, by forward passes of one random image.

The network keeps its training flags, hooks and buffers (batch-norm statistics); every pass runs in
evaluation mode, on the device and in the dtype of the network's parameters.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm

from quantable.networks.counting import (
    COUNTED,
    batch_norm_channels,
    check_all_ran,
    count,
    counted_layers,
)
from quantable.networks.layers import IMAGE, Network
from quantable.networks.passes import evaluate, hooked, named, probe
from quantable.networks.signs import Signs

SIZED = (*COUNTED, _BatchNorm)  # with a size for every channel, whatever their parameters
RELUS = (nn.ReLU, nn.ReLU6)
# Names of autograd nodes that end the way from a layer to its activation, with or without a module.
NONLINEAR = (
    "Abs", "Celu", "Clamp", "Elu", "Gelu", "Glu", "Hardshrink", "Hardsigmoid", "Hardswish",
    "Hardtanh", "LeakyRelu", "LogSigmoid", "LogSoftmax", "Maximum", "Minimum", "Mish", "Prelu",
    "Relu", "Rrelu", "Sigmoid", "Silu", "Softmax", "Softplus", "Softshrink", "Tanh", "Threshold",
    "Where",
)  # fmt: skip
ADDITION = "AddBackward0"  # name of the autograd node of ``x + y``, in place or not
HIDDEN = "torch::autograd::CopySlices"  # of any change in place to a view, which may be an addition


def trace(network: nn.Module, input_size: tuple[int, int, int]) -> Network:
    """All that is known of ``network`` for one input (c, h, w): what a file of shapes keeps."""
    found = count(network, input_size)
    feeds, added = feeds_and_additions(network, input_size)
    norms = batch_norm_channels(network)
    return Network(found.layers, norms, feeds, added, found.activation_macs)


def signed_inputs(network: nn.Module, input_size: tuple[int, int, int]) -> set[str]:
    """Counted layers whose input can be negative, the first one always among them.

    What a layer can get follows from the operators between the image and it (``Signs``), in
    training and in evaluation and in any of its calls, and not from the weights as they are now:
    behind a batch norm, an addition of something signed, a shift or a GELU it is signed, unless
    something that cannot be negative stands between.
    """
    first: list[str] = []
    signed: set[str] = set()

    def look(network: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], batch: int) -> None:
        signs = Signs()

        def note(name: str, args: tuple[Any, ...], _: Tensor) -> None:
            first.append(name)
            if not signs.natural(args[0]) or (args[0] < 0).any():
                signed.add(name)

        x = probe(network, input_size, batch)
        with torch.no_grad(), hooked(counted_layers(network), note), signs:
            run(network, x)

    look(network, evaluate, batch=1)
    # A network that cannot run or be copied here is not trained here either. Two images: a batch
    # norm on a map of one pixel needs them.
    with suppress(Exception), torch.random.fork_rng(_gpus(network)):
        look(deepcopy(network), lambda copy, x: cast(Tensor, copy.train()(x)), batch=2)
    return signed | set(first[:1])


def linked_layers(network: nn.Module, input_size: tuple[int, int, int]) -> list[tuple[str, ...]]:
    """Counted layers in execution order, in groups that read one activation tensor.

    The bits of one tensor are one number, so layers of a group share theirs: a block's first
    convolution and its shortcut's, or attention's query, key and value. A copy, another view or a
    change in place between two reads makes another tensor. A layer that runs several times joins
    all groups it reads with. Quantizers on a layer's input are looked through.
    """
    layers = counted_layers(network)
    readers: dict[tuple[object, ...], str] = {}  # tensor -> the layer that read it first
    groups: dict[str, list[str]] = {}
    alive: list[Tensor] = []  # a freed tensor's storage would be used for another

    def read_of(name: str) -> Callable[..., None]:
        def read(_: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            alive.append(x)
            storage = x.untyped_storage()._cdata
            key = (storage, x.storage_offset(), x.shape, x.stride(), x._version)
            group = groups.setdefault(name, [name])
            other = groups[readers.setdefault(key, name)]
            if group is not other:
                other += group
                groups.update(dict.fromkeys(group, other))

        return read

    # In front of other hooks, which may quantize the input: every layer would have its own copy.
    handles = [
        layer.register_forward_pre_hook(read_of(name), prepend=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            evaluate(network, probe(network, input_size, batch=1))
    finally:
        for handle in handles:
            handle.remove()
    check_all_ran(layers, groups)
    linked: dict[int, list[str]] = {}
    for name, group in groups.items():  # in execution order
        linked.setdefault(id(group), []).append(name)
    return [tuple(names) for names in linked.values()]


class Activations(NamedTuple):
    """For each counted layer, the nonlinearities that its result reaches first.

    ``relus``: the name of a module ReLU or ReLU6. ``others``: of layers that reach no such module,
    what autograd calls the nonlinearities (``Relu`` of a function, ``Silu``). A layer without any,
    such as a classifier or a linear bottleneck, is in neither.
    """

    relus: dict[str, str]
    others: dict[str, set[str]]


def activations(network: nn.Module, input_size: tuple[int, int, int]) -> Activations:
    """The nonlinearities behind the layers of ``network``.

    On the way there may be batch norm, additions, pooling or reshaping, but neither another counted
    layer nor another nonlinearity. In a ResNet block, ``conv2`` and the shortcut's convolution have
    the same one. Found by walking the autograd graph back from each.
    """
    layers = counted_layers(network)
    relus = {name: module for name, module in named(network) if isinstance(module, RELUS)}
    owner: dict[Node, str] = {}
    outputs: dict[str, Node | None] = {}

    def note_layer(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        for node in _nodes_between(args[0].grad_fn, out.grad_fn):
            owner[node] = name

    def note_relu(name: str, _: tuple[Any, ...], out: Tensor) -> None:
        if name in outputs:
            raise NotImplementedError(
                f"activation '{name}' ({type(relus[name]).__name__}) runs more than once in a "
                "forward pass: give each use its own module, so that a hook sees one layer's output"
            )
        outputs[name] = out.grad_fn  # None: computed from constants, not from the image

    with torch.enable_grad(), hooked(layers, note_layer), hooked(relus, note_relu):
        x = probe(network, input_size, batch=1).requires_grad_()
        # cloned: a first layer in place may not change a leaf
        result = evaluate(network, x.clone())
    behind: dict[str, str] = {}
    for relu, output in outputs.items():  # in execution order: the first one stays
        for name in _layers_before(_read_by(output), owner, ends=NONLINEAR):
            behind.setdefault(name, relu)
    nodes = _nodes_between(None, result.grad_fn) - {*owner, *outputs.values()}
    others = _kinds_behind(layers.keys() - behind, nodes, owner)
    return Activations(behind, {name: others[name] for name in layers if others.get(name)})


def _kinds_behind(
    layers: Collection[str], nodes: Iterable[Node], owner: Mapping[Node, str]
) -> dict[str, set[str]]:
    """For each of ``layers``, which nonlinearities among ``nodes`` its result reaches first."""
    kinds: dict[str, set[str]] = {name: set() for name in layers}
    for node in nodes:
        if node.name().startswith(NONLINEAR):
            for name in kinds.keys() & _layers_before(_read_by(node), owner, ends=NONLINEAR):
                kinds[name].add(node.name().removesuffix("Backward0"))
    return kinds


def feeds_and_additions(
    network: nn.Module, input_size: tuple[int, int, int]
) -> tuple[dict[str, list[str]], list[list[str]] | None]:
    """For each counted layer what feeds it, and for each addition what it adds; see `Network`.

    A layer that runs several times has the feeders of all its runs, and may be one itself. Found by
    walking the autograd graph back from each layer's input and from each addition: what comes
    through an operation without a gradient is not seen.
    """
    owner: dict[Node, str] = {}
    inputs: dict[str, list[Node | None]] = {}

    def note(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        inputs.setdefault(name, []).append(args[0].grad_fn)
        for node in _nodes_between(args[0].grad_fn, out.grad_fn):
            owner[node] = name

    with torch.enable_grad(), hooked(counted_layers(network), note):
        image = probe(network, input_size, batch=1).requires_grad_().clone()
        owner[cast(Node, image.grad_fn)] = IMAGE
        output = evaluate(network, image)
    order = [IMAGE, *inputs]

    def places(nodes: Iterable[Node | None]) -> list[int]:
        return sorted({order.index(name) for name in _layers_before(nodes, owner)})

    feeds = {name: [order[i] for i in places(nodes)] for name, nodes in inputs.items()}
    nodes = _nodes_between(None, output.grad_fn) - owner.keys()
    found = [(n.name(), places(_read_by(n))) for n in nodes if n.name() in (ADDITION, HIDDEN)]
    joins = [(name, sources) for name, sources in found if len(sources) > 1]
    if any(name == HIDDEN for name, _ in joins):
        return feeds, None
    added = sorted((sources for _, sources in joins), key=lambda sources: sources[::-1])
    return feeds, [[order[i] for i in sources] for sources in added]


def reached_channels(
    network: nn.Module, input_size: tuple[int, int, int]
) -> dict[str, dict[str, bool]]:
    """For each counted layer, the modules that read its channels before another layer does.

    Readers are layers, batch norms and other modules with own parameters, and ``""`` for
    the network's output. The value says whether channels arrive one by one, under their own numbers
    and without others beside them. Found by making one channel of one layer's output NaN, which no
    operation hides, while every other layer's output is held.
    """
    layers = counted_layers(network)
    readers = {
        name: module
        for name, module in named(network)
        if next(module.parameters(recurse=False), None) is not None or isinstance(module, SIZED)
    }
    held: dict[str, Tensor] = {}

    def hold(name: str, _: tuple[Any, ...], out: Tensor) -> None:
        if name in held:
            raise NotImplementedError(
                f"layer '{name}' ({type(layers[name]).__name__}) runs more than once in a forward "
                "pass: its channels cannot be told apart"
            )
        held[name] = out

    with torch.no_grad():
        image = probe(network, input_size, batch=1)
        with hooked(layers, hold):
            evaluate(network, image)
        return {name: _readers_of(name, network, image, readers, held) for name in layers}


def _readers_of(
    source: str,
    network: nn.Module,
    image: Tensor,
    readers: Mapping[str, nn.Module],
    held: Mapping[str, Tensor],
) -> dict[str, bool]:
    """Readers of the channels of layer ``source``."""
    modules = dict(named(network))
    dim = _channel_dim(modules[source])
    channel = min(1, held[source].shape[dim] - 1)  # not the first, which a shuffle leaves in place
    poisoned = held[source].clone()
    poisoned.select(dim, channel).fill_(torch.nan)
    found: dict[str, bool] = {}

    def replace_of(name: str) -> Callable[..., Tensor]:
        return lambda *_: poisoned if name == source else held[name]

    def read_of(name: str) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            nan = args[0].isnan().transpose(0, _channel_dim(module)).flatten(1).any(dim=1)
            if nan.any():
                # As many channels too: none in front of the others, behind them, or left out.
                alone = nan.nonzero().flatten().tolist() == [channel]
                found[name] = alone and len(nan) == poisoned.shape[dim]

        return read

    def output(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        if out.isnan().any():
            found[""] = True

    handles = [modules[name].register_forward_hook(replace_of(name)) for name in held]
    handles += [module.register_forward_pre_hook(read_of(name)) for name, module in readers.items()]
    handles.append(network.register_forward_hook(output))
    try:
        evaluate(network, image)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _channel_dim(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1


def _read_by(node: Node | None) -> list[Node | None]:
    """Nodes that made what ``node`` reads."""
    return [] if node is None else [before for before, _ in node.next_functions]


def _layers_before(
    nodes: Iterable[Node | None], owner: Mapping[Node, str], ends: tuple[str, ...] = ()
) -> list[str]:
    """Layers whose result reaches ``nodes`` without meeting a layer or a node named in ``ends``."""
    found: list[str] = []
    stack = list(nodes)
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in owner:
            found.append(owner[node])
        elif not node.name().startswith(ends):
            stack += _read_by(node)
    return found


def _nodes_between(before: Node | None, last: Node | None) -> set[Node]:
    """Autograd nodes of one call: from ``last`` back to ``before``, without the latter."""
    stack = [] if last is None else [last]
    seen = set(stack)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None and node is not before and node not in seen:
                seen.add(node)
                stack.append(node)
    return seen


def _gpus(network: nn.Module) -> list[torch.device]:
    """The GPU of the network's parameters, if they are on one."""
    return [p.device for p in network.parameters() if p.device.type == "cuda"][:1]
