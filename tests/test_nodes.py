"""run/nodes.json: what a port writes is what everybody reads, whatever comes in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branch import CPU1, GPU7, SERVERS, Branch, me
from hypothesis import given
from hypothesis import strategies as st

from pool.runfiles import nodes as record
from pool.runfiles.nodes import NodeFacts, Nodes, NodesFile, offered
from pool.runfiles.snapshot import MAX_BYTES
from pool.spool.store import Spool
from pool.system.procs import identity_of


def test_what_is_written_is_read(spool: Spool) -> None:
    told = Nodes(me(), 5, SERVERS, True, "", "100000 jobs wait", (GPU7, CPU1))
    record.write(spool, told)
    assert record.read(spool.root) == told
    assert offered(told, ("portrait",)) == {"lipsync": 1, "portrait": 0, "transcribe": 3}


def test_without_a_file_or_a_living_writer_there_is_no_word(spool: Spool) -> None:
    assert record.read(spool.root) is None
    assert not record.is_branch(spool.root)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writer = identity_of(child.pid)
    assert writer is not None
    file = NodesFile(spool.root)
    record.write(spool, Nodes(writer, 5, nodes=(GPU7,)))
    assert file.read() is not None
    child.communicate()
    assert file.read() is None
    assert record.read(spool.root) is None
    assert record.is_branch(spool.root)


def test_one_who_looks_again_sees_what_was_replaced(spool: Spool) -> None:
    file, told = NodesFile(spool.root), Nodes(me(), 5, nodes=(GPU7,))
    record.write(spool, told)
    assert file.read() is file.read()
    record.write(spool, replace(told, nodes=(GPU7, CPU1)))
    assert [node.name for node in (file.read() or told).nodes] == ["gpu7", "cpu1"]


def test_secrets_of_servers_stay_with_the_port(spool: Spool) -> None:
    record.write(spool, Nodes(me(), 5, ("nats://ada:secret@one:4222", "tls://token@two")))
    assert "secret" not in (spool.root / "run" / "nodes.json").read_text()
    found = record.read(spool.root)
    assert found is not None
    assert found.servers == ("nats://one:4222", "tls://two")


def test_a_thousand_nodes_with_many_slots_fit(spool: Spool) -> None:
    slots = tuple({"slot": f"e-{n}", "engine": "e", "seat": "running", "message": "x" * 300} for n in range(16))
    many = tuple(replace(GPU7, name=f"n{n}", slots=slots) for n in range(1000))
    record.write(spool, Nodes(me(), 5, nodes=many))
    assert os.path.getsize(spool.root / "run" / "nodes.json") <= MAX_BYTES
    found = record.read(spool.root)
    assert found is not None
    assert len(found.nodes) == 1000


def test_time_alone_is_nothing_new() -> None:
    told = Nodes(me(), 5, SERVERS, True, nodes=(GPU7,))
    later = replace(GPU7, seen_s=3.0, slots=({**GPU7.slots[0], "phase_s": 9.0}, *GPU7.slots[1:]))
    assert told.says(None)
    assert not replace(told, at=9, nodes=(later,)).says(told)
    for change in ({"connected": False}, {"full": "x"}, {"trouble": "x"}, {"nodes": (replace(GPU7, draining=True),)}):
        assert replace(told, **change).says(told)  # type: ignore[arg-type]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["at", "servers", "connected", "trouble", "full", "nodes"]), junk),
    st.lists(
        st.dictionaries(
            st.sampled_from([*NodeFacts.__dataclass_fields__]),
            junk | st.just("n") | st.dictionaries(st.sampled_from(["e", "E", ""]), junk),
        )
    ),
)
def test_damage_is_read_as_far_as_it_makes_sense(about: dict[str, Any], nodes: list[Any]) -> None:
    value = json.loads(json.dumps({"nodes": nodes, **about, "identity": me().to_map()}))
    found = Nodes.from_map(value)
    assert Nodes.from_map(json.loads(json.dumps(found.to_map()))) == found
    offered(found)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"{}", b'{"identity": 5}', b"\xff", b'{"identity": {"pid": 1}}'])
def test_a_file_of_another_hand_is_no_word(spool: Spool, content: bytes) -> None:
    (spool.root / "run" / "nodes.json").write_bytes(content)
    assert record.read(spool.root) is None


def test_a_branch_is_known_by_its_configuration(tmp_path: Path) -> None:
    assert Branch(tmp_path).config.is_branch
