"""The one seam between methods and the trainer: quantizers go in, bit-widths come out."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from quantable.base.bits import FLOAT_BITS, Bits, bit_map
from quantable.base.errors import UserError, unknown
from quantable.networks.counting import TRANSPOSED, layer_shapes
from quantable.networks.layers import LayerShape
from quantable.networks.operands import check_operands
from quantable.networks.trace import signed_inputs
from quantable.quantization.channels import raw_weight
from quantable.quantization.face import TrainerFace, face
from quantable.quantization.quantizer import Layer, Levels, Quantizer


class Factory(Protocol):
    """Makes the quantizer of one tensor: a method's class with the rest of its arguments set."""

    def __call__(self, *, bits: int, signed: bool, channels: int) -> Quantizer: ...  # noqa: D102


@dataclass(frozen=True)
class FinalLayer:
    """A layer with quantized weights, as it is computed in evaluation now."""

    name: str
    kind: Literal["conv", "linear"]
    integers: Tensor  # int64, (c_out, c_in / groups, ...), also of a transposed convolution
    scale: Tensor  # broadcasts against the integers, as ``offset``; see ``Levels``
    offset: Tensor
    weight_bits: int
    act: Quantizer | None  # of the input; None where that is float
    input_bits: int  # 32 where the input is float
    input_signed: bool
    bias: Tensor | None


class Quantize(pl.Callback):
    """Puts quantizers on the weights and inputs of a network's convolutions and linear layers.

    ``weight`` and ``act`` make one quantizer each. Bit-widths are pairs [weight, activation]:
    ``inner`` for every layer, ``ends`` for the first and the last in execution order (None: like
    the others), ``layers`` for exceptions by name; 32 leaves an operand in float. ``ties`` are
    groups of layers whose bit-widths must be equal, as around a residual addition.

    ``free_of_accumulator`` names layers whose sums are as wide as they need be, whatever
    ``bits.accumulator`` says.

    ``setup`` runs before the optimizer is built and before a checkpoint is restored, so that step
    sizes are trained and resumed. Of the Lightning module, methods use its ``TrainerFace``.
    """

    def __init__(
        self,
        *,
        weight: Factory,
        act: Factory,
        inner: Sequence[int],
        ends: Sequence[int] | None,
        layers: Mapping[str, Sequence[int]],
        ties: Sequence[Sequence[str]] = (),
    ) -> None:
        self.weight = weight
        self.act = act
        self.inner = _bits("bits.inner", inner)
        self.ends = None if ends is None else _bits("bits.ends", ends)
        self.layers = {name: _bits(f"bits.layers.{name}", pair) for name, pair in layers.items()}
        self.ties = ties
        # Layers with a signed input: those of a run that is read back; None: what the network says.
        self.signed: Collection[str] | None = None
        # Layers whose sums are as wide as need be, whatever bits.accumulator says of the others.
        self.free_of_accumulator: Collection[str] = ()
        self.weight_quantizers: dict[str, Quantizer] = {}
        self.act_quantizers: dict[str, Quantizer] = {}
        self._names: list[str] = []
        self._net: nn.Module | None = None

    @property
    def bits(self) -> dict[str, Bits]:
        """Bit-widths of every layer, read from the quantizers; empty before ``setup``."""
        return {
            name: Bits(_width(self.weight_quantizers, name), _width(self.act_quantizers, name))
            for name in self._names
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach to ``pl_module.net``, once: fit, validate and test each call this."""
        module = face(pl_module)
        if self._net is not module.net:
            self.attach(module.net, module.input_size)

    def attach(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Put quantizers into ``net``, whose inputs are ``input_size`` (c, h, w). Runs once."""
        if self._net is not None:
            raise UserError("quantizer: this callback has a network already; make a new one")
        if any(isinstance(module, Quantizer) for module in net.modules()):
            raise UserError("quantizer: this network is quantized already")
        self.prepare(net, input_size)
        c, h, w = input_size
        shapes = layer_shapes(net, (c, h, w))
        names = [shape.name for shape in shapes]
        if not names:
            raise UserError("quantizer: the network has no convolution and no linear layer")
        widths = self._widths(names)
        check_operands(
            net,
            (c, h, w),
            weights=[name for name, width in widths.items() if width.weight != FLOAT_BITS],
            inputs=[name for name, width in widths.items() if width.act != FLOAT_BITS],
        )
        signed = signed_inputs(net, (c, h, w)) if self.signed is None else self.signed
        self.weight_quantizers = self._make_weight_quantizers(net, widths)
        for name, width in widths.items():
            layer = net.get_submodule(name)
            if (quantizer := self.weight_quantizers.get(name)) is not None:
                # unsafe: otherwise registering computes the weight once, which sets learned steps
                parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)
            if width.act != FLOAT_BITS:
                self._add_input_quantizer(name, layer, width.act, signed=name in signed)
        for shape in shapes:
            self._introduce(shape, input_signed=shape.name in signed)
        self._names, self._net = names, net

    def prepare(self, net: nn.Module, input_size: Sequence[int]) -> None:
        """Change the float ``net`` before it is quantized: here not at all.

        A run that starts from another one's weights has them loaded before, or behind this where
        they are of such a network; so a second call must find nothing to do.
        """

    def _widths(self, names: Sequence[str]) -> dict[str, Bits]:
        """Bit-widths as they were asked for, of the layers ``names``."""
        widths = bit_map(names, inner=self.inner, ends=self.ends, layers=self.layers)
        if all(width == Bits(FLOAT_BITS, FLOAT_BITS) for width in widths.values()):
            raise UserError("quantizer: every bit-width is 32; use `quantizer=none` for that")
        _check_ties(self.ties, widths)
        return widths

    def phase_over(self, module: TrainerFace) -> bool:
        """Whether the phase ends with this epoch, whose batches are done; changes nothing.

        Asked before the epoch's line is written: the test images of a phase are those of its end.
        """
        return module.planned_end()

    def set_bits(self, bits: Mapping[str, Bits]) -> None:
        """Change the bit-widths of the named layers, also in the middle of training."""
        before = self.bits
        for name, width in bits.items():
            if name not in self._names:
                raise unknown("layer", name, self._names, "set_bits")
            _set_width(self.weight_quantizers, name, width.weight)
            _set_width(self.act_quantizers, name, width.act)
        _check_ties(self.ties, self.bits)
        if self.bits != before:
            forget_graphs(cast(nn.Module, self._net))

    def final_layers(self) -> Iterator[FinalLayer]:
        """Each layer whose weights are on a grid, in execution order; one after the other."""
        for name, quantizer in self.weight_quantizers.items():
            layer = cast(nn.Module, self._net).get_submodule(name)
            levels, about = quantizer.levels(raw_weight(layer).detach()), quantizer.layer
            if levels is not None and about is not None:
                if isinstance(layer, TRANSPOSED):
                    size = levels.integers.shape
                    levels = Levels(*(_outputs_first(layer, t.expand(size)) for t in levels))
                yield FinalLayer(
                    name,
                    about.kind,
                    *levels,
                    weight_bits=quantizer.bits,
                    act=about.act,
                    input_bits=about.input_bits,
                    input_signed=about.input_signed,
                    bias=None if layer.bias is None else cast(Tensor, layer.bias).detach(),
                )

    def integer_bias(self, name: str) -> Tensor | None:
        """Bias of a layer, int64 (c_out,), where it is an integer of the layer's sums.

        None where it is a real number that is added behind them, as in most methods.
        """
        del name
        return None

    def factory_of_weight(self, layer: nn.Module) -> Factory:
        """What makes the weight quantizer of ``layer``: the same for every kind of layer."""
        return self.weight

    def _make_weight_quantizers(
        self, net: nn.Module, widths: Mapping[str, Bits]
    ) -> dict[str, Quantizer]:
        """Make the quantizers of all weights that are not float, by layer."""
        return {
            name: self.weight_quantizer(name, net.get_submodule(name), width.weight)
            for name, width in widths.items()
            if width.weight != FLOAT_BITS
        }

    def weight_quantizer(self, name: str, layer: nn.Module, bits: int) -> Quantizer:
        """Make a quantizer of the weight of ``layer``, which goes by ``name``."""
        factory = self.factory_of_weight(layer)
        quantizer = factory(bits=bits, signed=True, channels=_channels(layer)[0])
        if quantizer.per_channel:
            quantizer.channel_dim = _output_dim(name, layer)
        return quantizer.to(raw_weight(layer).device)

    def _add_input_quantizer(self, name: str, layer: nn.Module, bits: int, *, signed: bool) -> None:
        """Put a quantizer in front of ``layer``."""
        quantizer = self.act(bits=bits, signed=signed, channels=_channels(layer)[1])
        if isinstance(layer, nn.Linear):  # of vectors or of tokens
            quantizer.channel_dim = -1
        self.act_quantizers[name] = quantizer.to(raw_weight(layer).device)
        layer.act_quantizer = quantizer
        layer.register_forward_pre_hook(_quantize_input)

    def _introduce(self, shape: LayerShape, *, input_signed: bool) -> None:
        """Tell a layer's quantizers whose they are."""
        layer = Layer(shape.name, shape.kind, input_signed, self.act_quantizers.get(shape.name))
        for quantizers in (self.weight_quantizers, self.act_quantizers):
            if shape.name in quantizers:
                quantizers[shape.name].layer = layer


def forget_graphs(net: nn.Module) -> None:
    """Compile ``net`` anew after its widths or sizes changed; nothing where it is not compiled.

    Else the graphs of earlier ones fill the compiler's cache, and when that is full the network
    runs uncompiled.
    """
    if net._compiled_call_impl is not None:
        torch.compiler.reset()


def _quantize_input(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x, *rest = args
    return (cast(Quantizer, layer.act_quantizer)(x), *rest)


def _channels(layer: nn.Module) -> tuple[int, int]:
    """Output and input channels of a convolution or linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels  # type: ignore[return-value]


def _output_dim(name: str, layer: nn.Module) -> int:
    """Dimension of a layer's weight that has its output channels."""
    if not isinstance(layer, TRANSPOSED):
        return 0
    if layer.groups == 1:
        return 1
    if layer.groups == layer.in_channels == layer.out_channels:
        return 0
    raise NotImplementedError(
        f"layer '{name}' ({type(layer).__name__}) has {layer.groups} groups, and the output "
        "channels of its weight are no single dimension: choose per_channel=false"
    )


def _outputs_first(layer: nn.Module, weight: Tensor) -> Tensor:
    """A transposed convolution's (c_in, c_out / groups, ...) as (c_out, c_in / groups, ...)."""
    groups = cast(int, layer.groups)
    return weight.view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)


def _bits(where: str, pair: Sequence[int]) -> Bits:
    if len(pair) != 2:
        raise UserError(f"{where}: {list(pair)} is not a pair [weight bits, activation bits]")
    return Bits(*pair)


def _width(quantizers: Mapping[str, Quantizer], name: str) -> int:
    return quantizers[name].bits if name in quantizers else FLOAT_BITS


def _set_width(quantizers: Mapping[str, Quantizer], name: str, bits: int) -> None:
    follows = name in quantizers and quantizers[name].bits_follow
    if _width(quantizers, name) == bits and not follows:
        return
    if name not in quantizers:
        raise UserError(f"set_bits: an operand of layer '{name}' is float: it has no quantizer")
    quantizers[name].bits = bits


def _check_ties(ties: Sequence[Sequence[str]], bits: Mapping[str, Bits]) -> None:
    for group in ties:
        for name in group:
            if name not in bits:
                raise unknown("layer", name, bits, "ties")
        if len({bits[name] for name in group}) > 1:
            found = ", ".join(f"{name} [{bits[name].weight}, {bits[name].act}]" for name in group)
            raise UserError(f"ties: these layers must have equal bit-widths: {found}")
