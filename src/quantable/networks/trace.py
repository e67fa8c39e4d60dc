"""Float network to layer shapes, by forward passes of one random image: nothing is trained.

The network keeps its training flags, hooks and buffers (batch-norm statistics); every pass runs in
evaluation mode, on the device and in the dtype of the network's parameters. For signs a copy of it
runs in training mode too.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from quantable.networks.layers import IMAGE, LayerShape, Network
from quantable.networks.signs import Signs

COUNTED = (nn.Conv2d, nn.Linear)  # MACs = output elements x weights that make one of them

# Modules whose parameters cost no counted MAC, as package.class (subclasses included), and why.
# Names, not types: timm takes seconds to import, and only timm networks need it.
_NORM = "normalization: folded into a neighbour, or one multiplication per activation"
_SCALE = "elementwise: one multiplication or addition per activation"
FREE = {
    "torch._NormBase": _NORM,  # batch and instance norm
    "torch.LayerNorm": _NORM,
    "torch.GroupNorm": _NORM,
    "torch.RMSNorm": _NORM,
    "timm.RmsNorm": _NORM,
    "timm.RmsNorm2d": _NORM,
    "timm.RmsNormFp32": _NORM,
    "timm.RmsNorm2dFp32": _NORM,
    "timm.SimpleNorm": _NORM,
    "timm.SimpleNorm2d": _NORM,
    "timm.SimpleNormFp32": _NORM,
    "timm.SimpleNorm2dFp32": _NORM,
    "timm.GlobalResponseNorm": _NORM,
    "torch.PReLU": _SCALE,
    "timm.LayerScale": _SCALE,
    "timm.LayerScale2d": _SCALE,
    "timm.Scale": _SCALE,
    "timm.Affine": _SCALE,
    "timm.RelPosBias": _SCALE,  # a learned table added to attention's products
    "quantable.Quantizer": "fake quantization: the integer multiplications are the layer's own",
}

# Products that may hold weights; those in a counted layer are counted, all others stop the count.
PRODUCTS = {
    torch.ops.aten.convolution,
    torch.ops.aten.linear,
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten._native_multi_head_attention,
    torch.ops.aten._transformer_encoder_layer_fwd,
}

SIZED = (*COUNTED, _BatchNorm)  # with a size for every channel, whatever their parameters
RELUS = (nn.ReLU, nn.ReLU6)
# Names of autograd nodes that end the way from a layer to its activation, with or without a module.
NONLINEAR = (
    "Clamp", "Elu", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "LogSoftmax",
    "Mish", "Prelu", "Relu", "Sigmoid", "Silu", "Softmax", "Softplus", "Tanh",
)  # fmt: skip
ADDITION = "AddBackward0"  # name of the autograd node of ``x + y``, in place or not
HIDDEN = "torch::autograd::CopySlices"  # of any change in place to a view, which may be an addition

PROBE_SEED = 0


def trace(network: nn.Module, input_size: tuple[int, int, int]) -> Network:
    """All that is known of ``network`` for one input (c, h, w): what a file of shapes keeps."""
    feeds, added = feeds_and_additions(network, input_size)
    return Network(layer_shapes(network, input_size), batch_norm_channels(network), feeds, added)


def layer_shapes(network: nn.Module, input_size: tuple[int, int, int]) -> list[LayerShape]:
    """Shapes of all Conv2d and Linear layers for one input (c, h, w), in execution order.

    MACs are output elements times weights per output, ``(c_in / groups) * k_h * k_w``; a layer
    that runs twice counts its MACs and inputs twice and its weights once. Products of two
    activations (attention's, ``bmm``) have no weights and are not counted; a parameter in an
    ``einsum`` runs as ``bmm`` too and is not seen.

    Raises NotImplementedError where the count would be wrong: a module with parameters and no rule,
    a counted layer that does not run, or a convolution or matrix product outside counted layers.

    >>> (layer,) = layer_shapes(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), (3, 9, 9))
    >>> layer.macs, layer.weights, layer.inputs, layer.bias, layer.output
    (3456, 216, 243, 8, (4, 4))
    """
    layers = counted_layers(network)
    calls: dict[str, list[tuple[torch.Size, int]]] = {}  # (output, input elements) of each call

    def note(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        calls.setdefault(name, []).append((out.shape, args[0].numel()))

    with torch.no_grad(), _hooked(layers, note), _products_guarded(network, layers):
        _evaluate(network, _probe(network, input_size, batch=1))
    _check_all_ran(layers, calls)
    return [_shape(name, layers[name], runs) for name, runs in calls.items()]


def batch_norm_channels(network: nn.Module) -> int:
    """Channels of all batch norms together; each has a scale, a shift, a mean and a variance.

    >>> batch_norm_channels(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    8
    """
    return sum(norm.num_features for norm in network.modules() if isinstance(norm, _BatchNorm))


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
            # A value below 0 would come from code that torch does not see, such as NumPy's.
            if not signs.natural(args[0]) or (args[0] < 0).any():
                signed.add(name)

        x = _probe(network, input_size, batch)
        with torch.no_grad(), _hooked(counted_layers(network), note), signs:
            run(network, x)

    look(network, _evaluate, batch=1)
    # A copy, as training may change more than weights and buffers; what cannot run so is evaluated
    # alone. Two images: a batch norm needs them where the map is one pixel.
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
            _evaluate(network, _probe(network, input_size, batch=1))
    finally:
        for handle in handles:
            handle.remove()
    _check_all_ran(layers, groups)
    linked: dict[int, list[str]] = {}
    for name, group in groups.items():  # in execution order
        linked.setdefault(id(group), []).append(name)
    return [tuple(names) for names in linked.values()]


def activations_behind(network: nn.Module, input_size: tuple[int, int, int]) -> dict[str, str]:
    """For each counted layer, the ReLU or ReLU6 module that its result reaches first.

    On the way there may be batch norm, additions, pooling or reshaping, but neither another counted
    layer nor another nonlinearity. Layers with no such module (a classifier, a linear bottleneck)
    are absent. In a ResNet block, ``conv2`` and the shortcut's convolution have the same one.
    Found by walking the autograd graph back from each activation.
    """
    layers = counted_layers(network)
    relus = {name: module for name, module in _named(network) if isinstance(module, RELUS)}
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

    with torch.enable_grad(), _hooked(layers, note_layer), _hooked(relus, note_relu):
        x = _probe(network, input_size, batch=1).requires_grad_()
        _evaluate(network, x.clone())  # cloned: a first layer in place may not change a leaf
    behind: dict[str, str] = {}
    for relu, output in outputs.items():  # in execution order: the first one stays
        for name in _layers_before(_read_by(output), owner, ends=NONLINEAR):
            behind.setdefault(name, relu)
    return behind


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

    with torch.enable_grad(), _hooked(counted_layers(network), note):
        image = _probe(network, input_size, batch=1).requires_grad_().clone()
        owner[cast(Node, image.grad_fn)] = IMAGE
        output = _evaluate(network, image)
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
        for name, module in _named(network)
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
        probe = _probe(network, input_size, batch=1)
        with _hooked(layers, hold):
            _evaluate(network, probe)
        return {name: _readers_of(name, network, probe, readers, held) for name in layers}


def _readers_of(
    source: str,
    network: nn.Module,
    probe: Tensor,
    readers: Mapping[str, nn.Module],
    held: Mapping[str, Tensor],
) -> dict[str, bool]:
    """Readers of the channels of layer ``source``."""
    modules = dict(_named(network))
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
        _evaluate(network, probe)
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


def _check_all_ran(layers: Mapping[str, nn.Module], ran: Collection[str]) -> None:
    for name, layer in layers.items():
        if name not in ran:
            raise NotImplementedError(
                f"layer '{name}' ({type(layer).__name__}) does not run in a forward pass in "
                "evaluation mode: remove it from the network, or its weights would be miscounted"
            )


def _shape(name: str, layer: nn.Module, runs: Sequence[tuple[torch.Size, int]]) -> LayerShape:
    weight = cast(Tensor, layer.weight)  # (c_out, c_in / groups, k_h, k_w) or (c_out, c_in)
    bias = cast(Tensor | None, layer.bias)
    outputs = sum(out.numel() for out, _ in runs)
    first, c_out = runs[0][0], weight.shape[0]
    conv = layer if isinstance(layer, nn.Conv2d) else None
    groups = conv.groups if conv else 1
    return LayerShape(
        name,
        macs=outputs * weight[0].numel(),
        weights=weight.numel(),
        inputs=sum(inputs for _, inputs in runs),
        kind="conv" if conv else "linear",
        bias=0 if bias is None else bias.numel(),
        c_in=weight.shape[1] * groups,
        c_out=c_out,
        groups=groups,
        kernel=_pair(weight.shape[2:]) if conv else (1, 1),
        stride=_pair(conv.stride) if conv else (1, 1),
        output=_pair(first[-2:]) if conv else (1, first.numel() // c_out),
    )


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    h, w = sizes
    return h, w


def counted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Counted layers by name; a leaf module with parameters and no rule raises.

    Parameters that a module with children holds itself (a class token, a layer scale) pass; where
    they enter a convolution or a matrix product, the count stops there.
    """
    layers: dict[str, nn.Module] = {}
    for name, module in _named(network):
        if isinstance(module, COUNTED):
            layers[name] = module
        elif not _is_free(module):
            raise NotImplementedError(
                f"layer '{name}' ({type(module).__name__}) has parameters but no MAC rule: add it "
                "to COUNTED with a rule or to FREE with a reason, in quantable.networks.trace"
            )
    return layers


def _is_free(module: nn.Module) -> bool:
    has_children = next(module.children(), None) is not None
    has_parameters = next(module.parameters(recurse=False), None) is not None
    names = {f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(module).__mro__}
    return has_children or not has_parameters or not names.isdisjoint(FREE)


def _named(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by name; a network that is a single layer goes by its class name."""
    for name, module in network.named_modules():
        yield name or type(network).__name__, module


def _probe(network: nn.Module, input_size: tuple[int, int, int], batch: int) -> Tensor:
    """Standard normal images (batch, c, h, w), the same ones every time."""
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return torch.randn(batch, *input_size, generator=generator).to(parameter)


def _gpus(network: nn.Module) -> list[torch.device]:
    """The GPU of the network's parameters, if they are on one."""
    return [p.device for p in network.parameters() if p.device.type == "cuda"][:1]


def _evaluate(network: nn.Module, x: Tensor) -> Tensor:
    """One forward pass in evaluation mode; every module's training flag is put back."""
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        output: Tensor = network(x)
        return output
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def _hooked(
    modules: Mapping[str, nn.Module], note: Callable[[str, tuple[Any, ...], Tensor], None]
) -> Iterator[None]:
    """Within the block, ``note(name, args, output)`` after each call of a module."""

    def hook_of(name: str) -> Callable[..., None]:
        return lambda _, args, out: note(name, args, out)

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _products_guarded(network: nn.Module, counted: Collection[str]) -> Iterator[None]:
    """Within the block, a convolution or matrix product outside ``counted`` layers raises."""
    modules = dict(_named(network))
    running: list[str] = []  # names of the modules running now, the innermost last

    def enter_of(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    def check(product: str) -> None:
        if set(counted).isdisjoint(running):
            raise NotImplementedError(
                f"layer '{running[-1]}' ({type(modules[running[-1]]).__name__}) runs {product} "
                "outside a Conv2d or Linear module, and its MACs have no rule: use modules, or add "
                "it to COUNTED with a rule in quantable.networks.trace"
            )

    enters = [module.register_forward_pre_hook(enter_of(name)) for name, module in modules.items()]
    leaves = [module.register_forward_hook(leave) for module in modules.values()]
    try:
        with _Products(check):
            yield
    finally:
        for handle in enters + leaves:
            handle.remove()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``check`` with the name of every operator of PRODUCTS before it runs."""

    def __init__(self, check: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.check = check

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - the four types are torch's own
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operator ``func``."""
        if func.overloadpacket in PRODUCTS:
            self.check(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
