"""One thread for everything: the networks of these tests are too small for more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for subprocesses
