"""A small seeded fuzzer for machines without atheris: cuts, copies, flips, and what numbers do not like."""

from __future__ import annotations

import random
from collections.abc import Iterator

TOKENS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\x00\x0f\x42\x40",
    b"\xc6\x7f\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x81",
    b"\x91",
    b"\xc1",
    b"\xcb\x7f\xf0" + b"\0" * 6,
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"[" * 70,
    b'{"a":' * 70,
    b"NaN",
    b"1e999",
    b"-0",
    b"9" * 400,
    b"\\ud800",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"../",
    b"/etc/passwd",
    b"\0",
    b"\n",
    b'"engine"',
    b'"params"',
    b'"id"',
    b"null",
    b"true",
    b"{}",
    b"[]",
    b'"',
    b"echo",
    b"fake",
    b".",
    b"-",
    b"\xe2\x80\xae",
)


def mutations(seeds: list[bytes], seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs, the same for the same seed."""
    rng = random.Random(seed)
    pool = list(seeds)
    for _ in range(count):
        data = bytearray(rng.choice(pool))
        for _ in range(rng.randint(1, 6)):
            _change(data, pool, rng)
        result = bytes(data[:1_000_000])
        if rng.random() < 0.02:
            pool.append(result)
            del pool[len(seeds) : -40]
        yield result


def _change(data: bytearray, pool: list[bytes], rng: random.Random) -> None:
    at = rng.randint(0, len(data))
    end = min(len(data), at + rng.randint(0, 12))
    what = rng.randrange(7)
    if what == 0:
        data[at:end] = b""
    elif what == 1:
        data[at:end] = rng.choice(TOKENS)
    elif what == 2:
        data[at:at] = data[at:end] * rng.randint(1, 200)
    elif what == 3 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif what == 4:
        data[at:end] = rng.randbytes(rng.randint(0, 8))
    elif what == 5:
        other = rng.choice(pool)
        data[at:] = other[rng.randint(0, len(other)) :]
    elif at < len(data):
        data[at] = rng.choice((0, 0x7F, 0x80, 0xC0, 0xC7, 0xFF))
