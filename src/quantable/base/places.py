"""Where this project lies."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"


def is_own(target: str) -> bool:
    """Whether the dotted name of a class or function is this project's, as of today or of before.

    >>> is_own("quantable.models.timm.timm_network"), is_own("torch.optim.SGD")
    (True, False)
    """
    return target.startswith("quantable.")
