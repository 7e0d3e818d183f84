"""Jobs over HTTP: submit, follow, fetch, cancel, run again, list; the pool's state and metrics."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tracemalloc
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import wait_until

from gateways.gateway import Gateway, staged, wav
from pool.gateways.http import archive, corrected


def test_a_job_from_submit_to_result(gateway: Gateway) -> None:
    answer = gateway.post("/jobs/fake", json={"params": {"value": {"a": [1, None]}}})
    view = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{view['id']}"
    assert view["engine"] == "fake"
    found = gateway.result(view["id"])
    assert found.status_code == 200
    assert found.json()["value"]["value"] == {"a": [1, None]}
    assert found.json()["state"] == gateway.get(f"/jobs/{view['id']}").json()["state"] == "completed"
    assert found.json()["finished"] >= found.json()["started"] >= found.json()["created"] > 1.6e9


def test_what_waits_what_runs_and_a_result_that_is_not_there_yet(gateway: Gateway) -> None:
    runs = [gateway.submit(do="sleep", seconds=30) for _ in range(2)]
    waits = [gateway.submit(do="echo") for _ in range(2)]
    for job_id in runs:
        wait_until(lambda job_id=job_id: gateway.get(f"/jobs/{job_id}").json()["status"] == "inference", "progress")
    view = gateway.get(f"/jobs/{waits[1]}").json()
    assert (view["state"], view["ahead"], view["message"]) == ("queued", 1, "1 ahead in the queue")
    pending = gateway.result(waits[1], wait_s=0.2)
    assert (pending.status_code, pending.json()["state"]) == (202, "queued")
    assert pending.headers["Retry-After"]
    listed = [job["id"] for job in gateway.get("/jobs", params={"engine": "fake"}).json()["jobs"]]
    assert set(listed[:2]) == set(runs)
    assert listed[2:4] == waits
    queued = gateway.get("/jobs", params={"state": "queued", "limit": 1}).json()
    assert ([job["id"] for job in queued["jobs"]], queued["total"]) == (waits[:1], 2)
    for job_id in runs:
        answer = gateway.call("DELETE", f"/jobs/{job_id}")
        assert (answer.status_code, answer.json()["id"]) == (202, job_id)
        over = gateway.result(job_id)
        assert (over.status_code, over.json()["error"]["data"]["state"]) == (410, "cancelled")
    assert gateway.result(waits[1]).status_code == 200


def test_the_same_id_is_the_same_job_and_other_content_a_conflict(gateway: Gateway) -> None:
    job_id = f"own-{uuid.uuid4()}"
    for _ in range(3):
        answer = gateway.post("/jobs/fake", json={"id": job_id, "params": {"value": 1}})
        assert (answer.status_code, answer.json()["id"]) == (202, job_id)
    assert gateway.result(job_id).json()["value"]["run"]
    assert gateway.post("/jobs/fake", json={"id": job_id, "params": {"value": 2}}).status_code == 409


def test_a_failure_has_its_kind_and_every_attempt_and_can_be_run_again(gateway: Gateway, tmp_path: Path) -> None:
    job_id = gateway.submit(do="raise", value="broken pipe organ")
    answer = gateway.result(job_id)
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert "broken pipe organ" in error["message"]
    assert len(error["data"]["failure"]["attempts"]) == 2
    again = gateway.post(f"/jobs/{job_id}/retry")
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    assert gateway.result(job_id).status_code == 502
    wait_until(
        lambda: job_id in {j["id"] for j in gateway.get("/jobs", params={"state": "failed"}).json()["jobs"]}, "in list"
    )
    assert gateway.call("DELETE", f"/jobs/{job_id}").status_code == 409
    refused = gateway.result(gateway.submit(do="input"))
    assert (refused.status_code, refused.json()["error"]["data"]["failure"]["kind"]) == (422, "input")
    done = gateway.submit()
    gateway.result(done)
    assert gateway.post(f"/jobs/{done}/retry").status_code == 409


def test_a_job_with_a_time_limit(gateway: Gateway) -> None:
    body = {"params": {"do": "sleep", "seconds": 60}, "timeout_s": 0.3, "retry_times": 0}
    answer = gateway.result(gateway.post("/jobs/fake", json=body).json()["id"])
    assert answer.status_code == 504


def test_files_of_a_job_are_fetched_by_name(gateway: Gateway) -> None:
    job_id = gateway.submit(do="write", mb=1)
    entry = gateway.result(job_id).json()["files"][0]
    assert (entry["name"], entry["size"]) == ("written.bin", 1 << 20)
    assert gateway.get(entry["url"]).content == b"x" * (1 << 20)
    assert gateway.get(entry["url"], headers={"Range": "bytes=0-3"}).content == b"xxxx"
    named = gateway.submit(do="write", output=f"{gateway.media}/named.bin")
    assert gateway.get(gateway.result(named).json()["files"][0]["url"]).content == b"x" * 11
    for name in ("other.bin", "..", "%2e%2e", "..%2f..%2frun%2fspool.json", f"..%2f{job_id}.msgpack"):
        assert gateway.get(f"/jobs/{job_id}/files/{name}").status_code in (404, 422), name


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/jobs/none", {}, 404, "there are: fake"),
    ("POST", "/jobs/fake", {"params": {"do": "fly"}}, 422, "params.do"),
    ("POST", "/jobs/fake", {"params": {"sed": 1}}, 422, "unknown parameter"),
    ("POST", "/jobs/fake", {"params": []}, 422, "params"),
    ("POST", "/jobs/fake", {"parms": {}}, 422, "parms"),
    ("POST", "/jobs/fake", {"id": "a/b"}, 422, "id"),
    ("POST", "/jobs/fake", {"id": "-x"}, 422, "id"),
    ("POST", "/jobs/fake", {"priority": 101}, 422, "priority"),
    ("POST", "/jobs/fake", {"priority": "1"}, 422, "priority"),
    ("POST", "/jobs/fake", {"timeout_s": 0}, 422, "timeout_s"),
    ("POST", "/jobs/fake", {"retry_times": 99}, 422, "retry_times"),
    *(
        ("POST", "/jobs/fake", {key: value}, 422, key)
        for key, value in (
            ("priority", 1.5),
            ("priority", True),
            ("timeout_s", "5"),
            ("timeout_s", True),
            ("timeout_s", -1),
            ("timeout_s", 1e10),
            ("retry_times", 1.5),
            ("retry_times", "1"),
            ("retry_times", True),
            ("id", 5),
        )
    ),
    ("POST", "/jobs/fake", {"retry_on": ["timeouts"]}, 422, "retry_on.0"),
    ("POST", "/jobs/fake", {"retry_on": "timeout"}, 422, "retry_on"),
    ("POST", "/jobs/fake", {"durable": False}, 422, "durable"),
    ("POST", "/jobs/fake", {"params": {"audio": "/etc/passwd"}}, 403, "params.audio"),
    ("POST", "/jobs/fake", {"params": {"output": "../x"}}, 403, "params.output"),
    ("POST", "/jobs/fake", {"params": {"output": "~/x"}}, 403, "params.output"),
    ("POST", "/jobs/fake", {"params": {"value": {"deep": ["/etc/shadow"]}}}, 403, "params.value.deep[0]"),
    ("POST", "/jobs/fake", {"params": {"audio": "file:///etc/passwd"}}, 422, "is a URL"),
    ("POST", "/jobs/fake", {"params": {"audio": "tempfile:x"}}, 422, "params.audio"),
    ("POST", "/jobs/echo", {"params": {"any": "/root"}}, 403, "params.any"),
    ("GET", "/jobs/none", None, 404, "none"),
    ("GET", "/jobs/a.b", None, 422, "id"),
    ("GET", "/jobs/none/result", None, 404, "none"),
    ("GET", "/jobs/none/result?wait_s=-1", None, 422, "wait_s"),
    ("GET", "/jobs/none/result?wait_s=nan", None, 422, "wait_s"),
    ("GET", "/jobs/none/result?wait_s=0.1", None, 404, "none"),
    ("GET", "/jobs/none/events", None, 404, "none"),
    ("DELETE", "/jobs/none", None, 404, "none"),
    ("POST", "/jobs/none/retry", None, 404, "none"),
    ("POST", "/jobs/fake", {"tags": ["a b"]}, 422, "tags.0"),
    ("POST", "/jobs/fake", {"log_context": {"a b": 1}}, 422, "log_context"),
    ("POST", "/jobs/fake", {"log_context": {"a": "x\n"}}, 422, "log_context.a"),
    ("POST", "/jobs/fake", {"traceparent": "00-1-2-03"}, 422, "traceparent"),
    ("POST", "/jobs/fake", {"note": 1}, 422, "note: 1 is not text"),
    ("POST", "/jobs/none/rerun", {}, 404, "none"),
    ("POST", "/jobs/none/rerun", {"parms": {}}, 422, "parms"),
    ("POST", "/bulk/retry", {"ids": []}, 422, "ids"),
    ("POST", "/bulk/cancel", {"ids": ["a/b"]}, 422, "ids.0"),
    ("POST", "/bulk/remove", {"ids": ["a"]}, 404, "Not Found"),
    ("GET", "/jobs?limit=0", None, 422, "limit: '0' is less than 1"),
    ("GET", "/jobs?after=x", None, 422, "after"),
    ("GET", "/jobs?since=soon", None, 422, "since"),
    ("GET", "/jobs?tag=a%20b", None, 422, "tag"),
    ("GET", "/jobs?state=lost", None, 422, "state state: 'lost' is not one of 'queued', 'held', "),
    ("GET", "/jobs?sate=failed", None, 422, "is an unknown key; there are: state"),
    ("GET", "/status?full=1", None, 422, "full"),
    ("GET", "/jobs/none?wait_s=1", None, 422, "wait_s"),
    ("POST", "/jobs/fake?priority=1", {}, 422, "priority"),
    ("GET", "/none", None, 404, "Not Found"),
    ("PUT", "/status", None, 405, "Not Allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), WRONG, ids=[f"{c[0]} {c[1]}" for c in WRONG])
def test_each_mistake_is_told(gateway: Gateway, method: str, path: str, body: Any, status: int, words: str) -> None:
    answer = gateway.call(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, bool(error["message"])) == (status, True), answer.text
    assert words in f"{error['path']} {error['message']}"


def test_a_relative_path_begins_at_the_allowed_folder(gateway: Gateway) -> None:
    gateway.file("rel/speech.wav")
    gateway.file("rel/face.mp4")
    params = {"audio": "rel/speech.wav", "video": "rel/face.mp4", "output": "rel/out.mp4"}
    value = gateway.result(gateway.submit("lipsync", **params)).json()["value"]
    assert value["output"] == str(gateway.media / "rel" / "out.mp4")


# ---- find again, run again


def test_a_walk_finds_tagged_jobs_and_one_is_run_again_with_changes(gateway: Gateway) -> None:
    tag = f"t{uuid.uuid4().hex}"
    ids = []
    for number in range(5):
        body = {"params": {"value": number}, "tags": [tag], "note": f"number {number}", "priority": 1}
        ids.append(gateway.post("/jobs/fake", json=body).json()["id"])
        assert gateway.result(ids[-1]).status_code == 200
    found, after = [], ""
    while True:
        page = gateway.get("/jobs", params={"tag": tag, "limit": 2, "after": after, "since": "1h"}).json()
        found += page["jobs"]
        after = page["next"]
        if not after:
            break
    assert [job["id"] for job in found] == ids[::-1]
    assert (found[0]["tags"], found[0]["note"], found[0]["state"]) == ([tag], "number 4", "completed")
    answer = gateway.post(f"/jobs/{ids[0]}/rerun", json={"params": {"value": "new"}, "note": "again"})
    assert answer.status_code == 202, answer.text
    view = answer.json()
    assert answer.headers["Location"] == f"/jobs/{view['id']}"
    result = gateway.result(view["id"]).json()
    assert result["value"]["value"] == "new"
    assert (result["rerun_of"], result["note"], result["tags"]) == (ids[0], "again", [tag])
    same = gateway.post(f"/jobs/{ids[1]}/rerun", json={"without": ["value"]}).json()["id"]
    assert gateway.result(same).json()["value"]["value"] is None


def test_a_cancelled_job_runs_again_as_a_new_one(gateway: Gateway) -> None:
    old = gateway.post("/jobs/fake", json={"params": {"do": "sleep", "seconds": 600}, "note": "long"}).json()["id"]
    gateway.call("DELETE", f"/jobs/{old}")
    assert gateway.result(old).status_code == 410
    answer = gateway.post(f"/jobs/{old}/retry")
    view = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/jobs/{view['id']}"), answer.text
    assert view["id"] != old
    gateway.call("DELETE", f"/jobs/{view['id']}")
    data = gateway.result(view["id"]).json()["error"]["data"]
    assert (data["rerun_of"], data["note"]) == (old, "long")
    assert gateway.get(f"/jobs/{old}").json()["state"] == "cancelled"


def test_many_jobs_are_retried_and_cancelled_each_by_itself(gateway: Gateway) -> None:
    failed = [gateway.submit(do="input") for _ in range(2)]
    done = gateway.submit()
    for job_id in (*failed, done):
        gateway.result(job_id)
    answer = gateway.post("/bulk/retry", json={"ids": [*failed, done, "none", failed[0]]}).json()
    assert answer["done"] == failed
    told = {one["id"]: one["message"] for one in answer["refused"]}
    assert "it is completed" in told[done]
    assert "none" in told["none"]
    waits = [gateway.submit(do="sleep", seconds=600) for _ in range(3)]
    stopped = gateway.post("/bulk/cancel", json={"ids": [*waits, done]}).json()
    assert stopped["done"] == waits
    assert [one["id"] for one in stopped["refused"]] == [done]
    for job_id in waits:
        assert gateway.result(job_id).status_code == 410
    again = gateway.post("/bulk/retry", json={"ids": waits}).json()
    assert len(again["done"]) == 3
    assert not set(again["done"]) & set(waits)
    assert gateway.post("/bulk/cancel", json={"ids": again["done"]}).json()["done"] == again["done"]


def test_it_is_known_when_a_job_that_runs_was_started(gateway: Gateway) -> None:
    job_id = gateway.submit(do="sleep", seconds=60)
    try:
        wait_until(lambda: gateway.get(f"/jobs/{job_id}").json()["started"], "the time of its start")
        view = gateway.get(f"/jobs/{job_id}").json()
        listed = next(job for job in gateway.get("/jobs?state=running").json()["jobs"] if job["id"] == job_id)
        assert view["state"] == listed["state"] == "running"
        assert view["created"] <= view["started"]
        assert listed["started"] == pytest.approx(view["started"], abs=1)
    finally:
        gateway.call("DELETE", f"/jobs/{job_id}")


def test_a_text_is_found_among_all_jobs(gateway: Gateway) -> None:
    word = uuid.uuid4().hex
    notes = [f"about {word.upper()}", f"{word} again", "nothing"]
    ids = [gateway.post("/jobs/fake", json={"params": {}, "note": note}).json()["id"] for note in notes]
    for job_id in ids:
        gateway.result(job_id)
    page = gateway.get("/jobs", params={"q": word, "limit": 1}).json()
    rest = gateway.get("/jobs", params={"q": word, "limit": 1, "after": page["next"]}).json()
    assert [job["id"] for job in page["jobs"] + rest["jobs"]] == [ids[1], ids[0]]
    assert rest["next"] == ""
    assert [job["id"] for job in gateway.get("/jobs", params={"q": ids[2][5:]}).json()["jobs"]] == [ids[2]]


def test_a_job_belongs_to_the_trace_of_its_request(gateway: Gateway) -> None:
    trace = uuid.uuid4().hex
    mine, other = f"00-{trace}-{'a' * 16}-01", f"00-{trace}-{'b' * 16}-01"
    header = {"traceparent": mine, "tracestate": "a=1"}
    body = {"params": {}, "log_context": {"user": 5, "beta": True, "name": "Ada"}}

    def terms(headers: dict[str, str], path: str = "/jobs/fake", **more: Any) -> Any:
        answer = gateway.post(path, json={**body, **more}, headers=headers)
        assert answer.status_code == 202, answer.text
        return gateway.world.record(answer.json()["id"]).kept.terms

    taken = terms(header, id=trace)
    assert taken == {"log_context": body["log_context"], "traceparent": mine, "tracestate": "a=1"} | {
        key: value for key, value in taken.items() if key == "durable"
    }
    assert terms(header, traceparent=other)["traceparent"] == other  # what the body says comes first
    again = terms({"traceparent": other}, f"/jobs/{trace}/rerun", log_context=None)
    assert (again["traceparent"], again["log_context"], "tracestate" in again) == (other, body["log_context"], False)
    for wrong in (f"00-{trace}-1-01", mine.upper(), f"{mine}, {other}"):  # as W3C wants it: served all the same
        assert "traceparent" not in terms({"traceparent": wrong})
    assert gateway.log().count("a malformed traceparent") == 3
    assert terms({**header, "tracestate": "="}).get("tracestate") is None
    assert "traceparent" not in terms({})


def test_the_parameters_of_a_job_are_shown_but_for_what_is_secret_or_elsewhere(
    gateway: Gateway, tmp_path: Path
) -> None:
    from pool.client.filepool import FilePool

    upload = gateway.post("/api/tempfile/upload", files={"file": ("my speech.wav", wav())}).json()
    body = {"params": {"audio": f"tempfile:{upload['file_id']}", "value": 5}, "priority": 3, "note": "n"}
    job_id = gateway.post("/jobs/fake", json=body).json()["id"]
    for _ in range(2):  # waiting or running, and over
        shown = gateway.get(f"/jobs/{job_id}/params").json()
        assert (shown["engine"], shown["params"]) == ("fake", body["params"])
        assert shown["uploads"]["audio"] == {**upload, "original_name": "my speech.wav"}
        assert (shown["terms"]["priority"], shown["left_out"]) == (3, {})
        given = shown["inputs"].pop("audio")
        assert (given["name"], given["kind"], shown["inputs"]) == ("my speech.wav", "audio", {})
        assert gateway.get(given["url"]).content == wav()
        gateway.result(job_id)
    assert gateway.get(f"/jobs/{job_id}/inputs/value").status_code == 404
    written = gateway.submit("fake", audio=gateway.file("spoken.wav", wav()), output=str(gateway.media / "made.mp4"))
    gateway.file("made.mp4")
    gateway.result(written)
    shown = gateway.get(f"/jobs/{written}/params").json()["inputs"]["audio"]
    assert (shown["name"], gateway.get(shown["url"]).content) == ("spoken.wav", wav())
    plain = gateway.submit("fake", audio=gateway.file("plain.txt"))  # no page of a browser, and no other secret
    gateway.result(plain)
    assert gateway.get(f"/jobs/{plain}/params").json()["inputs"] == {}
    assert gateway.get(f"/jobs/{plain}/inputs/audio").status_code == 404
    (tmp_path / "speech.wav").write_bytes(b"x")
    with FilePool(gateway.world.config, start=False) as pool:
        job = pool.submit("fake", audio=str(tmp_path / "speech.wav"), value="open")
        job.result(60)
    assert gateway.get(f"/jobs/{job.id}/inputs/audio").status_code == 403
    shown = gateway.get(f"/jobs/{job.id}/params")
    assert shown.json()["params"] == {"value": "open"}
    assert "outside of the folders" in shown.json()["left_out"]["audio"]
    assert str(tmp_path) not in shown.text
    assert gateway.get("/jobs/none/params").status_code == 404


def test_a_job_of_somebody_with_other_rights_is_not_run_again_here(gateway: Gateway, tmp_path: Path) -> None:
    from pool.client.filepool import FilePool

    (tmp_path / "speech.wav").write_bytes(b"x")
    with FilePool(gateway.world.config, start=False) as pool:
        job = pool.submit("fake", audio=str(tmp_path / "speech.wav"))
        job.result(60)
    answer = gateway.post(f"/jobs/{job.id}/rerun", json={})
    assert (answer.status_code, answer.json()["error"]["path"]) == (403, "params.audio")
    assert gateway.post(f"/jobs/{job.id}/rerun", json={"without": ["audio"]}).status_code == 202


# ---- corrections


def test_a_transcript_is_corrected_and_the_result_stays(gateway: Gateway) -> None:
    job_id = gateway.submit("transcribe", audio=gateway.file("said.wav"))
    path = f"/jobs/{job_id}/edits"
    before = gateway.result(job_id).json()["value"]
    assert gateway.get(path).json() == {"version": 0, "names": {}, "segments": {}}
    word = {"word": "Hi.", "start": 0.1, "end": 0.5}
    body = {"version": 0, "names": {"spk0": "Ada"}, "segments": {"0": {"text": "Hi.", "words": [word]}}}
    answer = gateway.call("PUT", path, json=body)
    assert (answer.status_code, answer.json()["version"]) == (200, 1), answer.text
    shown = gateway.get(path).json()
    assert (shown["names"], shown["segments"]["0"]["text"]) == ({"spk0": "Ada"}, "Hi.")
    assert gateway.result(job_id).json()["value"] == before
    late = gateway.call("PUT", path, json=body)
    said = "the corrections were changed meanwhile: they have version 1, yours are of 0; read them again"
    assert (late.status_code, late.json()["error"]["message"]) == (409, said)

    def refused(path: str, body: dict[str, Any], status: int = 422) -> str:
        answer = gateway.call("PUT", path, json={"version": 1, **body})
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"]["path"])

    assert refused(path, {"segments": {"7": {"text": "x"}}}) == "segments.7"
    assert refused(path, {"segments": {"0": {"text": "x", "words": [{**word, "end": 9.0}]}}}) == "segments.0.words.0"
    assert refused(path, {"segments": {"0": {"text": "x", "words": [word, {**word, "start": 0.05}]}}}).endswith(".1")
    assert "names" in refused(path, {"names": {"spk0": ""}})
    assert refused(path, {"text": "x"}) == "text"
    other = gateway.submit()
    gateway.result(other)
    refused(f"/jobs/{other}/edits", {})
    refused("/jobs/none/edits", {}, 404)
    assert gateway.get(path).json() == shown


# ---- events


def test_events_tell_everything_and_end_with_the_result(gateway: Gateway) -> None:
    job_id = gateway.submit(do="partials", seconds=0.3)
    found = gateway.events(job_id)
    parts = [(event_id, data["record"]["number"]) for name, event_id, data in found if name == "partial"]
    assert parts == [(f"1.{number + 1}", number) for number in range(5)]
    words = [data for name, _, data in found if name in ("status", "progress")]
    assert "inference" in {word["status"] for word in words}
    assert len({word["percent"] for word in words}) > 2
    name, event_id, data = found[-1]
    assert (name, event_id, data["state"], data["id"]) == ("result", "end", "completed", job_id)
    staged(data)
    assert words[-1].get("stages", data["stages"]) == data["stages"]
    staged(gateway.get(f"/jobs/{job_id}").json())


def test_who_comes_back_gets_what_is_new(gateway: Gateway) -> None:
    job_id = gateway.submit(do="partials")
    gateway.result(job_id)
    assert [event_id for name, event_id, _ in gateway.events(job_id, "1.3") if name == "partial"] == ["1.4", "1.5"]
    assert gateway.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "end"}).status_code == 204
    assert gateway.events(job_id, "nonsense")[-1][0] == "result"


def test_events_of_a_job_that_fails_and_of_one_that_is_cancelled(gateway: Gateway) -> None:
    found = gateway.events(gateway.submit(do="raise", value="no luck"))
    assert found[-1][2]["state"] == "failed"
    assert "no luck" in found[-1][2]["message"]
    job_id = gateway.submit(do="sleep", seconds=30)
    gateway.call("DELETE", f"/jobs/{job_id}")
    assert gateway.events(job_id)[-1][2]["state"] == "cancelled"
    waiting = gateway.post("/jobs/fake", json={"params": {}, "not_before": "1h"}).json()["id"]
    gateway.call("DELETE", f"/jobs/{waiting}")
    over = gateway.events(waiting)[-1][2]
    assert (over["state"], over["started"], over["stages"], over["tried"]) == ("cancelled", None, [], [])


def test_who_leaves_takes_nothing_along(gateway: Gateway) -> None:
    job_id = gateway.submit(do="sleep", seconds=1)
    with gateway.get(f"/jobs/{job_id}/events", stream=True) as answer:
        assert next(answer.iter_lines())
    with pytest.raises(Exception, match="timed out"):
        gateway.get(f"/jobs/{job_id}/result", params={"wait_s": 30}, timeout=0.2)
    assert gateway.result(job_id).json()["state"] == "completed"


# ---- the pool


def test_the_state_for_a_console(gateway: Gateway) -> None:
    found = wait_until(
        lambda: (s := gateway.get("/status").json())["health"]["verdict"] == "ok" and s, "workers that are back"
    )
    assert {engine["name"] for engine in found["engines"]} == {"fake", "echo", "lipsync", "transcribe"}
    assert all(slot["serving"] for slot in found["slots"])
    engines = {engine["name"]: engine for engine in gateway.get("/engines").json()["engines"]}
    assert engines["lipsync"]["schema"]["properties"]["audio"]["format"] == "path"
    assert engines["echo"]["schema"] is None


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            total += float(match[2])
    return total


def test_metrics(gateway: Gateway) -> None:
    def read() -> str:
        answer = gateway.get("/metrics")
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return answer.text

    def busy() -> float:
        text, labels = read(), {"engine": "fake"}
        return sum(metric(text, "filepool_queue_jobs", state=state, **labels) for state in ("queued", "running"))

    def counted(job_id: str) -> bool:
        found = gateway.get("/jobs?state=completed&engine=fake&limit=20").json()["jobs"]
        return job_id in {job["id"] for job in found}

    wait_until(lambda: not busy(), "the end of what others began")
    last = gateway.submit(do="echo")
    gateway.result(last)
    wait_until(lambda: counted(last), "records up to the last one")  # they are counted some time after they are there
    before = read()
    gateway.result(gateway.submit(do="sleep", seconds=0.2))
    gateway.result(gateway.submit(do="input"))
    gateway.result(gateway.submit(do="kill", until_attempt=1))
    wait_until(
        lambda: (
            metric(read(), "filepool_job_duration_seconds_count", engine="fake")
            >= metric(before, "filepool_job_duration_seconds_count", engine="fake") + 3
        ),
        "three more jobs",
    )
    killed = {"engine": "fake", "reason": "killed"}
    restarts = "filepool_worker_restarts_by_reason_total"
    wait_until(lambda: metric(read(), restarts, **killed) > metric(before, restarts, **killed), "a restart")
    after = read()

    def rise(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    assert rise("filepool_jobs_total", engine="fake", state="completed") == 2
    assert rise("filepool_jobs_total", engine="fake", state="failed", kind="input") == 1
    assert rise("filepool_job_duration_seconds_count", engine="fake") == 3
    assert rise("filepool_job_duration_seconds_sum", engine="fake") >= 0.2
    assert rise("filepool_worker_restarts_total", engine="fake") >= 1
    assert metric(after, "filepool_worker_resident_memory_bytes") > 10 << 20
    assert metric(after, "filepool_http_process_resident_memory_bytes") > 10 << 20
    assert metric(after, "filepool_workers_configured", engine="fake") == 2
    assert metric(after, "filepool_queue_jobs", engine="fake", state="queued") == 0


def test_the_openapi_document_and_its_page(gateway: Gateway) -> None:
    document = gateway.get("/openapi.json").json()
    assert {
        "/human/generate",
        "/health",
        "/api/tempfile/upload",
        "/api/tempfile/download/{file_id}",
        "/jobs",
        "/jobs/{engine}",
        "/jobs/{job_id}",
        "/jobs/{job_id}/events",
        "/jobs/{job_id}/result",
        "/jobs/{job_id}/retry",
        "/jobs/{job_id}/rerun",
        "/bulk/retry",
        "/bulk/cancel",
        "/bulk/files",
        "/bulk/files/{key}",
        "/examples",
        "/examples/{name}",
        "/jobs/{job_id}/inputs/{key}",
        "/jobs/{job_id}/transcript",
        "/live",
        "/logs",
        "/logs/{name}",
        "/stats",
        "/jobs/{job_id}/params",
        "/jobs/{job_id}/stream",
        "/jobs/{job_id}/edits",
        "/jobs/{job_id}/files/{name}",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/models",
        "/v1/models/{name}",
        "/status",
        "/engines",
        "/metrics",
    } == set(document["paths"])
    assert "HTTPValidationError" not in str({path: document["paths"][path] for path in document["paths"]})
    page = gateway.get("/docs").text
    assert "/human/generate" in page
    assert "https://" not in page.split("</style>")[1].split("<h1>")[0]


# ---- results of many jobs, and documents


def test_results_are_fetched_as_one_archive(gateway: Gateway) -> None:
    said = gateway.file("Größe 讲话.wav", wav())
    done = [gateway.submit(do="write"), gateway.submit(do="write"), gateway.submit("transcribe", audio=said)]
    failed = gateway.submit(do="input")
    for job_id in (*done, failed):
        gateway.result(job_id)
    edit = {"version": 0, "names": {"spk0": "Ada"}, "segments": {"1": {"text": "Good night.", "words": []}}}
    assert gateway.call("PUT", f"/jobs/{done[2]}/edits", json=edit).status_code == 200
    answer = gateway.post("/bulk/files", json={"ids": [*done, failed, "nobody"]})
    asked = answer.json()
    assert (answer.status_code, asked["files"]) == (201, 6)
    assert [one["id"] for one in asked["refused"]] == [failed, "nobody"]
    assert "it is failed" in asked["refused"][0]["message"]
    fetched = gateway.get(asked["url"])
    assert fetched.headers["Content-Disposition"].startswith('attachment; filename="filepool-')
    with zipfile.ZipFile(io.BytesIO(fetched.content)) as found:
        assert found.testzip() is None
        assert found.read("written.bin") == found.read("written (2).bin") == b"x" * 11
        assert (
            found.read("Größe 讲话.txt").decode() == "[00:00:00] Ada: Hello there.\n[00:00:01] Speaker 2: Good night.\n"
        )
        assert json.loads(found.read("Größe 讲话.json"))["segments"][1]["text"] == "Good --> day."  # as it was
        assert str(gateway.world.folder) not in "".join(found.read(one).decode() for one in found.namelist())
    assert sum(info.file_size for info in found.infolist()) == asked["bytes"]
    assert gateway.get("/bulk/files/none").status_code == 404
    text = gateway.get(f"/jobs/{done[2]}/transcript")
    assert "Good night." in text.text
    assert "filename*=UTF-8''Gr%C3%B6%C3%9Fe%20" in text.headers["Content-Disposition"]
    assert gateway.get(f"/jobs/{done[0]}/transcript").status_code == 422


def test_an_archive_is_written_as_it_is_sent(tmp_path: Path) -> None:
    """No more than a few pieces are held, however large its files; one that shrinks breaks it off."""
    large = tmp_path / "large.bin"
    with open(large, "wb") as file:
        file.truncate(300 << 20)
    entries = [archive.file_entry("large.bin", large), archive.text_entry("a.txt", "a" * 9, 0.0)]
    tracemalloc.start()
    try:
        pieces = archive.stream(entries)
        assert sum(map(len, pieces)) > 300 << 20
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    os.truncate(large, 5)
    with pytest.raises(archive.Vanished, match=r"large\.bin is \d+ bytes shorter"):
        list(archive.stream(entries))
    large.unlink()
    with pytest.raises(archive.Vanished, match="No such file"):
        list(archive.stream(entries))


def test_a_docx_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(corrected.MissingExtra, match=r"filepool\[docx\]"):
        corrected.as_docx("talk", [corrected.Line(0, 1, "", "\0 text")])


def test_head_is_get_without_a_body(gateway: Gateway) -> None:
    """On every route of the document, streams of events too, which end at once."""
    job_id = gateway.post("/jobs/fake", json={"params": {"value": 1}}).json()["id"]
    assert gateway.result(job_id).status_code == 200
    routes = [path for path, methods in gateway.get("/openapi.json").json()["paths"].items() if "get" in methods]
    assert {"/health", "/jobs", "/jobs/{job_id}", "/live"} <= set(routes)
    for route in [*routes, "/", "/static/index.html", "/openapi.json", "/nowhere"]:
        path = re.sub(r"\{\w+\}", job_id, route)
        head = gateway.call("HEAD", path)
        with gateway.get(path, stream=True) as whole:
            assert (head.status_code, head.content) == (whole.status_code, b""), path
            kept = [one.headers.get("Content-Type") for one in (head, whole)]
            assert kept[0] == kept[1], path
