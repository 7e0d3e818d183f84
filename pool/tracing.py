"""Spans of jobs for OpenTelemetry, when `otel` is on in config.json and the SDK is installed; nothing at all otherwise.

    job        created … ended; its parent is the span of the caller. By whoever publishes the record
    ├── queued     waiting for this attempt
    ├── load       of the model, when the job waited for it; otherwise a trace of its own, once per worker
    ├── run        check and run of one attempt. Of one whose worker died: by the supervisor that settles it
    └── publish    outputs and record

Spans are made when what they tell is over, with ids that follow from the job and the attempt: processes that know
nothing of each other make parts of one tree. Sampling, exporters and limits are those of the standard OTEL_*
variables. Exporting happens on a thread of its own behind a bounded queue; no error of it reaches a job, and the first
one is said.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pool.format.trace_context import Parent, TraceContext, parse
from pool.job import Failure, FailureKind, Job, JobState, Record

if TYPE_CHECKING:
    Say = Callable[[str], object]

_STOP_S = 1.0  # for what is still in the queue when the process ends
_SAMPLED = 1
_INSTALL = "pip install 'filepool[otel]'"
_EXPORTERS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}

_tracer: _Tracer | None = None


def start(say: Say, **resource: str) -> None:
    """Emit spans from now on. say: where the first error is told. resource: attributes of all spans. Never raises."""
    global _tracer
    if _tracer is not None or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    try:
        _tracer = _Tracer(say, resource)
    except ImportError as error:
        say(f"no spans are made: otel is on in config.json, but {error}: {_INSTALL}")
    except Exception as error:
        say(f"no spans are made, OpenTelemetry cannot be set up: {type(error).__name__}: {error}")


def stop() -> None:
    """Emit what is left, for a second at most, and no more."""
    global _tracer
    tracer, _tracer = _tracer, None
    if tracer is not None:
        ending = threading.Thread(target=tracer.shutdown, daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads
            ending.start()
            ending.join(_STOP_S)


def on() -> bool:
    """Whether spans are made."""
    return _tracer is not None


def of_attempt(spool_id: str, job: Job, attempt: int) -> TraceContext | None:
    """The trace context for what an attempt does: its own span, else what the job was given."""
    if _tracer is None:
        return job.terms.trace
    tree = _tracer.tree(spool_id, job)
    return TraceContext(str(Parent(tree.trace, tree.run(attempt), tree.flags)), job.terms.tracestate)


@contextlib.contextmanager
def entered(context: TraceContext) -> Iterator[None]:
    """Spans that the engine itself makes meanwhile, on this thread, are children of the attempt's."""
    token = _tracer.attach(context) if _tracer is not None else None
    try:
        yield
    finally:
        if token is not None and _tracer is not None:
            _tracer.detach(token)


def loaded(worker: str, engine: str, begun: int, ended: int, trouble: str = "") -> None:
    """A worker has loaded its model, or could not: trouble says why. Times: µs of the spool clock, here and below."""
    if _tracer is not None:
        _tracer.loaded(worker, engine, begun, ended, trouble)


def attempt_ended(
    spool_id: str,
    job: Job | None,
    attempt: Attempt,
    *,
    before: Sequence[Failure] = (),
    failure: Failure | None = None,
) -> None:
    """An attempt is over. before: failures of the attempts before. failure: None when it completed."""
    if _tracer is not None and job is not None:
        _tracer.attempt_ended(spool_id, job, attempt, before, failure)


def job_ended(spool_id: str, job: Job | None, record: Record) -> None:
    """The record of a job was published."""
    if _tracer is not None and job is not None:
        _tracer.job_ended(spool_id, job, record)


class Attempt(NamedTuple):
    """One attempt by one worker. begun, ended, ran: µs of the spool clock. ran: when run() returned, or 0."""

    worker: str
    number: int
    begun: int
    ended: int
    ran: int = 0


class _Tree(NamedTuple):
    """Ids of the spans of one job. above: the span of the caller, None for a trace of its own."""

    seed: str
    trace: int
    flags: int
    above: Parent | None
    state: str

    @property
    def job(self) -> int:
        return _id(f"{self.seed} job", 8)

    def run(self, attempt: int) -> int:
        return _id(f"{self.seed} run {attempt}", 8)


def _id(text: str, size: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:size], "big") or 1


class _Span(NamedTuple):
    """A span to be made. begun, ended: µs of the spool clock, which looks like wall time. parent: None for a trace of
    its own. trouble: the text of an error status. trace, id: 0 for new ones."""

    name: str
    parent: Any
    begun: int
    ended: int
    about: Mapping[str, Any]
    trouble: str = ""
    failure: Failure | None = None
    trace: int = 0
    id: int = 0
    kind: Any = None


class _Ids:
    """The SDK asks here for the ids of a new span; `_Tracer` says which before it makes one."""

    trace = span = 0

    def generate_trace_id(self) -> int:
        return self.trace or int.from_bytes(os.urandom(16), "big") or 1

    def generate_span_id(self) -> int:
        return self.span or int.from_bytes(os.urandom(8), "big") or 1

    def is_trace_id_random(self) -> bool:
        return False


def _harmless(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def called(self: _Tracer, *args: Any) -> None:
        with self.harmless():
            method(self, *args)

    return called


class _Tracer:
    """The SDK, set up for this process. Used by its main thread."""

    def __init__(self, say: Say, resource: Mapping[str, str]) -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._say, self._said, self._local = say, threading.Lock(), threading.local()
        self._trace, self._context, self._ids = trace, context, _Ids()
        self._load: tuple[str, str, int, int] | None = None
        named = OTELResourceDetector().detect().attributes.get("service.name", "filepool")
        ids: Any = self._ids
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": str(named), **resource}), id_generator=ids, shutdown_on_exit=False
        )
        for exporter in _exporters():
            watched: Any = _Watched(exporter, self)
            self._provider.add_span_processor(BatchSpanProcessor(watched))
        self._tracer = self._provider.get_tracer("filepool")
        self._sampler: Any = self._provider.sampler
        log = logging.getLogger("opentelemetry")
        log.propagate = False
        log.addHandler(_FirstWord(self))

    def shutdown(self) -> None:
        with self.ours():
            self._provider.shutdown()

    # ---- errors

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        """What OpenTelemetry logs on this thread meanwhile is about our spans, not about those of an engine."""
        before, self._local.ours = self.is_ours(), True
        try:
            yield
        finally:
            self._local.ours = before

    @contextlib.contextmanager
    def harmless(self) -> Iterator[None]:
        """What fails here costs nobody a job."""
        with self.ours():
            try:
                yield
            except Exception as error:
                self.complain(f"{type(error).__name__}: {error}")

    def is_ours(self) -> bool:
        return bool(getattr(self._local, "ours", False))

    def complain(self, text: str) -> None:
        if self._said.acquire(blocking=False):  # and never released
            with contextlib.suppress(Exception):
                self._say(f"spans are lost; jobs go on, and this is said once: {text}")

    # ---- where spans belong

    def tree(self, spool_id: str, job: Job) -> _Tree:
        seed = f"{spool_id} {job.id} {job.created}"
        above = parse(job.terms.traceparent)
        if above is not None:
            return _Tree(seed, above.trace, above.flags, above, job.terms.tracestate)
        trace = _id(f"{seed} trace", 16)
        sampled = True
        with self.harmless():
            sampled = self._sampler.should_sample(None, trace, "job").decision.is_sampled()
        return _Tree(seed, trace, _SAMPLED if sampled else 0, None, "")

    def attach(self, context: TraceContext) -> Any:
        parent = parse(context.traceparent)
        with self.harmless():
            if parent is not None:
                return self._context.attach(self._under(parent, context.tracestate))
        return None

    def detach(self, token: Any) -> None:
        with self.harmless():
            self._context.detach(token)

    def _under(self, parent: Parent, state: str) -> Any:
        trace = self._trace
        states = trace.TraceState.from_header([state] if state else [])
        span = trace.SpanContext(parent.trace, parent.span, True, trace.TraceFlags(parent.flags), states)
        return trace.set_span_in_context(trace.NonRecordingSpan(span), self._context.Context())

    # ---- what happened

    @_harmless
    def loaded(self, worker: str, engine: str, begun: int, ended: int, trouble: str) -> None:
        if trouble:
            self._emit(_Span("load", None, begun, ended, _of_worker(worker, engine), trouble))
        else:
            self._load = worker, engine, begun, ended

    @_harmless
    def attempt_ended(
        self, spool_id: str, job: Job, attempt: Attempt, before: Sequence[Failure], failure: Failure | None
    ) -> None:
        tree = self.tree(spool_id, job)
        span = tree.run(attempt.number)
        parent = self._under(Parent(tree.trace, tree.job, tree.flags), tree.state)
        about = {
            **_of_worker(attempt.worker, job.engine),
            "filepool.job.id": job.id,
            "filepool.attempt": attempt.number,
        }
        since = max((one.at for one in before), default=job.created)
        self._emit(_Span("queued", parent, since, attempt.begun, about))
        if self._load is not None:
            worker, engine, first, last = self._load
            self._load = None
            waited = job.created < last
            self._emit(_Span("load", parent if waited else None, first, last, _of_worker(worker, engine)))
        failed, bad = _failed(failure)
        about["filepool.state"] = JobState.COMPLETED.value if attempt.ran else failed.get("filepool.state", "")
        if attempt.ran:
            self._emit(_Span("run", parent, attempt.begun, attempt.ran, about, id=span))
            self._emit(_Span("publish", parent, attempt.ran, attempt.ended, {**about, **failed}, bad, failure))
        else:
            self._emit(_Span("run", parent, attempt.begun, attempt.ended, {**about, **failed}, bad, failure, id=span))

    @_harmless
    def job_ended(self, spool_id: str, job: Job, record: Record) -> None:
        tree = self.tree(spool_id, job)
        parent = None if tree.above is None else self._under(tree.above, tree.state)
        failed, bad = _failed(record.failure)
        about = {
            **_of_worker(record.worker, job.engine),
            "filepool.job.id": job.id,
            "filepool.attempt": record.attempt,
            "filepool.cached": record.cached,
            **failed,
            "filepool.state": record.state.value,
            **{f"filepool.log.{name}": value for name, value in (job.terms.log_context or {}).items()},
        }
        if job.terms.tags:
            about["filepool.tags"] = job.terms.tags
        kind = self._trace.SpanKind.CONSUMER
        self._emit(
            _Span("job", parent, job.created, record.finished, about, bad, trace=tree.trace, id=tree.job, kind=kind)
        )

    def _emit(self, span: _Span) -> None:
        api = self._trace
        self._ids.trace, self._ids.span = span.trace, span.id
        made = self._tracer.start_span(
            span.name,
            self._context.Context() if span.parent is None else span.parent,
            span.kind or api.SpanKind.INTERNAL,
            attributes=span.about,
            start_time=span.begun * 1000,
        )
        end_ns = max(span.begun, span.ended) * 1000
        if span.trouble:
            made.set_status(api.Status(api.StatusCode.ERROR, span.trouble))
        failure = span.failure
        if failure is not None and failure.exception:
            what = {
                "exception.type": failure.exception,
                "exception.message": failure.message,
                "exception.stacktrace": failure.traceback,
            }
            made.add_event("exception", what, end_ns)
        made.end(end_ns)


def _of_worker(worker: str, engine: str) -> dict[str, Any]:
    return {"filepool.engine": engine, "filepool.worker": worker}


def _failed(failure: Failure | None) -> tuple[dict[str, Any], str]:
    """Attributes of what did not complete, and the words of its status; being cancelled is no error."""
    if failure is None:
        return {}, ""
    cancelled = failure.kind == FailureKind.CANCELLED.value
    state = JobState.CANCELLED if cancelled else JobState.FAILED
    about = {
        "filepool.state": state.value,
        "filepool.failure.kind": failure.kind,
        "filepool.failure.stage": failure.stage,
        "filepool.failure.cause": failure.cause,
    }
    return {key: value for key, value in about.items() if value}, "" if cancelled else failure.message


def _exporters() -> Iterator[Any]:
    """Those that OTEL_TRACES_EXPORTER names, by default OTLP. LookupError: one is not installed."""
    from importlib.metadata import entry_points

    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        name = name.strip()
        if name in ("", "none"):
            continue
        if name == "otlp":
            general = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
            name = _EXPORTERS.get(protocol, protocol)
        found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
        if not found:
            raise LookupError(f"no exporter {name!r} is installed (OTEL_TRACES_EXPORTER)")
        yield found[0].load()()


class _Watched:
    """An exporter, whose words about its errors are known to be about our spans."""

    def __init__(self, exporter: Any, tracer: _Tracer) -> None:
        self._exporter, self._tracer = exporter, tracer

    def export(self, spans: Sequence[Any]) -> Any:
        with self._tracer.ours():
            try:
                return self._exporter.export(spans)
            except Exception as error:
                self._tracer.complain(f"{type(error).__name__}: {error}")
                raise

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return bool(self._exporter.force_flush(timeout_millis))


class _FirstWord(logging.Handler):
    """Of what OpenTelemetry logs about our spans only the first word is passed on; an engine's own go their way."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def emit(self, record: logging.LogRecord) -> None:
        if self._tracer.is_ours():
            if record.levelno >= logging.WARNING:
                self._tracer.complain(record.getMessage())
        else:
            logging.getLogger().callHandlers(record)
