"""The stream of a job over HTTP: it grows, it ends whole or breaks off, and who leaves or comes late harms nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from uuid import uuid4

import pytest
import requests
from scenarios.world import World, kill, wait_until

from gateways.gateway import Gateway, configure
from pool.spool.attempts import scratch_dir
from pool.spool.growing import stream_path
from pool.spool.store import Spool

DATA = bytes(range(256)) * 400
ALL, HALF = len(DATA), len(DATA) // 2
BROKEN = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)


class Film:
    """A job with DATA as its stream. It waits half-way until the test lets it go on."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway, self._go = gateway, gateway.media / f"{uuid4().hex}.go"
        self.id = gateway.submit(do="stream", audio=gateway.file("film.mp4", DATA), value=str(self._go))
        self.path = f"/jobs/{self.id}/stream"

    def watch(self, wait_s: float = 60, **headers: str) -> requests.Response:
        """The response, once there is a stream; not yet read. headers: with _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.gateway.get(self.path, params={"wait_s": wait_s}, headers=sent, stream=True)
        assert answer.status_code in (200, 206), answer.text
        return answer

    def go_on(self) -> None:
        self._go.touch()

    def worker(self) -> int:
        """The process that is at it."""
        world = self.gateway.world
        held = wait_until(
            lambda: [one for one in world.held() if one.startswith("work/") and self.id in one], "a claim"
        )
        return next(pid for pid, worker in world.processes().items() if worker == held[0].split("/")[1])


def descriptors(gateway: Gateway) -> int:
    """Streams that the gateway has open."""
    place = f"/proc/{gateway.pid}/fd"
    found = 0
    for name in os.listdir(place):
        with suppress(FileNotFoundError):  # RACE: closed meanwhile
            found += "/run/scratch/" in os.readlink(f"{place}/{name}")
    return found


def test_a_stream_grows_until_the_job_has_ended(gateway: Gateway) -> None:
    film = Film(gateway)
    answer = film.watch()
    assert answer.headers["Content-Type"] == "video/mp4"
    assert (answer.headers["X-Attempt"], answer.headers["Cache-Control"]) == ("1", "no-store")
    assert "Content-Length" not in answer.headers
    blocks = answer.iter_content(ALL)
    begun = b""
    while len(begun) < HALF:
        begun += next(blocks)
    assert begun == DATA[:HALF]
    assert gateway.get(f"/jobs/{film.id}").json()["state"] == "running"
    late = film.watch()  # who comes late begins at the beginning
    film.go_on()
    assert begun + b"".join(blocks) == late.content == DATA
    assert gateway.result(film.id).json()["state"] == "completed"
    told = [data["record"]["stream"] for name, _, data in gateway.events(film.id) if name == "partial"]
    assert [(one["attempt"], one["media_type"]) for one in told] == [(1, "video/mp4")]
    left = stream_path(scratch_dir(Spool(gateway.world.spool), film.id, 1), "film.mp4")
    wait_until(lambda: not left.parent.exists(), "the end of what the attempt wrote")
    left.parent.mkdir(parents=True)
    left.write_bytes(DATA)  # as it is for a moment after each end
    over = gateway.get(film.path, allow_redirects=False)
    assert (over.status_code, over.headers.get("Location")) == (307, f"/jobs/{film.id}/files/film.mp4")
    shutil.rmtree(left.parents[1])
    assert gateway.get(film.path).content == DATA
    wait_until(lambda: descriptors(gateway) == 0, "no stream open")


def test_ranges_of_what_there_is_and_of_what_comes(gateway: Gateway) -> None:
    film = Film(gateway)
    half = film.watch(Range=f"bytes=0-{HALF - 1}")  # which may have to come first
    assert (half.status_code, half.headers["Content-Range"]) == (206, f"bytes 0-{HALF - 1}/*")
    assert half.content == DATA[:HALF]
    known = film.watch(Range="bytes=10-")  # without an end: what there is
    assert known.headers["Content-Range"] == f"bytes 10-{HALF - 1}/*"
    assert known.content == DATA[10:HALF]
    missing = gateway.get(film.path, headers={"Range": f"bytes={HALF}-"})
    assert (missing.status_code, missing.headers["Content-Range"]) == (416, f"bytes */{HALF}")
    coming = film.watch(Range=f"bytes={HALF}-{ALL - 1}")
    assert (coming.status_code, coming.headers["Content-Range"]) == (206, f"bytes {HALF}-{ALL - 1}/*")
    other = film.watch(Range="bytes=5-9", If_Range='"of another attempt"')
    film.go_on()
    assert coming.content == DATA[HALF:]
    assert other.content == DATA


def test_who_leaves_costs_nothing_and_a_cancelled_job_breaks_off(gateway: Gateway) -> None:
    film = Film(gateway)
    with film.watch(Range="bytes=0-") as whole:  # as browsers ask
        assert whole.status_code == 200
        head = gateway.call("HEAD", film.path)
        assert (head.status_code, head.headers["Content-Type"], head.content) == (200, "video/mp4", b"")
        other = gateway.get(film.path, params={"attempt": 2})
        assert (other.status_code, other.json()["state"], other.headers["Retry-After"]) == (202, "running", "1")
        assert gateway.get(film.path, params={"attemt": 2}).status_code == 422
        wait_until(lambda: descriptors(gateway) == 1, "one stream open")
    wait_until(lambda: descriptors(gateway) == 0, "none")
    assert gateway.get(f"/jobs/{film.id}").json()["state"] == "running"
    with film.watch() as cut:
        gateway.call("DELETE", f"/jobs/{film.id}")
        with pytest.raises(BROKEN):
            list(cut.iter_content(ALL))
    assert gateway.result(film.id).status_code == 410
    assert gateway.get(film.path).status_code == 410
    assert gateway.get("/jobs/unknown/stream").status_code == 404
    plain = gateway.submit(value=1)
    gateway.result(plain)
    none = gateway.get(f"/jobs/{plain}/stream")
    assert (none.status_code, "made no video or sound" in none.text) == (404, True)


def test_kill_9_breaks_the_stream_off_and_the_next_attempt_has_its_own(gateway: Gateway) -> None:
    """With curl, which tells a response that was cut off from a whole one."""
    film = Film(gateway)
    curl = [shutil.which("curl") or pytest.skip("curl is not installed"), "--silent", "--fail", "--no-buffer"]
    address = f"{gateway.base}{film.path}?wait_s=60&attempt="
    with subprocess.Popen([*curl, f"{address}1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as torn:
        assert torn.stdout is not None
        assert torn.stdout.read(HALF) == DATA[:HALF]
        kill(film.worker())
        assert torn.communicate(timeout=60)[0] == b""
    assert torn.returncode == 18  # a partial file
    with subprocess.Popen([*curl, "--include", f"{address}2"], stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        headers = b"".join(iter(second.stdout.readline, b"\r\n")).lower()
        assert b"x-attempt: 2\r\n" in headers
        assert second.stdout.read(HALF) == DATA[:HALF]
        film.go_on()
        assert second.stdout.read() == DATA[HALF:]
    assert second.returncode == 0
    assert gateway.result(film.id).json()["attempt"] == 2
    told = [(data["attempt"], data["record"]) for name, _, data in gateway.events(film.id) if name == "partial"]
    assert told[-1][0] == told[-1][1]["stream"]["attempt"] == 2
    scratch = gateway.world.spool / "run" / "scratch"
    wait_until(lambda: not [one for one in os.listdir(scratch) if one.startswith(film.id)], "no scratch of the job")


@pytest.mark.long
def test_a_token_and_a_prefix_as_everywhere_and_a_gateway_that_ends_breaks_off(world: World) -> None:
    token = "correct-horse-battery-staple"
    configure(world, "fake")
    world.serve(ready=2)
    with Gateway(world, "--no-start", env={"FILEPOOL_HTTP_TOKEN": token}) as gate:
        gate.start()
        gate.session.headers["Authorization"] = f"Bearer {token}"
        film = Film(gate)
        with film.watch(X_Forwarded_Prefix="/pool") as answer:
            blocks = answer.iter_content(ALL)
            assert next(blocks)
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert requests.get(gate.base + film.path, headers=headers, timeout=60).status_code == 401
            cookie = {"Cookie": f"filepool_token={token}", "Range": "bytes=0-9"}  # as a <video> sends it
            assert requests.get(gate.base + film.path, headers=cookie, timeout=60).content == DATA[:10]
            os.kill(gate.pid, signal.SIGTERM)
            with pytest.raises(BROKEN):
                list(blocks)
        gate.kill()
        gate.start()
        film.go_on()
        assert gate.result(film.id).json()["state"] == "completed"
        over = gate.get(film.path, headers={"X-Forwarded-Prefix": "/pool"}, allow_redirects=False)
        assert over.headers["Location"] == f"/pool/jobs/{film.id}/files/film.mp4"
