"""A gateway that is killed twenty times in a row while clients wait: every request ends with its result, and none makes
a second job. The moments are drawn from a seed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
from scenarios.world import World

from gateways.gateway import Gateway, configure, wav
from gateways.test_human import ask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS, SEED, CLIENTS = 20, 15, 8
CUT = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)


class Waiting(threading.Thread):
    """A client of a route that waits, which sends the same request again until it is answered, and then another one."""

    def __init__(self, gate: Gateway, number: int, folder: Path, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._gate, self._draw, self._folder, self._over = gate, random.Random(SEED + number), folder, over
        self._number = number
        self.answered: list[tuple[str, str]] = []  # engine and id of the job
        self.again = 0  # requests that were sent more than once
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._over.is_set():
            name = f"{self._number}-{len(self.answered)}"
            go = self._folder / name
            threading.Timer(self._draw.uniform(0.1, 1.5), go.touch).start()  # as long as the job takes
            engine = self._draw.choice(["lipsync", "transcribe"])
            self._until_answered(engine, *self._request(engine, name, go))

    def _request(self, engine: str, name: str, go: Path) -> tuple[str, dict[str, Any]]:
        headers = {"Idempotency-Key": name}
        if engine == "lipsync":
            return "/human/generate", {"json": ask(self._gate, f"until {go}".encode()), "headers": headers}
        form = {"model": "any", "prompt": f"until {go}"}
        file = {"file": ("talk.wav", wav(1.0) + name.encode())}
        return "/v1/audio/transcriptions", {"files": file, "data": form, "headers": headers}

    def _until_answered(self, engine: str, path: str, more: dict[str, Any]) -> None:
        for number in itertools.count():
            self.again += number == 1
            try:
                answer = requests.post(self._gate.base + path, timeout=120, **more)
            except CUT:
                time.sleep(0.1)
                continue
            if answer.status_code == 200:
                self.answered.append((engine, answer.headers["X-Job-Id"]))
                return
            if answer.status_code != 503:
                self.wrong.append(f"{path}: {answer.status_code} {answer.text[:300]}")
                return
            time.sleep(0.1)


def test_twenty_kills_of_the_http_gateway(world: World, tmp_path: Path) -> None:
    configure(world, "lipsync", "transcribe", return_s=60)
    world.serve(ready=2)
    draw, over = random.Random(SEED), threading.Event()
    with Gateway(world, "--no-start") as gate:
        gate.start()
        clients = [Waiting(gate, number, tmp_path, over) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        for _ in range(KILLS):
            time.sleep(draw.uniform(0.0, 2.0))
            gate.kill()
            gate.start()
        over.set()
        for client in clients:
            client.join(120)
            assert not client.is_alive(), "a request without an answer"
        assert [fault for client in clients for fault in client.wrong] == []
        answered = [one for client in clients for one in client.answered]
        jobs = Counter((job.engine, job.id) for job in world.pool().jobs(limit=1000))
        again = sum(client.again for client in clients)
        print(f"{KILLS} kills: {len(answered)} requests answered, {again} of them asked again, {len(jobs)} jobs")
        assert jobs == Counter(answered), "a job for each request, and no other"
        assert again >= KILLS
        assert "Traceback" not in gate.log()
