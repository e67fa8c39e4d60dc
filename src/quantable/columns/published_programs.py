"""Columns of published integer programs: layers whose published bits our solution shares."""

from collections.abc import Callable

from quantable.allocation.program import Comparison
from quantable.columns.facts import Column


def _policy(count: Callable[[Comparison], int], title: str) -> Column:
    return Column(
        title,
        "layers",
        0,
        False,
        lambda f: count(f.policy) if f.policy else None,
        lambda f: f.policy.reason if f.policy else "not the solution of a program",
    )


COLUMNS = {
    "policy": _policy(lambda found: found.both, "policy"),
    "policy_weights": _policy(lambda found: found.weight, "policy, weights"),
    "policy_acts": _policy(lambda found: found.act, "policy, activations"),
}
