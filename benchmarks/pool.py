"""Seconds of a table one cell after the other, and side by side with two workers.

On two idle cores the pool is to take at most 0.9 of the inline time: its workers have one thread
each, and small networks gain little from a second. Prints both and their ratio.

  python benchmarks/pool.py [<words of run.py>]          (default: +table=ad_quickstart)
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(*words: str) -> float:
    """Time of one command in an empty store; threads are as torch or the pool sets them."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as store:
        began = time.perf_counter()
        command = [sys.executable, "reproduce/run.py", *words, f"store={store}"]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    """Time both and print a line for each."""
    words = sys.argv[1:] or ["+table=ad_quickstart"]
    inline = seconds(*words, "executor=inline")
    pool = seconds(*words, "executor=pool", "executor.workers=2")
    print(f"inline  {inline:7.1f} s\npool(2) {pool:7.1f} s\nratio   {pool / inline:7.2f}")


if __name__ == "__main__":
    main()
