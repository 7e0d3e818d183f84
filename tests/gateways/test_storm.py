"""The gateway under load and under fire: 200 clients, and requests that nobody sane would send."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scenarios.world import World, kill, wait_until

from gateways.gateway import Gateway, configure

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
KEYS = st.sampled_from(
    [
        "audio_path",
        "video_path",
        "save_path",
        "watermark",
        "digital_auth",
        "task_id",
        "params",
        "id",
        "priority",
        "timeout_s",
        "retry_times",
    ],
)
PATHS = st.sampled_from(
    ["/human/generate", "/jobs/echo", "/jobs/fake", "/jobs/x/retry", "/api/tempfile/upload", "/v1/audio/transcriptions"]
)
TYPES = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "", "\xff"]
)
STARTS = st.sampled_from(["/jobs/", "/api/tempfile/download/", "/jobs/x/files/", "/"])


def sound(answer: requests.Response) -> None:
    assert answer.status_code != 500, answer.text
    assert answer.headers["Content-Type"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, body=VALUES | st.dictionaries(KEYS, VALUES, max_size=6))
def test_no_json_makes_it_fail(gateway: Gateway, path: str, body: object) -> None:
    sound(gateway.post(path, json=body))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=PATHS, body=st.binary(max_size=300), kind=TYPES)
def test_no_bytes_make_it_fail(gateway: Gateway, path: str, body: bytes, kind: str) -> None:
    sound(gateway.post(path, data=body, headers={"Content-Type": kind.encode("latin-1")}))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["/jobs/", "/api/tempfile/download/", "/jobs/x/files/", "/"]), st.binary(min_size=1, max_size=40)
)
def test_no_path_makes_it_fail(gateway: Gateway, start: str, rest: bytes) -> None:
    """Raw paths, as no client library would send them."""
    host, port = gateway.base.removeprefix("http://").split(":")
    quoted = start.encode() + b"".join(b"%%%02x" % byte for byte in rest)
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"GET " + quoted + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status = int(client.makefile("rb").readline().split()[1])
    assert status in (200, 400, 404, 405, 422)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_schemathesis_finds_nothing(gateway: Gateway) -> None:
    """Every operation of the OpenAPI document, with valid and invalid data: no 500, and what was declared."""
    import schemathesis  # takes a second, also of those who only collect tests
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

    schema = schemathesis.openapi.from_url(f"{gateway.base}/openapi.json")
    found: list[str] = []
    seen = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/live":  # a stream that never ends; test_live.py has it
            continue
        strategy = operation.as_strategy()
        slow = operation.path in ("/human/generate", "/v1/audio/transcriptions")

        @settings(max_examples=20 if slow else 60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(strategy)
        def shoot(case: schemathesis.Case) -> None:
            nonlocal seen
            if case.path.endswith("/result") and case.query:
                case.query.pop("wait_s", None)
            answer = case.call(timeout=60)
            seen += 1
            declared = {*case.operation.definition.raw["responses"], "405", "404"}
            if answer.status_code == 500 or str(answer.status_code) not in declared:
                found.append(f"{case.method} {case.path}: {answer.status_code} {answer.text[:200]}")
            elif answer.status_code not in (404, 405):  # of the router, for what is no path of ours
                case.validate_response(answer, checks=[response_schema_conformance, content_type_conformance])

        shoot()
    print(f"schemathesis: {seen} requests to {len(list(schema.get_all_operations()))} operations")
    assert found == [], sorted({line[:90] for line in found})
    assert seen > 200


@pytest.fixture
def loaded(world: World) -> Iterator[Gateway]:
    configure(world)
    world.serve(ready=5)
    with Gateway(world).start() as gate:
        yield gate


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_clients_for_a_minute_while_things_die(loaded: Gateway, world: World) -> None:
    """Nothing that was accepted is lost, though workers and the gateway are killed meanwhile."""
    seconds, clients = 60, 200
    accepted: list[str] = []
    latencies: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds
    lock = threading.Lock()

    def client(number: int) -> None:
        draw = random.Random(number)
        session = requests.Session()
        while time.monotonic() < end:
            try:
                engine = draw.choice(["echo", "fake"])
                answer = session.post(f"{loaded.base}/jobs/{engine}", json={"params": {"value": number}}, timeout=60)
                if answer.status_code != 202:
                    errors.append(f"{answer.status_code} {answer.text[:100]}")
                    continue
                job_id = answer.json()["id"]
                with lock:
                    accepted.append(job_id)
                for _ in range(3):
                    time.sleep(draw.uniform(0.5, 1.5))
                    begun = time.monotonic()
                    look = session.get(f"{loaded.base}/jobs/{job_id}", timeout=60)
                    latencies.append(time.monotonic() - begun)
                    if look.status_code != 200:
                        errors.append(f"{look.status_code} {look.text[:100]}")
            except requests.ConnectionError:
                time.sleep(0.2)  # the gateway is being killed: another one comes

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end - 15:
        time.sleep(10)
        worker = next((pid for pid, name in world.processes().items() if name.startswith("fake")), None)
        if worker is not None:
            kill(worker)
        if time.monotonic() > end - 40 and not errors and loaded.log().count("listening") == 1:
            loaded.kill()
            loaded.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: not world.held(), "the end of all jobs", seconds=120)
    states = [loaded.get(f"/jobs/{job_id}").json()["state"] for job_id in accepted]
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
    print(
        f"{clients} clients, {seconds} s: {len(accepted)} jobs accepted, {states.count('completed')} completed, "
        f"{len(latencies)} status calls, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {len(errors)} refused"
    )
    assert errors == []
    assert len(accepted) > 1000
    assert states.count("completed") == len(accepted)
