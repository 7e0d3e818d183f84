"""python -m pool.cluster server|node|status|drain|port: join machines to one cluster."""

from __future__ import annotations

import sys

from pool.cli.command import run
from pool.cluster import starting
from pool.constants import EXIT_CONFIG, EXIT_LOCKED
from pool.errors import ConfigError, PoolError, SupervisorRunning

_PROGRAM = "python -m pool.cluster"
_CODES = {SupervisorRunning: EXIT_LOCKED, ConfigError: EXIT_CONFIG, PoolError: 1}


def main() -> None:
    """Run the command line and end the process with its exit code."""
    stays = starting.asked(sys.argv[1:])
    if stays is not None:
        run(stays, _PROGRAM, codes=_CODES)
    from pool.cluster.commands import app

    run(app, _PROGRAM, codes=_CODES)


if __name__ == "__main__":
    main()
