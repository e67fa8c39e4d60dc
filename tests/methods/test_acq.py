"""ACQ: exponents by their definition, integers with their bias, and sums that keep their bits."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quantable.base.bits import Bits
from quantable.base.errors import UserError
from quantable.base.tick import Tick
from quantable.config.composition import compose_run
from quantable.methods.acq import ACQ, FixedPoint, fixed_point, power_of_two, unclipped_exponent
from quantable.networks.allcnn import allcnn_c
from quantable.networks.cifar import resnet8_cifar
from quantable.networks.passes import hooked
from quantable.quantization.channels import raw_weight
from quantable.run import run_cell
from quantable.store.record import Record
from quantable.store.store import Store
from quantable.tables.cells import Cell
from quantable.training.calibration import Evenly, calibrate

IMAGE = (3, 12, 12)


def make(bits: int, *, signed: bool, batched: bool) -> FixedPoint:
    return FixedPoint(bits, signed=signed, batched=batched)


def acq(net: nn.Module, bits: tuple[int, int] = (4, 4), accumulator: int | None = None) -> ACQ:
    def weight(*, bits: int, signed: bool, channels: int) -> FixedPoint:
        return make(bits, signed=signed, batched=False)

    def act(*, bits: int, signed: bool, channels: int) -> FixedPoint:
        return make(bits, signed=signed, batched=True)

    quantize = ACQ(
        weight=weight, act=act, inner=bits, ends=None, layers={}, accumulator=accumulator
    )
    quantize.attach(net, IMAGE)
    return quantize


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, *IMAGE, generator=generator), torch.zeros(count)


def in_batches(size: int) -> Evenly:
    x, y = images()
    return Evenly([(x, y)], len(x), size)


def by_definition(x: Tensor, low: int, high: int) -> int:
    """F by counting down from an exponent at which something clips, in float64."""
    x = x.double()

    def clips(f: int) -> bool:
        level = (x * 2.0**f).round()
        return bool((level < low).any() or (level > high).any())

    def error(f: int) -> float:
        return float((x - (x * 2.0**f).round().clamp(low, high) / 2.0**f).square().sum())

    f = 60
    while clips(f):
        f -= 1
    return f + 1 if error(f + 1) < error(f) else f


@pytest.mark.parametrize(("signed", "batched"), [(True, False), (True, True), (False, True)])
def test_exponent_by_its_definition(signed: bool, batched: bool) -> None:
    taken = []
    for bits in range(2, 9):
        top = 2 ** (bits - 1) - 1
        low, high = (-top - batched, top) if signed else (0, 2**bits - 1)
        generator = torch.Generator().manual_seed(bits)
        for scale in (1e-6, 0.3, 1.0, 5.0, 7e4):
            x = scale * torch.randn(999, generator=generator)
            x = x if signed else x.abs()
            quantizer = make(bits, signed=signed, batched=batched)
            assert quantizer.ends == (low, high)
            f = by_definition(x, low, high)
            out = quantizer(x)
            assert quantizer.exponent.item() == f
            expected = (x.double() * 2.0**f).round().clamp(low, high) / 2.0**f
            assert torch.equal(out.double(), expected)
            taken.append(f - int(unclipped_exponent(x.min(), x.max(), low, high)))
    assert set(taken) == {0, 1}


def test_a_half_above_the_last_level_goes_to_the_even_one() -> None:
    # 15.5 goes to 16, which clips; 14.5 to 14
    assert unclipped_exponent(torch.tensor(0.0), torch.tensor(15.5), 0, 15) == -1
    assert unclipped_exponent(torch.tensor(0.0), torch.tensor(14.5), 0, 15) == 0
    # of signed data, -8 is a level and 8 is none
    assert unclipped_exponent(torch.tensor(-8.0), torch.tensor(0.0), -8, 7) == 0
    assert unclipped_exponent(torch.tensor(0.0), torch.tensor(8.0), -8, 7) == -1


def test_powers_of_two_are_exact() -> None:
    exponents = torch.arange(-126, 127)
    expected = torch.tensor([math.ldexp(1.0, f) for f in exponents.tolist()])
    assert torch.equal(power_of_two(exponents.float()), expected)


def test_gradients_pass_straight_between_the_ends() -> None:
    x = torch.tensor([-9.0, -1.4, 0.3, 1.6, 9.0], requires_grad=True)
    fixed_point(x, torch.tensor(1.0), -3, 3).backward(torch.arange(1.0, 6.0))
    assert x.grad.tolist() == [0, 2, 3, 0, 0]  # levels to -1.5 and 1.5


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_calibration_does_not_depend_on_the_batches(bits: int) -> None:
    exponents = []
    for size in (1, 5, 24):
        torch.manual_seed(0)
        net = allcnn_c(10, 3, width=0.1, dropout=True)
        quantize = acq(net, (bits, bits))
        calibrate(net, in_batches(size))
        exponents.append({name: q.exponent.item() for name, q in quantize.act_quantizers.items()})
    assert exponents[0] == exponents[1] == exponents[2]


def test_exponents_are_those_of_the_float_network_over_all_images() -> None:
    torch.manual_seed(0)
    net = allcnn_c(10, 3, width=0.1, dropout=True).eval()
    inputs: dict[str, Tensor] = {}
    layers = {name: net.get_submodule(name) for name in ("conv1", "conv4", "conv9")}
    with torch.no_grad(), hooked(layers, lambda name, args, _: inputs.update({name: args[0]})):
        net(images()[0])
    quantize = acq(net)
    calibrate(net, in_batches(7))
    for name, x in inputs.items():
        weight, act = quantize.quantizers_of(name)
        assert act.exponent == by_definition(x, *((-8, 7) if name == "conv1" else (0, 15)))
        raw = raw_weight(net.get_submodule(name)).detach()
        assert weight.exponent == by_definition(raw, -7, 7)


def calibrated(net: nn.Module, bits: tuple[int, int], accumulator: int | None = None) -> ACQ:
    quantize = acq(net, bits, accumulator)
    calibrate(net, in_batches(8))
    return quantize


def test_sums_of_integers_with_their_bias_are_what_the_layer_computes() -> None:
    torch.manual_seed(0)
    net = resnet8_cifar(10, 3, 1.0, "plain")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.bias, -1, 1)
    quantize = calibrated(net, (5, 6))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {name: net.get_submodule(name) for name in quantize.integer_layers}
    with (
        torch.no_grad(),
        hooked(layers, lambda name, args, out: seen.update({name: (args[0], out)})),
    ):
        net(images()[0])
    assert len(seen) == 10
    for name, (x, out) in seen.items():
        layer, (weight, act) = net.get_submodule(name), quantize.quantizers_of(name)
        integers = weight.levels(raw_weight(layer)).integers
        data = (x.double() * 2 ** act.exponent.item()).long()
        bias = quantize.integer_bias(name)
        assert bias.any()
        if isinstance(layer, nn.Linear):
            sums = nn.functional.linear(data, integers, bias)
        else:
            sums = nn.functional.conv2d(data, integers, bias, layer.stride, layer.padding)
        scale = 2.0 ** -(weight.exponent.item() + act.exponent.item())
        assert torch.equal(out.double(), sums * scale)  # all below 2^24: exact in float32


def test_needed_bits_hold_for_the_worst_data_and_no_fewer_do() -> None:
    torch.manual_seed(0)
    net = allcnn_c(10, 3, width=0.1, dropout=True)
    nn.init.uniform_(net.conv4.bias, -3, 3)
    quantize = calibrated(net, (4, 3))
    for name in ("conv1", "conv4"):
        weight, act = quantize.quantizers_of(name)
        integers = weight.levels(raw_weight(net.get_submodule(name))).integers.flatten(1).tolist()
        bias, (low, high) = quantize.integer_bias(name).tolist(), act.ends
        ends = [
            b + sum(w * (side if w > 0 else other) for w in channel)
            for channel, b in zip(integers, bias, strict=True)
            for side, other in ((low, high), (high, low))
        ]
        bits = quantize.needed_bits(name)
        assert all(-(2 ** (bits - 1)) <= end <= 2 ** (bits - 1) - 1 for end in ends)
        assert not all(-(2 ** (bits - 2)) <= end <= 2 ** (bits - 2) - 1 for end in ends)


def test_layers_whose_sums_no_longer_fit_lose_bits_of_their_weights() -> None:
    torch.manual_seed(0)
    net = allcnn_c(10, 3, width=0.1, dropout=True)
    quantize = calibrated(net, (6, 4))
    needed = {name: quantize.needed_bits(name) for name in quantize.integer_layers}
    quantize.accumulator = max(needed.values())
    quantize.narrow()
    assert set(quantize.bits.values()) == {Bits(6, 4)}  # all fit
    worst = max(needed, key=needed.get)
    layer = net.get_submodule(worst)
    with torch.no_grad():  # as training may: all weights at the largest one's magnitude
        raw = raw_weight(layer)
        raw.copy_(raw.sign() * raw.abs().max())
    before = quantize.needed_bits(worst)
    quantize.narrow()
    width = quantize.bits[worst]
    assert before > quantize.accumulator >= quantize.needed_bits(worst)
    assert (width.weight < 6, width.act) == (True, 4)
    assert all(bits == Bits(6, 4) for name, bits in quantize.bits.items() if name != worst)
    quantize.set_bits({worst: Bits(width.weight + 1, 4)})  # and no more than it had to
    weight, _ = quantize.quantizers_of(worst)
    weight.fix(weight.best_exponent(raw))
    assert quantize.needed_bits(worst) > quantize.accumulator


def test_a_layer_that_cannot_fit_is_named() -> None:
    quantize = calibrated(allcnn_c(10, 3, width=0.1, dropout=True), (2, 8), accumulator=6)
    with pytest.raises(UserError, match=r"layer 'conv1': infeasible: its sums need \d+ bits at 2-"):
        quantize.narrow()


def test_state_brings_back_exponents_bits_and_biases(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = allcnn_c(10, 3, width=0.1, dropout=True)
    quantize = calibrated(net, (5, 4))
    quantize.set_bits({"conv2": Bits(3, 4)})
    weight, _ = quantize.quantizers_of("conv2")
    weight.fix(weight.best_exponent(raw_weight(net.conv2)))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = allcnn_c(10, 3, width=0.1, dropout=True)
    restored = acq(other, (5, 4))
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert restored.bits == quantize.bits
    x = images()[0]
    assert torch.equal(other.eval()(x), net.eval()(x))
    assert torch.equal(restored.integer_bias("conv9"), quantize.integer_bias("conv9"))


def test_a_bias_learns_through_its_grid() -> None:
    net = allcnn_c(10, 3, width=0.1, dropout=True)
    calibrated(net, (4, 4))
    net.eval()(images()[0]).square().sum().backward()
    for layer in (net.conv1, net.conv9):
        assert layer.parametrizations.bias.original.grad.abs().sum() > 0


def test_channels_of_inputs_cannot_have_exponents_of_their_own() -> None:
    quantize = ACQ(
        weight=lambda **about: FixedPoint(batched=False, **about),
        act=lambda **about: FixedPoint(batched=True, per_channel=True, **about),
        inner=(4, 4),
        ends=None,
        layers={},
        accumulator=None,
    )
    with pytest.raises(UserError, match="one exponent for all of its inputs"):
        quantize.attach(allcnn_c(10, 3, width=0.1, dropout=True), IMAGE)


WORDS = [
    *("model=allcnn_c", "model.net.width=0.1", "data=fashion_mnist_mini", "quantizer=acq"),
    *("bits.inner=[8,4]", "bits.ends=null", "recipe=acq", "recipe.epochs=2"),
    *("recipe.batch_size=16", "recipe.optimizer.lr=0.01", "trainer.checkpoint_seconds=0.001"),
    *("data.train_images=64", "data.val_images=32", "data.test_images=32"),
    *("trainer.threads=1", "trainer.accelerator=cpu"),
]


class KilledError(Exception):
    """Stands for a kill between two batches."""


def fine_tuned(folder: Path, accumulator: int, kill_at: tuple[int, int] | None = None) -> Record:
    config = compose_run([*WORDS, f"bits.accumulator={accumulator}"])

    def tell(tick: Tick) -> None:
        if (tick.epoch, tick.batch) == kill_at:
            raise KilledError

    return run_cell(Cell(None, "tuned", 0, config, ()), Store(folder), "", tell)


def test_training_ends_with_sums_that_fit_and_is_resumed_to_the_bit(tmp_path: Path) -> None:
    record = fine_tuned(tmp_path / "whole", 12)
    (phase,) = record.phases
    first, last = (line.bits for line in record.history)
    assert set(first.values()) == {(8, 4)}
    assert last == phase.bits
    assert min(weight for weight, _ in last.values()) < 8
    assert {act for _, act in last.values()} == {4}
    sums = record.integers.layers  # of the weights that were evaluated and kept
    assert max(bits for layer in sums.values() for bits in layer.known_weights) <= 12
    assert sum(layer.sums for layer in sums.values()) > 0
    assert {(layer.wrapped, layer.at_risk) for layer in sums.values()} == {(0, 0)}
    assert record.integers.wrap_top1_pct == record.metrics["last"]["test_top1_pct"]
    for place in ((0, 2), (1, 4)):  # the latter behind the last batch, whose bits are not kept yet
        with pytest.raises(KilledError):
            fine_tuned(tmp_path / "again", 12, kill_at=place)
    again = fine_tuned(tmp_path / "again", 12)
    assert again.provenance.resumed == 2
    assert again.phases == record.phases
    assert again.metrics == record.metrics
    kept = [
        torch.load(tmp_path / store / "weights" / f"{record.name}.pt", weights_only=True)
        for store in ("whole", "again")
    ]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
