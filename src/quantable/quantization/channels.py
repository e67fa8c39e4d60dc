"""Channels that belong together, and their removal from a network and its optimizer.

Cutting happens in place: parameters keep their identity, so that an optimizer, hooks and the
parametrizations of quantized weights stay where they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from quantable.networks.counting import counted_layers
from quantable.networks.operands import check_operands
from quantable.networks.trace import reached_channels
from quantable.quantization.quantizer import Quantizer

PRUNED = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Group:
    """Layers and norms that share one set of channels, by name.

    ``producers`` make the channels (several where a residual addition joins them, or a depthwise
    convolution passes them on), ``norms`` normalize them, ``consumers`` read them.
    """

    channels: int
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]


def channel_groups(network: nn.Module, input_size: tuple[int, int, int]) -> list[Group]:
    """Groups of ``network`` that can be cut, in execution order of their first producer.

    Channels that reach the network's output, or a convolution with several groups that is not
    depthwise, are in no group. Raises NotImplementedError where channels are mixed on the way from
    one layer to the next (a concatenation, a shuffle, a flattened map), meet a module with
    parameters of their own that is no batch norm, or where a layer has more than weight and bias.
    """
    layers = counted_layers(network)
    _check_layers(layers)
    check_operands(network, input_size)
    order = list(layers)
    feeds = reached_channels(network, input_size)
    readers = _readers(network, layers, feeds)
    sets = [{name} for name in layers]
    fixed = {name for name, reached in feeds.items() if "" in reached}
    for reader, names in readers.items():
        layer = layers.get(reader)
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            sets.append({*names, reader})
            if not _is_depthwise(layer):  # its groups must stay equal
                fixed.add(reader)
        else:
            sets.append(set(names))
    groups = []
    for tied in _merged(sets):
        if tied & fixed:
            continue
        producers = sorted(tied, key=order.index)
        read = [reader for reader, names in readers.items() if tied.intersection(names)]
        groups.append(
            Group(
                channels=raw_weight(layers[producers[0]]).shape[0],
                producers=tuple(producers),
                norms=tuple(name for name in read if name not in layers),
                consumers=tuple(
                    name for name in read if name in layers and not _is_depthwise(layers[name])
                ),
            )
        )
    return sorted(groups, key=lambda group: order.index(group.producers[0]))


def _check_layers(layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers that `cut` cannot cut whole."""
    for name, layer in layers.items():
        own = {n for n, _ in (*layer.named_parameters(), *layer.named_buffers())}
        if not isinstance(layer, PRUNED) or own - {"weight", "bias"}:
            raise NotImplementedError(
                f"layer '{name}' ({type(layer).__name__}): channels are cut of nn.Conv2d and "
                f"nn.Linear alone, with nothing but weight and bias, and it has "
                f"{', '.join(sorted(own))}: choose another network or quantizer"
            )


def _readers(
    network: nn.Module, layers: Mapping[str, nn.Module], feeds: Mapping[str, Mapping[str, bool]]
) -> dict[str, list[str]]:
    """Layers whose channels a layer or a norm reads; refuses what has no rule."""
    modules = dict(network.named_modules())
    readers: dict[str, list[str]] = {}
    for name, reached in feeds.items():
        for reader, alone in reached.items():
            if reader == "":
                continue
            kind = type(modules[reader]).__name__
            if not alone:
                raise NotImplementedError(
                    f"channels of layer '{name}' are mixed before '{reader}' ({kind}): they cannot "
                    "be removed one by one"
                )
            if reader not in layers and not isinstance(modules[reader], _BatchNorm):
                raise NotImplementedError(
                    f"module '{reader}' ({kind}) has a parameter for every channel, and those of "
                    "batch norms alone can be removed: choose another network or quantizer"
                )
            readers.setdefault(reader, []).append(name)
    return readers


def _merged(sets: Iterable[set[str]]) -> list[set[str]]:
    """Unite sets that share a name.

    >>> [sorted(names) for names in _merged([{"a"}, {"b"}, {"c"}, {"a", "c"}])]
    [['b'], ['a', 'c']]
    """
    merged: list[set[str]] = []
    for names in sets:
        apart = [other for other in merged if other.isdisjoint(names)]
        merged = [*apart, names.union(*(other for other in merged if other not in apart))]
    return merged


def cut(
    network: nn.Module, group: Group, keep: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Remove every channel of ``group`` but ``keep`` (ascending indices), with its optimizer state.

    What remains is unchanged: where the removed channels were zero, so is the network's output.
    """
    modules = dict(network.named_modules())
    for name in group.producers:
        layer = modules[name]
        weight_quantizer, act_quantizer = _quantizers(layer)
        _take(raw_weight(layer), 0, keep, optimizer)
        if isinstance(layer.bias, nn.Parameter):
            _take(layer.bias, 0, keep, optimizer)
        _take_quantizer(weight_quantizer, keep, optimizer)
        if _is_depthwise(layer):  # inputs go as well
            _take_quantizer(act_quantizer, keep, optimizer)
        _refresh(layer)
    for name in group.norms:
        for _, tensor in _named_tensors(modules[name]):
            if tensor.dim():  # not the number of batches
                _take(tensor, 0, keep, optimizer)
        _refresh(modules[name])
    for name in group.consumers:
        layer = modules[name]
        _take(raw_weight(layer), 1, keep, optimizer)
        _take_quantizer(_quantizers(layer)[1], keep, optimizer)
        _refresh(layer)


def shrink_to(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the tensors of ``network`` the sizes of a pruned network's ``state``, not its values."""
    for prefix, module in network.named_modules():
        for name, tensor in _named_tensors(module):
            saved = state.get(f"{prefix}.{name}" if prefix else name)
            if saved is not None and saved.shape != tensor.shape:
                tensor.data = _empty_like(tensor.data, saved.shape)
                if isinstance(module, Quantizer):
                    module.shape = tuple(saved.shape)
    for module in network.modules():  # a quantized weight lies in a child of its layer
        _refresh(module)


def _take(tensor: Tensor, dim: int, keep: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep the slices ``keep`` of a parameter or buffer, and of what the optimizer knows of it."""
    size = tensor.shape
    if optimizer is not None and tensor in optimizer.state:
        state = optimizer.state[tensor]
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == size:
                state[name] = value.index_select(dim, keep.to(value.device))
    kept = tensor.data.index_select(dim, keep.to(tensor.device))
    tensor.grad = None
    tensor.data = _empty_like(tensor.data, kept.shape).copy_(kept)


def _empty_like(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Empty tensor of another size in the same memory format, on which convolutions depend."""
    last = torch.channels_last
    is_last = (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=last)
        and not tensor.is_contiguous()
    )
    order = last if is_last else torch.contiguous_format
    return torch.empty(tuple(size), dtype=tensor.dtype, device=tensor.device, memory_format=order)


def _take_quantizer(
    quantizer: Quantizer | None, keep: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Keep the steps, clips or ranges of the channels that stay."""
    if quantizer is not None and quantizer.per_channel:
        for _, tensor in _named_tensors(quantizer):
            if tensor.shape == quantizer.shape:
                _take(tensor, 0, keep, optimizer)
        quantizer.shape = (len(keep),)


def _refresh(module: nn.Module) -> None:
    """Bring the sizes a module states in line with its tensors."""
    if isinstance(module, nn.Conv2d):
        weight = raw_weight(module)
        depthwise = _is_depthwise(module)
        module.out_channels = weight.shape[0]
        if depthwise:
            module.groups = module.in_channels = module.out_channels
        elif module.groups == 1:
            module.in_channels = weight.shape[1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = raw_weight(module).shape
    elif isinstance(module, _BatchNorm):
        module.num_features = len(cast(Tensor, module.running_mean))


def _is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution makes each channel from the one of the same number alone."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups > 1
        and layer.groups == layer.in_channels == layer.out_channels
    )


def raw_weight(layer: nn.Module) -> Tensor:
    """The stored weight of a layer, beneath its quantizer if it has one."""
    if parametrize.is_parametrized(layer, "weight"):
        return cast(Tensor, layer.parametrizations.weight.original)  # type: ignore[union-attr]
    return cast(Tensor, layer.weight)


def raw_bias(layer: nn.Module) -> Tensor:
    """The stored bias of a layer that has one, beneath what quantizes it."""
    if parametrize.is_parametrized(layer, "bias"):
        return cast(Tensor, layer.parametrizations.bias.original)  # type: ignore[union-attr]
    return cast(Tensor, layer.bias)


def _quantizers(layer: nn.Module) -> tuple[Quantizer | None, Quantizer | None]:
    """Quantizers of a layer's weight and input, where it has them."""
    weight = None
    if parametrize.is_parametrized(layer, "weight"):
        weight = cast(Quantizer, layer.parametrizations.weight[0])  # type: ignore[union-attr, index]
    return weight, getattr(layer, "act_quantizer", None)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers."""
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
