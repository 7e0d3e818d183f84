"""The end of a command line of this package."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_UNREAD = 141  #: the reader of stdout has gone, as in `… | head -1`; the shell's number for SIGPIPE


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code that ``main`` returns. A reader of stdout that has gone ends it quietly."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = EXIT_UNREAD
    sys.exit(code)
