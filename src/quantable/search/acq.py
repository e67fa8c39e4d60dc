r"""ACQ: widths that just fit an accumulator of P bits, chosen layer by layer on held-out images.

De Bruin et al. 2020, arXiv:2004.11783: only solutions that use the accumulator fully are tried. The
search around them is this project's (card). Exponents of all inputs come from one calibration of
the float network. For each item, and each width :math:`B_d` of its input, the one candidate has the
widest weights, :math:`B_w`, whose sums keep the bound. From the first item to the last the one of
the best accuracy stays, later items still in float; ties go to the larger :math:`B_w`, then to the
larger :math:`B_d`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quantable.allocation.choice import pair_of, word_of
from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.base.files import write_json
from quantable.base.tick import Tick
from quantable.cost.accumulators import budget, tight_pairs
from quantable.data.images import first_images
from quantable.methods.acq import ACQ
from quantable.quantization.channels import raw_weight
from quantable.search.run import Found, Start, Tried
from quantable.training.build import loading_of
from quantable.training.calibration import Evenly, calibrate
from quantable.training.evaluation import evaluate

BOUNDS = ("known_weights", "data_type")

Item = Sequence[str]
Exponents = Mapping[int, Mapping[str, Tensor]]  # of inputs: by width, then by layer


@dataclass(frozen=True)
class AcqSearch:
    """The greedy search of tight pairs.

    ``bound``: what makes a pair fit, with the bias in the sum. ``known_weights``: no data can make
    these integer weights overflow; ``data_type``: nor can other weights of these widths.
    ``held_out``: images of the held-out split that measure accuracy. Widths go from the search's
    ``low`` to ``bits.inner``. Layers that read one activation share both widths.

    Finished items are kept, and an interrupted search goes on with the next.
    """

    bound: str
    held_out: int
    name = "ACQ"
    unit = "pp"
    greedy = False

    def __post_init__(self) -> None:
        if self.bound not in BOUNDS:
            raise unknown("bound", self.bound, BOUNDS, "search.rule.bound")

    def __call__(self, start: Start) -> Found:
        """The pair of every item, with what each candidate lost of the float network's accuracy."""
        net, quantize = start.built.net, acq_of(start)
        state = deepcopy(net.state_dict())
        exponents = calibrated(start)
        pairs = [self.candidates(start, item, exponents) for item in start.items]
        if lacking := [item for item, own in zip(start.items, pairs, strict=True) if not own]:
            net.load_state_dict(state)
            return Found(infeasible=[name for item in lacking for name in item])
        kept = [start.folder / f"item{i}.json" for i in range(len(pairs))]
        earlier = [json.loads(path.read_text()) for path in kept if path.exists()]
        _hand_through(quantize, [name for item in start.items for name in item], on=True)
        whole = self._top1(start)
        for i, (item, own) in enumerate(zip(start.items, pairs, strict=True)):
            _hand_through(quantize, item, on=False)
            if not kept[i].exists():
                write_json(kept[i], self._tried(start, item, own, exponents, whole))
                start.tell(Tick(i, len(pairs), 1, 1, unit="item"))
            give(start, item, pair_of(json.loads(kept[i].read_text())["taken"]), exponents)
        net.load_state_dict(state)
        results = [json.loads(path.read_text()) for path in kept]
        return Found(
            tried=[
                Tried({pair_of(w): loss for w, loss in of["loss"].items()}, pair_of(of["taken"]))
                for of in results
            ],
            images=sum(of["images"] for of in results) + self._images(start),
            earlier=sum(of["seconds"] for of in earlier) if earlier else None,
        )

    def candidates(self, start: Start, item: Item, exponents: Exponents) -> list[Bits]:
        """The tight pairs of ``item``, that of the narrowest data first."""

        def fits(weight_bits: int, act_bits: int) -> bool:
            give(start, item, Bits(weight_bits, act_bits), exponents)
            return all(self.fits(start, name) for name in item)

        weight_bits = range(start.low.weight, start.config["bits"]["inner"][0] + 1)
        return [Bits(*pair) for pair in tight_pairs(fits, weight_bits, list(exponents))]

    def fits(self, start: Start, name: str) -> bool:
        """Whether the sums of a layer keep the bound with the widths that it has now."""
        quantize, limit = acq_of(start), int(start.config["bits"]["accumulator"])
        weight, act = quantize.quantizers_of(name)
        if self.bound == "data_type":
            terms = raw_weight(start.built.net.get_submodule(name))[0].numel()
            if weight.bits + act.bits > budget(limit, terms, data_signed=act.signed):
                return False
        return quantize.needed_bits(name) <= limit

    def _tried(
        self, start: Start, item: Item, pairs: Sequence[Bits], exponents: Exponents, whole: float
    ) -> dict[str, Any]:
        """Loss of accuracy with each candidate at ``item``, and the best one."""
        began, top1 = time.perf_counter(), {}
        for pair in pairs:
            give(start, item, pair, exponents)
            top1[pair] = self._top1(start)
        taken = max(pairs, key=lambda pair: (top1[pair], pair.weight, pair.act))
        return {
            "loss": {word_of(pair): whole - top1[pair] for pair in pairs},
            "taken": word_of(taken),
            "images": len(pairs) * self._images(start),
            "seconds": time.perf_counter() - began,
        }

    def _images(self, start: Start) -> int:
        return min(self.held_out, start.built.images.sizes["val"])

    def _top1(self, start: Start) -> float:
        """Accuracy in percent on the held-out images."""
        images, tested = start.built.images, self._images(start)
        batches = images.eval_batches("val", **loading_of(start.config, start.device))
        seen = first_images(iter(batches), tested)
        return evaluate(start.built.net, seen, images.classes, tested).top1_pct


def acq_of(start: Start) -> ACQ:
    """The start's quantizers, which are this method's."""
    if not isinstance(start.quantize, ACQ):
        raise UserError("search=acq: it chooses widths of quantizer=acq")
    return start.quantize


def calibrated(start: Start) -> Exponents:
    """Exponents of all inputs at every width, of the float network's activations.

    Images and batches are those that recipe=post_training calibrates on.
    """
    config, images, quantize = start.config, start.built.images, acq_of(start)
    if config["bits"]["accumulator"] is None:
        raise UserError("bits.accumulator=null: search=acq needs the bits of a sum, such as 16")
    every = images.eval_batches("train", **loading_of(config, start.device))
    batches = Evenly(every, images.sizes["train"], config["recipe"]["batch_size"])
    acts = {name: quantize.quantizers_of(name)[1] for item in start.items for name in item}
    found: dict[int, dict[str, Tensor]] = {}
    for width in range(start.low.act, config["bits"]["inner"][1] + 1):
        for act in acts.values():
            act.bits = width
        calibrate(start.built.net, batches)
        found[width] = {name: act.exponent.clone() for name, act in acts.items()}
    return found


def give(start: Start, item: Item, pair: Bits, exponents: Exponents) -> None:
    """Give the layers of ``item`` their widths, and the exponents that belong to these."""
    quantize = acq_of(start)
    quantize.set_bits(dict.fromkeys(item, pair))
    for name in item:
        weight, act = quantize.quantizers_of(name)
        weight.fix(weight.best_exponent(raw_weight(start.built.net.get_submodule(name)).detach()))
        act.fix(exponents[pair.act][name])


def _hand_through(quantize: ACQ, names: Sequence[str], *, on: bool) -> None:
    """Leave the operands of layers in float, or no longer."""
    for name in names:
        for quantizer in quantize.quantizers_of(name):
            quantizer.through = on
