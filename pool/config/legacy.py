"""The configuration sections that people already have, `transcription` and `funasr`, translated to `engines`.

    transcription.max_concurrent_tasks, concurrency_mode, task_timeout_minutes, retry_times, cache_enabled,
        delete_after_transcription    -> the same keys of engines.transcribe
    funasr.model_dir                  -> engines.transcribe.options {"backend": "funasr", "model": …}
    funasr.device                     -> engines.transcribe.device ("gpu" is "cuda")

Whatever else stands in them, and in the other sections of such a file, was meant for the program that this
one replaces: it is listed in a note and left alone. A note always shows the new form.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pool.config import checks
from pool.config.checks import At

SECTIONS = ("transcription", "funasr")
ENGINE = "transcribe"
SPEC = "inference.transcribe:Transcribe"
SAME = (
    "max_concurrent_tasks",
    "concurrency_mode",
    "task_timeout_minutes",
    "retry_times",
    "cache_enabled",
    "delete_after_transcription",
)
PARAMETERS = ("batch_size_s", "hotword", "language")  # of a job, no longer of the program


@dataclass(frozen=True)
class Translated:
    """document: in its new form. origins: new dotted path -> the one that the user wrote."""

    document: dict[str, Any]
    notes: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)


def translate(document: dict[str, Any], at: At, known: Collection[str]) -> Translated:
    """Move the old sections to engines.transcribe; a document without them comes back as it is.

    `known` are the keys of the new form. Where engines.transcribe is configured too, the old sections yield.
    """
    present = [name for name in SECTIONS if name in document]
    if not present:
        return Translated(document)
    sections = {name: checks.table(document[name], at.down(name)) for name in present}
    rest = {name: value for name, value in document.items() if name not in SECTIONS}
    foreign = [] if "engines" in document else [n for n, v in rest.items() if n not in known and _bulky(v)]
    rest = {name: value for name, value in rest.items() if name not in foreign}
    engines = rest.get("engines", {})
    if not isinstance(engines, dict):
        return Translated(rest)  # refused later, with its path
    if ENGINE in engines:
        note = f"{_listed(present)} not used, because engines.{ENGINE} is configured; remove the old form"
        return Translated(rest, (note,))
    engine, origins, unused = _engine(sections, at)
    rest["engines"] = {**engines, ENGINE: engine}
    return Translated(rest, _notes(present, engine, unused, foreign), origins)


def _engine(sections: dict[str, dict[str, Any]], at: At) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """engines.transcribe, the origins of its keys, and what was not used."""
    engine: dict[str, Any] = {"engine": SPEC}
    origins: dict[str, str] = {}
    unused = []
    for section, entries in sections.items():
        for name, value in entries.items():
            here = at.down(section).down(name)
            if section == "transcription" and name in SAME:
                target, content = name, value
            elif section == "funasr" and name == "device" and isinstance(value, str):
                target, content = "device", "cuda" if value == "gpu" else value
            elif section == "funasr" and name == "model_dir" and value not in (None, ""):
                target, content = "options", {"backend": "funasr", "model": _model(value, here)}
            else:
                unused.append(f"{section}.{name}")
                continue
            engine[target] = content
            origins[f"engines.{ENGINE}.{target}"] = here.path
    return engine, origins, unused


def _model(value: object, at: At) -> str:
    """A folder beside the configuration, or the name of a model in its hub."""
    name = checks.text(value, at)
    folder = checks.resolved(name, at.root)
    return str(folder) if folder.exists() or name.startswith((".", "/", "~")) else name


def _notes(present: list[str], engine: dict[str, Any], unused: list[str], foreign: list[str]) -> tuple[str, ...]:
    new_form = json.dumps({"engines": {ENGINE: engine}}, ensure_ascii=False)
    notes = [f"{_listed(present)} read in the old form; the new form is {new_form}"]
    parameters = [name for name in unused if name.partition(".")[2] in PARAMETERS]
    others = [name for name in unused if name not in parameters]
    if parameters:
        notes.append(f"not used: {', '.join(parameters)}; give it with each job, as a parameter of {ENGINE}")
    if others:
        notes.append(f"not used: {', '.join(name + _meant(name) for name in others)}; nothing reads it any more")
    if foreign:
        notes.append(f"not used: {', '.join(foreign)}; no section of that name exists here")
    return tuple(notes)


def _meant(name: str) -> str:
    section, _, entry = name.partition(".")
    near = checks.nearest(entry, SAME if section == "transcription" else ("model_dir", "device"))
    return f" ({near.lstrip(', ')})" if near else ""


def _listed(present: list[str]) -> str:
    names = " and ".join(f'"{name}"' for name in present)
    return f"section {names} was" if len(present) == 1 else f"sections {names} were"


def _bulky(value: object) -> bool:
    """A section of an old file; a single misspelt value is an error, not a section."""
    return isinstance(value, (dict, list))
