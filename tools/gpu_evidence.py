"""Train at full width what one GPU can add to reproduce/evidence, and pack the records.

Whatever ends the command, the same one goes on where it stopped. A dry run at budget smoke takes
the bundled images and a CPU; it proves nothing about accuracy.
"""

import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from quantable.base.errors import UserError, unknown
from quantable.base.places import ROOT
from quantable.cli import STOPPED, entry
from quantable.store.store import Store

TABLES = ("ad_cifar10", "ad_cifar100")
BUNDLED = "data=fashion_mnist_mini"
GRACE_SECONDS = 120  # for a last checkpoint
HELP = """
Train VGG19 and ResNet18 at full width on a GPU (budget=gpu of ad_cifar10, ad_cifar100), and pack
the records.

  python tools/gpu_evidence.py [seed=0] [minutes=120] [data=data] [store=runs/gpu]
  python tools/gpu_evidence.py smoke        a dry run on the CPU, with the bundled images

  minutes=<n>     then it ends with a checkpoint and exit status 75; the same command goes on
  data=<folder>   has cifar10 and cifar100 (python reproduce/prepare.py makes them)
  store=<folder>  records, checkpoints and records.tar.gz, which holds what to send
"""
DEFAULTS = {"seed": "0", "minutes": "120", "data": "data", "store": "runs/gpu"}


def main(words: Sequence[str]) -> int:
    """Run the tables one after the other; the exit status."""
    smoke = "smoke" in words
    asked = DEFAULTS | ({"store": "runs/gpu-smoke"} if smoke else {})
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in DEFAULTS and value:
            asked[key] = value
        elif word != "smoke":
            allowed = ["smoke", *(f"{name}=" for name in DEFAULTS)]
            raise unknown("word", word, allowed, "command line")
    minutes = asked["minutes"]
    if not minutes.isdecimal() or int(minutes) < 1:
        raise UserError(f"command line: minutes={minutes}: give a whole number, at least 1")
    end = time.monotonic() + 60 * int(minutes)
    for table in TABLES:
        own = [f"+table={table}", f"seed={asked['seed']}", f"store={asked['store']}"]
        if smoke:
            own += ["budget=smoke", BUNDLED, "trainer.accelerator=cpu"]
        else:
            place = f"{asked['data']}/{table.removeprefix('ad_')}"
            own += ["budget=gpu", f"data.root={place}", "trainer.accelerator=gpu"]
        if (status := _until(end, own)) != 0:
            return status
    return _pack(ROOT / asked["store"])


def _until(end: float, words: Sequence[str]) -> int:
    """Run cells until they are done or the time is over; the exit status."""
    run = subprocess.Popen([sys.executable, "reproduce/run.py", *words], cwd=ROOT)
    try:
        return run.wait(timeout=max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=GRACE_SECONDS)
        print("gpu_evidence: the time is over; the same command goes on", file=sys.stderr)
        return STOPPED


def _pack(folder: Path) -> int:
    """Put all records, which have been read and so checked, into one file."""
    packed = folder / "records.tar.gz"
    records = Store(folder).records()
    with tarfile.open(packed, "w:gz") as file:
        file.add(folder / "records", arcname="records")
    print(
        f"{len(records)} records in {packed}: unpack them in reproduce/evidence, then make report"
    )
    return 0


if __name__ == "__main__":
    entry(main, HELP)
