"""Other programs that some tests need: of Debian, npm, the optional extras lite0 and bench."""

import os

# Tests say what they lack and are skipped. Where QUANTABLE_NEED_PROGRAMS is set (CI), they fail.
MAY_LACK = "QUANTABLE_NEED_PROGRAMS" not in os.environ
