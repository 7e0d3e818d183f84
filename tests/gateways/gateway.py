"""A real gateway process in front of a real pool."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

import requests
from scenarios.world import ENGINE, ROOT, TOP, World, wait_until

TIMEOUT_S = 60


def staged(view: dict[str, Any]) -> None:
    """The stage of a job that told of one is between its begin and its end."""
    (stage,) = view["stages"]
    assert stage["status"] == "inference"
    assert view["started"] <= stage["at"] <= view["finished"]
    assert view["stages_left_out"] == 0


class Gateway:
    """`python -m pool.gateways.http` of one world, on a free port of loopback."""

    def __init__(self, world: World, *options: str, env: dict[str, str] | None = None) -> None:
        self.world, self._options, self._env = world, options, env or {}
        self.media = world.folder / "media"
        self._log = world.folder / "gateway.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.base = ""
        self.session = requests.Session()
        self.session.trust_env = False

    def start(self) -> Gateway:
        """Return when it listens."""
        argv = [sys.executable, "-m", "pool.gateways.http", "--config", str(self.world.config), "--port", "0"]
        argv += ["--base-path", str(self.media), *self._options]
        begun = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self._env}
            )

        def address() -> str:
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            text = self._log.read_bytes()[begun:].decode(errors="replace")
            found = re.search(r"listening on (http://\S+)", text)
            return found[1] if found else ""

        try:
            self.base = wait_until(address, "a gateway that listens")
        except BaseException:
            self.kill()
            raise
        return self

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6000:] if self._log.exists() else ""

    # ---- requests

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.session.request(method, self.base + path, timeout=more.pop("timeout", TIMEOUT_S), **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.call("GET", path, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return self.call("POST", path, **more)

    def submit(self, engine: str = "fake", **params: Any) -> str:
        """The id of a job that was accepted."""
        answer = self.post(f"/jobs/{engine}", json={"params": params})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def result(self, job_id: str, wait_s: float = 40) -> requests.Response:
        return self.get(f"/jobs/{job_id}/result", params={"wait_s": wait_s})

    def file(self, name: str, content: bytes = b"x" * 100) -> str:
        """A file under the allowed folder."""
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    def events(self, job_id: str, last: str = "") -> list[tuple[str, str, dict[str, Any]]]:
        """(event, id, data) of a whole stream, comments left out."""
        found = []
        headers = {"Last-Event-ID": last} if last else {}
        with self.get(f"/jobs/{job_id}/events", headers=headers, stream=True) as answer:
            assert answer.status_code == 200, answer.text
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            block: dict[str, str] = {}
            for line in answer.iter_lines(decode_unicode=True):
                if line:
                    key, _, value = line.partition(": ")
                    block[key] = value
                    continue
                if "event" in block:
                    found.append((block["event"], block.get("id", ""), json.loads(block["data"])))
                block = {}
        return found


def configure(world: World, *only: str, **http: Any) -> None:
    """A pool with the engines that the tests use, or some; `lipsync` stands in with the parameters of the real one."""
    engines = {
        "fake": {**ENGINE, "retry_times": 1},
        "echo": {"engine": "inference.fake:Echo"},
        "lipsync": {**ENGINE, "engine": "gateways.engines:Lipsync", "pythonpath": [str(ROOT / "tests")]},
        "transcribe": {**ENGINE, "engine": "gateways.engines:Transcribe", "pythonpath": [str(ROOT / "tests")]},
    }
    engines["lipsync"]["retry_times"] = 0
    engines["lipsync"]["max_concurrent_tasks"] = engines["transcribe"]["max_concurrent_tasks"] = 1
    for engine in engines.values():
        engine["bench_s"] = 1  # three tests that kill, on one worker by chance, must not take it from all that follow
    if only:
        engines = {name: engines[name] for name in only}
    document = {"spool": str(world.spool), **TOP, "http": http, "engines": engines}
    world.config.write_text(json.dumps(document))


def wav(seconds: float = 1.0, rate: int = 8000) -> bytes:
    """A recording of nothing."""
    size = int(seconds * rate)
    header = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += (1).to_bytes(2, "little") + (1).to_bytes(2, "little") + rate.to_bytes(4, "little") * 2
    header += (1).to_bytes(2, "little") + (8).to_bytes(2, "little") + b"data" + size.to_bytes(4, "little")
    return header + b"\x80" * size


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
