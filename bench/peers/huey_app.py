"""The tasks as huey knows them; its consumer imports ``huey``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from huey import SqliteHuey

from bench.peers import tasks

huey: Any = SqliteHuey(filename=os.environ.get("PEERS_SQLITE", ":memory:"))


def _done(function: Callable[..., Any]) -> Any:
    def run(*args: Any) -> dict[str, Any]:
        return {"value": function(*args)}  # huey keeps no None

    run.__name__ = function.__name__
    return huey.task(retries=2)(run)


DONE = {name: _done(function) for name, function in tasks.TASKS.items()}
