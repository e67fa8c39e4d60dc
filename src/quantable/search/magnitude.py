r"""Weight magnitude: items with larger weights keep their bits. The simplest metric, without data.

.. math:: G = \frac{1}{n} \sum_i |w_i|

over the float weights of all layers of an item: per weight, so that size alone decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantable.search.run import Found, Start


@dataclass(frozen=True)
class Magnitude:
    """The rule: an item loses the mean absolute value of its weights."""

    name = "weight magnitude"
    unit = "weight"
    greedy = False

    def __call__(self, start: Start) -> Found:
        """Magnitude of every item, in the unit of its weights."""
        items = [[weight for weight, _ in start.weights(item)] for item in start.items]
        return Found([magnitude(weights) for weights in items])


@torch.no_grad()
def magnitude(weights: Sequence[Tensor]) -> float:
    """Mean absolute value of an item's float weights, pooled over its layers.

    >>> magnitude([torch.tensor([1.0, -3.0]), torch.tensor([0.5])])
    1.5
    """
    norms = [torch.linalg.vector_norm(w, 1, dtype=torch.float64) for w in weights]
    return float(sum(norms)) / sum(w.numel() for w in weights)
