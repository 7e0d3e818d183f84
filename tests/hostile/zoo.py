"""Things that a person, or a program gone wrong, can put into a folder: none of them is a job."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path

import msgpack

Drop = Callable[[Path, Path], object]  # (drop box, a place outside the spool)


def _text(name: str, text: str | bytes) -> Drop:
    data = text.encode() if isinstance(text, str) else text
    return lambda box, outside: (box / name).write_bytes(data)


def _job(name: str, **fields: object) -> Drop:
    return _text(name, json.dumps({"engine": "fake", "params": {}, **fields}))


def _link(name: str, target: Callable[[Path], str]) -> Drop:
    return lambda box, outside: os.symlink(target(outside), box / name)


def _socket(box: Path, outside: Path) -> None:
    here = os.getcwd()
    os.chdir(box)  # a socket's name is at most 108 bytes
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind("socket.json")
    finally:
        os.chdir(here)


def _sparse(box: Path, outside: Path) -> None:
    with open(box / "sparse.json", "wb") as file:
        file.truncate(1 << 40)


def _twins(box: Path, outside: Path) -> None:
    (box / "twin-1.json").write_text('{"engine": "fake"}')
    os.link(box / "twin-1.json", box / "twin-2.json")


def _device(box: Path, outside: Path) -> None:
    with contextlib.suppress(PermissionError):
        os.mknod(box / "device.json", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero never ends


def _unreadable(box: Path, outside: Path) -> None:
    (box / "unreadable.json").write_text('{"engine": "fake"}')
    (box / "unreadable.json").chmod(0)


def _folder(box: Path, outside: Path) -> None:
    (box / "folder.json").mkdir()
    (box / "folder.json" / "inside.json").write_text('{"engine": "fake"}')


#: Invariants 22 and 23: kinds of files, and names.
FILES: dict[str, Drop] = {
    "link to a file": _link("link.json", lambda outside: str(outside / "secret.json")),
    "link to a folder": _link("links.json", lambda outside: str(outside)),
    "link to itself": _link("loop.json", lambda outside: "loop.json"),
    "link into proc": _link("environ.json", lambda outside: "/proc/self/environ"),
    "link to zeros": _link("zero.json", lambda outside: "/dev/zero"),
    "link to nothing": _link("nothing.json", lambda outside: "nowhere"),
    "fifo": lambda box, outside: os.mkfifo(box / "fifo.json"),
    "socket": _socket,
    "folder": _folder,
    "device": _device,
    "sparse": _sparse,
    "two links": _twins,
    "link from outside": lambda box, outside: os.link(outside / "secret.json", box / "shared.json"),
    "unreadable": _unreadable,
    "empty": _text("empty.json", ""),
}
NAMES: dict[str, Drop] = {
    "id with a path": _job("a1.json", id="../../outside/pwned"),
    "id from the root": _job("a2.json", id="/tmp/pwned"),
    "id with zero": _job("a3.json", id="a\0b"),
    "id with a line": _job("a4.json", id="a\nb"),
    "id with a dot": _job("a5.json", id=".hidden"),
    "id with a dash": _job("a6.json", id="-rf"),
    "id too long": _job("a7.json", id="x" * 101),
    "id for a shell": _job("a8.json", id="$(touch pwned)"),
    "id that is a number": _job("a9.json", id=7),
    "engine with a path": _job("b1.json", engine="../out"),
    "engine that is a module": _job("b2.json", engine="os:system"),
    "engine that is none": _job("b3.json", engine="nobody"),
    "engine with zero": _job("b4.json", engine="fake\0"),
    "engine that is a list": _job("b5.json", engine=["fake"]),
    "a spec beside it": _job("b6.json", spec="os:system"),
    "python beside it": _job("b7.json", python="/bin/sh"),
    "internal fields": _job("b8.json", digest="x", durable=False, max_attempts=99, created=0, protocol=1),
    "priority from the sky": _job("b9.json", priority=10**9),
    "no number of retries": _job("c1.json", retry_times=-1),
    "endless": _job("c2.json", timeout_s=1e308 * 10),
    "unknown parameter": _job("c3.json", params={"do": "echo", "__class__": "x"}),
    "unknown thing to do": _job("c4.json", params={"do": "rm -rf /"}),
}
_MILLION = 1_000_000
BYTES: dict[str, Drop] = {
    "deep": _text("deep.json", b'{"engine": "fake", "params": ' + b'{"a":' * 100_000),
    "deep and whole": _text("deep2.json", b'{"engine": "fake", "params": ' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "deep msgpack": _text("deep.msgpack", b"\x81\xa6engine" + b"\x91" * 100_000),
    "lying array": _text("lie1.msgpack", b"\xdd\xff\xff\xff\xff"),
    "lying map": _text("lie2.msgpack", b"\xdf\xff\xff\xff\xff"),
    "lying text": _text("lie3.msgpack", b"\xdb\xff\xff\xff\xff"),
    "lying extension": _text("lie4.msgpack", b"\xc9\xff\xff\xff\xff\x01"),
    "arrays of a million": _text("lies.msgpack", b"\xdd\x00\x0f\x42\x40" * 200_000),
    "a million maps": _text("maps.msgpack", b"\xdd\x00\x0f\x42\x00" + b"\x80" * 999_936),
    "a million lists": _text("lists.json", b"[" + b"[]," * 330_000 + b"1]"),
    "one long number": _text("number.json", b"9" * _MILLION),
    "too large": _text("large.json", b" " * (_MILLION + 100_000)),
    "cut": _text("cut.msgpack", msgpack.packb({"engine": "fake", "params": {"value": "x" * 50}})[:-10]),
    "and more": _text("more.msgpack", msgpack.packb({"engine": "fake"}) + b"\x00"),
    "not a number": _text("nan.json", '{"engine": "fake", "params": {"seconds": NaN}}'),
    "infinite": _text("inf.json", '{"engine": "fake", "params": {"seconds": 1e999}}'),
    "huge integer": _text("huge.json", '{"engine": "fake", "params": {"value": 99999999999999999999999}}'),
    "a key twice": _text("twice.json", '{"engine": "fake", "engine": "echo"}'),
    "no UTF-8": _text("utf.json", b'{"engine": "fake", "params": {"value": "\xff\xfe"}}'),
    "no text for a key": _text("key.msgpack", b"\x82\xa6engine\xa4fake\x01\x02"),
    "a pickle": _text("pickle.msgpack", b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."),
    "a timestamp": _text("time.msgpack", b"\x82\xa6engine\xa4fake\xa6params\x81\xa5value\xd6\xff\0\0\0\1"),
    "a list": _text("list.json", "[1, 2, 3]"),
}
ZOO = {**FILES, **NAMES, **BYTES}


def noise(box: Path, rng: random.Random, count: int) -> None:
    """Small files of random bytes under names people would not choose."""
    for number in range(count):
        name = bytes(byte for byte in rng.randbytes(rng.randint(1, 40)) if byte not in (0, 0x2F)).lstrip(b".")
        path = os.path.join(os.fsencode(box), b"%d-" % number + name + rng.choice([b".json", b".msgpack"]))
        with open(path, "wb") as file:
            file.write(rng.randbytes(rng.randint(0, 200)))
