"""The spool tree: ours alone, on one mount, private whatever the umask; its identity; its clock."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pool.errors import SpoolError
from pool.format.names import JobName
from pool.spool import fsops, layout
from pool.spool.layout import MARKER, RUN, TOP
from pool.spool.store import Spool

STRANGER = 65534
YEAR_US = 365 * 86400 * 1_000_000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """Mounts for the length of a test."""
    mounted: list[Path] = []

    def do(place: Path, *argv: str) -> None:
        made = subprocess.run(["mount", *argv, str(place)], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"no right to mount here: {made.stderr.strip()}")
        mounted.append(place)

    yield do
    for place in reversed(mounted):
        subprocess.run(["umount", "-l", str(place)], check=True)


def _tree(root: Path) -> dict[str, int]:
    paths = [root, *root.rglob("*")]
    return {str(path.relative_to(root)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


# ---- making it


def test_a_tree_is_made_once_and_keeps_its_identity(root: Path) -> None:
    made = layout.prepare(root)
    before = _tree(root)
    assert layout.prepare(root) == made == layout.identity(root)
    assert _tree(root) == before
    assert set(os.listdir(root)) == set(TOP)
    assert len(made) == 32


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids=oct)
@pytest.mark.invariant(25)
def test_modes_whatever_the_umask(root: Path, umask: int) -> None:
    os.umask(umask)
    Spool.create(root)
    os.umask(0o022)
    wrong = {
        name: oct(mode) for name, mode in _tree(root).items() if mode != (0o700 if (root / name).is_dir() else 0o600)
    }
    assert not wrong


def test_missing_parts_are_made_again(root: Path) -> None:
    made = layout.prepare(root)
    shutil.rmtree(root / "progress")
    shutil.rmtree(root / "run" / "control")
    with pytest.raises(SpoolError, match="progress is missing: start the pool once"):
        layout.check(root)
    assert layout.prepare(root) == made


_MAKE = """
import os, sys
from pathlib import Path
from pool.spool import layout
from pool.spool.store import Spool
while not os.path.exists(sys.argv[1] + ".go"):
    pass
spool = Spool.create(Path(sys.argv[1]))
print(spool.id, layout.clock_offset(spool.root))
"""


def test_ten_that_make_it_at_once_agree(root: Path, child_env: dict[str, str]) -> None:
    argv = [sys.executable, "-c", _MAKE, str(root)]
    children = [
        subprocess.Popen(argv, env=child_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    Path(f"{root}.go").touch()
    said = [child.communicate(timeout=60) for child in children]
    assert {error for _, error in said} == {""}
    assert len({line for line, _ in said}) == 1
    assert not os.listdir(root / "tmp")


# ---- refusing it


@pytest.mark.parametrize("name", [".", *TOP, *RUN])
@pytest.mark.invariant(25)
def test_a_directory_that_others_may_write_is_refused(root: Path, name: str) -> None:
    layout.prepare(root)
    path = root / name
    path.chmod(0o707)
    with pytest.raises(SpoolError, match=r"writable by others \(mode 0707\): chmod go-w") as caught:
        layout.prepare(root)
    assert str(path) in str(caught.value)
    path.chmod(0o770)
    if name == "in":
        layout.prepare(root)  # the one place where a group may drop
    else:
        with pytest.raises(SpoolError, match="writable by others"):
            layout.prepare(root)


@as_root
@pytest.mark.parametrize("name", [".", "in", "ready", "run", "run/control"])
@pytest.mark.invariant(25)
def test_a_directory_of_another_user_is_refused(root: Path, name: str) -> None:
    layout.prepare(root)
    os.chown(root / name, STRANGER, STRANGER)
    with pytest.raises(SpoolError, match=f"belongs to user {STRANGER}, not to 0: chown it") as caught:
        layout.prepare(root)
    assert str(root / name) in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "fifo"])
def test_what_is_no_directory_is_refused(root: Path, tmp_path: Path, kind: str) -> None:
    layout.prepare(root)
    path = root / "work"
    path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "file":
        path.touch()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    with pytest.raises(SpoolError, match="work is not a directory: move it away"):
        layout.prepare(root)


def test_a_link_to_the_spool_as_a_whole_is_fine(root: Path, tmp_path: Path) -> None:
    layout.prepare(root)
    (tmp_path / "link").symlink_to(root)
    assert layout.prepare(tmp_path / "link") == layout.identity(root)


@pytest.mark.parametrize("name", ["work", "out", "run/control"])
@pytest.mark.invariant(17)
def test_a_file_system_of_its_own_is_refused(root: Path, name: str, mount: Callable[..., None]) -> None:
    layout.prepare(root)
    mount(root / name, "-t", "tmpfs", "-o", "size=64k,mode=0700", "none")
    with pytest.raises(SpoolError, match="must be on one mount") as caught:
        layout.prepare(root)
    assert str(root / name) in str(caught.value)


@pytest.mark.parametrize("name", ["in", "out", "ready/echo"])
@pytest.mark.invariant(17)
def test_a_bind_mount_of_the_same_disk_is_refused(
    root: Path, tmp_path: Path, name: str, mount: Callable[..., None]
) -> None:
    """The device is the same, and every rename across it fails with EXDEV all the same."""
    layout.prepare(root)
    (root / "ready" / "echo").mkdir()
    (tmp_path / "with space").mkdir(mode=0o700)
    mount(root / name, "--bind", str(tmp_path / "with space"))
    with pytest.raises(SpoolError, match="must be on one mount") as caught:
        layout.prepare(root)
    assert str(root / name) in str(caught.value)


@pytest.mark.parametrize("make", ["a file in the way", "no right", "a full disk"])
def test_a_tree_that_cannot_be_made_says_so(root: Path, make: str) -> None:
    if make == "a file in the way":
        root.write_bytes(b"")
    elif make == "a full disk":

        def fail(operation: str, path: str) -> None:
            if operation == "mkdir" and path.endswith("/deferred"):
                raise OSError(28, "No space left on device", path)

        fsops.hook = fail
    else:
        root = Path("/proc/self/spool")
    with pytest.raises(SpoolError, match="cannot be made"):
        layout.prepare(root)


# ---- identity


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"protocol": 2, "id": "x"}', b'{"protocol": 1}', b"\xff", b"7", b"x" * 9999]
)
def test_a_damaged_or_foreign_marker_is_refused(root: Path, content: bytes) -> None:
    layout.prepare(root)
    (root / MARKER).write_bytes(content)
    with pytest.raises(SpoolError, match=r"cannot be read|another protocol"):
        layout.identity(root)


def test_what_is_no_spool_says_so(root: Path) -> None:
    with pytest.raises(SpoolError, match="is no spool"):
        Spool(root)
    with pytest.raises(SpoolError):
        layout.check(root)


# ---- the spool clock


class Wall:
    """A wall clock that a test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift_us = 0
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real() + self.shift_us * 1000)
        monkeypatch.setattr(time, "time", lambda: (real() + self.shift_us * 1000) / 1e9)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    return Wall(monkeypatch)


def _next_boot(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "boot_tag", lambda: "another-boot")
    assert not (root / "run" / "clock-another-boot").exists()


def test_it_looks_like_the_wall_clock(spool: Spool) -> None:
    assert abs(spool.now() - time.time_ns() // 1000) < 5_000_000


@pytest.mark.parametrize("years", [-10, 10])
def test_a_jump_of_the_wall_clock_is_not_seen(root: Path, wall: Wall, years: int) -> None:
    first = Spool.create(root)
    before = first.now()
    wall.shift_us = years * YEAR_US
    later = Spool(root)  # another process of the same boot
    assert 0 <= first.now() - before < 5_000_000
    assert 0 <= later.now() - before < 5_000_000


@pytest.mark.parametrize("place", ["ready/echo", "work/echo-0.1", "deferred", "away"])
def test_after_a_reboot_with_a_wrong_clock_time_goes_on(
    root: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    spool = Spool.create(root)
    last = spool.now()
    name = str(JobName(500, last, "job", 1))
    (root / place).mkdir(exist_ok=True)
    before = {"deferred": f"{last:016d}.echo.", "away": "echo."}
    (root / place / f"{before.get(place, '')}{name}").touch()
    wall.shift_us = -10 * YEAR_US
    _next_boot(root, monkeypatch)
    assert last < Spool(root).now() < last + 5_000_000


def test_after_a_reboot_what_waits_for_its_time_waits_on(
    root: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job for next year must not make it next year."""
    spool = Spool.create(root)
    due = spool.now() + YEAR_US
    (root / "deferred" / f"{due:016d}.echo.{JobName(500, spool.now(), 'job', 0)}").touch()
    _next_boot(root, monkeypatch)
    later = Spool(root)
    assert due - later.now() > YEAR_US - 60_000_000
    assert later.wake_deferred() == due


def test_after_a_reboot_an_empty_spool_takes_the_wall_clock(
    root: Path, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spool.create(root)
    wall.shift_us = YEAR_US
    _next_boot(root, monkeypatch)
    assert abs(Spool(root).now() - time.time_ns() // 1000) < 5_000_000


def test_a_damaged_clock_file_says_what_to_do(root: Path) -> None:
    Spool.create(root)
    (clock,) = (root / "run").glob("clock-*")
    clock.write_bytes(b"")
    with pytest.raises(SpoolError, match="is damaged: remove it"):
        Spool(root)
    clock.unlink()
    Spool(root)
