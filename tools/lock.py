"""Write requirements.lock and requirements-cuda.lock from pyproject.toml (needs uv on the PATH).

One universal resolution for Python 3.11 to 3.13, with hashes. The CUDA libraries that torch's Linux
wheel needs are kept in a second file, so that users of CPU wheels do not load them.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("dev", "docs", "slurm", "sweep", "wandb")  # what the tests need
CUDA = re.compile(r"(nvidia-|cuda-|triton==)")


def resolve() -> list[str]:
    """Return one block of lines (pin, markers, hashes) per package."""
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--upgrade"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    command += ["--python-version=3.11", "--generate-hashes", "--no-annotate", "--no-header", "-q"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return re.split(r"\n(?=\S)", text.strip())


def main() -> None:
    """Resolve once and write both files."""
    blocks = resolve()
    made = "# Written by tools/lock.py (make lock); do not edit.\n"
    for name, wanted in [("requirements.lock", False), ("requirements-cuda.lock", True)]:
        chosen = [block for block in blocks if bool(CUDA.match(block)) is wanted]
        (ROOT / name).write_text(made + "\n".join(chosen) + "\n")
        print(f"{name}: {len(chosen)} packages")


if __name__ == "__main__":
    main()
