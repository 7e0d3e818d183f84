"""Logs over HTTP: as they grow, over their rotations, bounded, without paths for clients elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scenarios.world import wait_until

from gateways.gateway import Gateway
from pool.gateways.http import logs
from pool.gateways.http.logs import News, Tail
from pool.system.logs import rotate, trim


def append(path: Path, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_whole_lines_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "fake-0.log"
    assert Tail(log, 5).read() is None  # not there yet
    append(log, b"one\ntwo\nthree\nfo")
    tail = Tail(log, 2)
    assert tail.read() == News(["two", "three"], 0)
    assert tail.read() is None
    append(log, b"ur\n\x1b[31m10 %\r90 %\x1b[0m\n")
    assert tail.read() == News(["four", "90 %"], 0)
    trim(log, 1, 1)  # what a supervisor does while a worker writes
    append(log, b"five\n")
    assert tail.read() == News(["five"], 0)
    rotate(log, 1)
    append(log, b"six, in a longer log\n")
    assert tail.read() == News(["six, in a longer log"], 0)
    monkeypatch.setattr(logs, "_MOST_BYTES", 100)
    append(log, b"".join(b"line %03d\n" % number for number in range(50)))
    news = tail.read()
    assert news is not None
    assert (news.lines[-1], len(news.lines), news.skipped) == ("line 049", 11, 450 - 99)
    assert Tail(log, 0).read() is None
    monkeypatch.setattr(logs, "_LINE_BYTES", 20)
    append(log, b"x" * 30)
    assert tail.read() == News(["x" * 30], 0)
    os.unlink(log)
    assert tail.read() is None


def test_a_log_is_followed_and_hides_paths_from_elsewhere(gateway: Gateway) -> None:
    names = [log["name"] for log in gateway.get("/logs").json()["logs"]]
    assert {"supervisor", "fake-0", "fake-1"} <= set(names)
    folder = gateway.world.spool / "run" / "logs"
    append(folder / "echo-0.log", f"WARNING cannot read {gateway.world.folder}/secret.wav\n".encode())
    here = gateway.get("/logs/echo-0", params={"end": "true", "lines": 5}).text
    assert f"{gateway.world.folder}/secret.wav" in here
    elsewhere = gateway.get("/logs/echo-0", params={"end": "true"}, headers={"X-Forwarded-For": "192.0.2.1"}).text
    assert "cannot read \\u2026/secret.wav" in elsewhere
    assert str(gateway.world.folder) not in elsewhere
    with gateway.get("/logs/echo-0", params={"lines": 0}, stream=True) as answer:
        found = answer.iter_lines(decode_unicode=True)
        assert next(found) == "retry: 1000"
        append(folder / "echo-0.log", b"a line that comes later\n")
        wait_until(lambda: "a line that comes later" in next(found), "a line that was written meanwhile")
    for name in ("none", "..%2Fsupervisor", "supervisor.json"):
        assert gateway.get(f"/logs/{name}").status_code == 404
