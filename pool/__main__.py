"""`python -m pool`: serve a spool, inspect it, act on its jobs."""

from __future__ import annotations

import sys

from pool.cli import serving
from pool.cli.command import run

_PROGRAM = "python -m pool"


def main() -> None:
    """Run the command line and end the process with its exit code."""
    serve = serving.asked(sys.argv[1:])
    if serve is not None:
        run(serve, _PROGRAM)
    from pool.cli.app import app

    run(app, _PROGRAM)


if __name__ == "__main__":
    main()
