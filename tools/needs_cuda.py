"""Exit with status 0 when the installed torch wheel needs the second lock file's libraries."""

import sys
from importlib.metadata import requires, version

pins = [line for line in requires("torch") or [] if line.startswith(("nvidia-", "cuda-toolkit"))]
print(f"torch {version('torch')}: {'CUDA' if pins else 'CPU'} build")
sys.exit(not (pins and sys.platform == "linux"))
