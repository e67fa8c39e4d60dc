r"""Published integer programs: authors' sensitivities and costs, solved again by ``allocate``.

A program is a file of conf/program. HAWQ-V3 (Yao et al., ICML 2021, arXiv:2011.10680) chooses 4 or
8 bits for a layer's weights and input activation alike, within one limit :math:`C` at a share
:math:`f`; layers that read one tensor are tied:

.. math:: \min \sum_l \frac{\mathrm{Tr}(H_l)}{n_l} \lVert Q_{b_l}(W_l) - W_l \rVert^2
    \quad \text{s.t.} \quad \sum_l c_l(b_l) \le C_4 + f (C_8 - C_4)

LIMPQ (Tang et al., ECCV 2022, arXiv:2203.08368) chooses a pair of bits for every layer, from
learned step sizes :math:`s`, within a size and the bit operations of a uniform network:

.. math:: \min \sum_l s^a_l(b^a_l) + \alpha \, s^w_l(b^w_l)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, isclose
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from quantable.allocation.knapsack import Allocation, Budget, Numbers, allocate
from quantable.base.bits import Bits
from quantable.base.errors import UserError, unknown
from quantable.base.places import CONF
from quantable.base.strict import Strict
from quantable.networks.layers import LayerShape
from quantable.store.bits_file import check_layers

PROGRAMS = CONF / "program"
SHOWN = {  # unit of a budget -> how it is shown
    "byte": (1e6, "MB"),
    "bit": (8e6, "MB"),
    "bit operation": (1e9, "G bit operations"),
    "ms": (1.0, "ms"),
}


class Policy(Strict):
    """How to solve the table's program, to set the solution beside the row's bits.

    HAWQ-V3's has one budget, at a share of the way from all 4 bit to all 8 bit; LIMPQ's counts MACs
    as the authors' program does, or exactly.
    """

    budget: Literal["size", "bops", "latency"] | None = None
    share: float | None = Field(default=None, gt=0, le=1)
    counting: Literal["authors", "exact"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        asked = {name for name, value in self if value is not None}
        if asked not in ({"budget", "share"}, {"counting"}):
            raise ValueError("give budget and share, or counting")
        return self


class Layer(Strict):
    """A layer as the authors count it, for one input; biases are not counted."""

    weights: int
    macs: int


class HawqLayer(Layer):
    """Average Hessian trace; by bits, squared perturbation of the weights and milliseconds."""

    trace: float
    perturbation: dict[int, float]
    latency_ms: dict[int, float]

    def cost(self, budget: str, bits: int) -> float:
        """What the layer needs of a budget: bytes, bit operations or milliseconds."""
        if budget == "size":
            return self.weights * bits / 8
        return self.macs * bits**2 if budget == "bops" else self.latency_ms[bits]


class LimpqLayer(Layer):
    """MACs by the published counter; importance of each operand by its bits."""

    macs_authors: int
    weight_importance: dict[int, float]
    act_importance: dict[int, float]


@dataclass(frozen=True)
class Problem:
    """What ``allocate`` takes."""

    loss: Numbers
    budgets: Sequence[Budget]
    ties: Sequence[Sequence[str]] = ()

    def lost(self, bits: Mapping[str, Bits]) -> float:
        """Loss of a policy."""
        return math.fsum(options[bits[name]] for name, options in self.loss.items())

    def excesses(self, bits: Mapping[str, Bits]) -> list[str]:
        """Say which limits a policy exceeds."""
        words = []
        for budget in self.budgets:
            spent = math.fsum(cost[bits[name]] for name, cost in budget.cost.items())
            scale, unit = SHOWN[budget.unit]
            if spent > budget.limit * (1 + 1e-9):
                words.append(
                    f"{budget.name} {spent / scale:.2f} of {budget.limit / scale:.2f} {unit}"
                )
        return words


class _Program(Strict):
    network: str
    authors_network: str
    source: str
    conventions: dict[str, str]
    ends: dict[str, Layer]  # first and last layer, outside the program
    layers: Mapping[str, Layer]

    def recount(self, shapes: Sequence[LayerShape], where: str) -> list[LayerShape]:
        """``shapes`` with the MACs of the authors' network.

        Raises UserError where the layers, or their weights, are not those of the program.
        """
        counted = {**self.ends, **self.layers}
        check_layers(counted, [shape.name for shape in shapes], where)
        for shape in shapes:
            if shape.weights != counted[shape.name].weights:
                raise UserError(
                    f"{where}: layer '{shape.name}' has {counted[shape.name].weights:,} weights, "
                    f"in the run's network {shape.weights:,}"
                )
        return [replace(shape, macs=counted[shape.name].macs) for shape in shapes]


class HawqProgram(_Program):
    """HAWQ-V3's program; ``limits`` are the notebook's, by budget and share."""

    method: Literal["hawqv3"]
    ties: list[list[str]]
    limits: dict[Literal["size", "bops", "latency"], dict[str, float]]
    layers: dict[str, HawqLayer]

    @model_validator(mode="after")
    def _gives_its_own_limits(self) -> Self:
        for budget, shares in self.limits.items():
            for share, value in shares.items():
                (found,) = self.problem(Policy(budget=budget, share=float(share))).budgets
                if not isclose(found.limit, value, rel_tol=1e-12):
                    raise ValueError(
                        f"limits.{budget}.{share}={value}: its layers give {found.limit}"
                    )
        return self

    def problem(self, policy: Policy) -> Problem:
        """Least Omega within one budget."""
        if policy.budget is None or policy.share is None:
            raise UserError("a program of HAWQ-V3 needs budget and share")
        loss, cost = {}, {}
        for name, layer in self.layers.items():
            at = layer.perturbation
            loss[name] = {Bits(b, b): layer.trace * at[b] for b in at}
            cost[name] = {Bits(b, b): layer.cost(policy.budget, b) for b in at}
        low, high = (sum(pick(c.values()) for c in cost.values()) for pick in (min, max))
        unit = {"size": "byte", "bops": "bit operation", "latency": "ms"}[policy.budget]
        limit = low + policy.share * (high - low)
        return Problem(loss, [Budget(policy.budget, unit, cost, limit)], self.ties)

    def objective(self, loss: float) -> str:
        """Omega, and the notebook's word for the same."""
        most = math.fsum(
            layer.trace * max(layer.perturbation.values()) for layer in self.layers.values()
        )
        return f"Omega {loss:.6f} (gain {most - loss:.6f})"


class LimpqProgram(_Program):
    """LIMPQ's program: BOPs of the uniform network ``level``, 32-bit size over ``compression``.

    ``limits``: bits of all weights, and bit operations by each way of counting MACs.
    """

    method: Literal["limpq"]
    alpha: float
    level: tuple[int, int]
    compression: float
    limits: dict[Literal["size", "authors", "exact"], float]
    layers: dict[str, LimpqLayer]

    @model_validator(mode="after")
    def _gives_its_own_limits(self) -> Self:
        ends = 8 * sum(layer.weights for layer in self.ends.values())
        both: tuple[Literal["authors", "exact"], ...] = ("authors", "exact")
        for counting in both:
            size, bops = self.problem(Policy(counting=counting)).budgets
            found = {"size": size.limit + ends, counting: bops.limit}
            for name, value in self.limits.items():
                if not isclose(found.get(name, value), value, rel_tol=1e-12):
                    raise ValueError(f"limits.{name}={value}: its layers give {found[name]}")
        return self

    def problem(self, policy: Policy) -> Problem:
        """Least importance within both budgets; the ends have 8 bit and count as size alone."""
        if policy.counting is None:
            raise UserError("a program of LIMPQ needs counting")
        loss, size, bops = {}, {}, {}
        for name, layer in self.layers.items():
            weight, act = _erased(layer.weight_importance), _erased(layer.act_importance)
            macs = layer.macs_authors if policy.counting == "authors" else layer.macs
            options = [Bits(w, a) for w in weight for a in act]
            loss[name] = {b: act[b.act] + self.alpha * weight[b.weight] for b in options}
            size[name] = {b: float(layer.weights * b.weight) for b in options}
            bops[name] = {b: float(macs * b.weight * b.act) for b in options}
        ends = sum(layer.weights for layer in self.ends.values())
        inner = sum(layer.weights for layer in self.layers.values())
        at = Bits(*self.level)
        return Problem(
            loss,
            [
                Budget("size", "bit", size, 32 * (inner + ends) / self.compression - 8 * ends),
                Budget("bops", "bit operation", bops, sum(cost[at] for cost in bops.values())),
            ],
        )

    def objective(self, loss: float) -> str:
        """Sum of importances."""
        return f"importance {loss:.6f}"


def _erased(importance: Mapping[int, float]) -> dict[int, float]:
    """Forbid a width that seems to matter less than the next higher one (the authors' 1e8).

    >>> _erased({4: 0.2, 3: 0.1, 2: 0.3})
    {4: 0.2, 3: inf, 2: 0.3}
    """
    kept = dict(importance)
    for high, low in pairwise(sorted(importance, reverse=True)):
        if importance[low] < importance[high]:
            kept[low] = inf
    return kept


Program = HawqProgram | LimpqProgram
_READER: TypeAdapter[Program] = TypeAdapter(Annotated[Program, Field(discriminator="method")])


def program_names() -> list[str]:
    """Names of all published integer programs."""
    return sorted(path.stem for path in PROGRAMS.glob("*.json"))


def read_program(name: str) -> Program:
    """Read and check ``conf/program/<name>.json``."""
    path = PROGRAMS / f"{name}.json"
    if name not in program_names():
        raise unknown("program", name, program_names(), "conf/program")
    try:
        return _READER.validate_json(path.read_bytes())
    except ValidationError as error:
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors()
        ]
        raise UserError("\n".join(faults)) from error


@dataclass(frozen=True)
class Comparison:
    """How many of the searched layers have the published bits in our solution, and why not all."""

    both: int
    weight: int
    act: int
    reason: str


def compare(
    program: Program, policy: Policy, published: Mapping[str, Bits], where: str
) -> Comparison:
    """Solve ``program`` as ``policy`` says, and set the solution beside the ``published`` bits.

    Raises UserError where the policy is for another kind of program, or a published layer has bits
    that the program does not offer.
    """
    try:
        problem = program.problem(policy)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    for name, options in problem.loss.items():
        if published[name] not in options:
            raise UserError(
                f"{where}: layer '{name}' has {_words(published[name])} bits; "
                f"the program chooses among {', '.join(map(_words, options))}"
            )
    found = allocate(problem.loss, problem.budgets, problem.ties)
    pairs = [(published[name], bits) for name, bits in found.bits.items()]
    return Comparison(
        both=sum(theirs == ours for theirs, ours in pairs),
        weight=sum(theirs.weight == ours.weight for theirs, ours in pairs),
        act=sum(theirs.act == ours.act for theirs, ours in pairs),
        reason=_reason(program, problem, published, found),
    )


def _reason(
    program: Program, problem: Problem, published: Mapping[str, Bits], found: Allocation
) -> str:
    pairs = any(b.weight != b.act for options in problem.loss.values() for b in options)
    differing = [
        f"{name}: published {_words(published[name], pairs)}, ours {_words(bits, pairs)}"
        for name, bits in found.bits.items()
        if bits != published[name]
    ]
    objective = program.objective(found.loss)
    if differing:
        objective = f"{program.objective(problem.lost(published))} published, {objective} ours"
    proof = f"{found.status}, bound {found.bound:.6f}, gap {found.gap:g}"
    if excesses := problem.excesses(published):
        differing.append(f"the published bits exceed the limit: {', '.join(excesses)}")
    return "; ".join([*differing, objective, proof])


def _words(bits: Bits, pairs: bool = True) -> str:
    """Bits of weights and activations; one number where a program gives both the same.

    >>> _words(Bits(3, 6)), _words(Bits(4, 4), pairs=False)
    ('3/6', '4')
    """
    return f"{bits.weight}/{bits.act}" if pairs else str(bits.weight)
