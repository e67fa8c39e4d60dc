"""No face of a report that needs no server loads what trains or streams a run."""

import subprocess
import sys
from pathlib import Path

from quantable.base.places import ROOT
from quantable.words import FACES

LOCAL = [face for face in FACES if face != "wandb"]
LOOK = """
import sys
from quantable.cli import report_main

store, *faces = sys.argv[1:]
words = ["+table=ad_pim", "rows=vgg19_16", f"store={store}"]
for face in faces:
    assert report_main([*words, f"format={face}"]) == 0
evidence = "reproduce/evidence"
assert report_main([*words, f"compare={evidence},{evidence}"]) == 0
heavy = ("torch", "pytorch_lightning", "torchvision", "timm", "wandb", "wandb_workspaces")
print([name for name in heavy if name in sys.modules])
"""


def test_no_local_face_loads_torch_lightning_or_wandb(tmp_path: Path) -> None:
    assert {"terminal", "markdown", "csv", "json", "latex", "html", "parquet"} <= set(LOCAL)
    words = [sys.executable, "-c", LOOK, str(tmp_path), *LOCAL]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
