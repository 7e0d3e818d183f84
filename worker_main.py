"""A worker's interpreter: sets the process up, then runs the loop.

    python worker_main.py LAUNCH_FILE

Started by the supervisor with the environment already prepared (PYTHONPATH, devices, thread counts). Everything
that must happen before a library spins up threads happens here: umask, core of the crash handler, parent-death
signal. This is the one place that knows both the pool and the engines.
"""

from __future__ import annotations

import faulthandler
import os
import sys


def main(argv: list[str]) -> int:
    """Run one worker from its launch file; the process's exit code, 2 for wrong arguments."""
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    _take_only_ours()
    os.umask(0o077)
    faulthandler.enable()

    from pathlib import Path

    from pool.constants import EXIT_CONFIG
    from pool.errors import PoolError
    from pool.runfiles.launch import Launch
    from pool.system import cgroup
    from pool.system.lineage import become_subreaper, has_children
    from pool.system.procs import end_soon_after_parent
    from pool.work import joblog
    from pool.work.context import JobCancelled
    from pool.work.orphan import end_family

    try:
        launch = Launch.from_json(Path(argv[1]).read_bytes())
    except (PoolError, OSError) as error:
        print(f"{argv[1]}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    if launch.orphan_grace_s <= 0:
        end_soon_after_parent()  # the thread that watches for orphans is faster
    become_subreaper()
    if launch.cgroup and (trouble := cgroup.enter(launch.cgroup)):
        joblog.say(f"not in a control group of its own: {trouble}")

    cancelled: type[BaseException] = JobCancelled
    try:
        from inference.base import Cancelled

        cancelled = Cancelled
    except ImportError:
        pass  # an engine of the user's own, in an interpreter without our engines

    from pool.work.worker import Worker

    code = Worker(launch, cancelled).run()
    joblog.flush()
    if has_children():
        end_family(code)  # what engines left running
    os._exit(code)  # libraries that hang in their atexit handlers must not keep a slot


def _take_only_ours() -> None:
    """Import `pool` and `inference` from this file's folder, and all else from there last.

    Python put it first on the path: where packages are installed it would hide the standard library's, or another
    interpreter's.
    """
    import inference  # noqa: F401
    import pool  # noqa: F401

    if sys.path[0] == os.path.dirname(os.path.abspath(__file__)):
        sys.path.append(sys.path.pop(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
