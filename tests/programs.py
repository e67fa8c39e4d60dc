"""Other programs that some slow tests need: Debian's packages, npm, the optional extra lite0."""

import os

# Tests say what they lack and are skipped. Where QUANTABLE_NEED_PROGRAMS is set (CI), they fail.
MAY_LACK = "QUANTABLE_NEED_PROGRAMS" not in os.environ
