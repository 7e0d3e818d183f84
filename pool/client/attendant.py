"""A FilePool's care for its supervisor: is one there, start one, be counted as its client.

The supervisor is a process of its own. One that a FilePool started is tied: it ends after the last client that
registered in run/clients/ is closed or dead. One that `serve` started ignores clients.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from pool.config.seats import FOUND_BY
from pool.config.settings import Config
from pool.constants import EXIT_DRAINED, EXIT_LOCKED, EXIT_MEANING, STARTING, Phase
from pool.errors import ConfigError, PoolError, SupervisorFailed
from pool.format.names import parse_worker
from pool.runfiles import clients, heartbeat
from pool.runfiles.server import supervisor_identity, unseen
from pool.spool import fsops
from pool.spool.store import Spool
from pool.system import logs
from pool.system.forked import renew_in_children

_START_S = 30.0
_POLL_S = 0.01
_AGAIN_S = 2.0  # between two attempts to start one


class Attendant:
    """Looks after the supervisor of one spool on behalf of one FilePool."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self._config, self._spool = config, spool
        self._record = spool.root / "run" / "supervisor.json"
        self._log = spool.root / "run" / "logs" / "supervisor.log"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._next_try = self._give_up = 0.0
        self._starting_since: int | None = None  # place in the log where the last attempt to start one again began
        self.problem = ""  # why no supervisor can be started, "" while one may come
        self._presence = ""  # the file that counts us as a client
        renew_in_children(self)

    def after_fork(self) -> None:
        """A child is a client of its own, once it is one; the supervisor that its parent started is no child of it."""
        self._lock = threading.Lock()
        self._presence = ""
        self._starting_since = None
        if self._process is not None:
            self._process.returncode = self._process.returncode or 0  # never waited for here, nor complained about
            self._process = None

    @property
    def present(self) -> bool:
        """Whether this process is counted as a client."""
        return bool(self._presence)

    def attend(self) -> None:
        """Return when we are counted and a supervisor serves the spool; start one if none does.

        Raises SupervisorFailed.
        """
        with self._lock:
            self._enter()
            if self._serving():
                return
            if reason := unseen(self._spool.root):
                raise SupervisorFailed(reason)
            process, mark = self._launch()
            deadline = time.monotonic() + _START_S
            while not self._serving():
                code = process.poll()
                if code == EXIT_LOCKED:  # RACE: another client started one at the same time
                    code = None
                if code is not None:
                    raise SupervisorFailed(
                        f"the supervisor ended at its start ({EXIT_MEANING.get(code, f'code {code}')}):\n"
                        f"{logs.tail(self._log, 15, since=mark)}"
                    )
                if time.monotonic() > deadline:
                    raise SupervisorFailed(f"no supervisor after {_START_S:.0f} s; see {self._log}")
                time.sleep(_POLL_S)

    def attend_again(self) -> None:
        """Called now and then while results are awaited: start another supervisor when ours has died."""
        if not self._presence:
            with self._lock:
                self._enter()
        if self._serving():
            self.problem, self._starting_since = "", None
            return
        self._look_at_start()
        now = time.monotonic()
        if now < self._next_try or (self._starting() and now < self._give_up):
            return
        self._next_try = time.monotonic() + _AGAIN_S
        if reason := unseen(self._spool.root):
            self.problem = reason
            return
        with self._lock:
            try:
                if not self._serving():
                    _, self._starting_since = self._launch()
                    self._give_up = time.monotonic() + _START_S
            except (PoolError, OSError) as error:
                self.problem = str(error)

    def _look_at_start(self) -> None:
        """Whether the last attempt failed; the next one may do better."""
        code = self._process.poll() if self._process is not None and self._starting_since is not None else None
        if code is not None and code not in (EXIT_LOCKED, EXIT_DRAINED):
            said = " ".join(logs.tail(self._log, 4, since=self._starting_since or 0).split())
            self.problem = f"it ended at its start ({EXIT_MEANING.get(code, f'code {code}')}): {said}"

    def leave(self) -> None:
        """This client is gone."""
        if self._presence:
            fsops.unlink(self._presence, missing_ok=True)
        self._leave_to_itself()

    def _starting(self) -> bool:
        """Whether a supervisor that we started again lives; it may still be on its way."""
        return self._starting_since is not None and self._process is not None and self._process.poll() is None

    def _leave_to_itself(self) -> None:
        """A supervisor that lives on: a thread waits for its end, so that no zombie stays while we live."""
        if self._process is not None and self._process.poll() is None:
            threading.Thread(target=self._process.wait, daemon=True).start()

    def await_description(self, engine: str, seconds: float) -> None:
        """Wait until a fresh pool has said what its engine accepts, or cannot, at most `seconds`."""
        deadline = time.monotonic() + seconds
        path = self._spool.root / "run" / "engines" / f"{engine}.json"
        while not path.exists() and time.monotonic() < deadline and self._booting(engine):
            time.sleep(_POLL_S)

    def _booting(self, engine: str) -> bool:
        """Whether a worker of this engine may still describe it: none has come past its boot or failed in it."""
        entries = os.listdir(self._spool.root / "run" / "slots")
        mine = [name for name in entries if (w := parse_worker(name.rpartition(".")[0])) and w.engine == engine]
        if not mine:
            return self._serving()
        for name in mine:
            worker, _, kind = name.rpartition(".")
            if kind == "error":
                return False
            beat = heartbeat.read(f"{self._spool.root}/run/heartbeats/{worker}")
            if beat is not None and beat.phase not in STARTING - {Phase.WARMING, Phase.LOADING}:
                return False
        return True

    def _enter(self) -> None:
        """Be counted as a client."""
        self._presence = self._presence or clients.enter(self._spool)

    def _serving(self) -> bool:
        identity = supervisor_identity(self._record)
        return identity is not None and identity.alive()

    def _launch(self) -> tuple[subprocess.Popen[bytes], int]:
        if self._config.file is None:
            raise ConfigError("a FilePool can start a supervisor only from a config.json on disk; give its path")
        self._leave_to_itself()  # the one before: dead, or it does not come
        mark = logs.mark(self._log)
        env = {key: value for key, value in os.environ.items() if not key.startswith("FILEPOOL_")}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [*FOUND_BY, env.get("PYTHONPATH", "")]))
        program = ["pool.cluster", "port"] if self._config.is_branch else ["pool", "serve"]
        argv = [sys.executable, "-m", *program, "--tied", "--config", str(self._config.file)]
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=env,
                cwd=Path("/"),
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(descriptor)
        return self._process, mark
