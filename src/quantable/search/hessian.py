r"""HAWQ: what a layer loses at fewer bits, as curvature times perturbation.

Dong et al., NeurIPS 2020, arXiv:1911.03852 (HAWQ-V2), with the perturbation between two bit-widths.
Weights :math:`W` (:math:`n` elements), Hessian :math:`H` of the loss by the layer's weights:

.. math:: G = \frac{\mathrm{tr}(H)}{n} \lVert Q_\text{low}(W) - Q_\text{high}(W) \rVert_2^2
.. math:: \mathrm{tr}(H) = \mathrm{E}[v^\top H v], \quad v_i = \pm 1 \qquad \text{(Hutchinson)}

The Hessian is that of the float network that the starting network's weights make, without
quantizers (``bypassed``): rounding has no derivative of its own, and the eager quantizers' fast
backward passes have no second one. Batch norm is in evaluation mode: with batch statistics, the
loss of one image would depend on the others.

A selection counts an estimate for no less than its own standard error
(``allocation.choice.counted``), so that one which cannot be told from 0, or came out below it,
lowers nothing where the budget leaves room. More vectors make the error smaller. It measures the
curvature itself: its square is twice the sum of squares off the diagonal of :math:`H`, over the
number of vectors, and what the products with other layers add.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from quantable.base.errors import UserError
from quantable.data.images import first_images
from quantable.quantization.quantizer import Quantizer
from quantable.search.run import Found, Start

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class HessianTrace:
    """The rule: an item loses its mean Hessian trace times the perturbation, summed over layers.

    ``vectors``: Rademacher vectors; ``images``: training images, not augmented; ``batch_size``: of
    one backward pass, which changes memory and not the sum.
    """

    vectors: int
    images: int
    batch_size: int
    name = "HAWQ trace"
    unit = "nat"
    greedy = False

    def __call__(self, start: Start) -> Found:
        """HAWQ's G of every item, in nat."""
        net, quantize, training = start.built.net, start.quantize, start.built.net.training
        net.eval()
        images = start.built.images
        count = min(self.images, images.sizes["train"])
        keys = {"device": start.device, "channels_last": start.config["recipe"]["channels_last"]}
        batches = first_images(iter(images.eval_batches("train", self.batch_size, **keys)), count)
        members = {name: start.weights([name])[0] for item in start.items for name in item}

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            x, y = batch
            return cross_entropy(net(x), y, reduction="sum") / count

        generator = torch.Generator(start.device).manual_seed(start.config["seed"])
        with bypassed(net):
            weights = {name: weight for name, (weight, _) in members.items()}
            traces = hessian_traces(loss, batches, weights, self.vectors, generator)
        with torch.no_grad():
            both = {}
            for name, (weight, high) in members.items():
                low = quantize.weight_quantizer(name, net.get_submodule(name), start.low.weight)
                both[name] = (low.eval()(weight), high.eval()(weight))
        net.train(training)
        found = [hawq_loss([(traces[name], *both[name]) for name in item]) for item in start.items]
        return Found(
            [loss.mean for loss in found], [loss.standard_error for loss in found], images=count
        )


@dataclass(frozen=True)
class Estimate:
    """A mean over random vectors and its standard error."""

    mean: float
    standard_error: float


def hessian_traces(
    loss: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    parameters: Mapping[str, Tensor],
    vectors: int,
    generator: torch.Generator,
) -> dict[str, Estimate]:
    """Trace of the Hessian of the sum of ``loss(batch)``, for each of ``parameters`` alone.

    The sum: for the mean over images, ``loss`` divides by the number of images in all batches.
    One vector is drawn for all parameters at once, so one double backward serves all layers; the
    products with other layers have mean 0 and are part of the standard error. All batches get the
    same vectors, so the standard error is that of the vectors, not of the choice of images.
    Memory holds the graph of one batch.
    """
    if vectors < 2:
        raise UserError(f"hessian: vectors={vectors}: a standard error needs at least 2")
    tensors = list(parameters.values())
    samples = torch.zeros(vectors, len(tensors), dtype=torch.float64)  # v_l . (H v)_l
    start = generator.get_state()
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007 - counted for the check below
        generator.set_state(start)
        samples += _products(loss(batch), tensors, vectors, generator)
    if count == 0:
        raise UserError("hessian: there is no batch to take the loss of")
    errors = samples.std(dim=0) / vectors**0.5
    pairs = zip(samples.mean(dim=0).tolist(), errors.tolist(), strict=True)
    return {name: Estimate(*pair) for name, pair in zip(parameters, pairs, strict=True)}


def _products(
    loss: Tensor, tensors: Sequence[Tensor], vectors: int, generator: torch.Generator
) -> Tensor:
    """``v_l . (H v)_l`` for each vector and tensor, (vectors, tensors); frees the graph."""
    grads = torch.autograd.grad(loss, tensors, create_graph=True)
    rows = []
    for _ in range(vectors):
        v = [_rademacher(tensor, generator) for tensor in tensors]
        h_v = torch.autograd.grad(grads, tensors, v, retain_graph=True, materialize_grads=True)
        rows.append(torch.stack([(a * b).sum() for a, b in zip(v, h_v, strict=True)]))
    return torch.stack(rows).double().cpu()


def _rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent signs, -1 or +1 with equal probability."""
    bits = torch.empty(like.shape, dtype=torch.int8, device=generator.device)
    return bits.random_(0, 2, generator=generator).to(like).mul_(2).sub_(1)


def perturbation(low: Tensor, high: Tensor) -> float:
    """Squared L2 norm of the difference between two quantized versions of a weight.

    >>> perturbation(torch.tensor([1.0, 0.0]), torch.tensor([1.5, -2.0]))
    4.25
    """
    return float((low - high).double().square().sum())


def hawq_loss(members: Sequence[tuple[Estimate, Tensor, Tensor]]) -> Estimate:
    """Loss of an item at its low bits: the sum of G over its layers (trace, low, high).

    ``low`` and ``high`` are the layer's weights quantized to either bit-width. The errors are added
    too, which is the most that they can come to: the traces share their vectors.

    >>> hawq_loss([(Estimate(6.0, 2.0), torch.tensor([1.0, 0.0]), torch.tensor([1.5, -2.0]))])
    Estimate(mean=12.75, standard_error=4.25)
    """
    each = [(trace, perturbation(low, high), low.numel()) for trace, low, high in members]
    return Estimate(
        sum(trace.mean / n * change for trace, change, n in each),
        sum(trace.standard_error / n * change for trace, change, n in each),
    )


@contextmanager
def bypassed(network: nn.Module) -> Iterator[None]:
    """Within the block, quantizers return their input: ``layer.weight`` is the float Parameter."""
    quantizers = [module for module in network.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        quantizer.forward = lambda x: x  # type: ignore[method-assign]
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.forward  # the instance's; the class keeps its own
