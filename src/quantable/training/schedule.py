"""Learning-rate schedules: pure functions of the place in a phase; resuming needs no state."""

import math


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


def steps(progress: float, phase: int, *, parts: int, factor: float) -> float:
    """Multiply the rate by ``factor`` after each but the last of ``parts`` equal parts of a phase.

    >>> [steps(progress, 0, parts=4, factor=0.5) for progress in (0.0, 0.49, 0.5, 1.0)]
    [1.0, 0.5, 0.25, 0.125]
    """
    return factor ** min(int(progress * parts), parts - 1)
