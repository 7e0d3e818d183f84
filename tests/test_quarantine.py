"""Quarantine: each thing with its reason, whoever was killed; nothing replaced, nothing thrown away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pool.spool import fsops, quarantine
from pool.spool.store import Spool


@pytest.fixture
def place(spool: Spool) -> Path:
    return spool.root / "quarantine"


def _keep(spool: Spool, name: str, content: str = "x") -> bool:
    path = spool.root / "in" / "it"
    path.write_text(content)
    return quarantine.keep(spool, str(path), name, f"{content} is no job")


def test_nothing_is_replaced(spool: Spool, place: Path) -> None:
    """Not a thing of the same name either, nor a reason of another thing."""
    for number, name in enumerate(["a", "a", "a.reason.txt", "a.reason.txt", "a/b", "ä\n", "y" * 300]):
        assert _keep(spool, name, str(number))
    things = sorted(name for name in os.listdir(place) if not name.endswith(".reason.txt"))
    assert sorted((place / name).read_text() for name in things) == list("0123456")
    for name in things:
        assert (place / f"{name}.reason.txt").read_text() == f"{(place / name).read_text()} is no job"
    assert len(os.listdir(place)) == 14


def test_what_is_gone_leaves_no_reason(spool: Spool, place: Path) -> None:
    assert not quarantine.keep(spool, str(spool.root / "in" / "gone"), "gone", "why")
    assert os.listdir(place) == []


def test_what_cannot_be_moved_leaves_no_reason(spool: Spool, place: Path) -> None:
    (place / "sub").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):  # a folder into itself
        quarantine.keep(spool, str(place), "x", "why")
    assert os.listdir(place) == ["sub"]


def test_repair_makes_pairs(spool: Spool, place: Path) -> None:
    _keep(spool, "well")
    (place / "orphan.reason.txt").write_text("of a file that never came")
    (place / "bare").write_text("without one")
    (place / "torn").write_text("with one that power loss left empty")
    (place / "torn.reason.txt").touch()
    (place / "folder").mkdir()
    for _ in range(2):
        quarantine.repair(spool)
        assert sorted(os.listdir(place)) == [
            "bare",
            "bare.reason.txt",
            "folder",
            "folder.reason.txt",
            "torn",
            "torn.reason.txt",
            "well",
            "well.reason.txt",
        ]
    assert (place / "well.reason.txt").read_text() == "x is no job"
    for name in ("bare", "torn", "folder"):
        assert "Drop the file again" in (place / f"{name}.reason.txt").read_text()
    assert (place / "bare").read_text() == "without one"
    assert os.listdir(spool.root / "tmp") == []


def test_repair_on_a_full_disk_goes_on(spool: Spool, place: Path) -> None:
    (place / "bare").touch()
    (place / "orphan.reason.txt").touch()

    def full(operation: str, path: str) -> None:
        if operation == "write":
            raise OSError(28, "No space left on device", path)

    fsops.hook = full
    quarantine.repair(spool)
    fsops.hook = None
    assert os.listdir(place) == ["bare"]
    quarantine.repair(spool)
    assert sorted(os.listdir(place)) == ["bare", "bare.reason.txt"]
