"""Names, numbers and limits of protocol 1 that more than one module must agree on."""

from __future__ import annotations

import enum

PROTOCOL = 1
HEARTBEAT_MAGIC = b"fpb2"  # first bytes of a heartbeat; another layout has others

# Exit codes of workers and supervisors.
EXIT_DRAINED = 0  # asked to end, and did
EXIT_CRASH = 1  # an error of the pool's own, as any program ends with
EXIT_LOAD = 3  # the engine could not load: counts to the start limit
EXIT_CONFIG = 4  # the configuration is wrong: no retry will help
EXIT_RECYCLE = 5  # ended to be replaced: no delay, not counted
EXIT_MISSING = 7  # a library, package or program is not installed: no retry will help
EXIT_LOCKED = 6  # another supervisor serves this spool
EXIT_ORPHAN = 8  # the supervisor is gone and no new one came within the grace
EXIT_FORK = 9  # a child that an engine forked came back from it; never of a worker

EXIT_MEANING = {
    EXIT_DRAINED: "drained",
    EXIT_LOAD: "the engine failed to load",
    EXIT_CONFIG: "the configuration is wrong",
    EXIT_RECYCLE: "recycled",
    EXIT_MISSING: "something that it needs is not installed",
    EXIT_LOCKED: "another supervisor serves this spool",
    EXIT_ORPHAN: "orphaned",
}

# Environment by which every process of a worker is found, grandchildren included.
ENV_SPOOL = "FILEPOOL_SPOOL_ID"
ENV_WORKER = "FILEPOOL_WORKER"

# Bounds on what is read from the spool.
MAX_JOB_BYTES = 8 * 1024 * 1024  # a job file: parameters, never media
MAX_DROP_BYTES = 1024 * 1024  # the same from an untrusted hand
MAX_CHECKPOINT_BYTES = 64 * 1024 * 1024  # what an engine saves of a job for its next attempt
MAX_RESULT_BYTES = 512 * 1024 * 1024  # an envelope; arrays above ARRAY_FILE_BYTES are files beside it
ARRAY_FILE_BYTES = 1024 * 1024  # arrays of this size and more become .npy files in out/<id>/
MAX_DEPTH = 64  # nesting of lists and maps

# Liveness of an idle worker, one rule whatever rescan_s is: the loop gives a sign of life at least every BEAT_S, and
# one that gave none for IDLE_SILENCE_S hangs.
BEAT_S = 5.0
IDLE_SILENCE_S = 30.0

PATIENCE_S = 10.0  # how long a caller waits while no worker can run, unless it says otherwise
TURN_S = 0.1  # of the supervisor, at one kind of work: the rest waits, so that supervision goes on
PROGRESS_INTERVAL_S = 0.1  # progress files are replaced at most this often
DROP_STILL_S = 2.0  # a dropped file that stays open is taken after this long without a change

WAITING_FOR_SPACE = "waiting for disk space"  # stage of a job that is done but for its record

STATUSES = (
    "queued",
    "processing",
    "downloading",
    "face_detecting",
    "inference",
    "merging_audio",
    "completed",
    "failed",
    "cancelled",
)


class Phase(enum.IntEnum):
    """The life of one worker process; no worker writes `gone`: the supervisor proves it."""

    BOOTING = 0
    LOADING = 1
    WARMING = 2
    IDLE = 3
    BUSY = 4
    DRAINING = 5
    GONE = 6

    @property
    def label(self) -> str:
        """As status and logs show it."""
        return self.name.lower()


STARTING = frozenset({Phase.BOOTING, Phase.LOADING, Phase.WARMING})
SERVING = frozenset({Phase.IDLE, Phase.BUSY})

NEXT_PHASES = {
    Phase.BOOTING: frozenset({Phase.LOADING, Phase.DRAINING}),
    Phase.LOADING: frozenset({Phase.WARMING, Phase.IDLE, Phase.DRAINING}),
    Phase.WARMING: frozenset({Phase.IDLE, Phase.DRAINING}),
    Phase.IDLE: frozenset({Phase.BUSY, Phase.DRAINING}),
    Phase.BUSY: frozenset({Phase.IDLE, Phase.DRAINING}),
    Phase.DRAINING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset(),
}
