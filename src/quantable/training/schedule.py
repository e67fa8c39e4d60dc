"""Learning-rate schedules: pure functions of the place in a phase; resuming needs no state."""

import math
from collections.abc import Sequence


def constant(progress: float, phase: int) -> float:
    """Return 1: the optimizer's own rate throughout.

    >>> constant(0.7, phase=2)
    1.0
    """
    return 1.0


def one_cycle(progress: float, phase: int, *, warmup: float, restart: float) -> float:
    """Rise linearly over ``warmup`` of the phase, then fall to 0 as a cosine.

    ``progress`` in [0, 1] is the place in the phase; phases after the first peak at ``restart``.

    >>> one_cycle(0.25, 0, warmup=0.25, restart=0.5), one_cycle(0.25, 1, warmup=0.25, restart=0.5)
    (1.0, 0.5)
    >>> round(one_cycle(1.0, 0, warmup=0.25, restart=0.5), 9)
    0.0
    """
    peak = restart if phase else 1.0
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def steps(progress: float, phase: int, *, at: Sequence[float], of: float, factor: float) -> float:
    """Multiply by ``factor`` at each of ``at``, places in a phase that is ``of`` long.

    >>> [steps(p, 0, at=[200, 250, 300], of=350, factor=0.1) < 0.5 for p in (0.5, 0.6)]
    [False, True]
    """
    return factor ** sum(progress * of >= place for place in at)
