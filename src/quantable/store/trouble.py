"""What a history says of a training that comes to nothing, for those who look while it goes on."""

import math
from collections.abc import Sequence

EXPLODED = 10.0  # times the loss of guessing, above which a network is worse than lost
AT_CHANCE = 0.99  # times that loss, above which it has learned nothing
EPOCHS = 3  # that it has time to begin


def trouble(losses: Sequence[float | None], classes: int) -> str | None:
    """What is wrong after the last of some epochs, by their training ``losses`` [nat].

    A loss that is not finite ends the run; this is of those that are.

    >>> trouble([2.1, 1.4e25], 10)
    'diverged: training loss 1.4e+25 in epoch 2, where guessing has 2.30'
    >>> trouble([2.31, 2.3, 2.31], 10)
    'stays at chance: training loss 2.3100 in epoch 3, where guessing has 2.30'
    >>> trouble([2.31, 2.3, 1.2], 10), trouble([2.31], 10), trouble([None], 10)
    (None, None, None)
    """
    chance, known = math.log(classes), [loss for loss in losses if loss is not None]
    where = f"in epoch {len(losses)}, where guessing has {chance:.2f}"
    if known and known[-1] > EXPLODED * chance:
        return f"diverged: training loss {known[-1]:.3g} {where}"
    if len(known) >= EPOCHS and min(known[-EPOCHS:]) > AT_CHANCE * chance:
        return f"stays at chance: training loss {known[-1]:.4f} {where}"
    return None
