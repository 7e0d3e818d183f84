"""The only module that creates, writes, syncs, links, renames and removes in the spool.

Every operation announces itself to `step` first: a test sets `hook` and can end the process at operation n, or
record the trace. Errors are checked at write, fsync and close; a file whose fsync failed is discarded and never
synced again, because the kernel may have dropped its dirty pages.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Union

Buffer = Union[bytes, memoryview]  # noqa: UP007 - old interpreters

#: Called with (operation, path) before each operation.
hook: Callable[[str, str], None] | None = None

#: Errors of a disk without room.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_RENAME_NOREPLACE = 1
_AT_FDCWD = -100


def _find_renameat2() -> Callable[[bytes, bytes], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return lambda src, dst: int(function(_AT_FDCWD, src, _AT_FDCWD, dst, _RENAME_NOREPLACE))


_renameat2 = _find_renameat2()


def step(operation: str, path: str) -> None:
    """Tell `hook` what is about to be done; tests stop a process there."""
    if hook is not None:
        hook(operation, path)


def write_new(path: str, chunks: Sequence[Buffer], *, sync: bool) -> None:
    """Create `path` (it must not exist), mode 0600, with all chunks; on any error nothing is left behind."""
    step("create", path)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            _keep_mode(fd, 0o600)
            for chunk in chunks:
                step("write", path)
                _write_all(fd, chunk)
            if sync:
                step("fsync", path)
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException as error:
        try:
            os.unlink(path)
        except OSError:
            pass
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path
        raise


def _keep_mode(fd: int, mode: int) -> None:
    """The umask may have taken from our mode what we need ourselves. To look costs less than to set."""
    if hasattr(os, "fchmod") and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        os.fchmod(fd, mode)


def _write_all(fd: int, chunk: Buffer) -> None:
    done = os.write(fd, chunk)
    if done < len(chunk):
        view = memoryview(chunk)
        while done < len(view):
            done += os.write(fd, view[done:])


def rename(src: str, dst: str) -> None:
    """Atomic; replaces dst. The commit point of claim, release, retry and every move inside the spool."""
    step("rename", dst)
    os.rename(src, dst)


def replace(src: str, dst: str) -> None:
    """Atomic, portable, replaces dst: progress, control and other files of which only the latest counts."""
    step("replace", dst)
    os.replace(src, dst)


def put(temp: str, path: str, chunks: Sequence[Buffer], *, sync: bool) -> None:
    """Write `path`, mode 0600, over what is there; whole or not at all, and `temp` goes either way."""
    write_new(temp, chunks, sync=sync)
    try:
        replace(temp, path)
    except BaseException:
        try:
            os.unlink(temp)
        except OSError:
            pass
        raise


def append(path: str, data: bytes) -> None:
    """Add to the end of a file in one write, mode 0600; it is made when it is not there."""
    step("append", path)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(fd, data)
    finally:
        os.close(fd)


def rename_noreplace(src: str, dst: str) -> None:
    """Atomic; FileExistsError when dst exists. The commit point of publish.

    renameat2(2) where kernel and file system have it, else link and unlink (both give EEXIST).
    """
    step("publish", dst)
    if _renameat2 is not None:
        if _renameat2(os.fsencode(src), os.fsencode(dst)) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), src, None, dst)
    os.link(src, dst)
    step("unlink", src)
    os.unlink(src)


def link(src: str, dst: str) -> None:
    """Hard link; FileExistsError when dst exists. Reserves an id."""
    step("link", dst)
    os.link(src, dst)


def unlink(path: str, *, missing_ok: bool = False) -> bool:
    """Remove a file; whether it was there."""
    step("unlink", path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        if not missing_ok:
            raise
        return False
    return True


def make_dir(path: str) -> bool:
    """Create a directory, mode 0700 whatever the umask; whether it is new."""
    step("mkdir", path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    os.chmod(path, 0o700)
    return True


def remove_dir(path: str) -> bool:
    """Remove a directory if it is empty; whether it is gone."""
    step("rmdir", path)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def renew_dir(path: str, spare: str) -> bool:
    """Put a new directory in the place of an empty one, atomically; False when it is not empty.

    An ext4 directory never shrinks: once it held 100,000 names, listing it costs 0.44 ms for ever.
    """
    step("renew", path)
    os.mkdir(spare, 0o700)
    os.chmod(spare, 0o700)
    try:
        os.rename(spare, path)
    except OSError as error:
        os.rmdir(spare)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def sync_dir(path: str) -> None:
    """Make the names in a directory survive power loss."""
    step("syncdir", path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        os.sync()  # no descriptor is left for it, and the name must be synced all the same
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str) -> None:
    """Make the content of a file that an engine wrote survive power loss."""
    step("fsync", path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a directory with all it holds; silent when it is not there."""
    step("rmtree", path)
    shutil.rmtree(path, ignore_errors=True)


def read_bounded(path: str | Path, limit: int) -> bytes:
    """Content of a regular file, at most `limit` bytes; OSError(EFBIG) beyond, never blocks on a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        data = os.read(fd, 65536)
        if not data and not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if len(data) < 65536 and len(data) <= limit:
            # RACE: none: our own files are complete when they have their name, so a short read is the end.
            return data
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size} bytes, more than {limit}", str(path))
        parts = [data]
        left = limit - len(data) + 1
        while left > 0:
            part = os.read(fd, min(left, 1 << 20))
            if not part:
                return b"".join(parts)
            parts.append(part)
            left -= len(part)
        raise OSError(errno.EFBIG, f"more than {limit} bytes", str(path))
    finally:
        os.close(fd)
