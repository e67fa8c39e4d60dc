"""Which version of this project runs."""

import subprocess
from functools import cache

from quantable.base.places import ROOT


@cache  # a process keeps the code that it began with
def checkout() -> tuple[str, bool]:
    """Commit of the checkout and whether nothing changed since; elsewhere ("unknown", False)."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    try:
        return git("rev-parse", "HEAD"), git("status", "--porcelain", "--", "src", "conf") == ""
    except FileNotFoundError:  # no git on this machine
        return "unknown", False
