"""One side of the floor: a bare Python process, its files and inotify; nothing of the pool, no watchdog.

    python peer.py pong DIR                            answers every file in DIR/pong with one in DIR/ping
    python peer.py ping DIR                            per line "COUNT DURABLE BYTES" on stdin: the times
    python peer.py store DIR JOB_BYTES RESULT_BYTES    per line "COUNT SYNC": the seconds it took

A message is a file: written in DIR/tmp, renamed into the other's directory, noticed by inotify, read; the one
who read it removes it, after the answer is on its way. Durable: the file is synced before the rename, the
directory after it. SYNC: 0 nothing, 1 the files, 2 the directories too (per record; once per line for the jobs).
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys
import time

_IN_MOVED_TO = 0x00000080
_EVENT = struct.Struct("iIII")
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def write(directory: str, target: str, name: str, body: bytes, durable: bool) -> None:
    """A file that appears whole: temp file, rename; durable: survives power loss when this returns."""
    temp = f"{directory}/tmp/{os.getpid()}.{name}"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.write(fd, body)
    if durable:
        os.fsync(fd)
    os.close(fd)
    os.rename(temp, f"{directory}/{target}/{name}")
    if durable:
        sync_dir(f"{directory}/{target}")


def sync_dir(path: str) -> None:
    """fsync a folder."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def read(path: str) -> bytes:
    """The first MiB of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    body = os.read(fd, 1 << 20)
    os.close(fd)
    return body


def watch(path: str) -> int:
    """A descriptor that reads as events of files renamed into `path`."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), _IN_MOVED_TO) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"inotify: {os.strerror(code)}", path)
    return fd


def names(fd: int) -> list[str]:
    """Names of the files that arrived; sleeps until there is one."""
    buffer = os.read(fd, 4096)
    found, at = [], 0
    while at < len(buffer):
        length = _EVENT.unpack_from(buffer, at)[3]
        found.append(buffer[at + 16 : at + 16 + length].rstrip(b"\0").decode())
        at += 16 + length
    return found


def pong(directory: str) -> None:
    """Answer each file with a file, until killed."""
    fd = watch(f"{directory}/pong")
    answer("ready")
    while True:
        for name in names(fd):
            path = f"{directory}/pong/{name}"
            write(directory, "ping", name, read(path), name.startswith("d"))
            os.unlink(path)


def ping(directory: str) -> None:
    """Send files and wait for the answers, as often as stdin says."""
    fd = watch(f"{directory}/ping")
    answer("ready")
    serial = 0
    for line in sys.stdin:
        count, durable, size = (int(word) for word in line.split())
        body, seconds = b"x" * size, []
        for _ in range(count):
            serial += 1
            name = f"{'d' if durable else 'p'}{serial:09d}"
            begun = time.perf_counter()
            write(directory, "pong", name, body, bool(durable))
            path = f"{directory}/ping/{names(fd)[0]}"
            read(path)
            seconds.append(time.perf_counter() - begun)
            os.unlink(path)
        answer(seconds)


def store(directory: str, job_bytes: int, result_bytes: int) -> None:
    """The files that jobs make, and nothing else: no process waits for another."""
    job, result, serial = b"j" * job_bytes, b"r" * result_bytes, 0
    answer("ready")
    for line in sys.stdin:
        count, sync = (int(word) for word in line.split())
        begun = time.perf_counter()
        for _ in range(count):
            serial += 1
            for target, body in (("ready", job), ("out", result)):
                temp = f"{directory}/tmp/{os.getpid()}.{serial}"
                fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                os.write(fd, body)
                if sync:
                    os.fsync(fd)
                os.close(fd)
                os.rename(temp, f"{directory}/{target}/{os.getpid()}.{serial}")
            if sync == 2:
                sync_dir(f"{directory}/out")
        if sync == 2:
            sync_dir(f"{directory}/ready")
        answer(time.perf_counter() - begun)


def answer(value: object) -> None:
    """Say a value on stdout, as one line of JSON."""
    print(json.dumps(value), flush=True)


def main(argv: list[str]) -> None:
    """Play the role that the command line names; ends with its parent."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    role, directory, *rest = argv
    if role == "store":
        store(directory, int(rest[0]), int(rest[1]))
    elif role == "ping":
        ping(directory)
    else:
        pong(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
