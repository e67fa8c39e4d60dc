"""One wording for every unknown name, and the error type that ends a command with status 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake of the user: shown as one message without a traceback, exit status 2."""


def unknown(kind: str, name: str, known: Iterable[str], where: str) -> UserError:
    """Word an unknown-name error: what, where, the nearest names, how many there are.

    >>> print(unknown("layer", "layer1.conv_1", ["layer1.conv1", "fc"], "bits.layers"))
    bits.layers: unknown layer 'layer1.conv_1'. Nearest: layer1.conv1 (2 in all).
    """
    allowed = sorted(known)
    near = get_close_matches(name, allowed, n=3) or allowed[:3]
    nearest = f"Nearest: {', '.join(near)}" if near else "None is allowed here"
    return UserError(f"{where}: unknown {kind} '{name}'. {nearest} ({len(allowed)} in all).")
