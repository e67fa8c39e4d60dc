"""What a network multiplies: the shapes of its layers, and products that are no layer's.

A product is a convolution or matrix product that torch runs, found below all of Python, so that it
counts whatever called it. What is written as multiplications and a sum is none.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from quantable.networks.layers import LayerShape
from quantable.networks.passes import evaluate, hooked, named, probe

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)  # weight: (c_in, c_out / groups, ...)
COUNTED = (nn.Conv1d, nn.Conv2d, *TRANSPOSED, nn.Linear)

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
    "timm.LearnableAffineBlock": _SCALE,
    "timm.RelPosBias": _SCALE,  # a learned table added to attention's products
    "quantable.Quantizer": "fake quantization: the integer multiplications are the layer's own",
}

_ATEN = torch.ops.aten
# Operators that multiply two factors, and the places of these among the arguments.
FACTORS = {
    _ATEN.convolution: (0, 1),
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.mv: (0, 1),
    _ATEN.dot: (0, 1),
    _ATEN.vdot: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.addbmm: (1, 2),
    _ATEN.baddbmm: (1, 2),
    _ATEN.addmv: (1, 2),
}
# Operators that multiply queries with keys, and the result with values.
ATTENTION = {
    _ATEN._scaled_dot_product_cudnn_attention,
    _ATEN._scaled_dot_product_efficient_attention,
    _ATEN._scaled_dot_product_flash_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
}
# Operators with products that are not seen from outside. So are all that are not torch's own.
OPAQUE = {
    _ATEN._cdist_forward,
    _ATEN._convolution,
    _ATEN._cudnn_rnn,
    _ATEN._euclidean_dist,
    _ATEN._grouped_mm,
    _ATEN._int_mm,
    _ATEN._native_multi_head_attention,
    _ATEN._scaled_mm,
    _ATEN._transformer_encoder_layer_fwd,
    _ATEN._trilinear,
    _ATEN.linear,
    _ATEN.mkldnn_rnn_layer,
}


@dataclass(frozen=True)
class Product:
    """A product that a network ran, in the innermost of its modules that were running."""

    module: str
    layer: str | None  # the innermost counted layer
    operator: str
    factors: tuple[Tensor, ...]  # none where they are not seen
    of_image: tuple[bool, ...]  # which of them depend on the image
    macs: int


@dataclass(frozen=True)
class Count:
    """Layers in execution order, and MACs of products of two activations, which are no layer's."""

    layers: list[LayerShape]
    activation_macs: int


def count(network: nn.Module, input_size: tuple[int, int, int]) -> Count:
    """Shapes of all convolutions and linear layers for one input (c, h, w), and what is beside.

    MACs are those of the products that run: output elements times weights per output, ``(c_in /
    groups) * k_h * k_w``; of a transposed convolution input elements times weights per input. A
    layer that runs twice counts its MACs and inputs twice and its weights once. A product without
    the image in it counts nothing: it can be computed once.

    Raises NotImplementedError where the count would be wrong: a module with parameters and no rule,
    a weight that is two layers', a layer that does not run or multiplies other than once in a call,
    and outside layers a product of an activation with a parameter or another constant.
    """
    layers = counted_layers(network)
    calls: dict[str, list[tuple[torch.Size, int]]] = {}  # (output, input elements) of each call
    macs: dict[str, list[int]] = {name: [] for name in layers}  # of each product
    between: list[int] = []  # MACs of products of two activations

    def note(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        if not args:
            raise NotImplementedError(
                f"layer '{name}' ({type(layers[name]).__name__}) gets its input by keyword, where "
                "it is neither counted nor quantized: give it by position"
            )
        calls.setdefault(name, []).append((out.shape, args[0].numel()))

    def see(product: Product) -> None:
        if product.layer is not None and len(product.factors) == 2:
            macs[product.layer].append(product.macs)
        elif product.factors and all(product.of_image):
            between.append(product.macs)
        elif any(product.of_image):
            _refuse(product, network)

    image = probe(network, input_size, batch=1)
    with torch.no_grad(), hooked(layers, note), products(network, layers, image, see):
        evaluate(network, image)
    check_all_ran(layers, calls)
    shapes = [_shape(name, layers[name], runs, macs[name]) for name, runs in calls.items()]
    return Count(shapes, sum(between))


def layer_shapes(network: nn.Module, input_size: tuple[int, int, int]) -> list[LayerShape]:
    """Layers alone of ``count``.

    >>> (layer,) = layer_shapes(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2)), (3, 9, 9))
    >>> layer.macs, layer.weights, layer.inputs, layer.bias, layer.output
    (3456, 216, 243, 8, (4, 4))
    """
    return count(network, input_size).layers


def batch_norm_channels(network: nn.Module) -> int:
    """Channels of all batch norms together; each has a scale, a shift, a mean and a variance.

    >>> batch_norm_channels(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    8
    """
    return sum(norm.num_features for norm in network.modules() if isinstance(norm, _BatchNorm))


def counted_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Counted layers by name; a leaf module with parameters and no rule raises.

    Parameters that a module with children holds itself (a class token, a layer scale) pass; where
    they are multiplied with an activation, the count stops there.
    """
    layers: dict[str, nn.Module] = {}
    owner: dict[int, str] = {}  # of the memory of each weight
    for name, module in named(network):
        if isinstance(module, COUNTED):
            layers[name] = module
            for weight in module.parameters(recurse=False):
                memory = id(weight) if is_lazy(weight) else weight.data_ptr()
                if (other := owner.setdefault(memory, name)) != name:
                    raise NotImplementedError(
                        f"layers '{other}' and '{name}' have one parameter between them, which "
                        "would be counted and quantized twice: give each its own"
                    )
        elif _has_only_parameters(module) and not _is_free(module):
            raise NotImplementedError(
                f"layer '{name}' ({type(module).__name__}) has parameters and is no layer that is "
                "counted, which are nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d and "
                "nn.ConvTranspose2d, nor a norm or a scale: replace it by such layers; a parameter "
                "that only scales or shifts may belong to the module around it"
            )
    return layers


def _has_only_parameters(module: nn.Module) -> bool:
    """Whether a module has parameters of its own and no modules inside."""
    has_children = next(module.children(), None) is not None
    return not has_children and next(module.parameters(recurse=False), None) is not None


def _is_free(module: nn.Module) -> bool:
    names = {f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(module).__mro__}
    return not names.isdisjoint(FREE)


def check_all_ran(layers: Mapping[str, nn.Module], ran: Collection[str]) -> None:
    """Refuse a network that leaves a layer out."""
    for name, layer in layers.items():
        if name not in ran:
            raise NotImplementedError(
                f"layer '{name}' ({type(layer).__name__}) does not run in a forward pass in "
                "evaluation mode: remove it from the network, or its weights would be miscounted"
            )


def _refuse(product: Product, network: nn.Module) -> None:
    raise NotImplementedError(
        f"layer '{product.module}' ({type(dict(named(network))[product.module]).__name__}) runs "
        f"{product.operator} outside convolutions and linear layers, by a parameter or another "
        "constant, which is neither counted nor quantized there: make that an nn.Linear or a "
        "convolution of its own, or choose another network"
    )


def _shape(
    name: str, layer: nn.Module, runs: Sequence[tuple[torch.Size, int]], macs: Sequence[int]
) -> LayerShape:
    if len(macs) != len(runs):
        raise NotImplementedError(
            f"layer '{name}' ({type(layer).__name__}) runs {len(macs)} products in {len(runs)} "
            "call(s), not one in each: give each product a layer of its own"
        )
    weight = cast(Tensor, layer.weight)
    bias = cast(Tensor | None, layer.bias)
    conv = None if isinstance(layer, nn.Linear) else cast(nn.Conv2d, layer)
    groups = conv.groups if conv else 1
    c_out, c_in = weight.shape[0], weight.shape[1] * groups
    if isinstance(layer, TRANSPOSED):
        c_in, c_out = weight.shape[0], weight.shape[1] * groups
    first = runs[0][0]
    return LayerShape(
        name,
        macs=sum(macs),
        weights=weight.numel(),
        inputs=sum(inputs for _, inputs in runs),
        kind="conv" if conv else "linear",
        bias=0 if bias is None else bias.numel(),
        c_in=c_in,
        c_out=c_out,
        groups=groups,
        kernel=_pair(weight.shape[2:]) if conv else (1, 1),
        stride=_pair(conv.stride) if conv else (1, 1),
        output=_pair(first[2:]) if conv else (1, first.numel() // c_out),
    )


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    """Height and width; the height is 1 where there is one size."""
    h, w = (1, *sizes)[-2:]
    return h, w


@contextmanager
def products(
    network: nn.Module,
    layers: Collection[str],
    image: Tensor,
    see: Callable[[Product], None],
) -> Iterator[None]:
    """Within the block, ``see`` every product; ``image`` is what the network is about to get.

    Products of modules in FREE are left out.
    """
    modules = dict(named(network))
    running: list[str] = []  # names of the modules running now, the innermost last

    def enter_of(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    def tell(operator: str, factors: Sequence[Tensor], of_image: Sequence[bool], macs: int) -> None:
        if not _is_free(modules[running[-1]]):
            layer = next((name for name in reversed(running) if name in layers), None)
            product = Product(running[-1], layer, operator, tuple(factors), tuple(of_image), macs)
            see(product)

    handles = [
        module.register_forward_pre_hook(enter_of(name), prepend=True)
        for name, module in modules.items()
    ]
    handles += [module.register_forward_hook(leave) for module in modules.values()]
    try:
        with _Products(image, tell):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what depends on ``image``, and tells of every product after it has run.

    Known for whole storages, so that views share it; an operator in place returns what it wrote.
    """

    def __init__(self, image: Tensor, tell: Callable[..., None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tell = tell
        # Equal for one storage; as long as they are kept, no other storage gets its address.
        self.of_image = {_storage(image)}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - the four types are torch's own
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operator ``func``."""
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        depend = [self._depends(tensor) for tensor in given]
        if any(depend):
            self.of_image.update(map(_storage, _tensors(result)))
        operator = func.overloadpacket
        if operator in FACTORS:
            factors = [args[place] for place in FACTORS[operator]]
            macs = (
                _convolved(args, result) if operator is _ATEN.convolution else _multiplied(*factors)
            )
        elif operator in ATTENTION:
            factors = list(args[:3])
            macs = _attended(*factors)
        elif operator in OPAQUE or func.namespace not in ("aten", "prim", "prims"):
            factors, macs = [], 0
        else:
            return result
        of_image = [self._depends(factor) for factor in factors] if factors else depend
        self.tell(operator.__name__, factors, of_image, macs)
        return result

    def _depends(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self.of_image


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _convolved(args: Sequence[Any], result: Tensor) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    places = x if transposed else result  # (n, c, ...): at each, every weight multiplies once
    return places.numel() // places.shape[1] * cast(int, weight.numel())


def _multiplied(a: Tensor, b: Tensor) -> int:
    return a.numel() * (b.shape[-1] if b.dim() > 1 else 1)


def _attended(query: Tensor, key: Tensor, value: Tensor) -> int:
    scores = query.numel() // query.shape[-1] * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1])
