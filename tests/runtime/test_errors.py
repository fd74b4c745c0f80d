"""Messages in a terminal."""

import subprocess
import sys

PROGRAM = r"""
import logging
from runtime.errors import log_to_stderr
log_to_stderr()
logging.getLogger("runtime").warning("%s is damaged", "a\x1b[2J\nERROR: b")
"""


def test_a_warning_with_untrusted_text_is_one_printable_line():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.stderr == "WARNING: a\\x1b[2J ERROR: b is damaged\n"
