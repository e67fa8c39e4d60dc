"""Files of the development machine, which the project does not contain."""

import os
from pathlib import Path

import pytest

from quantable.base.places import ROOT


def shared(place: str) -> Path:
    """A file or folder beside the checkout.

    Tests that ask for one carry the marker ``data``. Elsewhere they are skipped: images and papers'
    programs are not the project's to distribute. Where QUANTABLE_NEED_DATA is set (CI), they fail.
    """
    path = ROOT.parent / "shared" / place
    if not path.exists():
        assert "QUANTABLE_NEED_DATA" not in os.environ, f"{place} must be here"
        pytest.skip(f"{place} is not on this machine")
    return path
