"""The tasks as celery knows them; its worker imports ``app``."""

from __future__ import annotations

import os
from typing import Any

from bench.peers import tasks


def make(url: str) -> Any:
    """The application on that Redis."""
    from celery import Celery

    found: Any = Celery("peers", broker=url, backend=url)
    found.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        task_serializer="pickle",
        result_serializer="pickle",
        accept_content=["pickle"],
        broker_connection_retry_on_startup=True,
    )
    for name, function in tasks.TASKS.items():
        found.task(name=name)(function)
    return found


app = make(os.environ["PEERS_REDIS"]) if "PEERS_REDIS" in os.environ else None
