"""Whether layers multiply the very weight and input that their quantizers would return.

A quantizer stands at a layer's weight, another one at its input. What the layer does to them
afterwards (weight standardization, a scale, a mean) leads off the grid, whatever its class is
called. So the network runs once with weights and inputs of a few known values, and these must be
what is multiplied. Other tensors of the layers are not as they are either: a scale that is 1 in a
new network is not when it has learned.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantable.networks.counting import Product, counted_layers, products
from quantable.networks.passes import evaluate, probe

# Exact in 16 bits; no change of sign, rounding or clipping leads from one of them to another.
WEIGHTS = (-1.71875, -0.40625, 0.28125, 1.15625)
INPUTS = (-1.34375, -0.21875, 0.46875, 1.90625)
SCALE, SHIFT = 1.375, 0.28125  # of a layer's other tensors; neither leads from 0 or 1 to 0 or 1
Place = tuple[dict[str, Tensor | None], str, Tensor]  # of a tensor in a module

AGAIN = "runs more than once in a forward pass, and its inputs would share one quantizer"
COMPUTED = "computes its weight from other parameters"
WEIGHT = "changes its weight, or takes a part of it, before it multiplies"
INPUT = "changes its input before it multiplies"


def check_operands(
    network: nn.Module,
    input_size: tuple[int, int, int],
    *,
    weights: Collection[str] | None = None,
    inputs: Collection[str] | None = None,
) -> None:
    """Refuse a network whose layers would not multiply quantized ``weights`` and ``inputs``.

    Both name counted layers; None means all. An input may be cut, moved and padded with zeros on
    the way. The network has been counted: each of its layers runs one product in a call.
    """
    layers = counted_layers(network)
    marks = _Marks(layers, *(layers if names is None else names for names in (weights, inputs)))
    handles = []
    for layer in layers.values():
        handles.append(layer.register_forward_pre_hook(marks.set))
        handles.append(layer.register_forward_hook(marks.take_back))
    image = probe(network, input_size, batch=1)
    try:
        with torch.no_grad(), products(network, layers, image, marks.compare):
            evaluate(network, image)
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers.values():
            marks.take_back(layer)
    if marks.faults:
        said = (_said(fault, names, layers) for fault, names in marks.faults.items())
        raise NotImplementedError(
            f"quantizer: {'; '.join(said)}: leave such weights and inputs in float (32 bits in "
            "bits.layers or bits.file), or choose another network"
        )


class _Marks:
    """Known values at the weights and inputs of layers while these run, and what became of them."""

    def __init__(
        self, layers: Mapping[str, nn.Module], weights: Collection[str], inputs: Collection[str]
    ) -> None:
        self.names = {layer: name for name, layer in layers.items()}
        self.sizes = {name: cast(Tensor, layer.weight).numel() for name, layer in layers.items()}
        self.weights, self.inputs = weights, inputs
        self.kept: dict[nn.Module, list[Place]] = {}  # true tensors of the layers that are running
        self.ran: set[str] = set()
        self.faults: dict[str, list[str]] = {}  # what is wrong -> names of layers

    def set(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Exchange the tensors and the input of a layer that is about to run."""
        name = self.names[layer]
        if name in self.ran and name in self.inputs:
            self._find(AGAIN, name)
        self.ran.add(name)
        if layer._parameters.get("weight") is None and name in self.weights:
            self._find(COMPUTED, name)
        self.kept[layer] = [place for module in layer.modules() for place in self._places(module)]
        for tensors, key, tensor in self.kept[layer]:
            own = tensors is layer._parameters and key == "weight"
            new = _filled(tensor, WEIGHTS) if own else SCALE * tensor + SHIFT
            tensors[key] = nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new
        return _filled(args[0], INPUTS), *args[1:]

    def _places(self, module: nn.Module) -> Iterator[Place]:
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    yield cast(dict[str, Tensor | None], tensors), key, tensor

    def take_back(self, layer: nn.Module, *_: object) -> None:
        """Give a layer its true tensors again."""
        for tensors, key, tensor in self.kept.pop(layer, []):
            tensors[key] = tensor

    def compare(self, product: Product) -> None:
        """Look for the known values in what a layer multiplies."""
        name, fault = product.layer, WEIGHT
        if name is None:
            return
        size = self.sizes[name]
        for weight, x in (product.factors, product.factors[::-1]):
            if name not in self.weights or _is_weight(weight, size):
                fault = INPUT
                if name not in self.inputs or _has_only(x, (0.0, *INPUTS)):
                    return
        self._find(fault, name)

    def _find(self, fault: str, name: str) -> None:
        self.faults.setdefault(fault, []).append(name)


def _said(fault: str, names: Sequence[str], layers: Mapping[str, nn.Module]) -> str:
    first, *others = dict.fromkeys(names)
    more = f" (and {len(others)} more)" if others else ""
    return f"layer '{first}' ({type(layers[first]).__name__}){more} {fault}"


def _filled(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """A tensor as ``like`` that has ``values`` in turn."""
    filled = torch.empty_like(like)  # dense, in the memory format of ``like``
    in_memory = filled.as_strided((filled.numel(),), (1,))
    for turn, value in enumerate(values):
        in_memory[turn :: len(values)] = value
    return filled


def _has_only(x: Tensor, values: tuple[float, ...]) -> bool:
    found = torch.zeros_like(x, dtype=torch.bool)
    for value in values:
        found |= x == value
    return bool(found.all())


def _is_weight(x: Tensor, size: int) -> bool:
    """Whether ``x`` is a whole weight of ``size`` elements, which a batch may repeat."""
    own = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return torch.Size(own).numel() == size and _has_only(x, WEIGHTS)
