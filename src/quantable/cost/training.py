r"""Training complexity of a run whose network gets cheaper while it trains.

Vasquez et al., DATE 2021, arXiv:2101.04354: phase i trains a network whose MACs cost
:math:`r_i` times less than the baseline's, with :math:`r_1 = 1`.

.. math:: TC = \sum_i \frac{\mathrm{epochs}_i}{r_i} \bigg/ \mathrm{epochs}_\mathrm{baseline}
"""

from collections.abc import Sequence

from quantable.base.errors import UserError


def training_complexity(phases: Sequence[tuple[int, float]], baseline_epochs: int) -> float:
    """Cost of the training as a share of the baseline's: 1 is as costly, 0.5 half as costly.

    Args:
        phases: (epochs, efficiency) in order; efficiency is MAC energy of the baseline over MAC
            energy of the network trained in the phase.
        baseline_epochs: epochs of the baseline's training, at efficiency 1.

    >>> training_complexity([(60, 1.0), (140, 4.0)], baseline_epochs=200)
    0.475
    """
    if baseline_epochs < 1:
        raise UserError(f"training complexity: baseline_epochs={baseline_epochs} is not positive")
    for epochs, efficiency in phases:
        if epochs < 0 or not efficiency > 0:
            raise UserError(
                f"training complexity: a phase of {epochs} epochs at efficiency {efficiency}; "
                "epochs are 0 or more, an efficiency is above 0"
            )
    return sum(epochs / efficiency for epochs, efficiency in phases) / baseline_epochs
