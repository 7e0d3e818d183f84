"""What a job belongs to travels with it: into the lines of its engine, its children, its record, and into spans."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pool.client.aio import AsyncFilePool
from pool.errors import JobFailed, JobRefused
from scenarios.world import ROOT, World, kill, wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
FIELDS = {"request": "r-17", "user": 5, "who": "Ada L."}

ENGINE = """
import logging, os, signal, subprocess, sys, threading
from loguru import logger

class Telling:
    def load(self, device, options):
        if options.get("fail"):
            raise RuntimeError("no such model")
        logging.basicConfig(format="%(levelname)s %(message)s")
        logger.remove()
        logger.add(lambda text: os.write(2, text.encode()), format="{message}")

    def check(self, params):
        return params

    def run(self, params, context):
        if context.attempt <= params.get("bad", 0):
            raise RuntimeError(f"bad luck with {params['word']}")
        if params.get("hang"):
            context.partial({"hangs": True})
            signal.pause()
        logging.getLogger("mine").warning("std %s 100%%", params["word"])
        thread = threading.Thread(target=lambda: logger.info("guru {}", params["word"]))
        thread.start()
        thread.join()
        said = subprocess.check_output(["sh", "-c", "echo ${TRACEPARENT-none} ${TRACESTATE-none}"], text=True)
        otel = sys.modules.get("opentelemetry.trace")
        span = otel.get_current_span().get_span_context().span_id if otel else 0
        parent = [context.traceparent or "none", context.tracestate or "none"]
        return {"span": f"{span:016x}", "child": said.split(), "parent": parent,
                "fields": dict(context.log_context), "otel": any(n.startswith("opentelemetry") for n in sys.modules)}

    def close(self):
        pass
"""


@pytest.fixture
def telling(world: World) -> Callable[..., World]:
    """A world with one worker of the engine above."""
    (world.folder / "telling.py").write_text(ENGINE)
    base = {"engine": "telling:Telling", "pythonpath": [str(world.folder)], "max_concurrent_tasks": 1}
    return lambda more=None, **top: world.configure({"fake": {**base, **(more or {})}}, **top)


def lines(world: World, word: str) -> list[str]:
    log = (world.spool / "run" / "logs" / "fake-0.log").read_text()
    return [line for line in log.splitlines() if f" {word}" in line]


# ---- in the worker


def test_lines_and_children_of_a_job_know_whose_it_is_and_those_of_the_next_do_not(
    telling: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'1' * 32}-{'2' * 16}-01")  # of who starts the pool: no job's
    world = telling()
    world.serve(ready=1)
    pool = world.pool()
    value = pool.submit("fake", word="one", log_context=FIELDS, traceparent=PARENT, tracestate="a=1").result(60)
    bare = pool.submit("fake", word="two").result(60)
    suffix = f'request=r-17 user=5 who="Ada L." trace_id={TRACE}'
    assert lines(world, "one") == [f"WARNING std one 100% {suffix}", f"guru one {suffix}"]
    assert lines(world, "two") == ["WARNING std two 100%", "guru two"]
    off = {"span": "0" * 16, "otel": False}
    assert value == {"child": [PARENT, "a=1"], "parent": [PARENT, "a=1"], "fields": FIELDS, **off}
    assert bare == {"child": ["none", "none"], "parent": ["none", "none"], "fields": {}, **off}
    assert not lines(world, "changed")  # nothing had to be put back


def test_jobs_in_one_call_of_the_engine_tell_what_they_share(world: World) -> None:
    (world.folder / "many.py").write_text(
        ENGINE.replace("Telling", "Many")
        + """
    def run_batch(self, batch, contexts):
        logging.warning("batch of %d", len(batch))
        return [{"n": len(batch)} for _ in batch]
"""
    )
    world.configure(
        {
            "fake": {
                "engine": "many:Many",
                "pythonpath": [str(world.folder)],
                "max_concurrent_tasks": 1,
                "max_batch": 2,
                "batch_wait_ms": 5000,
            }
        }
    )
    pool = world.pool()
    futures = [pool.submit("fake", word="x", log_context={"request": "r", "user": user}) for user in (1, 2)]
    world.serve(ready=1)
    assert [future.result(60) for future in futures] == [{"n": 2}] * 2
    assert lines(world, "of 2") == ["WARNING batch of 2 request=r"]


# ---- every way in


def test_every_way_in_takes_it_and_the_record_keeps_it(world: World) -> None:
    world.configure().serve(ready=1)
    pool = world.pool()
    how: dict[str, Any] = {"log_context": FIELDS, "traceparent": PARENT}
    ids = [future.id for future in pool.submit_many("fake", [{"value": 1}], **how)]
    with pool.session(**how) as night:
        ids.append(night.submit("fake", value=2).id)
    list(pool.map("fake", [{"value": 3}], tags=["mapped"], **how))

    async def on_a_loop() -> str:
        async with AsyncFilePool(world.config, start=False) as aio:
            return (await aio.submit("fake", value=4, **how)).id

    ids.append(asyncio.run(on_a_loop()))
    (world.spool / "in" / "dropped.json").write_text(json.dumps({"engine": "fake", "params": {}, **how}))
    ids.append("dropped")
    argv = [sys.executable, "-m", "pool.submit", "fake", "value=5", "--id", "typed", "--config", str(world.config)]
    given = [word for name, one in FIELDS.items() for word in ("--log-context", f"{name}={one}")]
    done = subprocess.run(
        [*argv, *given], cwd=ROOT, env={**os.environ, "TRACEPARENT": PARENT}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ids.append("typed")
    for job_id in ids:
        terms = world.record(job_id).kept.terms
        assert (terms["log_context"], terms["traceparent"]) == (FIELDS, PARENT), job_id

    again = pool.rerun(ids[0], value=9)  # the fields are the job's, the trace was that of its caller
    terms = world.record(again.id).kept.terms
    assert terms["log_context"] == FIELDS
    assert "traceparent" not in terms

    refused: list[tuple[dict[str, Any], str]] = [
        ({"log_context": {"a b": 1}}, "log_context"),
        ({"log_context": {"a": [1]}}, "log_context.a"),
        ({"log_context": {"a": "x" * 1024}}, "log_context"),
        ({"traceparent": "00-1-2-3"}, "traceparent"),
        ({"tracestate": "a=1"}, "tracestate"),
        ({"traceparent": PARENT, "tracestate": "="}, "tracestate"),
    ]
    for wrong, path in refused:
        with pytest.raises(JobRefused) as caught:
            pool.submit("fake", **wrong)
        assert caught.value.path == path

    trace = pytest.importorskip("opentelemetry.trace")
    span = trace.SpanContext(int(TRACE, 16), 7, False, trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(span)):
        mine, other = pool.submit("fake"), pool.submit("fake", traceparent=PARENT)
    assert world.record(mine.id).kept.terms["traceparent"] == f"00-{TRACE}-{7:016x}-01"
    assert world.record(other.id).kept.terms["traceparent"] == PARENT


# ---- spans


class Receiver:
    """Takes spans in as a collector does. status: its answer; 0: none at all."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[dict[str, Any]] = []
        self.asked = threading.Event()
        self.gone = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked.set()
                if not status:
                    receiver.gone.wait()
                    return
                receiver.take(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest()
        request.ParseFromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    about = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}
                    self.spans.append(
                        {
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "begun": span.start_time_unix_nano,
                            "ended": span.end_time_unix_nano,
                            "error": span.status.code == 2,
                            "said": span.status.message,
                            **{key.removeprefix("filepool."): value for key, value in about.items()},
                        }
                    )

    def tree(self, job_id: str) -> dict[str, dict[str, Any]]:
        """The spans of a job once its end has come: {"job": …, "run 1": …}; each was sent once."""

        def look() -> bool:
            names = [span["name"] for span in self.spans if span.get("job.id") == job_id]
            return "job" in names and "run" in names

        wait_until(look, f"spans of {job_id} in {self.spans}")
        job = next(span for span in self.spans if span["name"] == "job" and span["job.id"] == job_id)
        found = [span for span in self.spans if span is job or span["parent"] == job["id"]]
        names = [f"{s['name']} {s['attempt']}" if s["name"] in ("run", "queued") else s["name"] for s in found]
        assert len(set(names)) == len(names), names
        assert {span["trace"] for span in found} == {job["trace"]}
        return dict(zip(names, found, strict=True))

    def close(self) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def make_receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Receiver]]:
    """A collector that the processes of this test report to."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    made: list[Receiver] = []

    def make(status: int = 200) -> Receiver:
        made.append(Receiver(status))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made[-1].url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        return made[-1]

    yield make
    for receiver in made:
        receiver.close()


def test_a_job_is_a_tree_under_the_span_of_its_caller(
    telling: Callable[..., World], make_receiver: Callable[..., Receiver]
) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    receiver, world = make_receiver(), telling(otel=True)
    pool = world.pool()
    with TracerProvider().get_tracer("caller").start_as_current_span("outside") as outside:
        first = pool.submit("fake", word="one", tags=["t"], log_context={"user": 5})
        caller = f"{outside.get_span_context().span_id:016x}"
    world.serve(ready=1)
    value = first.result(60)
    tree = receiver.tree(first.id)
    assert sorted(tree) == ["job", "load", "publish", "queued 1", "run 1"]
    job, run, queued = tree["job"], tree["run 1"], tree["queued 1"]
    assert (job["parent"], job["trace"]) == (caller, f"{outside.get_span_context().trace_id:032x}")
    assert (job["engine"], job["state"], job["attempt"], job["log.user"]) == ("fake", "completed", 1, 5)
    assert job["worker"] == world.record(first.id).worker == run["worker"]
    assert not any(span["error"] for span in tree.values())
    record = world.record(first.id)
    assert (job["begun"], job["ended"]) == (record.created * 1000, record.finished * 1000)
    assert (queued["begun"], queued["ended"]) == (job["begun"], run["begun"])
    assert run["begun"] <= run["ended"] == tree["publish"]["begun"] <= tree["publish"]["ended"]
    assert tree["load"]["ended"] <= run["begun"]  # it waited for the model
    assert value["span"] == run["id"]  # spans of the engine's own would hang below it
    assert value["parent"][0] == value["child"][0]
    assert value["parent"][0].startswith(f"00-{job['trace']}-{run['id']}-")
    assert lines(world, "one")[0].endswith(f"user=5 trace_id={job['trace']}")

    second = pool.submit("fake", word="two")  # of nobody's trace, and the model was there
    second.result(60)
    other = receiver.tree(second.id)
    assert sorted(other) == ["job", "publish", "queued 1", "run 1"]
    assert (other["job"]["parent"], other["job"]["trace"] != job["trace"]) == ("", True)

    unsampled = pool.submit("fake", word="three", traceparent=PARENT[:-1] + "0")
    assert unsampled.result(60)["parent"][0].startswith(f"00-{TRACE}-")
    receiver.tree(pool.submit("fake", word="four", id="four").id)  # it comes behind
    assert not [span for span in receiver.spans if span["trace"] == TRACE]


def test_attempts_that_fail_and_workers_that_die_are_errors(
    telling: Callable[..., World], make_receiver: Callable[..., Receiver]
) -> None:
    receiver, world = make_receiver(), telling({"retry_times": 1}, otel=True)
    world.serve(ready=1)
    pool = world.pool()
    again = pool.submit("fake", word="one", bad=1, traceparent=PARENT)
    again.result(60)
    wait_until(lambda: {"run 1", "run 2"} <= receiver.tree(again.id).keys(), "both attempts")
    tree = receiver.tree(again.id)
    assert (tree["run 1"]["error"], tree["run 1"]["said"]) == (True, "bad luck with one")
    assert (tree["run 1"]["failure.kind"], tree["run 1"]["state"]) == ("engine", "failed")
    assert (tree["run 2"]["error"], tree["job"]["error"], tree["job"]["attempt"]) == (False, False, 2)
    assert tree["queued 2"]["begun"] >= tree["run 1"]["ended"]
    assert tree["job"]["trace"] == TRACE

    dies = pool.submit("fake", word="two", hang=True, retry_times=0)
    assert next(dies.partials()) == {"hangs": True}
    name, pid = world.worker_of(dies.id)
    kill(pid)
    with pytest.raises(JobFailed):
        dies.result(60)
    tree = receiver.tree(dies.id)
    run, job = tree["run 1"], tree["job"]
    assert (run["error"], run["failure.kind"], run["worker"]) == (True, "infrastructure", name)
    assert "SIGKILL" in run["said"]
    assert (job["error"], job["state"], job["failure.cause"]) == (True, "failed", "died")
    assert job["begun"] <= tree["queued 1"]["ended"] == run["begun"] < run["ended"] <= job["ended"]


@pytest.mark.long
def test_a_model_that_cannot_be_loaded_is_an_error(
    telling: Callable[..., World], make_receiver: Callable[..., Receiver]
) -> None:
    receiver, world = make_receiver(), telling({"options": {"fail": True}}, otel=True)
    world.serve(ready=0)
    wait_until(lambda: receiver.spans, "a span")
    load = receiver.spans[0]
    assert (load["name"], load["parent"], load["error"]) == ("load", "", True)
    assert load["said"] == "RuntimeError: no such model"


@pytest.mark.long
@pytest.mark.parametrize("status", [0, 400])
def test_a_collector_that_hangs_or_refuses_costs_no_job(
    status: int, telling: Callable[..., World], make_receiver: Callable[..., Receiver]
) -> None:
    receiver, world = make_receiver(status), telling(otel=True)
    world.serve(ready=1)
    pool = world.pool()
    for number in range(3):
        assert pool.submit("fake", word="one", n=number).result(60)["otel"] is True
        assert receiver.asked.wait(60)
        if status:
            receiver.asked.clear()
    assert world.drain() == 0
    told = lines(world, "spans are lost")
    assert len(told) == (1 if status else 0), told  # of one that hangs there is nothing to say before its time is up


def test_without_the_library_jobs_go_on_and_it_is_said(telling: Callable[..., World]) -> None:
    world = telling(otel=True)
    broken = world.folder / "opentelemetry"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('there is no opentelemetry here')")
    world.serve(ready=1)
    assert world.pool().submit("fake", word="one", traceparent=PARENT).result(60)["child"][0] == PARENT
    assert "there is no opentelemetry here: pip install 'filepool[otel]'" in lines(world, "no spans are made")[0]


def test_lines_that_an_engine_sends_from_logging_to_loguru_carry_them_once() -> None:
    from loguru import logger

    from pool.work import log_fields

    heard: list[str] = []

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.warning(record.getMessage())

    handler, sink = Forward(), logger.add(heard.append, format="{message} {extra[user]}")
    logging.getLogger("forwarded").addHandler(handler)
    try:
        with log_fields.bound({"user": 5}):
            logging.getLogger("forwarded").warning("once")
    finally:
        logger.remove(sink)
        logging.getLogger("forwarded").removeHandler(handler)
    assert heard == ["once user=5 5\n"]
