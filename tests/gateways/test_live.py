"""One stream for all that a console shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from gateways.described import Described
from gateways.gateway import Gateway

MANY = 5000  # events after which a stream has said what is awaited


def events(gateway: Gateway, *query: tuple[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(event, data) of a stream, until the caller has enough."""
    with gateway.get("/live", params=list(query), stream=True) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        name, seen = "", 0
        for line in answer.iter_lines(decode_unicode=True):
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                seen += 1
                assert seen < MANY
                yield name, json.loads(value)


def test_a_stream_begins_with_the_pool_and_the_lists_and_tells_what_changes(gateway: Gateway) -> None:
    word = uuid4().hex
    body = {"params": {"value": 1}, "note": word}
    first = gateway.post("/jobs/fake", json=body).json()["id"]
    gateway.result(first)
    told: dict[str, Any] = {}
    second = ""
    for name, data in events(gateway, ("list", f"q={word}"), ("list", "state=completed&state=failed&limit=1")):
        if name == "list":
            told[f"list {data['of']}"] = data
        else:
            told[name] = data
        listed = [job["id"] for job in told.get("list 0", {}).get("jobs", [])]
        begun = {"status", "engines", "list 0", "list 1"} <= set(told) and told["list 1"]["total"]  # it may come late
        if not second and begun:
            assert listed == [first]
            assert told["list 0"]["next"] == ""
            assert told["engines"] == gateway.get("/engines").json()
            assert {engine["name"] for engine in told["status"]["engines"]} >= {"fake", "echo"}
            second = gateway.post("/jobs/fake", json=body).json()["id"]
        if second and listed == [second, first] and told["list 0"]["jobs"][0]["state"] == "completed":
            break
    else:
        pytest.fail("the stream ended")


def test_jobs_are_followed_beside_each_other_from_where_the_client_left(gateway: Gateway) -> None:
    old, new = gateway.submit(do="partials"), gateway.submit(do="partials", seconds=0.1)
    gateway.result(old)
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
    for name, data in events(gateway, ("job", f"{old}@1.3"), ("job", new), ("job", "nobody")):
        if name in ("job", "gone"):
            found[data["of"]].append({"name": name, **data})
        ends = [any(one.get("event") == "result" for one in found[at]) for at in (0, 1)]
        if all(ends) and found[2]:
            break
    else:
        pytest.fail("the stream ended")
    parts = {at: [one["id"] for one in found[at] if one.get("event") == "partial"] for at in (0, 1)}
    assert parts == {0: ["1.4", "1.5"], 1: [f"1.{number}" for number in range(1, 6)]}
    assert found[0][-1]["data"]["state"] == found[1][-1]["data"]["state"] == "completed"
    assert (found[2][0]["name"], found[2][0]["status"]) == ("gone", 404)


def test_events_are_those_that_the_document_describes(gateway: Gateway) -> None:
    described, of_job = Described(gateway, "/live"), Described(gateway, "/jobs/{job_id}/events")
    done, dies, fails = (
        gateway.submit(do="partials"),
        gateway.submit(do="exit", until_attempt=1),
        gateway.submit(do="raise"),
    )
    seen: set[str] = set()
    wrong: list[str] = []
    query = [("list", ""), ("list", "after="), *(("job", one) for one in (done, dies, fails, "nobody"))]
    for name, data in events(gateway, *query):
        wrong += described.faults(name, data)
        seen |= {name, f"job {data['event']}"} if name == "job" else {name}
        seen |= {f"{name} {data['of']}"} if name == "list" else set()
        seen |= {f"end {data['of']}"} if name == "job" and data["event"] == "result" else set()
        if {"status", "engines", "list 0", "list 1", "gone", "end 0", "end 1", "end 2"} <= seen:
            break
    assert wrong == []
    assert {"job partial", "job setback"} <= seen
    assert {name for name in seen if " " not in name} == described.names
    for job_id in (done, dies, fails):
        found = gateway.events(job_id)
        assert [fault for name, its_id, data in found for fault in of_job.faults(name, data, its_id)] == []
        assert found[-1][0] == "result"


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("list=limits%3D2", "list.0.limits"),
        ("list=&list=state%3Dlost", "list.1.state"),
        ("list=limit%3D2%26limit%3D3", "list.0.limit"),
        ("list=since%3Dsoon", "since"),
        ("list=after%3Dx", "after"),
        ("job=a.b", "job.0"),
        ("every_s=0", "every_s"),
        ("lists=", "lists"),
        ("&".join(["list="] * 25), "list"),
    ],
)
def test_a_wrong_wish_is_refused_before_the_stream_begins(gateway: Gateway, query: str, path: str) -> None:
    answer = gateway.get(f"/live?{query}")
    assert (answer.status_code, answer.json()["error"]["path"]) == (422, path), answer.text
