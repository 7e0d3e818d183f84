"""The supervisor: one per spool, one loop, one thread; not on the data path.

It wakes when a process dies (pidfd), when something is dropped, requested or noted (watch), when a signal comes,
and once a second to judge; a tick without news costs about a millisecond.

    deaths -> arrivals -> judge -> press endings -> start slots -> requests -> what is due -> drop box -> sweep

When it is killed, workers work on; the next supervisor adopts those that fit its configuration.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from filelock import FileLock, Timeout
from loguru import logger

import pool
from pool import tracing
from pool.config.digest import content_digest
from pool.config.settings import Config, decode_config, read_config
from pool.constants import EXIT_DRAINED
from pool.errors import ConfigError, SpoolError, SupervisorRunning
from pool.format.names import parse_deferred, parse_expiry
from pool.runfiles.clients import roll_call
from pool.runfiles.server import Refused, Running
from pool.spool import fsops, quarantine
from pool.spool.seizure import Seizer
from pool.spool.store import NO_SPACE, Spool
from pool.supervise.attention import TURN_NS, Attention
from pool.supervise.control import Control
from pool.supervise.expiry import Expiry
from pool.supervise.fleet import Fleet
from pool.supervise.holding import Holding
from pool.supervise.intake import Intake
from pool.supervise.report import Reporter
from pool.supervise.retention import Retention
from pool.system import logs, procs
from pool.system.host import process_space
from pool.system.lineage import Heir
from pool.system.notify import Notifier
from pool.system.watch import Watcher

_TICK_S = TURN_NS / 1e9
_SWEEP_S = 60.0
_LOOKS, _LOOK_S = 20, 0.05
_LOCK_S = 0.1  # one who looks whether the spool is served holds the lock for an instant
_CARE_S = 10.0  # watcher health, log sizes, directories
_COMPLAIN_S = 60.0
_CLIENT_GRACE_S = 1.0  # a tied supervisor without clients waits that long
_POLL_DEAD_S = 0.05  # where the kernel has no pidfd
_ROLL_S = 0.1  # between two steps to a new configuration
_CHORES = ("control", "held", "deferred", "intake", "care", "sweep")
_ENDING = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_ENDING, signal.SIGHUP)
_NOTHING: AbstractContextManager[object] = nullcontext()


class Supervisor:
    """Serves one spool until it is told to drain. on_reload: called with a new configuration of the log.
    Raises SupervisorRunning, ConfigError, SpoolError."""

    def __init__(
        self,
        config: Config,
        *,
        tied: bool = False,
        heir: Heir | None = None,
        on_reload: Callable[[Config], None] = lambda config: None,
    ) -> None:
        self._config, self._tied, self._on_reload = config, tied, on_reload
        self._notifier = Notifier(silent=tied)  # before workers inherit what it takes
        self.spool = Spool.create(config.spool, durable=config.durable)
        self._lock = FileLock(f"{self.spool.root}/run/supervisor.lock", mode=0o600)
        try:
            self._lock.acquire(timeout=_LOCK_S, poll_interval=0.02)
        except Timeout:
            raise SupervisorRunning(f"another supervisor serves {config.spool}") from None
        self._record = self.spool.root / "run" / "supervisor.json"
        self._attention = Attention()
        self._fleet = Fleet(self.spool, config, random.Random(), self._attention, heir)
        self._intake = Intake(self.spool, config)
        self._retention = Retention(self.spool, config)
        self._started = self._loaded = self._asked = self.spool.now()
        self._refused: Refused | None = None
        seizer = Seizer(self.spool, self._fleet.next_generation())
        self._control = Control(self.spool, lambda: self._fleet.slots, seizer, self._reload)
        self._expiry = Expiry(self.spool, seizer)
        self._holding = Holding(self.spool, seizer)
        self._reporter = Reporter(self.spool, self._fleet, self._attention)
        self._new_held: list[str] = []  # names that came into held/
        self._signals = 0
        self._watching = ""  # why not by events, as the log has it
        self._hang_ups = 0
        self._terminal = _has_terminal()
        self._complain_at = 0.0  # of a full disk, not before
        self._due = dict.fromkeys(("tick", "roll", *_CHORES), 0.0)
        self._alone_since: float | None = None
        self._alone_s = _CLIENT_GRACE_S
        self._wake_reader, self._wake_writer = os.pipe()

    def run(self, beside: AbstractContextManager[object] = _NOTHING) -> int:
        """Serve; the exit code. beside: entered now, left when all is done and the spool still ours."""
        with beside:
            self._serve()
        fsops.unlink(str(self._record), missing_ok=True)
        logger.info("drained")
        tracing.stop()
        self._lock.release()
        return EXIT_DRAINED

    def _serve(self) -> None:
        self._arm_signals()
        self._announce()
        self._trace()
        logger.info("serving {} with {} slots", self.spool.root, len(self._fleet.slots))
        quarantine.repair(self.spool)
        self._fleet.adopt()
        self._fleet.recovery.repair_requeues()
        self._read_proofs(os.listdir(self.spool.root / "run" / "attempts"))
        root = self.spool.root
        places = {
            "in": root / "in",
            "control": root / "run" / "control",
            "notes": root / "run" / "attempts",
            "held": root / "held",
            "deferred": root / "deferred",
            "expiry": root / "run" / "expiry",
        }
        with Watcher(places, closes=("in",)) as watcher:
            self._tell_watching(watcher)
            self._notifier.ready()
            self._attention.start()
            while not (self._fleet.draining and not self._fleet.living()):
                try:
                    self._turn(watcher)
                except OSError:
                    if not self._mend_spool():
                        raise
            self._reporter.write(watcher, "", self._config)

    def _turn(self, watcher: Watcher) -> None:
        self._wait(watcher)
        now = self._begin_turn()
        self._take_signals(now)
        if self._fleet.reap_dead(now):
            self._due["deferred"] = self._due["tick"] = self._due["control"] = now
        self._read_arrivals(watcher, now)
        if now >= self._due["tick"]:
            self._due["tick"] = now + _TICK_S
            self._notifier.alive()
            self._mind_spool()
            self._fleet.judge(now)
            if self._tied and not self._fleet.draining:
                self._mind_clients(now)
        for slot in self._fleet.living():
            slot.press(now)
        if not self._fleet.roll.over and now >= self._due["roll"]:
            self._due["roll"] = now + _ROLL_S
            self._fleet.advance()
        self._fleet.start_due(now)
        try:
            self._chores(watcher, now)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if now >= self._complain_at:
                self._complain_at = now + _COMPLAIN_S
                logger.warning("the disk is full: {}", error)
            for chore in _CHORES:
                self._due[chore] = max(self._due[chore], now + _TICK_S)
        self._reporter.write(watcher, self._intake.paused, self._config)

    def _begin_turn(self) -> float:
        """The time that deadlines go by."""
        away_s = self._attention.turn()
        if away_s:
            why = "suspended, paused, or no processor"
            logger.warning("all stood still for {:.0f} s ({}): it counts against no worker and no job", away_s, why)
        return self._attention.now()

    def _mind_spool(self) -> None:
        """One that is gone, or another one in its place, is not ours to serve: end all workers. Raises SpoolError."""
        if reason := self.spool.lost():
            self._fleet.end_now()
            raise SpoolError(reason)

    def _mend_spool(self) -> bool:
        """Directories that somebody removed are made again; whether any were. Raises SpoolError as above."""
        for _ in range(_LOOKS):  # RACE: one who removes all has perhaps not come to its end
            self._mind_spool()
            time.sleep(_LOOK_S)
        missing = self.spool.missing()
        for path in missing:
            fsops.make_dir(str(path))
            logger.warning("{} was removed while the pool ran: it is made again, what was in it is lost", path)
        return bool(missing)

    def _chores(self, watcher: Watcher, now: float) -> None:
        self._fleet.settle_unrecovered()
        self._mind_terminal(now)  # RACE: a hang-up may have come since the signals were taken
        if self._hang_ups:
            self._hang_ups = 0  # RACE: one that comes while we read asks for another look
            try:
                self._reload()
            except OSError:
                self._hang_ups += 1
                raise
        self._holding.hear()
        if self._new_held:
            self._holding.arrived(self._new_held)
            self._new_held.clear()
        if now >= self._due["control"]:
            self._due["control"] = now + (self._control.turn() or self._config.rescan_s)
        if now >= self._due["held"]:
            self._due["held"] = now + self._config.rescan_s
            self._holding.turn()
        if now >= self._due["deferred"]:
            moments = (self.spool.wake_deferred(), self._expiry.turn())
            self._due["deferred"] = now + self._config.rescan_s
            self._expect(now, [moment for moment in moments if moment is not None])
        if now >= self._due["intake"] and not self._fleet.draining:
            again = self._intake.turn()
            self._due["intake"] = now + (self._config.rescan_s if again is None else again)
        if now >= self._due["care"]:
            self._due["care"] = now + _CARE_S
            self._care(watcher, now)
        if now >= self._due["sweep"]:
            self._mind_spool()  # RACE: what is swept by name must not be of another pool at the same place
            self._fleet.end_strays()
            self._fleet.recovery.repair_requeues()
            self._holding.seek()
            more = self._retention.sweep()
            self._due["sweep"] = now + (_TICK_S if more else _SWEEP_S)

    def _expect(self, now: float, moments: Iterable[int]) -> None:
        """Something is due then, on the spool clock."""
        for moment in moments:
            at = now + max(0.0, (moment - self.spool.now()) / 1e6)
            self._due["deferred"] = min(self._due["deferred"], at)

    def _wait(self, watcher: Watcher) -> None:
        until = min(self._fleet.next_start_at(), *(self._due[key] for key in ("tick", "control", "held", "deferred")))
        if not self._fleet.draining:
            until = min(until, self._due["intake"])
        if not self._fleet.roll.over:
            until = min(until, self._due["roll"])
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        poll.register(watcher.fileno(), select.POLLIN)
        outcomes = self._holding.fileno()
        if outcomes is not None:
            poll.register(outcomes, select.POLLIN)
        pause = self._attention.left(until)
        for slot in self._fleet.living():
            if slot.descriptor is not None:
                poll.register(slot.descriptor, select.POLLIN)
            else:
                pause = min(pause, _POLL_DEAD_S)
        poll.poll(pause * 1000)

    # ---- signals and clients

    def _arm_signals(self) -> None:
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._hang_ups += 1
        else:
            self._signals += 1

    def _mind_terminal(self, now: float) -> None:
        """SIGHUP of a terminal that was closed is no wish for another configuration."""
        if self._hang_ups and self._terminal and not _has_terminal():
            self._terminal, self._hang_ups = False, 0
            self._drain(now, "the terminal is gone")

    def _take_signals(self, now: float) -> None:
        try:
            os.read(self._wake_reader, 512)
        except BlockingIOError:
            pass
        self._mind_terminal(now)
        asked = self._signals
        self._signals -= asked
        if asked and not self._fleet.draining:
            self._drain(now, "asked to end")
            asked -= 1
        if asked:  # once, however many came: the end itself must get its turn
            logger.warning("asked again: ending at once")
            self._fleet.end_now()

    def _reload(self) -> None:
        """Read the configuration again. What is wrong with it is said, and changes nothing."""
        if self._fleet.draining:
            logger.warning("draining: the configuration is not read again")
            return
        self._asked, data = self.spool.now(), b""
        try:
            if self._config.file is None:
                raise ConfigError("this pool was started without a file: there is nothing to read again")
            data = read_config(self._config.file)
            config = decode_config(data, self._config.file)
            if config.spool != self._config.spool:
                raise ConfigError(
                    f"cannot change from {self._config.spool} to {config.spool} while the pool runs: drain it, then "
                    "serve again",
                    "spool",
                )
            self._fleet.use(config, self._attention.now())
        except ConfigError as error:
            message = str(error).removeprefix(f"{error.path}: ")
            self._refused = Refused(message, error.path, content_digest(data) if data else "")
            logger.error("the configuration on disk is wrong, what runs goes on: {}", error)
        else:
            for note in config.notes:
                logger.warning("{}", note)
            if config.log != self._config.log:
                self._on_reload(config)
            self._config = self._intake.config = self._retention.config = config
            self.spool.durable = config.durable
            self._loaded, self._refused = self._asked, None
            self._trace()
        self._announce()

    def _trace(self) -> None:
        if self._config.otel:
            tracing.start(logger.warning)
        else:
            tracing.stop()

    def _drain(self, now: float, why: str) -> None:
        logger.info("draining: {}", why)
        self._notifier.stopping()
        self._fleet.drain(now)

    def _mind_clients(self, now: float) -> None:
        """A tied supervisor ends after its last client; that of a node later when its agent was killed: while the lease
        lasts the next one goes on with what runs here."""
        alive, dead = roll_call(self.spool)
        if alive:
            self._alone_since, self._alone_s = None, _CLIENT_GRACE_S
            return
        if dead and self._config.cluster.servers and not self._config.is_branch:
            self._alone_s = max(_CLIENT_GRACE_S, self._config.cluster.lease_s)
        if self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since >= self._alone_s:
            self._drain(now, "the last client is gone")

    # ---- news

    def _announce(self) -> None:
        me = procs.identity_of(os.getpid())
        assert me is not None
        running = Running(
            me,
            self._started,
            self._tied,
            str(self._config.file) if self._config.file else None,
            tuple(self._config.engines),
            pool.__version__,
            self._config.digest,
            self._loaded,
            self._asked,
            self._refused,
            {engine.name: engine.slots for engine in self._config.engines.values()},
            self._fleet.containment,
            process_space(),
        )
        temp = self.spool.temp()
        fsops.write_new(temp, [json.dumps(running.to_map()).encode()], sync=False)
        fsops.replace(temp, str(self._record))

    def _read_arrivals(self, watcher: Watcher, now: float) -> None:
        arrivals = watcher.read()
        if arrivals.rescan:
            self._due.update(intake=now, control=now, held=now, deferred=now)
        self._new_held += arrivals.names.get("held", [])
        for key, parse in (("deferred", parse_deferred), ("expiry", parse_expiry)):
            self._expect(now, [entry[0] for entry in map(parse, arrivals.names.get(key, ())) if entry is not None])
        if "in" in arrivals.names:
            self._intake.arrived(arrivals.names["in"])
            self._due["intake"] = now
        if "control" in arrivals.names:
            self._due["control"] = now
        if arrivals.names.get("notes"):
            self._due["deferred"] = now  # a retry may be due sooner than the next look
            self._read_proofs(arrivals.names["notes"])

    def _read_proofs(self, names: Iterable[str]) -> None:
        for name in names:
            if (proof := self.spool.take_proof(name)) is not None:
                self._fleet.accuse(*proof)

    def _tell_watching(self, watcher: Watcher) -> None:
        if watcher.reason != self._watching:
            self._watching = watcher.reason
            if watcher.reason:
                logger.warning("watching by {}: {}", watcher.mode, watcher.reason)
            else:
                logger.info("watching by {} again", watcher.mode)

    def _care(self, watcher: Watcher, now: float) -> None:
        if self.spool.missing():
            self._mend_spool()
        if watcher.verify():
            self._due.update(intake=now, control=now)
            self._tell_watching(watcher)
        for slot in self._fleet.living():
            logs.trim(slot.log, self._config.log.max_bytes, self._config.log.keep)
        self._retention.renew_directories()


def serve(
    config: Config,
    *,
    tied: bool = False,
    on_reload: Callable[[Config], None] = lambda config: None,
    beside: AbstractContextManager[object] = _NOTHING,
) -> int:
    """Run a supervisor in the foreground; its exit code. on_reload: called with a new configuration of the log.
    beside: entered once the spool is ours, left before it is given up.
    Raises SupervisorRunning, ConfigError, SpoolError."""
    os.umask(0o077)
    code = Supervisor(config, tied=tied, heir=Heir(), on_reload=on_reload).run(beside)
    # RACE: the interpreter takes our handlers away as it ends, and one more SIGTERM then would be its exit code.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return code


def _has_terminal() -> bool:
    """Whether there is a terminal that can hang up. One that was closed sends SIGHUP, too."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: it is to survive that
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
