"""Which tensors of a forward pass cannot be negative, by rules on its operators.

A sign follows from what the graph can produce, not from what it did: the values of parameters and
buffers count for nothing, so that a fresh network and a trained one have the same signs. What has
no rule here can be negative.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

NATURAL = (torch.bool, torch.uint8)  # types without numbers below 0
Value = Any  # a tensor, a number, a list of tensors, or None where an argument was left out
Arguments = Mapping[str, Value]
Rule = Callable[[Callable[[Value], bool], Arguments], bool]

# Operators as torch names them, without the underscore of those in place.
ALWAYS = (
    "abs", "cosh", "erfc", "exp", "exp2", "hardsigmoid", "relu", "rsqrt", "sigmoid", "softplus",
    "sqrt", "_softmax", "_safe_softmax", "eq", "ge", "gt", "le", "lt", "ne", "frobenius_norm",
    "linalg_vector_norm", "norm", "std", "var", "bernoulli", "eye", "new_ones", "new_zeros",
    "ones", "ones_like", "rand", "rand_like", "zero", "zeros", "zeros_like",
)  # fmt: skip
# Where their first argument cannot be negative; the others do not matter.
FIRST = (
    "amax", "amin", "aminmax", "ceil", "celu", "channel_shuffle", "clone", "col2im", "cummax",
    "cummin", "cumprod", "cumsum", "diag_embed", "elu", "embedding", "erf", "expm1", "flip",
    "floor", "_fused_dropout", "gather", "gelu", "glu", "hardshrink", "hardswish", "im2col",
    "index", "index_select", "kthvalue", "leaky_relu", "log1p", "max", "mean", "median", "mish",
    "native_channel_shuffle", "native_dropout", "pixel_shuffle", "pixel_unshuffle",
    "_prelu_kernel", "prod", "reciprocal", "repeat", "repeat_interleave", "roll", "rot90",
    "round", "selu", "sign", "silu", "softshrink", "sort", "sum", "take", "tanh", "_to_copy",
    "topk", "tril", "triu", "trunc", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "avg_pool2d", "avg_pool3d",
    "fractional_max_pool2d", "fractional_max_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "max_unpool2d", "max_unpool3d", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_linear1d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_trilinear3d",
)  # fmt: skip
# Where no argument can be negative, factors and fill values among them.
EVERY = (
    "add", "addbmm", "addcdiv", "addcmul", "addmm", "addmv", "addr", "arange", "baddbmm", "bmm",
    "cat", "constant_pad_nd", "convolution", "div", "dot", "full", "index_add", "index_copy",
    "index_fill", "index_put", "linear", "linspace", "masked_fill", "masked_scatter", "min",
    "minimum", "mm", "mul", "mv", "scalar_tensor", "scatter", "scatter_add", "scatter_reduce",
    "select_scatter", "slice_scatter", "stack", "where",
)  # fmt: skip
# Where their last argument, the new content, cannot be negative.
LAST = ("copy", "fill", "full_like", "new_full")
# Where the values that they average cannot be negative.
ATTENTION = (
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ALWAYS, lambda natural, given: True),
    **dict.fromkeys(FIRST, lambda natural, given: natural(next(iter(given.values())))),
    **dict.fromkeys(EVERY, lambda natural, given: all(map(natural, given.values()))),
    **dict.fromkeys(LAST, lambda natural, given: natural([*given.values()][-1])),
    **dict.fromkeys(ATTENTION, lambda natural, given: natural(given["value"])),
    "clamp": lambda natural, given: _bounded(natural, given["self"], given["min"], given["max"]),
    "clamp_min": lambda natural, given: _bounded(natural, given["self"], given["min"], None),
    "clamp_max": lambda natural, given: _bounded(natural, given["self"], None, given["max"]),
    "hardtanh": lambda natural, given: _bounded(natural, *given.values()),
    "maximum": lambda natural, given: any(map(natural, given.values())),
    "mul": lambda natural, given: (
        given["self"] is given["other"] or all(map(natural, given.values()))
    ),
    "pow": lambda natural, given: natural(given["self"]) or _even(natural, given["exponent"]),
    "threshold": lambda natural, given: (
        natural(given["value"]) and (natural(given["self"]) or natural(given["threshold"]))
    ),
}
# The same memory, read as other numbers.
REREAD = (torch.ops.aten.view.dtype, torch.ops.aten._neg_view.default)


def _even(natural: Callable[[Value], bool], exponent: Value) -> bool:
    return isinstance(exponent, int | float) and natural(exponent) and exponent % 2 == 0


def _bounded(natural: Callable[[Value], bool], x: Value, low: Value, high: Value) -> bool:
    """Sign of ``x`` between two bounds, each of which may be None; the upper one wins."""
    return (natural(x) or (low is not None and natural(low))) and natural(high)


class Signs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows, within its block, which tensors cannot be negative; NaN and -0 count as such.

    Known for a whole storage, so that views share it: where something that can be negative is
    written into a part, all of it can be. Parameters, buffers and whatever is made outside the
    block can be negative, and so, once a float was read from such a tensor, can Python's numbers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # By address, which is not used for another storage as long as a weak reference is kept.
        self._natural: dict[int, StorageWeakRef] = {}
        self._numbers = True  # whether Python's numbers are the graph's own

    def natural(self, value: Value) -> bool:
        """Whether ``value`` cannot be negative; None, an argument left out, cannot."""
        if isinstance(value, Tensor):
            known = _address(value) in self._natural and not value.is_complex()
            return value.dtype in NATURAL or known
        if isinstance(value, list | tuple):
            return all(map(self.natural, value))
        return value is None or (self._numbers and not isinstance(value, complex) and value >= 0)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - the four types are torch's own
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operator ``func`` and note what its results can be."""
        kwargs, operator = kwargs or {}, _operator(func)
        given = {**operator.defaults, **dict(zip(operator.names, args, strict=False)), **kwargs}
        natural = self._result(operator, given)
        before = {_address(tensor) for tensor in _tensors([*given.values()])}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            if _address(tensor) not in before:  # else a view, or written below
                self._note(tensor, natural)
        for tensor in _tensors([given[name] for name in operator.written]):
            if not natural or tensor.nbytes == tensor.untyped_storage().nbytes():  # else a part
                self._note(tensor, natural)
        if operator.name == "_local_scalar_dense" and given["self"].is_floating_point():
            self._numbers &= self.natural(given["self"])
        elif operator.name == "lift_fresh" and result.dim() == 0:  # a number in the network's code
            self._note(result, self.natural(result.item()))
        elif operator.rereads:
            self._note(result, False)
        return result

    def _result(self, operator: "_Operator", given: Arguments) -> bool:
        rule = RULES.get(operator.name)
        counted = {name: given[name] for name in operator.counted}
        return rule is not None and not _any_complex(counted) and rule(self.natural, counted)

    def _note(self, tensor: Tensor, natural: bool) -> None:
        address = _address(tensor)
        self._natural.pop(address, None)
        if natural and address:
            self._natural[address] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


class _Operator(NamedTuple):
    """What the schema of an operator says of its arguments."""

    name: str  # empty where it is not torch's own
    rereads: bool
    names: tuple[str, ...]
    defaults: Mapping[str, Value]
    counted: tuple[str, ...]  # tensors and numbers that are values, and no places
    written: tuple[str, ...]


@cache
def _operator(func: Any) -> _Operator:  # noqa: ANN401
    arguments = func._schema.arguments
    name = func.overloadpacket.__name__.rstrip("_") if func.namespace == "aten" else ""
    return _Operator(
        name=name,
        rereads=func in REREAD,
        names=tuple(argument.name for argument in arguments),
        defaults={a.name: a.default_value for a in arguments},
        counted=tuple(
            argument.name
            for argument in arguments
            if any(word in str(argument.type) for word in ("Tensor", "number"))
            and argument.name not in ("index", "indices")
            and not argument.is_out
        ),
        written=tuple(a.name for a in arguments if a.alias_info and a.alias_info.is_write),
    )


def _tensors(value: Value) -> Iterator[Tensor]:
    """Tensors in ``value``, also in lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _address(tensor: Tensor) -> int:
    """Of the storage of ``tensor``; 0 of a sparse one, which has none."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


def _any_complex(given: Arguments) -> bool:
    return any(tensor.is_complex() for tensor in _tensors([*given.values()]))
