"""Service state for systemd: datagrams over NOTIFY_SOCKET, nothing where no one listens.

READY=1      we serve               Type=notify waits for it
WATCHDOG=1   the loop still turns   WatchdogSec= ends us when it stays away
STOPPING=1   we drain
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Takes the variables out of `environ`: they are meant for this process, not for those that it starts.

    silent: say nothing in any case. A message that cannot be sent at once is dropped: a listener must never block us.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None, *, silent: bool = False) -> None:
        told = {name: (os.environ if environ is None else environ).pop(name, "") for name in _VARIABLES}
        address = told["NOTIFY_SOCKET"]
        self._address = "" if silent else f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = bool(told["WATCHDOG_USEC"]) and told["WATCHDOG_PID"] in ("", str(os.getpid()))

    def ready(self) -> None:
        """The service is up."""
        self._say("READY=1")

    def alive(self) -> None:
        """A sign of life for the service manager's watchdog."""
        if self._watched:
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is about to end."""
        self._say("STOPPING=1")

    def _say(self, word: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(word.encode(), self._address)
