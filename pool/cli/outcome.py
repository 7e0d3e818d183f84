"""The end of a job as text, as JSON and as an exit code; partial results as lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from pool.cli.command import say
from pool.cli.terminal import make_console
from pool.cli.text import one_line, plain, seconds
from pool.format import codec
from pool.job import Failure, FailureKind, JobState, Record

EXIT_COMPLETED = 0
EXIT_FAILED = 1  # failed or cancelled
EXIT_USAGE = 2  # nothing was done: wrong usage or configuration, a refused job
EXIT_TIMED_OUT = 3  # the job or the wait for it
EXIT_INTERRUPTED = 130  # Ctrl-C; the job goes on

#: Kinds of failure with the exit code EXIT_TIMED_OUT.
LATE = (FailureKind.TIMEOUT.value, FailureKind.EXPIRED.value)

_TAIL_LINES = 15
_CRASH_LINES = 30


def _end_of(lines: list[str]) -> list[str]:
    """The last lines; of a crash from its first line on, for the call that crashed is at the top of what it printed."""
    crashes = [at for at, line in enumerate(lines) if line.startswith("Fatal Python error")]
    return lines[crashes[-1] :][:_CRASH_LINES] if crashes else lines[-_TAIL_LINES:]


def exit_code(record: Record) -> int:
    """The exit code for a job that is over."""
    if record.state is JobState.COMPLETED:
        return EXIT_COMPLETED
    if record.failure is not None and record.failure.kind in LATE:
        return EXIT_TIMED_OUT
    return EXIT_FAILED


def record_json(record: Record) -> str:
    """The whole record as one JSON object."""
    return codec.to_json(record.to_map())


# --- results


def result_lines(value: Any) -> list[str]:
    """The lines of a result: a transcript as one line per segment, anything else as JSON."""
    if isinstance(value, Mapping) and _is_transcript(value.get("segments")):
        return [str(part_line(segment)) for segment in value["segments"]]
    return codec.to_json(value).splitlines()


def part_line(part: Any) -> str:
    """The line of a partial record: a segment as "[00:03.2 → 00:07.9] spk0: text", anything else as JSON."""
    if not isinstance(part, Mapping) or not _is_segment(part):
        return json.dumps(json.loads(codec.to_json(part)), ensure_ascii=False)
    speaker = f"{plain(part['speaker'])}: " if part.get("speaker") else ""
    return f"[{clock(part['start'])} → {clock(part['end'])}] {speaker}{one_line(part['text'])}"


def clock(value: float) -> str:
    """A time in seconds as [hours:]minutes:seconds: 00:03.2, 1:02:03.4."""
    tenths = round(max(0.0, float(value)) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{text}" if hours else text


def warnings_of(value: Any) -> list[str]:
    """The warnings of a result, one line each: the list under its key "warnings", if any."""
    found = value.get("warnings") if isinstance(value, Mapping) else None
    return [one_line(item) for item in found] if isinstance(found, Sequence) and not isinstance(found, str) else []


def summary(record: Record) -> Text:
    """One line about a completed job: duration, worker, attempt, facts about a transcript."""
    took = seconds(max(0.0, (record.finished - record.started) / 1e6))
    text = Text.assemble(("✓ completed", "bold green"), f" in {took}")
    if record.cached:
        text.append(" from the cache")
    elif record.worker:
        text.append(f" by {record.worker}")
    if record.attempt > 1:
        text.append(f", attempt {record.attempt}")
    for fact in _facts(record.value):
        text.append(f" · {fact}")
    return text


def files_of(record: Record) -> list[str]:
    """Paths of the files that the job produced."""
    return [str(file.get("path", "")) for file in record.files]


def _facts(value: Any) -> Iterator[str]:
    """Facts about a transcript for its summary: language, number of speakers, duration."""
    if not isinstance(value, Mapping) or not isinstance(value.get("segments"), Sequence):
        return
    if value.get("language"):
        yield one_line(value["language"])
    speakers = value.get("speakers")
    if isinstance(speakers, Sequence) and speakers:
        yield f"{len(speakers)} speaker{'' if len(speakers) == 1 else 's'}"
    if isinstance(value.get("duration_s"), (int, float)):
        yield f"{seconds(value['duration_s'])} of audio"


def _is_transcript(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_segment(item) for item in value)


def _is_segment(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
        return False
    return all(isinstance(value.get(key), (int, float)) for key in ("start", "end"))


def present(
    record: Record,
    *,
    as_json: bool = False,
    verbose: bool = False,
    quiet: bool = False,
    shown: Sequence[str] = (),
) -> int:
    """Print a terminal record and return its exit code: the result goes to stdout, all else to stderr.

    as_json: the whole record instead of the result. verbose: the worker's traceback, too. quiet: no warnings, summary
    and paths after a result. shown: lines of the result that the terminal has shown already; a result of exactly these
    is not printed again.
    """
    notes = make_console(stderr=True)
    if as_json:
        print(record_json(record))
    if record.state is not JobState.COMPLETED:
        notes.print(failure_text(record, verbose=verbose), soft_wrap=True)
        return exit_code(record)
    lines = result_lines(record.value)
    if not as_json and lines != list(shown):
        for line in lines:
            print(line)
    sys.stdout.flush()
    if not quiet:
        for warning in warnings_of(record.value):
            say(f"! {warning}", "yellow")
        notes.print(summary(record), soft_wrap=True)
        for path in files_of(record):
            say(f"  wrote {path}")
    return exit_code(record)


# --- failures


def failure_text(record: Record, *, verbose: bool = False) -> Text:
    """Why a job did not complete, with the failure of each attempt. verbose: with the worker's traceback."""
    failure = record.failure or Failure(FailureKind.INFRASTRUCTURE.value, "the record gives no reason")
    if record.state is JobState.CANCELLED:
        text = Text.assemble(("✗ cancelled", "bold yellow"), f"  {plain(failure.message)}")
        text.append(f"\n  job       {record.id}")
        return text
    text = Text.assemble(("✗ failed", "bold red"), f"  {plain(failure.message)}")
    text.append(f"\n  job       {record.id}")
    text.append(f"\n  kind      {failure.kind}{_stage(failure)}{_who(failure)}")
    if failure.exception and failure.exception not in failure.message:
        text.append(f"\n  exception {plain(failure.exception)}")
    died = _death(failure)
    if died:
        text.append(f"\n  process   {died}")
    if failure.hint:
        text.append("\n  hint      ", style="bold").append(plain(failure.hint), style="bold")
    if failure.not_retried:
        text.append(f"\n  not tried again: {plain(failure.not_retried)}")
    tries = failure.attempts or (*record.attempts, failure)
    text.append("\n  attempts")
    for attempt in tries:
        text.append(f"\n    {attempt.attempt}: {attempt_line(attempt)}")
    if verbose and failure.traceback:
        _block(text, "traceback", failure.traceback.rstrip().splitlines())
    if failure.stderr_tail.strip():
        _block(text, "stderr", _end_of(failure.stderr_tail.rstrip().splitlines()))
    return text


def attempt_line(failure: Failure) -> str:
    """One line about a failed attempt."""
    where = f" in {failure.stage}" if failure.stage else ""
    worker = f" ({failure.worker})" if failure.worker else ""
    return f"{failure.kind}{where}: {one_line(failure.message)}{worker}"


def _stage(failure: Failure) -> str:
    return f" in {plain(failure.stage)}" if failure.stage else ""


def _who(failure: Failure) -> str:
    worker = f" on {failure.worker}" if failure.worker else ""
    return f", attempt {failure.attempt}{worker}" if failure.attempt else worker


def _death(failure: Failure) -> str:
    if failure.signal:
        return f"ended by {failure.signal}"
    return "" if failure.exit_code is None else f"exit code {failure.exit_code}"


def _block(text: Text, title: str, lines: Sequence[str]) -> None:
    text.append(f"\n  {title}")
    for line in lines:
        text.append(f"\n    | {plain(line)}", style="dim")
