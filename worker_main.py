"""A worker's interpreter: sets the process up, then runs the loop.

    python worker_main.py LAUNCH_FILE
    python worker_main.py --probe REQUEST      (what this interpreter is and can import, see `pool doctor`)

Started by the supervisor with the environment already prepared (PYTHONPATH, devices, thread counts). Everything
that must happen before a library spins up threads happens here: umask, core of the crash handler, parent-death
signal. This is the one place that knows both the pool and the engines. Its syntax is that of Python 3.6, so that an
interpreter that is too old can say so.
"""

import faulthandler
import json
import os
import sys

OLDEST = (3, 8)
EXIT_CONFIG = 4  # of pool.constants, which an interpreter that does not fit may not be able to import


def main(argv):
    # type: (list[str]) -> int
    """Run one worker from its launch file, or answer a probe; the process's exit code, 2 for wrong arguments."""
    if len(argv) == 3 and argv[1] == "--probe":
        from inference.foreign.guest import filepool_probe

        return filepool_probe.main(argv[1:])
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < OLDEST:
        return _refuse(
            argv[1],
            "{} is Python {}.{}.{}; a worker needs 3.8 or newer".format(sys.executable, *sys.version_info[:3]),
            "name another `python`; for an SDK that needs this one, use the engine inference.foreign:Foreign",
        )
    try:
        return _work(argv[1])
    except ModuleNotFoundError as error:  # of what the pool needs: what an engine lacks is told by the worker
        missing = str(error.name).partition(".")[0]
        return _refuse(
            argv[1],
            "{} has no package {}, which a worker needs".format(sys.executable, missing),
            "{} -m pip install msgpack watchdog filelock".format(sys.executable),
        )


def _refuse(launch_file, message, hint):
    # type: (str, str, str) -> int
    """Leave the reason why there is no worker where the supervisor finds it; the exit code."""
    print("{}\n  {}".format(message, hint), file=sys.stderr)
    name = os.path.splitext(launch_file)[0] + ".error"
    with open(name + ".part", "w") as stream:
        json.dump({"message": message, "stage": "booting", "hint": hint}, stream)
    os.replace(name + ".part", name)
    return EXIT_CONFIG


def _work(launch_file):
    # type: (str) -> int
    _take_only_ours()
    os.umask(0o077)
    faulthandler.enable()

    from pathlib import Path

    from pool.errors import PoolError
    from pool.runfiles.launch import Launch
    from pool.system import cgroup
    from pool.system.lineage import become_subreaper, has_children
    from pool.system.procs import end_soon_after_parent
    from pool.work import joblog
    from pool.work.context import JobCancelled
    from pool.work.orphan import end_family
    from pool.work.worker import Worker

    try:
        launch = Launch.from_json(Path(launch_file).read_bytes())
    except (PoolError, OSError) as error:
        print("{}: {}".format(launch_file, error), file=sys.stderr)
        return EXIT_CONFIG
    if launch.orphan_grace_s <= 0:
        end_soon_after_parent()  # the thread that watches for orphans is faster
    become_subreaper()
    trouble = cgroup.enter(launch.cgroup) if launch.cgroup else ""
    if trouble:
        joblog.say("not in a control group of its own: " + trouble)

    cancelled = JobCancelled  # type: type[BaseException]
    try:
        from inference.base import Cancelled

        cancelled = Cancelled
    except ImportError:
        pass  # an engine of the user's own, in an interpreter without our engines

    code = Worker(launch, cancelled).run()
    joblog.flush()
    if has_children():
        end_family(code)  # what engines left running
    os._exit(code)  # libraries that hang in their atexit handlers must not keep a slot


def _take_only_ours():
    # type: () -> None
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
