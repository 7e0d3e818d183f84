"""What every test may use: a fresh spool on a real disk, jobs to put into it, names nobody should trust."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

PROJECT = Path(__file__).resolve().parent.parent
if str(PROJECT) not in sys.path:  # `pytest` alone, without `python -m`
    sys.path.insert(0, str(PROJECT))

from steps import JobMaker  # noqa: E402

from pool.config.settings import Config, parse_config  # noqa: E402
from pool.constants import Phase  # noqa: E402
from pool.format.names import new_id  # noqa: E402
from pool.job import Job, digest_of  # noqa: E402
from pool.job.terms import KEYS, Terms  # noqa: E402
from pool.runfiles.heartbeat import Heartbeat  # noqa: E402
from pool.spool import fsops  # noqa: E402
from pool.spool.store import Spool  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background of a shell: programs that the tests start would inherit deafness to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# a worker would look for them in every package that is installed, at a fifth of its start; no test uses one
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")

for profile, examples in (("filepool", 60), ("thorough", 500)):  # the second in `make slow`
    settings.register_profile(
        profile,
        deadline=None,
        max_examples=examples,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile("filepool")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a spool may be made; nothing is there yet."""
    return tmp_path / "spool"


@pytest.fixture
def spool(root: Path) -> Spool:
    """A spool without supervisor and workers; not durable, so that a test is not the disk's speed."""
    return Spool.create(root, durable=False)


@pytest.fixture
def beat(spool: Spool) -> Iterator[Heartbeat]:
    """Of a worker that has the job "mine"."""
    made = Heartbeat(f"{spool.root}/run/heartbeats/echo-0.1")
    made.phase(Phase.BUSY, "mine", "check")
    yield made
    made.close()


@pytest.fixture
def make_job(spool: Spool) -> JobMaker:
    """A job of engine "echo" for `spool`. id given: with the digest that makes submitting it idempotent."""

    def make(engine: str = "echo", id: str | None = None, **more: Any) -> Job:
        params = more.pop("params", {})
        born = more.pop("created", spool.now())
        digest = "" if id is None else digest_of(engine, params, more.get("items"))
        terms = Terms(**{"durable": True, **{key: more.pop(key) for key in KEYS if key in more}})
        return Job(id or new_id(born), engine, params, created=born, terms=terms, **{"digest": digest, **more})

    return make


@pytest.fixture
def config(root: Path) -> Config:
    """A configuration for `spool` with the engines "echo" and "fake"; no floor for the disk's free space."""
    engines = {"echo": {"engine": "inference.fake:Echo"}, "fake": {"engine": "inference.fake:Fake"}}
    document = {"spool": str(root), "durable": False, "min_free_mb": 0, "engines": engines}
    return parse_config(document, root.parent)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir(mode=0o700)
    argv = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(place)]
    made = subprocess.run(argv, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no right to mount a small tmpfs here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Sets how long a file of this process may become (RLIMIT_FSIZE); beyond there is EFBIG, no signal."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def child_env() -> dict[str, str]:
    """Environment of a test's own child processes: they find the project wherever they run."""
    return {**os.environ, "PYTHONPATH": str(PROJECT)}


@pytest.fixture(autouse=True)
def _clean_seams() -> Iterator[None]:
    """No test leaves its hook or its umask to the next one."""
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    fsops.hook = None
    os.umask(umask)


HOSTILE_NAMES: tuple[bytes, ...] = (
    b"..json",
    b"...json",
    b"-rf.json",
    b"--.json",
    b".json",
    b"a b.json",
    b"'quoted'.json",
    b'"double".json',
    b"; touch pwned ;.json",
    b"$(touch pwned).json",
    b"`id`.json",
    b"a\nb.json",
    b"a\rb.json",
    b"tab\t.json",
    b"back\\slash.json",
    b"*.json",
    b"%s%n%d.json",
    b"{0}.json",
    b"\x01\x02.json",
    b"\x7f.json",
    b"\xff\xfe.json",  # not UTF-8
    b"\xed\xa0\x80.json",  # a lone surrogate
    "\u202egnp.json".encode(),  # right-to-left override
    "録音.json".encode(),
    "e\u0301.json".encode(),
    b"CON.json",
    b"A.json",
    b"a.json",
    b"x" * 250 + b".json",  # 255 bytes, the longest there is
    "録".encode() * 83 + b".json",
    b"500.0000000000000000.id.00.msgpack",  # looks like one of ours
)


@pytest.fixture
def hostile_names() -> tuple[bytes, ...]:
    """File names of drops that are legal on Linux and break careless programs."""
    return HOSTILE_NAMES
