"""The fuzzing targets with a fixed seed, in half a gigabyte; `python -m fuzz` goes on for as long as one likes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from steps import in_child

from .mutate import mutations
from .targets import SEEDS, TARGETS

COUNT = {"decode": 1500, "record": 1500, "name": 2000, "drop": 800}


def _inputs(target: str, seed: int, count: int) -> Iterator[bytes]:
    yield from SEEDS[target]
    yield from mutations(SEEDS[target], seed, count)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.invariant(24)
def test_anything_is_a_value_or_a_reason(tmp_path: Path, target: str) -> None:
    note = tmp_path / "input"

    def run() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (512 << 20), used + (512 << 20)))
        for data in _inputs(target, 1, COUNT[target]):
            note.write_bytes(data)
            TARGETS[target](data)

    assert in_child(run) == 0, note.read_bytes()[:2000]


def test_the_same_seed_gives_the_same_inputs() -> None:
    first = list(mutations(SEEDS["drop"], 7, 50))
    assert first == list(mutations(SEEDS["drop"], 7, 50))
    assert len(set(first)) > 40
