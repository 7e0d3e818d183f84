"""`python -m pool.cluster` as a person or a script meets it: exit codes, help, JSON, jobs of all clients, doctor."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from scenarios.world import ROOT, wait_until
from typer.main import get_command

from cluster.machines import LEASE_S, cluster
from cluster.rig import Servers, free_ports
from cluster.test_accounts import PASSWORDS, secrets  # noqa: F401
from pool.cluster import starting
from pool.cluster.commands import EXIT_CODES, app
from pool.cluster.nats_server import Tls

LONG_S = 60.0
LOCKS: list[FileLock] = []  # one that nobody has any more is given up
ENGINES: dict[str, Any] = {"fake": {"engine": "inference.fake:Fake"}}
VERBS = sorted(
    str(one.name or getattr(one.callback, "__name__", "")) for one in app.registered_commands if not one.hidden
)


def said(*words: object, verb: str = "pool.cluster", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", verb, *map(str, words)]
    env = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


def configured(folder: Path, *servers: str, engines: dict[str, Any] | None = None, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "config.json"
    cluster = {"servers": list(servers), "lease_s": LEASE_S, **more}
    document: dict[str, Any] = {"spool": "spool", "min_free_mb": 1, "cluster": cluster}
    file.write_text(json.dumps({**document, **({"engines": engines} if engines else {})}))
    return file


# ---- exit codes and help


def _nowhere() -> str:
    return f"nats://127.0.0.1:{free_ports(1)[0]}"


def _locked(folder: Path) -> list[object]:
    file = configured(folder, _nowhere(), engines=ENGINES)
    (folder / "spool" / "run").mkdir(parents=True, mode=0o700)
    LOCKS.append(FileLock(folder / "spool" / "run" / "node.lock"))
    LOCKS[-1].acquire()
    return ["node", "--config", file]


#: What ends with which code. Each makes its words in a folder; {} is a server.
ENDS: list[tuple[int, Callable[[Path], list[object]]]] = [
    (0, lambda folder: ["status", "--server", "{}"]),
    (0, lambda folder: ["status", "--server", "{}", "--json"]),
    (0, lambda folder: ["jobs", "--server", "{}"]),
    (0, lambda folder: ["setup", "--server", "{}", "--json"]),
    (0, lambda folder: ["doctor", "--server", "{}"]),
    (0, lambda folder: ["drain", "--config", configured(folder, "nats://a:1", engines=ENGINES)]),
    *((1, lambda folder, verb=verb: [verb, "--server", _nowhere()]) for verb in ("status", "jobs", "setup", "doctor")),
    (1, lambda folder: ["server", "--port", 80, "--store", "/proc/nowhere"]),
    (2, lambda folder: ["nonsense"]),
    (2, lambda folder: ["status", "--nonsense"]),
    (2, lambda folder: ["jobs", "--limit", "many"]),
    (2, lambda folder: ["server", "--port", 0]),
    *(
        (4, lambda folder, verb=verb: [verb, "--config", folder / "none.json"])
        for verb in ("status", "jobs", "setup", "doctor", "node", "port", "drain", "server")
    ),
    *((4, lambda folder, verb=verb: [verb, "--config", configured(folder)]) for verb in ("status", "jobs", "doctor")),
    (4, lambda folder: ["status", "--server", "{}", "--password-file", folder / "none"]),
    (6, _locked),
]


@pytest.mark.parametrize(
    "line", ["port", "port --tied --config a.json", "port -c nats://host:4222", "node --config=a.json"]
)
def test_the_short_way_to_what_stays_reads_what_typer_reads(line: str) -> None:
    command: Any = get_command(app)
    name, *words = line.split()
    params, defaults = (command.commands[name].make_context(name, given).params for given in (words, []))
    said = {key: value for key, value in params.items() if value != defaults[key]}
    assert starting.asked(line.split()) == {"port": starting.Port, "node": starting.Node}[name](**said)


@pytest.mark.parametrize("line", ["", "node --no-start", "node --name a", "port --help", "port --tied x", "port -c"])
def test_all_else_is_left_to_typer(line: str) -> None:
    assert starting.asked(line.split()) is None


@pytest.mark.long
@pytest.mark.parametrize(("code", "words"), ENDS)
def test_every_end_has_the_code_of_the_table(
    server: Servers, tmp_path: Path, code: int, words: Callable[[Path], list[object]]
) -> None:
    argv = [server.url if word == "{}" else word for word in words(tmp_path)]
    done = said(*argv, cwd=tmp_path)
    assert done.returncode == code, f"{argv}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert code in EXIT_CODES
    if "--json" in argv:
        assert isinstance(json.loads(done.stdout), dict)


def test_every_code_of_the_table_is_met() -> None:
    assert {code for code, _ in ENDS} == set(EXIT_CODES)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_teaches(verb: str) -> None:
    """Examples that are understood, and every exit code."""
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", said(*filter(None, [verb]), "--help").stdout).split())
    examples = re.findall(rf"python -m pool\.cluster {verb or '[a-z]+'}", text.partition("Examples")[2])
    assert examples
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.long
def test_json_wherever_a_machine_would_read() -> None:
    assert {verb for verb in VERBS if "--json" in said(verb, "--help").stdout} == set(VERBS) - {"server", "node"}


@pytest.mark.long
def test_errors_are_json_as_well() -> None:
    done = said("jobs", "--server", _nowhere(), "--json")
    assert json.loads(done.stdout)["error"]["type"] == "ClusterAway"
    assert done.stderr.count("does not answer") == 1


# ---- the jobs of all clients


def listed(url: str, *words: object) -> dict[str, Any]:
    done = said("jobs", "--server", url, "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_servers_that_nobody_has_used_yet(tmp_path: Path) -> None:
    with Servers(tmp_path) as servers:
        status = said("status", "--server", servers.url)
        assert status.returncode == 0, status.stderr
        assert "none yet: the first node or client creates them" in status.stdout
        assert "no node serves" in status.stdout
        plain = json.loads(said("status", "--server", servers.url, "--json").stdout)
        assert plain["prepared"] is False
        assert plain["nodes"] == []
        jobs = said("jobs", "--server", servers.url)
        assert jobs.returncode == 0, jobs.stderr
        assert "no job is known" in jobs.stdout + jobs.stderr


@pytest.mark.long
def test_jobs_of_all_clients(server: Servers, tmp_path: Path) -> None:
    with cluster(tmp_path / "machines", server.url) as joined:
        joined.node("only", {"fake": {"max_concurrent_tasks": 1, "retry_times": 0}})
        mine, other = joined.pool("mine"), joined.pool("other")
        joined.wait_nodes("only", client="mine")
        joined.wait_nodes("only", client="other")
        assert mine.submit("fake", id="one", value=1).result(LONG_S)
        assert mine.submit("fake", id="two", do="raise").exception(LONG_S)
        other.submit("fake", id="three", do="sleep", seconds=600)
        wait_until(lambda: listed(server.url)["jobs"][0]["state"] == "running", "a node has it")
        for number in range(4):
            mine.submit("fake", id=f"four-{number}", value=number)
        wait_until(lambda: len(listed(server.url)["jobs"]) == 7, "all are sent")
        found = {job["id"]: job for job in listed(server.url)["jobs"]}
        assert [found[name]["state"] for name in ("one", "two", "three")] == ["completed", "failed", "running"]
        assert found["four-3"]["state"] == "waiting"
        assert (found["one"]["node"], found["three"]["node"], found["four-3"]["node"]) == ("only", "only", "")
        assert found["one"]["client"] == mine.spool.id != found["three"]["client"] == other.spool.id
        assert list(found)[-3:] == ["three", "two", "one"]  # the newest first
        walked, after = list[str](), 0
        while not walked or after:
            page = listed(server.url, "--limit", 2, "--after", after)
            assert len(page["jobs"]) <= 2
            walked += [job["id"] for job in page["jobs"]]
            after = page["next"]
        assert walked == list(found)
        text = said("jobs", "--server", server.url).stdout
        assert all(name in text for name in found)
        here = said("jobs", "--config", joined.branch("mine"), verb="pool")
        assert "three" not in here.stdout
        assert "python -m pool.cluster jobs" in here.stderr


def test_a_job_whose_result_is_gone_is_not_said_to_wait(tmp_path: Path) -> None:
    from pool.cluster import wire

    with Servers(tmp_path / "nats") as servers:
        asyncio.run(servers.ensure(result_s=1.0))

        async def identify() -> None:
            async with servers.connected() as client:
                ids = await client.jetstream().key_value(wire.IDS)
                await ids.create("old", wire.Identity("0" * 32, "fake").pack())

        asyncio.run(identify())
        wait_until(lambda: listed(servers.url)["jobs"][0]["state"] == "forgotten", "it is older than results are kept")


# ---- doctor


def found(file: Path, *words: str, verb: str = "pool.cluster") -> dict[str, tuple[bool, str, str]]:
    done = said("doctor", "--config", file, "--json", *words, verb=verb)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] is (done.returncode == 0), done.stderr
    findings = [one for one in told["findings"] if one["subject"] == "cluster"]
    assert all(one["ok"] or (one["message"] and one["hint"]) for one in findings), (
        "what is wrong says why and what helps"
    )
    return {one["check"]: (one["ok"], one["message"], one["hint"]) for one in findings}


def wrong(findings: dict[str, tuple[bool, str, str]]) -> set[str]:
    return {check for check, (ok, _, _) in findings.items() if not ok}


@pytest.fixture(scope="module")
def guarded(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:  # noqa: F811
    """A server with TLS and users."""
    tls = Tls(secrets / "nats-a.crt", secrets / "nats-a.key", secrets / "ca.crt")
    with Servers(tmp_path_factory.mktemp("guarded"), passwords=PASSWORDS, tls=tls) as servers:
        done = said("setup", *access(servers, secrets, "admin"))
        assert done.returncode == 0, done.stderr
        yield servers


def access(servers: Servers, secrets: Path, user: str) -> list[object]:  # noqa: F811
    ca, password = secrets / "ca.crt", secrets / f"{user}.password"
    return ["--server", servers.url, "--user", user, "--password-file", password, "--tls-ca", ca]


@pytest.mark.long
def test_a_good_cluster_is_all_right(guarded: Servers, secrets: Path, tmp_path: Path) -> None:  # noqa: F811
    for user, engines in (("client", None), ("node", ENGINES)):
        more: dict[str, Any] = {
            "user": user,
            "password_file": str(secrets / f"{user}.password"),
            "tls_ca": str(secrets / "ca.crt"),
        }
        file = configured(tmp_path / user, guarded.url, engines=engines, **more)
        for verb in ("pool.cluster", "pool"):
            findings = found(file, verb=verb)
            assert wrong(findings) == set(), findings
            assert {"jetstream", "streams", "replicas", "rights", "clock", "lease", "nodes"} <= findings.keys()
            assert "expires in" in findings[f"certificate of {guarded.url}"][1]
            assert "expires in" in findings[f"authority {secrets / 'ca.crt'}"][1]


@pytest.mark.long
def test_nothing_is_changed(guarded: Servers, secrets: Path, tmp_path: Path) -> None:  # noqa: F811
    async def stored() -> list[int]:
        import ssl

        import nats

        context = ssl.create_default_context(cafile=str(secrets / "ca.crt"))
        client = await nats.connect(guarded.url, user="admin", password=PASSWORDS.admin, tls=context)
        counts = [info.state.last_seq for info in await client.jetstream().streams_info()]
        await client.close()
        return counts

    before = asyncio.run(stored())
    for user in ("client", "node", "admin"):
        said("doctor", *access(guarded, secrets, user))
    assert asyncio.run(stored()) == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("user", "password", "check"),
    [("node", "node", "rights"), ("client", "wrong", "server"), ("client", "node", "server")],
)
def test_what_is_wrong_with_an_account(
    guarded: Servers,
    secrets: Path,  # noqa: F811
    tmp_path: Path,
    user: str,
    password: str,
    check: str,
) -> None:
    (secrets / "wrong.password").write_text("wrong")
    more: dict[str, Any] = {
        "user": user,
        "password_file": str(secrets / f"{password}.password"),
        "tls_ca": str(secrets / "ca.crt"),
    }
    findings = found(configured(tmp_path / "branch", guarded.url, **more))
    (bad,) = wrong(findings)
    assert bad.startswith(check)
    assert user in findings[bad][1] + findings[bad][2] or "password" in findings[bad][2]


@pytest.mark.long
def test_a_certificate_that_is_not_trusted(guarded: Servers, secrets: Path, tmp_path: Path) -> None:  # noqa: F811
    more: dict[str, Any] = {"user": "client", "password_file": str(secrets / "client.password")}
    findings = found(configured(tmp_path / "branch", guarded.url, **more))
    assert wrong(findings) == {f"server {guarded.url}"}
    assert "tls_ca" in findings[f"server {guarded.url}"][2]


@pytest.mark.long
def test_one_of_several_servers_is_away(server: Servers, tmp_path: Path) -> None:
    gone = _nowhere()
    findings = found(configured(tmp_path / "branch", server.url, gone))
    assert wrong(findings) == {f"server {gone}"}
    assert findings[f"server {server.url}"][0]


def test_streams_that_are_not_there(tmp_path: Path) -> None:
    with Servers(tmp_path / "nats") as servers:
        findings = found(configured(tmp_path / "branch", servers.url))
        assert wrong(findings) == {"streams"}
        assert "pool.cluster setup" in findings["streams"][2]


@pytest.mark.long
def test_too_few_replicas_and_other_leases(server: Servers, tmp_path: Path) -> None:
    with cluster(tmp_path / "machines", server.url) as joined:
        joined.node("only")
        with joined.pool():
            joined.wait_nodes("only")
            wait_until(
                lambda: "queue" in found(configured(tmp_path / "b", server.url, lease_s=7))["lease"][1], "a queue"
            )
            findings = found(configured(tmp_path / "branch", server.url, lease_s=7.0, replicas=3))
    assert wrong(findings) == {"lease", "replicas"}
    assert "node only 2 s" in findings["lease"][1]


@pytest.mark.parametrize("skew_s", [-60.0, 60.0])
def test_a_clock_that_is_wrong(server: Servers, monkeypatch: pytest.MonkeyPatch, skew_s: float) -> None:
    from pool.cluster import diagnosis
    from pool.config.settings import ClusterConfig, Config

    class Skewed:
        def wall(self) -> float:
            return REAL.wall() + skew_s

    from pool.system.clock import REAL

    monkeypatch.setattr(diagnosis, "REAL", Skewed())
    config = replace(Config(Path("/")), cluster=replace(ClusterConfig(), servers=(server.url,)))
    (clock,) = [one for one in asyncio.run(diagnosis.diagnose(config)) if one.check == "clock"]
    assert not clock.ok
    assert clock.message.startswith(("60.", "59."))
    assert "NTP" in clock.hint
