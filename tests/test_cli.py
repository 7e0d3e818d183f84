"""The command line against a real pool: what is printed where, exit codes, Ctrl-C, and no traceback for anybody."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import PATIENCE_S, ROOT, World, passing, wait_until
from terminal import on_terminal
from typer.main import get_command

from pool.cli import app as pool_app
from pool.cli import serving
from pool.cli import submit as pool_submit
from pool.cli.command import run
from pool.cli.outcome import clock, part_line
from pool.client.durations import span
from pool.errors import JobRefused
from pool.job import JobState
from pool.spool.lookup import running, waiting
from pool.spool.store import Spool

ENGINE = '''
"""An engine of a user's own."""
import time
from pathlib import Path
import pydantic

class Params(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    audio: Path = pydantic.Field(description="what is heard")
    speakers: int | None = None
    loud: bool = False
    output: Path | None = None

class Talk:
    """Pretends to listen.

    Not shown in a list.
    """
    Params = Params
    def load(self, device, options): pass
    def check(self, params): return Params.model_validate(dict(params))
    def run(self, params, context):
        segments = []
        for number, text in enumerate(["Hello [there].", "Good\\x1b[2J bye."]):
            segment = {"start": number * 3.2, "end": number * 3.2 + 2.96, "text": text}
            context.partial(segment)
            context.progress("inference", 50.0 * (number + 1), f"{number + 1} of 2")
            segments.append({**segment, "speaker": f"spk{number}"})
        if params.output:
            context.output(params.output, params.output.name).write_text("done")
        return {"text": "…", "language": "en", "duration_s": 6.2, "segments": segments,
                "speakers": ["spk0", "spk1"], "warnings": ["the end is faint"], "heard": str(params.audio)}
'''
GATE = '''
import time
from pathlib import Path
from inference.fake import Fake

class Gate(Fake):
    """A job lasts until the file exists that is its value."""
    def run(self, params, context):
        while params.value and not Path(params.value).exists():
            time.sleep(0.01)
        return super().run(params, context)
'''
Cli = Callable[..., "Said"]


@dataclass
class Said:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with passing(tmp_path_factory.mktemp("cli")) as made:
        (made.folder / "talk.py").write_text(ENGINE)
        engines = {
            "fake": {},
            "talk": {"engine": "talk:Talk", "pythonpath": [str(made.folder)], "max_concurrent_tasks": 1},
            "bad": {"max_concurrent_tasks": 1, "options": {"fail_load": "config"}},
        }
        made.configure(engines).serve(ready=3)
        log = made.spool / "run" / "logs" / "bad-0.log"
        wait_until(lambda: log.exists() and "no such model" in log.read_text(), "bad-0 cannot load")
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[World]:
    """A world that one test may break."""
    with passing(tmp_path) as made:
        yield made.configure()


@pytest.fixture
def gated(own: World) -> World:
    """The same; `value` of its jobs is the file that they wait for."""
    (own.folder / "gate.py").write_text(GATE)
    return own.configure({"fake": {"engine": "gate:Gate", "pythonpath": [str(own.folder)]}}, drain_grace_s=PATIENCE_S)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs one command line in this process: cli(world, "submit", "fake", …)."""

    def call(where: World | Path, command: str, *words: str) -> Said:
        monkeypatch.chdir(where if isinstance(where, Path) else where.folder)
        monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
        submitting = command == "submit"
        app = pool_submit.app if submitting else pool_app.app
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run(app, "pool", words if submitting else (command, *words))
        out, err = capsys.readouterr()
        assert not err.startswith("Traceback")
        return Said(int(end.value.code or 0), out, err)

    return call


def shell(where: Path, *words: str, **more: Any) -> subprocess.Popen[str]:
    """The same as a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=where, env=env, text=True, **pipes)


# --- submit: results


def test_a_result_goes_to_stdout_and_everything_else_to_stderr(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "value=3")
    assert said.code == 0
    assert said.json()["value"] == 3
    assert "· fake" in said.err
    assert "✓ completed in" in said.err
    assert cli(world, "submit", "fake", "--quiet").err == ""


def test_json_is_one_object_and_the_record_can_be_kept(world: World, cli: Cli, tmp_path: Path) -> None:
    said = cli(world, "submit", "fake", 'value={"a": [1]}', "--json", "--output-record", str(tmp_path / "r.json"))
    assert (said.code, said.json()["state"], said.json()["value"]["value"]) == (0, "completed", {"a": [1]})
    assert json.loads((tmp_path / "r.json").read_text()) == said.json()
    assert list(tmp_path.iterdir()) == [tmp_path / "r.json"]


def test_a_transcript_is_read_by_people(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "talk", "audio=a.wav", "output=o.txt", "loud=yes")
    assert said.out.splitlines() == [
        "[00:00.0 → 00:03.0] spk0: Hello [there].",
        "[00:03.2 → 00:06.2] spk1: Good bye.",
    ]
    assert "[00:00.0 → 00:03.0] Hello [there]." in said.err  # as it came, without a speaker yet
    assert "! the end is faint" in said.err
    assert "· en · 2 speakers · 6.2 s of audio" in said.err
    assert f"wrote {world.folder}/o.txt" in said.err
    assert (world.folder / "o.txt").read_text() == "done"


def test_relative_paths_begin_where_they_are_typed(world: World, cli: Cli, tmp_path: Path) -> None:
    said = cli(tmp_path, "submit", "talk", "audio=sub/a.wav", "--json", "--config", str(world.config))
    assert said.json()["value"]["heard"] == str(tmp_path / "sub" / "a.wav")


def test_python_callers_have_relative_paths_too(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool = world.pool()
    for audio in ("sub/a.wav", Path("sub/a.wav"), tmp_path / "sub" / "a.wav"):
        assert pool.submit("talk", audio=audio).result(20)["heard"] == str(tmp_path / "sub" / "a.wav")
    assert pool.submit("fake", value=Path("b.wav")).result(20)["value"] == str(tmp_path / "b.wav")
    (only,) = pool.map("talk", [{"audio": "~/c.wav"}])
    assert only["heard"] == str(Path("~/c.wav").expanduser())


# --- submit: failures


def test_a_failure_has_a_reason_for_every_attempt(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "do=raise", "value=out of ideas", "--retries", "1", "--verbose")
    assert (said.code, said.out) == (1, "")
    assert "! attempt 1 failed: engine in run: out of ideas" in said.err
    assert "✗ failed  out of ideas" in said.err
    assert "kind      engine in run, attempt 2 on fake-" in said.err
    assert "exception RuntimeError" in said.err
    assert "\n    1: engine in run: out of ideas" in said.err
    assert "\n    2: engine in run: out of ideas" in said.err
    assert "_misbehave" in said.err


def test_a_crash_is_told_with_signal_hint_and_stderr(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "do=segfault", "--retries", "0", "--json")
    assert said.code == 1
    assert said.json()["failure"]["signal"] == "SIGSEGV"
    assert "process   ended by SIGSEGV" in said.err
    assert "hint      a crash in native code" in said.err
    assert "in _segfault" in said.err


def test_a_message_is_never_empty(world: World, cli: Cli) -> None:
    assert "✗ failed  RuntimeError" in cli(world, "submit", "fake", "do=raise", "--retries", "0").err


def test_time_limits(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "do=sleep", "seconds=60", "--timeout", "0.5", "--retries", "0")
    assert said.code == 3
    assert "kind      timeout" in said.err
    said = cli(
        world, "submit", "fake", "do=sleep", "seconds=1.5", "--wait-timeout", "0.5", "--json", "--id", "patience"
    )
    assert said.code == 3
    assert (said.json()["timed_out"], said.json()["state"]) == (True, "running")
    assert "✗ not done after 0.5 s: job patience is inference" in said.err
    assert "python -m pool.submit --attach patience" in said.err
    assert cli(world, "submit", "--attach", "patience").code == 0


def test_an_engine_that_cannot_start_is_told_at_once(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "bad", "--wait-timeout", "0.8", "--id", "hopeless")
    assert said.code == 3
    assert "! bad-0 benched: exit code 4" in said.err
    assert "InputError: option model: no such model (correct config.json)" in said.err
    assert cli(world, "cancel", "hopeless").code == 0


# --- submit: wrong usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fak"], "no engine 'fak' in {config}, did you mean \"fake\""),
        (["fake", "speech.wav"], "'speech.wav' is not key=value"),
        (["fake", "valu=3"], 'params.valu: unknown parameter, did you mean "value"'),
        (["fake", "do=slep"], "params.do: 'slep' is not one of ['echo', 'sleep'"),
        (["fake", "seconds=abc"], "params.seconds: 'abc' is not of type 'number'"),
        (["talk"], "params.audio: this parameter is required"),
        (["fake", "--priority", "101"], "priority: 101 is not a whole number between -100 and 100"),
        (["fake", "--id", "../x"], "id: '../x' is not an id"),
        (["fake", "--retries", "100"], "retry_times: 100 is not a whole number between 0 and 98"),
        (["fake", "--timeout", "0"], "timeout_s: 0.0 is not a number of seconds between 0.001 and 1e+09"),
        (["fake", "--timeout", "nan"], "timeout_s: nan is not a number of seconds"),
        (["fake", "--retry-on", "timeouts"], "retry_on: 'timeouts' (str) is not one of infrastructure, resource"),
        (["fake", "--config", "absent.json"], "absent.json does not exist; a small one: {{"),
        (["--attach", "nobody"], "no job 'nobody' in this spool"),
        (["fake", "--attach", "nobody"], "--attach takes no engine"),
        ([], "give an engine and its parameters"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(world: World, cli: Cli, words: list[str], message: str) -> None:
    said = cli(world, "submit", *words, "--json")
    assert said.code == 2
    assert message.format(config=world.config) in said.err
    assert said.err.startswith("error: ")
    assert said.json()["error"]["message"] in said.err


def test_options_that_do_not_exist(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "--prioritty", "3")
    assert said.code == 2
    assert "--priority" in said.err


def test_a_configuration_with_a_mistake(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"engines": {"echo": {"engine": "x:Y", "worker": 2}}}')
    for command in (("submit", "echo"), ("status",)):
        said = cli(tmp_path, *command)
        assert said.code == 2
        assert 'engines.echo.worker: unknown key, did you mean "workers"' in said.err
    assert cli(tmp_path, "serve").code == 4


# --- submit: hand over, come back


def test_jobs_are_listed_shown_and_run_again(world: World, cli: Cli) -> None:
    first = cli(world, "submit", "fake", "value=7", "--tag", "red,big", "--note", "for [Ann]\x1b[2J", "-q")
    assert first.code == 2
    assert "note: " in first.err
    words = ("value=7", "--tag", "red,big", "--note", "for [Ann]", "--id", "listed")
    assert cli(world, "submit", "fake", *words).code == 0
    failed = cli(world, "submit", "fake", "do=raise", "value=no [luck]", "--tag", "red", "--retries", "0", "--json")
    said = cli(world, "jobs", "--tag", "red", "--limit", "1")
    assert said.code == 0
    assert "no [luck]" in said.out
    assert "listed" not in said.out
    cursor = said.err.split("--after ")[1].strip()
    said = cli(world, "jobs", "--tag", "red", "--after", cursor)
    assert "listed" in said.out
    assert "big" in said.out
    assert "for [Ann]" in said.out
    assert "failed" not in said.out
    assert (
        cli(world, "jobs", "--tag", "red", "--state", "failed,cancelled", "--json").json()["jobs"][0]["id"]
        == (failed.json()["id"])
    )
    found = cli(world, "jobs", "--text", "NO [luck]", "--json").json()["jobs"]
    assert [job["id"] for job in found] == [failed.json()["id"]]
    said = cli(world, "jobs", "--tag", "nobody")
    assert (said.code, said.out) == (0, "")
    assert "no job fits" in said.err
    said = cli(world, "jobs", "show", "listed")
    assert "value = 7" in said.out
    assert "for [Ann]" in said.out
    again = cli(world, "rerun", "listed", "value=8", "--tag", "blue")
    assert again.code == 0
    job_id = again.out.strip()
    assert cli(world, "result", job_id, "--wait").json()["value"] == 8
    shown = cli(world, "jobs", "show", job_id, "--json").json()
    assert (shown["params"], shown["tags"], shown["note"], shown["rerun_of"]) == (
        {"value": 8},
        ["blue"],
        "for [Ann]",
        "listed",
    )
    told = cli(world, "stats", "--since", "6h", "--json").json()
    its = [stretch for stretch in told["stretches"] if stretch["engine"] == "fake"]
    assert told["step_s"] == 600
    assert sum(stretch["completed"] for stretch in its) >= 2
    assert sum(stretch["failed"] for stretch in its) >= 1
    assert all(0 <= stretch["run_s"] <= stretch["run_most_s"] for stretch in its)
    assert re.search(r"^.* fake +\d", cli(world, "stats").out, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stats", "--since", "15d"], "since: must be above 0 and at most 14d"),
        (["stats", "--since", "soon"], "since: 'soon' is no time"),
        (["jobs", "--state", "faild"], "state: no state 'faild', did you mean \"failed\""),
        (["jobs", "--state", "failed,"], "a list has an empty item"),
        (["jobs", "--engine", "fakee"], "no engine 'fakee'"),
        (["jobs", "--since", "soon"], "since: 'soon' is no time"),
        (["jobs", "--after", "x"], "after: 'x' is no cursor"),
        (["jobs", "--limit", "0"], "limit: 0 is not a whole number between 1 and 1000"),
        (["jobs", "show", "nobody"], "no job 'nobody'"),
        (["rerun", "nobody"], "no job 'nobody'"),
    ],
)
def test_wrong_words_about_jobs(world: World, cli: Cli, words: list[str], message: str) -> None:
    said = cli(world, *words)
    assert said.code == 2
    assert message in said.err


def test_handed_over_and_fetched_later(world: World, cli: Cli) -> None:
    said = cli(world, "submit", "fake", "value=7", "--no-wait", "--id", "mine")
    assert (said.code, said.out) == (0, "mine\n")
    assert "python -m pool result mine --wait" in said.err
    said = cli(world, "result", "mine", "--wait")
    assert (said.code, said.json()["value"]) == (0, 7)
    assert cli(world, "result", "mine", "--json").json()["id"] == "mine"
    same = cli(world, "submit", "fake", "value=7", "--id", "mine", "--json")
    assert same.json()["value"]["pid"] == said.json()["pid"]
    assert same.json()["value"]["run"] == said.json()["run"]
    other = cli(world, "submit", "fake", "value=8", "--id", "mine")
    assert other.code == 2
    assert "job id 'mine' is taken by a job with other content" in other.err
    said = cli(world, "submit", "fake", "--no-wait", "--json")
    assert said.json().keys() == {"id", "engine", "state", "served"}
    assert said.json()["served"] is True


def test_a_result_that_is_not_there_yet(world: World, cli: Cli) -> None:
    job_id = cli(world, "submit", "fake", "do=sleep", "seconds=30", "--no-wait").out.strip()
    world.worker_of(job_id)
    said = cli(world, "result", job_id)
    assert (said.code, said.out) == (3, "")
    assert f"job {job_id} is inference" in said.err
    assert cli(world, "result", job_id, "--wait", "--timeout", "0.2", "--json").json()["state"] == "inference"
    said = cli(world, "cancel", job_id)
    assert said.code == 0
    assert f"✓ {job_id} is cancelled" in said.err
    said = cli(world, "result", job_id, "--json")
    assert (said.code, said.json()["state"]) == (1, "cancelled")
    assert "✗ cancelled  cancelled by request" in said.err
    said = cli(world, "cancel", job_id)
    assert said.code == 0  # as wanted
    assert cli(world, "cancel", "nobody").code == 2


def test_cancelling_what_is_done_changes_nothing(world: World, cli: Cli) -> None:
    cli(world, "submit", "fake", "--id", "done")
    said = cli(world, "cancel", "done", "--json")
    assert said.code == 1
    assert said.json()["jobs"] == {"done": "completed"}
    assert "✗ done is already completed" in said.err


# --- Ctrl-C


def submit_on_terminal(
    world: World, job_id: str, *typed: tuple[str, str | Callable[[], object]], seconds: float = 60
) -> tuple[int, str]:
    words = ["fake", "do=sleep", f"seconds={seconds}", "--id", job_id]
    return on_terminal([sys.executable, "-m", "pool.submit", *words], typed, cwd=world.folder)


def end_running(world: World, job_id: str) -> None:
    """It runs, and would go on."""
    assert world.state(job_id) is JobState.RUNNING
    world.pool().cancel(job_id)


def test_a_bar_moves_on_a_terminal(world: World) -> None:
    code, shown = submit_on_terminal(world, "bar", seconds=0.8)
    assert code == 0
    assert "job bar · fake" in shown
    assert "━" in shown
    assert len({line for line in shown.splitlines() if "inference" in line}) > 5
    assert re.search(r"✓ completed in \d", shown)


@pytest.mark.parametrize("answer", ["\r", "\x03"])
def test_ctrl_c_leaves_the_job_running(world: World, answer: str) -> None:
    job_id = f"leave-{ord(answer[0])}"
    code, shown = submit_on_terminal(world, job_id, ("inference", "\x03"), (r"wait on\?", answer))
    assert code == 130
    assert f"left: job {job_id} goes on" in shown
    assert f"python -m pool.submit --attach {job_id}" in shown
    assert "this pool ends with this command" not in shown
    end_running(world, job_id)


def test_ctrl_c_cancels_the_job(world: World) -> None:
    code, shown = submit_on_terminal(world, "cancel-me", ("inference", "\x03"), (r"wait on\?", "c\r"))
    assert code == 1
    assert "✗ cancelled" in shown
    assert world.record("cancel-me").state is JobState.CANCELLED


def test_ctrl_c_and_waiting_on(world: World) -> None:
    """The bar goes on, and the command ends when the job does."""
    end = ("inference", lambda: end_running(world, "wait-on"))
    code, shown = submit_on_terminal(world, "wait-on", ("inference", "\x03"), (r"wait on\?", "w\r"), end)
    assert code == 1
    assert "✗ cancelled" in shown


def test_ctrl_c_without_a_person_leaves(world: World) -> None:
    process = shell(world.folder, "pool.submit", "fake", "do=sleep", "seconds=60", "--id", "alone", "--json")
    world.worker_of("alone")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert json.loads(out)["left"] is True
    assert "left: job alone goes on" in err
    end_running(world, "alone")


# --- the pool


def test_status(world: World, cli: Cli) -> None:
    wait_until(lambda: "benched" in cli(world, "status").out)
    said = cli(world, "status", "--check")
    assert said.code == 1
    for word in ("● degraded", "bad-0", "benched", "fake-0", "inotify", "exit code 4", "supervisor  pid"):
        assert word in said.out
    found = cli(world, "status", "--json").json()
    assert found["health"]["verdict"] == "degraded"
    assert {slot["slot"] for slot in found["slots"]} == {"fake-0", "fake-1", "talk-0", "bad-0"}


@pytest.mark.long
def test_watching_the_status(world: World) -> None:
    process = shell(world.folder, "pool", "status", "--watch", "--json", "--interval", "0.1")
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert lines[0]["at"] < lines[2]["at"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    watch = [sys.executable, "-m", "pool", "status", "--watch", "--interval", "0.1"]
    code, shown = on_terminal(watch, [("talk-0", "\x03")], cwd=world.folder)
    assert code == 0
    assert "fake-0" in shown


def test_engines(world: World, cli: Cli) -> None:
    said = cli(world, "engines")
    assert "Pretends to listen." in said.out
    assert "Not shown in a list" not in said.out
    assert "what is heard" in said.out
    assert "path" in said.out
    assert "required" in said.out
    (entry,) = cli(world, "engines", "talk", "--json").json()["engines"]
    assert entry["schema"]["required"] == ["audio"]
    assert cli(world, "engines", "talkk").code == 2


def test_logs(world: World, cli: Cli) -> None:
    assert "no such model" in cli(world, "logs", "bad-0", "-n", "30").out
    said = cli(world, "logs", "supervisor")
    assert "started bad-0" in said.out
    assert len(cli(world, "logs", "supervisor", "-n", "1").out.splitlines()) == 1
    said = cli(world, "logs", "bad-1")
    assert said.code == 2
    assert "no log of 'bad-1', did you mean \"bad-0\"?; there are: bad-0" in said.err


def test_logs_that_grow(world: World) -> None:
    with shell(world.folder, "pool", "logs", "fake-0", "-n", "1", "--follow") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with open(world.spool / "run" / "logs" / "fake-0.log", "a") as log:
            log.write("news\n")
        assert process.stdout.readline() == "news\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


def test_failed_jobs_run_again_and_old_ones_go(world: World, cli: Cli) -> None:
    for name in ("one", "two"):
        cli(world, "submit", "fake", "do=input", "--id", name)
    said = cli(world, "retry", "one", "--json")
    assert (said.code, said.json()["retried"]) == (0, ["one"])
    assert "✓ one is queued again" in said.err
    assert cli(world, "result", "one", "--wait").code == 1
    again = cli(world, "retry", "--all", "fake", "--json").json()["retried"]
    assert {"one", "two"} <= set(again)
    for name in again:
        world.record(name)
    cli(world, "submit", "fake", "--id", "fine")
    said = cli(world, "retry", "fine")
    assert said.code == 2
    assert "job fine is completed: only a failed job can be run again" in said.err
    assert cli(world, "retry", "nobody").code == 2
    assert "give the ids of jobs, or --all" in cli(world, "retry").err
    assert 'did you mean "fake"' in cli(world, "retry", "--all", "fakee").err

    said = cli(world, "purge", "--older-than", "0", "--state", "failed")
    assert said.code == 2
    assert "this removes all failed jobs" in said.err
    assert cli(world, "purge", "--yes", "--json").json() == {"removed": 0}
    assert cli(world, "purge", "--older-than", "0", "--state", "failed", "--yes", "--json").json()["removed"] >= 2
    assert cli(world, "result", "one").code == 2
    assert cli(world, "result", "fine").code == 0


def test_benched_slots_come_back(world: World, cli: Cli) -> None:
    wait_until(lambda: world.slot("bad-0")["seat"] == "benched")
    before = world.slot("bad-0")["starts"]
    said = cli(world, "recover", "bad-0", "fake-0")
    assert "✓ bad-0 will start again" in said.err
    assert "fake-0 is not benched" in said.err
    wait_until(lambda: world.slot("bad-0")["starts"] > before)
    wait_until(lambda: world.slot("bad-0")["seat"] == "benched")
    assert "✓ bad-0" in cli(world, "recover", "--all").err
    assert "no slot 'bad-9', did you mean \"bad-0\"" in cli(world, "recover", "bad-9").err
    assert "give the names of slots, or --all" in cli(world, "recover").err


def test_a_second_supervisor_is_refused(world: World, cli: Cli) -> None:
    said = cli(world, "serve")
    assert said.code == 6
    assert "another supervisor serves" in said.err
    assert "python -m pool drain" in said.err


# --- without a supervisor


def test_without_a_supervisor_jobs_wait_or_bring_their_own(own: World, cli: Cli) -> None:
    said = cli(own, "submit", "fake", "value=1", "--no-wait", "--json")
    assert said.json()["served"] is False
    assert "no supervisor serves this spool: start one with `python -m pool serve`" in said.err
    assert cli(own, "status", "--check").code == 1
    assert "nothing to drain" in cli(own, "drain").err
    assert "starts every slot" in cli(own, "recover", "fake-0").err
    waits = said.json()["id"]
    said = cli(own, "submit", "fake", "value=2")
    assert said.json()["value"] == 2
    assert own.record(waits).state is JobState.COMPLETED


def test_no_spool_is_made_by_looking(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"engines": {"echo": {"engine": "inference.fake:Echo"}}}')
    for command in ("status", "drain", "result x", "cancel x", "retry --all", "logs x", "purge --yes"):
        said = cli(tmp_path, *command.split())
        assert said.code == 2
        assert "does not exist yet: start the pool with `python -m pool serve`" in said.err
    assert "unknown until a worker has started" in cli(tmp_path, "engines").out
    assert not (tmp_path / "spool").exists()


@pytest.mark.long
def test_serve_takes_over_what_a_client_started(gated: World, cli: Cli) -> None:
    go = gated.folder / "go"
    client = shell(gated.folder, "pool.submit", "fake", f"value={go}", "--id", "long", "--json")
    _, pid = gated.worker_of("long")
    ours = gated.serve().pid
    wait_until(lambda: (serving := gated.supervisor()) is not None and serving.pid == ours, "the takeover")
    wait_until(lambda: gated.slot("fake-0")["seat"] == "running")
    go.touch()
    out, _ = client.communicate(timeout=PATIENCE_S)
    assert json.loads(out)["value"]["pid"] == pid
    assert json.loads(out)["attempt"] == 1
    assert "taking over from the pool that a client started" in gated.log()
    assert cli(gated, "status", "--json").json()["supervisor"]["tied"] is False


@pytest.mark.long
def test_drain(gated: World, cli: Cli) -> None:
    go = gated.folder / "go"
    gated.serve(ready=2)
    for number in range(3):
        cli(gated, "submit", "fake", f"value={go}", "--no-wait", "--id", f"job-{number}")
    spool = Spool(gated.spool)
    wait_until(lambda: len(list(running(spool))) == 2)
    said = cli(gated, "drain", "--timeout", "0.1")
    assert said.code == 3
    assert "draining: 2 jobs still running" in said.err
    go.touch()
    assert gated.serving[0].wait(PATIENCE_S) == 0
    assert [place.name.id for place in waiting(spool) if place.name] == ["job-2"]
    gated.serve(ready=2)
    cli(gated, "submit", "fake", "do=sleep", "seconds=60", "--no-wait", "--id", "endless")
    gated.record("job-2")
    gated.worker_of("endless")
    said = cli(gated, "drain", "--now")
    assert said.code == 0
    assert "✓ drained, 1 job waits in the spool" in said.err


def test_serve_says_what_it_serves(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    process = shell(own.folder, "pool", "serve", "--verbose")
    wait_until(lambda: len(own.loaded()) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "")
    assert "fake: inference.fake:Fake, 2 workers on cpu" in err
    assert f"drop jobs into {own.spool}/in" in err
    assert "drained" in err
    log = (own.spool / "run" / "logs" / "supervisor.log").read_text()
    assert log.count(" drained") == 1
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", err, re.MULTILINE))
    assert "pool.supervise.supervisor" in imported
    assert not imported & {"numpy", "psutil", "pydantic", "rich", "typer"}  # for as long as the pool lives


@pytest.mark.parametrize(
    "line",
    [
        "serve",
        "serve --config a.json",
        "serve --config=a.json --tied",
        "serve -c nats://host:4222 -v",
        "serve --tied --verbose -c a=b.json",
        "serve --config a.json --config b.json",
    ],
)
def test_the_short_way_to_serve_reads_what_typer_reads(line: str) -> None:
    command: Any = get_command(pool_app.app)
    name, *words = line.split()
    assert serving.asked(line.split()) == serving.Serve(**command.commands[name].make_context(name, words).params)


@pytest.mark.parametrize(
    "line",
    ["", "status", "serve --help", "serve x", "serve --conf a", "serve -c", "serve -c -v", "serve -vc a"],
)
def test_all_else_is_left_to_typer(line: str) -> None:
    assert serving.asked(line.split()) is None


# --- the small things


def test_help_teaches_and_is_light() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']; from pool import submit\n"
        "try: submit.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'msgpack', 'psutil', 'watchdog', 'loguru'} & set(sys.modules)))"
    )
    begun = os.times()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert os.times().children_user - begun.children_user < 5
    assert done.stdout.rstrip().endswith("[]")
    assert "python -m pool.submit transcribe audio=speech.wav" in done.stdout
    assert "0 completed, 1 failed or cancelled, or no worker can run it, 2 wrong usage" in " ".join(done.stdout.split())


def test_commands_are_listed(cli: Cli, tmp_path: Path) -> None:
    said = cli(tmp_path, "--help")
    assert said.code == 0
    for command in [
        "serve",
        "status",
        "stats",
        "reload",
        "drain",
        "recover",
        "engines",
        "logs",
        "submit",
        "result",
        "cancel",
        "retry",
        "purge",
    ]:
        assert f" {command} " in said.out


def test_a_reader_that_goes_away(world: World) -> None:
    with shell(world.folder, "pool", "status", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE_S) == 141


def test_times() -> None:
    texts = ("0", "90s", "30m", "1.5h", "7d", "2 w")
    assert [span(text, "--older-than") for text in texts] == [0, 90, 1800, 5400, 604800, 1209600]
    for text in ("", "x", "5y", "-3h", "h"):
        with pytest.raises(JobRefused, match="is no time"):
            span(text, "--older-than")
    assert [clock(t) for t in (3.24, 59.96, 3723.4, -1)] == ["00:03.2", "01:00.0", "1:02:03.4", "00:00.0"]


def test_partial_lines() -> None:
    segment = {"start": 3.2, "end": 7.9, "text": " so\nit  is", "speaker": "spk0"}
    assert part_line(segment) == "[00:03.2 → 00:07.9] spk0: so it is"
    assert part_line({"number": 1, "text": "a  b"}) == '{"number": 1, "text": "a  b"}'
    assert part_line([1, None]) == "[1, null]"


@pytest.mark.long
def test_nobody_waits_for_what_cannot_come(world: World, cli: Cli) -> None:
    """Untied, so that the job stays for a repair: both commands end with the reason after their patience."""
    said = cli(world, "submit", "bad", "--patience", "0", "--id", "vain")
    assert said.code == 1
    assert "no worker of bad can run: bad-0: inference.base.InputError: option model: no such model" in said.err
    assert "python -m pool recover --all" in said.err
    assert "python -m pool.submit --attach vain" in said.err
    said = cli(world, "result", "vain", "--wait", "--patience", "0", "--json")
    assert said.code == 1
    assert (said.json()["state"], "no such model" in said.json()["message"]) == ("queued", True)
    assert cli(world, "result", "vain").code == 3
    assert cli(world, "cancel", "vain").code == 0
