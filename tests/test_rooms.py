"""The contracts of `.importlinter` hold, and a wrong arrow breaks them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantable.base.places import ROOT

CHECK = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)


def lint(source: Path) -> subprocess.CompletedProcess[str]:
    """Check the package below ``source``."""
    return subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("base/errors.py", "", []),
        ("base/errors.py", "import quantable.store.record", ["A room imports only rooms below it"]),
        ("cost/macs.py", "import torch", ["loads neither torch nor Lightning"]),
        # also by way of another room
        ("networks/layers.py", "import quantable.networks.trace", ["neither torch nor Lightning"]),
    ],
    ids=["as it is", "an arrow upwards", "torch", "torch by way of another"],
)
def test_a_wrong_arrow_breaks_the_contract(
    tmp_path: Path, module: str, line: str, broken: list[str]
) -> None:
    shutil.copytree(ROOT / "src/quantable", tmp_path / "quantable")
    with (tmp_path / "quantable" / module).open("a") as file:
        file.write(f"{line}\n")
    done = lint(tmp_path)
    said = [text for text in done.stdout.splitlines() if text.endswith("BROKEN")]
    said += [text for text in done.stdout.splitlines() if "BROKEN (" in text]
    assert done.returncode == bool(broken), done.stdout + done.stderr
    assert len(said) == len(broken)
    assert all(words in text for words, text in zip(broken, said, strict=True))
