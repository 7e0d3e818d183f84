"""What the pool takes besides time: shared memory and the import. `python -m bench.footprint --json`

/dev/shm: files there that any process of a working pool maps or holds open, the client included; and whether a
pool works where it is 64 MB, read-only or absent (in a mount namespace, which needs root).
Import: `from pool import FilePool` in a fresh interpreter, the best of several, because it does the same every
time and all that differs is other people's; and the heavy modules that it pulls in.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import harness
from bench.harness import Measured, Row
from bench.payload import arrays, echoed
from bench.roundtrip import ENGINES, trips

HEAVY = ("torch", "cv2", "fastapi")
_SCRIPT = f"""
import json, sys, time
begun, processor = time.perf_counter(), time.process_time()
import pool
bare = time.perf_counter() - begun
from pool import FilePool
spent = time.perf_counter() - begun
print(json.dumps([bare, spent, time.process_time() - processor, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
_SAID = {True: "yes", False: "NO", None: "not tried"}
_WORLDS = {
    "64 MB": "mount -t tmpfs -o size=64m none /dev/shm",
    "read-only": "mount -t tmpfs -o ro none /dev/shm",
    "absent": "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9",
}


@dataclass(frozen=True)
class Sizes:
    """How often it is measured, and in which surroundings."""

    imports: int = 11
    arrays: int = 8
    worlds: tuple[str, ...] = tuple(_WORLDS)


QUICK = Sizes(imports=1, arrays=1, worlds=("absent",))


def import_times(count: int) -> dict[str, Any]:
    """ms of `import pool`, of `from pool import FilePool`, and the heavy modules that came along."""
    found = []
    for _ in range(count):
        result = subprocess.run([sys.executable, "-c", _SCRIPT], cwd=harness.ROOT, check=True, capture_output=True)
        found.append(json.loads(result.stdout))
    bare, whole, processor = (round(min(each[n] for each in found) * 1e3, 2) for n in range(3))
    heavy = found[-1][3]
    return {
        "import_ms": whole,
        "import_cpu_ms": processor,
        "import_bare_ms": bare,
        "import_heavy": len(heavy),
        "import_heavy_names": heavy,
    }


def shared_memory(pids: Iterable[int]) -> int:
    """Bytes of files in /dev/shm that these processes map or hold open."""
    files: dict[str, int] = {}
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                parts = line.split(maxsplit=5)
                if len(parts) == 6 and parts[5].startswith("/dev/shm/"):
                    low, high = (int(word, 16) for word in parts[0].split("-"))
                    files[parts[5]] = files.get(parts[5], 0) + high - low
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(entry)
                if target.startswith("/dev/shm/"):
                    files.setdefault(target, entry.stat().st_size)
        except OSError:
            continue
    return sum(files.values())


def works_in(world: str, place: Path) -> bool | None:
    """Whether jobs run where /dev/shm is like that; None where such a world cannot be made."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return None
    if subprocess.run(["unshare", "-m", "sh", "-c", _WORLDS[world]], capture_output=True).returncode:
        return None
    jobs = [sys.executable, "-m", "bench.roundtrip", "--quick", "--dir", str(place)]
    script = f"{_WORLDS[world]} && exec {shlex.join(jobs)}"
    result = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=harness.ROOT, capture_output=True)
    return result.returncode == 0


def used_shm() -> int:
    """Bytes in /dev/shm, whoever put them there."""
    try:
        info = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def measure(sizes: Sizes, place: Path) -> Measured:
    """Import times in milliseconds, memory in megabytes, what shared memory is used."""
    imports = import_times(sizes.imports)
    before = used_shm()
    with harness.warm_pool(place, ENGINES) as pool:
        trips(pool, 20, durable=False)
        echoed(pool, 20)
        arrays(pool, sizes.arrays, 16)
        supervisor = harness.supervisor_pid(pool.spool.root)
        assert supervisor is not None
        family = psutil.Process(supervisor).children(recursive=True)
        held = shared_memory([os.getpid(), supervisor, *(process.pid for process in family)])
        grown = used_shm() - before
        resident = sum(process.memory_info().rss for process in [psutil.Process(supervisor), *family])
    worlds = {world: works_in(world, place) for world in sizes.worlds}
    figures: dict[str, Any] = {
        "shm_bytes": held,
        "shm_worlds": worlds,
        "shm_growth_bytes": grown,
        **imports,
        "resident_mb": round(resident / 1e6, 1),
    }
    rows = [
        Row("/dev/shm held", f"{held} bytes", f"grown by {grown} bytes, whoever did it", "shm_bytes"),
        Row("  works where it is …", ", ".join(f"{world}: {_SAID[ok]}" for world, ok in worlds.items())),
        Row(
            "from pool import FilePool",
            harness.ms(imports["import_ms"]),
            f"{imports['import_cpu_ms']:.0f} ms of a processor",
            "import_ms",
        ),
        Row(
            "  heavy modules with it",
            ", ".join(imports["import_heavy_names"]) or "none",
            " ".join(HEAVY),
            "import_heavy",
        ),
        Row("resident, supervisor and 2 workers", f"{figures['resident_mb']} MB"),
    ]
    return Measured("footprint", figures, rows)


if __name__ == "__main__":
    sys.exit(harness.main(__doc__, measure, Sizes(), QUICK))
