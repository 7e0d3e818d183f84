"""A branch of a cluster from outside: which engines there are, what is accepted, what a status says."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from branch import CPU1, GPU7, SERVERS, Branch, engine

from pool.client.filepool import FilePool
from pool.client.inspection import read_status
from pool.config.settings import ELSEWHERE, Config, parse_config
from pool.errors import ConfigError, EngineUnavailable, JobRefused, SpoolFull, UnknownEngine
from pool.job import Job
from pool.policy.prospects import Outlook
from pool.runfiles.nodes import NodeFacts
from pool.spool.store import Spool
from pool.supervise.intake import Intake

SCHEMA = {
    "type": "object",
    "properties": {"audio": {"type": "string"}},
    "required": ["audio"],
    "additionalProperties": False,
}


@pytest.fixture
def branch(tmp_path: Path) -> Branch:
    return Branch(tmp_path)


def opened(branch: Branch, **how: Any) -> FilePool:
    return FilePool(branch.config, start=False, **how)


def command(branch: Branch, child_env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", *words, "--config", str(branch.file)]
    return subprocess.run(argv, env={**child_env, "COLUMNS": "200"}, capture_output=True, text=True)


# ---- configuration


def test_servers_without_engines_are_a_branch(tmp_path: Path) -> None:
    assert parse_config({"cluster": {"servers": list(SERVERS)}}, tmp_path).is_branch
    own = {"e": {"engine": "inference.fake:Echo"}}
    assert not parse_config({"cluster": {"servers": list(SERVERS)}, "engines": own}, tmp_path).is_branch
    assert not parse_config({"engines": own}, tmp_path).is_branch
    with pytest.raises(ConfigError, match="none is configured"):
        parse_config({}, tmp_path)


def test_its_engines_are_those_of_the_nodes(branch: Branch) -> None:
    branch.serve(GPU7, CPU1)
    branch.describe("portrait")
    with opened(branch) as pool:
        config = pool.config
        assert {name: about.workers for name, about in config.engines.items()} == {
            "lipsync": 1,
            "portrait": 1,
            "transcribe": 3,
        }
        assert {about.engine for about in config.engines.values()} == {ELSEWHERE}
        assert config.is_branch
        session = pool.session(params={"lipsync": {"crf": 20}})
        with pytest.raises(UnknownEngine, match="no engine 'tts' here"):
            session.session(params={"tts": {}})


# ---- accepted or not


def test_what_a_node_offers_is_accepted_and_what_none_offers_is_not(branch: Branch) -> None:
    branch.serve(GPU7, CPU1)
    branch.describe("portrait")
    branch.describe("transcribe", SCHEMA)
    pool = opened(branch)
    assert pool.state(pool.submit("transcribe", audio="a.wav").id).value == "queued"
    pool.submit("portrait", image="a.png")  # a node had it before
    with pytest.raises(JobRefused, match=r"params\.audio: this parameter is required"):
        pool.submit("transcribe")
    with pytest.raises(UnknownEngine) as caught:
        pool.submit("tts", text="x")
    assert "no node of the cluster offers tts" in str(caught.value)
    assert "gpu7 (lipsync, transcribe), cpu1 (transcribe)" in str(caught.value)


def test_the_first_word_of_a_fresh_port_is_waited_for(branch: Branch) -> None:
    branch.serve(connected=False)
    said = threading.Timer(0.2, lambda: branch.serve(GPU7))
    said.start()
    pool = opened(branch)
    assert not pool.submit("lipsync", audio="a.wav").decided
    said.join()
    with pytest.raises(UnknownEngine):
        pool.submit("tts")


def test_a_fresh_port_has_the_time_to_hear_of_the_nodes(branch: Branch) -> None:
    branch.serve(started=branch.spool.now())  # connected, and no node was heard of yet
    begun = branch.spool.now()
    said = threading.Timer(0.2, lambda: branch.serve(GPU7, started=begun))
    said.start()
    pool = opened(branch)
    pool.session(params={"lipsync": {"crf": 20}})
    assert not pool.submit("lipsync", audio="a.wav").decided
    said.join()


def test_a_description_that_is_on_its_way_is_waited_for(branch: Branch) -> None:
    branch.serve(GPU7, described=False)
    said = threading.Timer(0.2, lambda: branch.describe("transcribe", SCHEMA))
    said.start()
    with pytest.raises(JobRefused, match=r"params\.audio: this parameter is required"):
        opened(branch).submit("transcribe")
    said.join()


def test_before_anything_was_heard_of_the_cluster_a_job_may_wait(branch: Branch) -> None:
    pool = opened(branch)  # no port was ever there
    pool.submit("tts", text="x")
    branch.serve(connected=False, trouble="Connection refused")
    pool = opened(branch)
    pool.submit("tts", text="x")
    branch.describe("lipsync")
    with pytest.raises(UnknownEngine, match=r"there were: lipsync .the cluster does not answer: Connection refused"):
        opened(branch).submit("tts", text="x")


def test_a_full_cluster_refuses_and_a_call_may_be_repeated(branch: Branch) -> None:
    branch.serve(GPU7, full="100000 jobs wait, max_waiting is 100000")
    with pytest.raises(SpoolFull, match="100000 jobs wait, max_waiting is 100000: submit again later"):
        opened(branch).submit("lipsync", audio="a.wav")
    branch.serve(GPU7)
    opened(branch).submit("lipsync", audio="a.wav")


# ---- what may be expected


def test_a_wait_ends_when_the_cluster_does_not_answer_and_goes_on_after_a_repair(branch: Branch) -> None:
    branch.serve(GPU7)
    pool = opened(branch, patience=0)
    future = pool.submit("lipsync", audio="a.wav")
    branch.serve(connected=False, trouble="Connection refused")
    with pytest.raises(EngineUnavailable) as caught:
        future.result(timeout=30)
    for words in ("the cluster does not answer: Connection refused", *SERVERS, "python -m pool.cluster status"):
        assert words in str(caught.value)
    branch.serve(GPU7)
    assert pool.prospect("lipsync").outlook is Outlook.FINE
    with pytest.raises(TimeoutError):
        pool.attach(future.id).result(timeout=1.5)


def test_a_port_that_has_not_spoken_yet_is_no_reason_to_give_up(branch: Branch) -> None:
    branch.serve(GPU7)
    (branch.root / "run" / "nodes.json").unlink()
    with opened(branch) as pool:
        assert pool.prospect("lipsync").outlook is Outlook.COMING
        assert pool.status().prospect("lipsync").outlook is Outlook.COMING


def test_without_a_port_a_branch_is_an_unserved_spool(branch: Branch) -> None:
    branch.serve(GPU7)
    (branch.root / "run" / "supervisor.json").unlink()
    (branch.root / "run" / "nodes.json").unlink()
    with opened(branch) as pool:
        assert pool.prospect("lipsync").reason == "no supervisor serves this spool"
        status = pool.status()
    assert (status.health.verdict, status.nodes) == ("down", ())
    assert status.cluster is not None
    assert (status.cluster.servers, status.cluster.told) == (SERVERS, False)


# ---- status


def sick(**changes: Any) -> NodeFacts:
    return replace(GPU7, **changes)


@pytest.mark.parametrize(
    ("nodes", "about", "verdict", "sentence"),
    [
        ((GPU7,), {}, "ok", "3 workers ready on 1 node, 0 jobs running, 0 waiting"),
        ((GPU7, CPU1), {}, "degraded", "transcribe: cpu1: OSError: no model"),
        ((CPU1,), {}, "degraded", "transcribe: no worker is ready yet (and 1 more)"),
        ((), {}, "down", "the cluster has no node: start one with `python -m pool.cluster node`"),
        ((GPU7,), {"connected": False, "trouble": "refused"}, "down", "does not answer: refused"),
        ((GPU7,), {"trouble": "no JetStream"}, "down", "does not work: no JetStream"),
        ((), {"connected": False}, "degraded", "the connection to the cluster is being made"),
        ((GPU7,), {"full": "5 jobs wait"}, "degraded", "the cluster takes no more jobs now: 5 jobs wait"),
        ((GPU7, sick(name="b", draining=True)), {}, "degraded", "b is draining: it takes no more jobs"),
        ((sick(draining=True),), {}, "down", "gpu7 is draining: it takes no more jobs"),
        ((sick(engines={"e": engine(2, 1)}),), {}, "degraded", "e: 1 of 2 workers are ready"),
        ((GPU7,), {"at": 1}, "degraded", "the port has said nothing of the cluster for"),
    ],
)
def test_the_verdict(
    branch: Branch, nodes: tuple[NodeFacts, ...], about: dict[str, Any], verdict: str, sentence: str
) -> None:
    branch.serve(*nodes, **about)
    health = read_status(branch.spool, branch.config).health
    assert health.verdict == verdict, health
    assert sentence in health.sentence


def test_a_status_shows_the_nodes(branch: Branch, child_env: dict[str, str]) -> None:
    branch.serve(GPU7, CPU1)
    opened(branch).submit("lipsync", audio="a.wav")
    (branch.root / "away").mkdir(exist_ok=True)
    entry = next((branch.root / "ready" / "lipsync").iterdir())
    entry.rename(branch.root / "away" / f"lipsync.{entry.name}")
    done = command(branch, child_env, "pool", "status", "--json")
    status = json.loads(done.stdout)
    assert [node["name"] for node in status["nodes"]] == ["gpu7", "cpu1"]
    gpu7 = status["nodes"][0]
    assert (gpu7["host"], gpu7["labels"], gpu7["jobs"]) == ("10.0.0.7", ["gpu24g", "a100"], 1)
    assert gpu7["engines"]["transcribe"] == engine(2, 2, 1)
    cluster = status["cluster"]
    assert (cluster["servers"], cluster["connected"], cluster["waiting"]) == (list(SERVERS), True, 1)
    slots = {slot["slot"]: slot for slot in status["slots"]}
    assert set(slots) == {"gpu7/transcribe-0", "gpu7/transcribe-1", "gpu7/lipsync-0"}
    busy = slots["gpu7/transcribe-0"]
    assert (busy["node"], busy["job"], busy["percent"], busy["pid"]) == ("gpu7", "j-1-g1", 40.0, None)
    engines = {about["name"]: about for about in status["engines"]}
    transcribe = engines["transcribe"]
    assert (transcribe["configured"], transcribe["workers"]) == (True, 3)
    assert (transcribe["serving"], transcribe["busy"]) == (2, 1)


def test_a_branch_that_nobody_serves(tmp_path: Path) -> None:
    config = parse_config({"spool": "spool", "cluster": {"servers": list(SERVERS)}}, tmp_path)
    with FilePool(config, start=False) as pool:
        pool.spool.submit(Job("waits", "fake", created=pool.spool.now()))
        health = pool.status().health
    assert health.verdict == "down"
    assert health.reasons == ("no port serves this branch, 1 job wait: an open FilePool starts one",)


def test_a_terminal_shows_the_nodes(branch: Branch, child_env: dict[str, str]) -> None:
    branch.serve(GPU7, CPU1, replace(GPU7, name="gpu8", draining=True, host="\x1b[31mevil"))
    shown = command(branch, child_env, "pool", "status").stdout
    assert f"cluster     {', '.join(SERVERS)}, connected, 3 nodes, 0 jobs sent and not begun" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "10.0.0.7" in lines["gpu7"]
    assert "gpu24g, a100" in lines["gpu7"]
    assert "transcribe: OSError: no model" in lines["cpu1"]
    assert "draining" in lines["gpu8"]
    assert "40 %" in shown
    assert "gpu7/transcribe-0" in lines
    assert "\x1b" not in shown


def test_a_pool_of_its_own_has_no_cluster(tmp_path: Path) -> None:
    config = parse_config({"spool": "spool", "engines": {"e": {"engine": "inference.fake:Echo"}}}, tmp_path)
    with FilePool(config, start=False) as pool:
        status = pool.status()
        assert pool.config is config
    assert (status.cluster, status.nodes) == (None, ())


def test_commands_know_the_engines_of_the_cluster(branch: Branch, child_env: dict[str, str]) -> None:
    branch.serve(GPU7)
    branch.describe("transcribe", SCHEMA)
    done = command(branch, child_env, "pool", "engines", "--json")
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)["engines"]}
    assert set(entries) == {"lipsync", "transcribe"}
    assert entries["transcribe"]["schema"] == SCHEMA
    done = command(branch, child_env, "pool.submit", "transcribe", "audio=a.wav", "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["served"] is True
    done = command(branch, child_env, "pool.submit", "tts", "text=x", "--no-wait")
    assert done.returncode == 2
    assert "no node of the cluster offers tts" in done.stderr


# ---- labels


def test_a_job_may_want_a_machine_with_labels(branch: Branch, child_env: dict[str, str]) -> None:
    branch.serve(GPU7, CPU1)
    branch.describe("transcribe", {"type": "object"})
    pool = opened(branch)
    future = pool.submit("transcribe", audio="a.wav", labels=["gpu24g"])
    assert pool.prospect_of(future.id, "transcribe").outlook is Outlook.FINE
    unfit = pool.submit("transcribe", audio="a.wav", labels=["gpu24g", "h100"])
    assert "no node has h100" in pool.prospect_of(unfit.id, "transcribe").reason
    assert "no node has h100" in unfit.status().message
    (many,) = pool.submit_many("transcribe", [{}], labels=["h100"])
    assert pool.origin(many.id).terms.labels == ("h100",)
    again = pool.rerun(unfit.id)
    assert pool.origin(again.id).terms.labels == ("gpu24g", "h100")
    again = pool.rerun(unfit.id, labels=["a100"])
    assert pool.origin(again.id).terms.labels == ("a100",)
    inner = pool.session(labels=["a100"]).submit("transcribe", audio="a.wav")
    assert pool.origin(inner.id).terms.labels == ("a100",)
    done = command(
        branch, child_env, "pool.submit", "lipsync", "--label", "gpu24g", "--label", "x1", "--no-wait", "--json"
    )
    assert pool.origin(json.loads(done.stdout)["id"]).terms.labels == ("gpu24g", "x1"), done.stderr
    done = command(branch, child_env, "pool", "rerun", many.id, "--label", "a100", "--json")
    assert pool.origin(json.loads(done.stdout)["id"]).terms.labels == ("a100",), done.stderr


def test_a_wait_for_labels_that_no_node_has_ends(branch: Branch) -> None:
    branch.serve(GPU7)
    pool = opened(branch, patience=0)
    fits = pool.submit("lipsync", labels=["gpu24g"])
    unfit = pool.submit("lipsync", labels=["h100"])
    for future in (unfit, pool.attach(unfit.id)):
        with pytest.raises(EngineUnavailable, match="no node has h100"):
            future.result(timeout=30)
    behind = pool.submit("lipsync", depends_on=[unfit.id])
    with pytest.raises(EngineUnavailable, match=f"no node has h100 .job {unfit.id}"):
        behind.result(timeout=30)
    with pytest.raises(TimeoutError):
        fits.result(timeout=1.5)


def test_a_pool_of_its_own_takes_jobs_for_the_labels_of_its_machine(tmp_path: Path) -> None:
    engines = {"echo": {"engine": "inference.fake:Echo"}}
    document = {"spool": "spool", "min_free_mb": 0, "engines": engines}
    pool = FilePool(parse_config({**document, "cluster": {"labels": ["gpu24g", "a100"]}}, tmp_path), start=False)
    pool.submit("echo", labels=["a100"])
    with pytest.raises(JobRefused) as caught:
        pool.submit("echo", labels=["a100", "h100"])
    assert caught.value.path == "labels"
    assert caught.value.reason == "no machine here has 'h100'; this one has: gpu24g, a100"
    pool = FilePool(parse_config(document, tmp_path), start=False)
    calls: list[Callable[[], Any]] = [
        lambda: pool.submit("echo", labels=["a100"]),
        lambda: pool.submit_many("echo", [{}], labels=["a100"]),
        lambda: next(iter(pool.map("echo", [{}], labels=["a100"]))),
    ]
    for call in calls:
        with pytest.raises(JobRefused, match="no machine here has 'a100'; this one has no labels"):
            call()


# ---- dropped files


def test_a_drop_into_a_branch(branch: Branch) -> None:
    box, taker = branch.root / "in", Intake(branch.spool, branch.config, turn_s=math.inf)

    def take(name: str, **job: Any) -> None:
        (branch.root / "tmp" / name).write_text(json.dumps(job))
        (branch.root / "tmp" / name).rename(box / name)
        taker.arrived([name])
        taker.turn()

    take("early.json", engine="lipsync")
    assert (os.listdir(box), taker.paused) == (["early.json"], "the cluster does not answer; drops wait in in/")
    branch.serve(GPU7, full="5 jobs wait")
    taker.arrived(["early.json"])
    taker.turn()
    assert "the cluster takes no more jobs now: 5 jobs wait" in taker.paused
    branch.serve(GPU7)
    take("late.json", engine="lipsync", labels=["h100"])
    take("wrong.json", engine="tts")
    take("wrong2.json", engine="lipsync", labels="h100")
    assert os.listdir(box) == []
    pool = opened(branch)
    labels = {pool.origin(info.id).terms.labels for info in pool.jobs()}
    assert labels == {(), ("h100",)}
    reasons = {path.name: path.read_text() for path in (branch.root / "quarantine").glob("*.reason.txt")}
    assert "no engine 'tts'; there are: lipsync, transcribe" in reasons["wrong.json.reason.txt"]
    assert "labels: 'h100' (str) is not a list of labels" in reasons["wrong2.json.reason.txt"]


def test_a_drop_for_a_machine_that_is_not_here(spool: Spool, config: Config) -> None:
    taker = Intake(spool, config, turn_s=math.inf)
    (spool.root / "tmp" / "a").write_text('{"engine": "echo", "labels": ["h100"]}')
    (spool.root / "tmp" / "a").rename(spool.root / "in" / "a.json")
    taker.arrived(["a.json"])
    taker.turn()
    (reason,) = (spool.root / "quarantine").glob("*.reason.txt")
    assert "labels: no machine here has 'h100'; this one has no labels" in reason.read_text()
