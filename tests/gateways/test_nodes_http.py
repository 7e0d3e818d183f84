"""The HTTP gateway in front of a branch: engines, labels, status and metrics are those of the nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from branch import CPU1, GPU7, Branch
from scenarios.world import wait_until

from gateways.gateway import Gateway


@pytest.fixture
def branch(tmp_path: Path) -> Branch:
    made = Branch(tmp_path)
    made.serve(GPU7, CPU1)
    made.describe("lipsync", {"type": "object"})
    (tmp_path / "media").mkdir()
    return made


@pytest.fixture
def gateway(branch: Branch) -> Iterator[Gateway]:
    where = cast("Any", SimpleNamespace(folder=branch.file.parent, config=branch.file))
    with Gateway(where).start() as running:
        yield running


def refused(answer: Any) -> str:
    return str(answer.text) if answer.status_code == 503 else ""


def test_it_serves_what_the_nodes_offer(branch: Branch, gateway: Gateway) -> None:
    def post(engine: str, **body: Any) -> Any:
        return gateway.session.post(f"{gateway.base}/jobs/{engine}", json=body)

    def get(path: str) -> Any:
        return gateway.session.get(f"{gateway.base}{path}")

    engines = {about["name"]: about["workers"] for about in get("/engines").json()["engines"]}
    assert engines == {"lipsync": 1, "transcribe": 3}
    assert post("lipsync", labels=["gpu24g"]).status_code == 202
    answer = post("tts")
    assert (answer.status_code, "no node of the cluster offers tts" in answer.text) == (404, True)
    for wrong, path in (("gpu24g", "labels"), (["a b"], "labels.0"), ([f"l{n}" for n in range(9)], "labels")):
        answer = post("lipsync", labels=wrong)
        assert (answer.status_code, answer.json()["error"]["path"]) == (422, path)
    job = post("lipsync", labels=["h100"]).json()
    assert "no node has h100" in get(f"/jobs/{job['id']}").json()["message"]
    again = gateway.session.post(f"{gateway.base}/jobs/{job['id']}/rerun", json={"labels": ["a100"]})
    assert again.status_code == 202
    status = get("/status").json()
    assert [node["name"] for node in status["nodes"]] == ["gpu7", "cpu1"]
    metrics = get("/metrics").text
    for line in (
        "filepool_nodes 2.0",
        "filepool_cluster_connected 1.0",
        "filepool_cluster_waiting_jobs 0.0",
        'filepool_node_slots{engine="transcribe",node="gpu7",state="busy"} 1.0',
        'filepool_node_slots{engine="transcribe",node="gpu7",state="idle"} 1.0',
        'filepool_node_slots{engine="transcribe",node="cpu1",state="down"} 1.0',
    ):
        assert line in metrics.splitlines()
    assert "gpu7/transcribe-0" not in metrics  # its own gateway has it
    branch.serve(GPU7, full="5 jobs wait")
    text = wait_until(lambda: refused(post("lipsync")), "a refusal")  # a look is believed for half a second
    assert "5 jobs wait" in text
    branch.serve(connected=False, trouble="Connection refused")
    answer = post("lipsync")
    assert (answer.status_code, "the cluster does not answer: Connection refused" in answer.text) == (503, True)
    wait_until(lambda: "filepool_cluster_connected 0.0" in get("/metrics").text, "a metric")  # a status is cached
    branch.serve(CPU1)
    (branch.root / "run" / "engines" / "lipsync.json").unlink()
    body = {"audio_path": "/a.wav", "video_path": "/b.mp4", "save_path": "/c.mp4"}

    def generated() -> str:
        answer = gateway.session.post(f"{gateway.base}/human/generate", json=body)
        return answer.text if answer.status_code == 503 else ""

    assert "no node of the cluster offers lipsync; there are: cpu1 (transcribe)" in wait_until(generated, "a refusal")
