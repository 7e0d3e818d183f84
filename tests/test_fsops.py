"""The durable operations: whole or not at all, never over another's work, on every kind of full disk."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pool.spool import fsops

KB = 1024


@pytest.fixture(params=["renameat2", "link"])
def both_publishes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's no-replace rename, and without it: what old kernels and file systems offer."""
    if request.param == "link":
        monkeypatch.setattr(fsops, "_renameat2", None)
    elif fsops._renameat2 is None:
        pytest.skip("this libc has no renameat2")
    return str(request.param)


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- writing


def test_a_new_file_is_whole_and_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "new"
    fsops.write_new(str(path), [b"head", memoryview(b"tail" * 100_000), b""], sync=True)
    assert path.read_bytes() == b"head" + b"tail" * 100_000
    assert _mode(path) == 0o600


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777], ids=oct)
def test_modes_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    fsops.write_new(str(tmp_path / "file"), [b"x"], sync=False)
    fsops.make_dir(str(tmp_path / "dir"))
    fsops.make_dir(str(tmp_path / "old"))
    fsops.renew_dir(str(tmp_path / "old"), str(tmp_path / "spare"))
    assert _mode(tmp_path / "file") == 0o600
    assert _mode(tmp_path / "dir") == 0o700
    assert _mode(tmp_path / "old") == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory"])
def test_what_is_there_is_never_written_over(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "taken", tmp_path / "other"
    other.write_bytes(b"theirs")
    if kind == "file":
        path.write_bytes(b"theirs")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        fsops.write_new(str(path), [b"ours"], sync=False)
    assert other.read_bytes() == b"theirs"
    assert not (tmp_path / "nowhere").exists()
    assert os.path.lexists(path)


@pytest.mark.parametrize("failing", ["create", "write", "fsync"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, failing: str) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == failing:
            raise OSError(errno.EIO, "injected", path)

    fsops.hook = fail
    with pytest.raises(OSError, match="injected"):
        fsops.write_new(str(tmp_path / "file"), [b"a", b"b"], sync=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.invariant(16)
def test_a_failed_fsync_is_never_repeated_on_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def refuse(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        raise OSError(errno.EIO, "lost pages")

    monkeypatch.setattr(os, "fsync", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="lost pages"):
            fsops.write_new(str(tmp_path / "file"), [b"a"], sync=True)
    assert len(synced) == 2
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_room_helps(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200 * KB)
    for chunks in ([b"y" * 100 * KB], [b"y" * 10 * KB] * 10):
        with pytest.raises(OSError, match="No space left") as caught:
            fsops.write_new(str(small_disk / "file"), chunks, sync=True)
        assert caught.value.errno == errno.ENOSPC
        assert sorted(os.listdir(small_disk)) == ["ballast"]
    ballast.unlink()
    fsops.write_new(str(small_disk / "file"), [b"y" * 100 * KB], sync=True)


def test_no_inode_left_leaves_nothing(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=64", str(small_disk)], check=True)
    while os.statvfs(small_disk).f_ffree:
        (small_disk / f"{len(os.listdir(small_disk))}").touch()
    count = len(os.listdir(small_disk))
    with pytest.raises(OSError, match="No space left"):
        fsops.write_new(str(small_disk / "file"), [b""], sync=False)
    with pytest.raises(OSError, match="No space left"):
        fsops.make_dir(str(small_disk / "dir"))
    assert len(os.listdir(small_disk)) == count


def test_a_file_size_limit_leaves_nothing(tmp_path: Path, file_limit: Callable[[int], None]) -> None:
    file_limit(64 * KB)
    for chunks in ([b"y" * 65 * KB], [b"y" * 60 * KB, b"z" * 5 * KB]):
        with pytest.raises(OSError, match="too large") as caught:
            fsops.write_new(str(tmp_path / "file"), chunks, sync=True)
        assert caught.value.errno == errno.EFBIG
        assert not list(tmp_path.iterdir())
    fsops.write_new(str(tmp_path / "file"), [b"y" * 64 * KB], sync=True)


# ---- publishing


@pytest.mark.invariant(4, 13)
def test_publish_moves_and_never_replaces(tmp_path: Path, both_publishes: str) -> None:
    first, second, place = tmp_path / "first", tmp_path / "second", tmp_path / "place"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    fsops.rename_noreplace(str(first), str(place))
    inode = place.stat().st_ino
    with pytest.raises(FileExistsError):
        fsops.rename_noreplace(str(second), str(place))
    assert place.read_bytes() == b"first"
    assert (place.stat().st_ino, place.stat().st_nlink) == (inode, 1)
    assert second.read_bytes() == b"second"  # the loser still has its work
    assert not first.exists()


def test_publish_does_not_follow_what_stands_in_the_way(tmp_path: Path, both_publishes: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "place").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        fsops.rename_noreplace(str(tmp_path / "file"), str(tmp_path / "place"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("missing", ["source", "folder"])
def test_publish_of_nothing_or_to_nowhere(tmp_path: Path, both_publishes: str, missing: str) -> None:
    source, place = tmp_path / "source", tmp_path / "folder" / "place"
    (tmp_path / "folder").mkdir()
    source.write_bytes(b"x")
    source.unlink() if missing == "source" else (tmp_path / "folder").rmdir()
    with pytest.raises(FileNotFoundError):
        fsops.rename_noreplace(str(source), str(place))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS])
def test_kernels_and_file_systems_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    import ctypes

    def refuse(_src: bytes, _dst: bytes) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(fsops, "_renameat2", refuse)
    (tmp_path / "a").write_bytes(b"a")
    fsops.rename_noreplace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert os.listdir(tmp_path) == ["b"]


_RACE = """
import os, sys
from pool.spool import fsops
if sys.argv[2] == "link":
    fsops._renameat2 = None
root, me = sys.argv[1], os.getpid()
while not os.path.exists(f"{root}/go"):
    pass
won = 0
for number in range(300):
    temp = f"{root}/{me}.temp"
    with open(temp, "w") as file:
        file.write(str(me))
    try:
        fsops.rename_noreplace(temp, f"{root}/place-{number}")
        won += 1
    except FileExistsError:
        os.unlink(temp)
print(won)
"""


@pytest.mark.invariant(4)
def test_one_of_many_publishers_wins(tmp_path: Path, both_publishes: str, child_env: dict[str, str]) -> None:
    argv = [sys.executable, "-c", _RACE, str(tmp_path), both_publishes]
    children = [subprocess.Popen(argv, env=child_env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (tmp_path / "go").touch()
    won = {child.pid: int(child.communicate(timeout=60)[0]) for child in children}
    assert sum(won.values()) == 300
    owners = [int((tmp_path / f"place-{number}").read_text()) for number in range(300)]
    assert {pid: owners.count(pid) for pid in won} == won
    assert not list(tmp_path.glob("*.temp"))


# ---- directories


def test_make_and_remove(tmp_path: Path) -> None:
    path = str(tmp_path / "dir")
    assert fsops.make_dir(path) is True
    assert fsops.make_dir(path) is False
    Path(path, "file").touch()
    assert fsops.remove_dir(path) is False
    Path(path, "file").unlink()
    assert fsops.remove_dir(path) is True
    assert fsops.remove_dir(path) is True
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        fsops.remove_dir(str(tmp_path / "file"))


def test_an_empty_directory_is_renewed_and_a_full_one_is_left(tmp_path: Path) -> None:
    path, spare = tmp_path / "dir", tmp_path / "spare"
    path.mkdir()
    inode = path.stat().st_ino
    (path / "job").touch()
    assert fsops.renew_dir(str(path), str(spare)) is False
    assert (path / "job").exists()
    assert path.stat().st_ino == inode
    (path / "job").unlink()
    assert fsops.renew_dir(str(path), str(spare)) is True
    assert path.stat().st_ino != inode
    assert os.listdir(tmp_path) == ["dir"]


def test_a_renewed_directory_is_small_again(tmp_path: Path) -> None:
    path = tmp_path / "dir"
    path.mkdir()
    fresh = path.stat().st_size
    for number in range(2000):
        (path / f"{number:0100d}").touch()
    for number in range(2000):
        (path / f"{number:0100d}").unlink()
    if path.stat().st_size == fresh:
        pytest.skip("directories of this file system shrink by themselves")
    assert fsops.renew_dir(str(path), str(tmp_path / "spare"))
    assert path.stat().st_size == fresh


def test_unlink_says_whether_it_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert fsops.unlink(str(tmp_path / "a")) is True
    assert fsops.unlink(str(tmp_path / "a"), missing_ok=True) is False
    with pytest.raises(FileNotFoundError):
        fsops.unlink(str(tmp_path / "a"))


# ---- reading


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3 << 20])
def test_reading_up_to_the_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    assert fsops.read_bounded(path, size) == path.read_bytes()
    assert fsops.read_bounded(path, size + 1) == path.read_bytes()
    if size:
        with pytest.raises(OSError, match="more than") as caught:
            fsops.read_bounded(path, size - 1)
        assert caught.value.errno == errno.EFBIG


def test_a_terabyte_of_nothing_is_refused_without_reading(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="more than"):
        fsops.read_bounded(tmp_path / "file", 8 << 20)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "socket"])
def test_only_files_are_read_and_nothing_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "thing"
    (tmp_path / "secret").write_bytes(b"secret")
    if kind == "link":
        path.symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            monkeypatch.chdir(tmp_path)  # a socket's name is at most 108 bytes
            bound.bind("thing")
    with pytest.raises(OSError, match=r"\w"):
        fsops.read_bounded(path, 100)


# ---- the seam


def test_every_operation_announces_itself_before_it_is_done(tmp_path: Path) -> None:
    """What the crash-point loops stand on: nothing durable happens behind the hook's back."""
    trace: list[tuple[str, str, frozenset[str]]] = []
    fsops.hook = lambda operation, path: trace.append((operation, Path(path).name, frozenset(os.listdir(tmp_path))))
    root = str(tmp_path)
    fsops.make_dir(f"{root}/d")
    fsops.write_new(f"{root}/a", [b"1", b"2"], sync=True)
    fsops.rename(f"{root}/a", f"{root}/b")
    fsops.link(f"{root}/b", f"{root}/c")
    fsops.replace(f"{root}/c", f"{root}/b")
    fsops.unlink(f"{root}/c")
    fsops.rename_noreplace(f"{root}/b", f"{root}/e")
    fsops.sync_file(f"{root}/e")
    fsops.sync_dir(root)
    fsops.renew_dir(f"{root}/d", f"{root}/s")
    fsops.remove_dir(f"{root}/d")
    fsops.remove_tree(f"{root}/e")
    assert [entry[:2] for entry in trace] == [
        ("mkdir", "d"),
        ("create", "a"),
        ("write", "a"),
        ("write", "a"),
        ("fsync", "a"),
        ("rename", "b"),
        ("link", "c"),
        ("replace", "b"),
        ("unlink", "c"),
        ("publish", "e"),
        ("fsync", "e"),
        ("syncdir", tmp_path.name),
        ("renew", "d"),
        ("rmdir", "d"),
        ("rmtree", "e"),
    ]
    before = {operation: names for operation, _, names in trace}
    assert "d" not in before["mkdir"]
    assert "a" not in before["create"]
    assert "b" not in before["rename"]
    assert "c" not in before["link"]
    assert "c" in before["unlink"]  # two names of one file: replace leaves both, which is what rename(2) does
    assert "e" not in before["publish"]
