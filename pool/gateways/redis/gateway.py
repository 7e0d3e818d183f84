"""The gateway: takers and the herald around one FilePool, until `end` is called."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from loguru import logger
from redis.exceptions import RedisError

from pool.client.filepool import FilePool
from pool.errors import SpoolError
from pool.gateways.redis.ends import Ends
from pool.gateways.redis.files import Files
from pool.gateways.redis.herald import Herald
from pool.gateways.redis.link import Outage
from pool.gateways.redis.settings import Settings
from pool.gateways.redis.taker import Shared, Taker
from pool.gateways.redis.wire import Keys
from pool.system.notify import Notifier

_STOP_S = 15.0  # for takers to finish the job in hand
_PAUSE_S = 0.5
_SWEEP_S = 300.0


class Gateway:
    """Serves the queues of `settings` with one pool. client: a connected Redis client."""

    def __init__(self, pool: FilePool, settings: Settings, client: Any) -> None:
        self.stop = threading.Event()
        self._lost = pool.spool.lost
        self._client = client
        self._keys = Keys(settings.channel, pool.spool.id)
        self._files = Files(pool, settings, self.stop.is_set)
        self._ends = Ends(self._files, self.stop, self._lost)
        self._outage = Outage(settings.address)
        self._herald = Herald(pool, settings, self._keys, client, self._ends)
        shared = Shared(
            pool=pool,
            engine=settings.engine,
            keys=self._keys,
            client=client,
            files=self._files,
            herald=self._herald,
            outage=self._outage,
            stop=self.stop,
        )
        self._takers = [Taker(queue, shared) for queue in settings.queues]

    def end(self, *_: object) -> None:
        """Make `run` return; usable as a signal handler."""
        self.stop.set()
        self._herald.wake.set()

    def run(self, notifier: Notifier) -> None:
        """Take jobs and publish messages until `end`. Other jobs go on; the next gateway publishes their ends.

        SpoolError when the spool is gone. Its tasks are then as those of a host that died: others take them over, or
        the next gateway here."""
        for taker in self._takers:
            taker.start()
        notifier.ready()
        sweep_at = 0.0
        gone = ""
        while not (self.stop.is_set() or gone):
            self._turn()
            gone = self._lost()
            notifier.alive()
            if time.monotonic() >= sweep_at:
                sweep_at = time.monotonic() + _SWEEP_S
                with suppress(OSError):
                    self._files.sweep()
        notifier.stopping()
        self.end()
        deadline = time.monotonic() + _STOP_S
        for taker in self._takers:
            taker.join(max(0.0, deadline - time.monotonic()))
        self._ends.close()
        if gone:
            raise SpoolError(gone)
        with suppress(RedisError):
            self._herald.sign_off()

    def _turn(self) -> None:
        self._herald.wake.wait(self._herald.pause_s())
        self._herald.wake.clear()
        try:
            if self._herald.turn():
                self._outage.over()
        except RedisError as error:
            self._outage.begins(error)
            self.stop.wait(_PAUSE_S)
        except Exception:
            logger.exception("unexpected error in the gateway; continuing")
            self.stop.wait(_PAUSE_S)
