"""config.json: what is accepted, how each mistake is told, what a slot inherits."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pool.config.seats import PROJECT, SlotSpec, slots
from pool.config.settings import (
    Config,
    EngineConfig,
    HttpConfig,
    LogConfig,
    RecycleConfig,
    RedisConfig,
    load_config,
    parse_config,
)
from pool.constants import ENV_SPOOL, ENV_WORKER
from pool.errors import ConfigError
from pool.policy.retries import Retries

ROOT = Path(__file__).resolve().parent.parent
ECHO = {"engine": "tests.engines:Echo"}


def config(root: Path = Path("/nowhere"), /, **engine: Any) -> Config:
    return parse_config({"engines": {"echo": {**ECHO, **engine}}}, root)


def echo(**engine: Any) -> EngineConfig:
    return config(**engine).engines["echo"]


def refused(document: dict[str, Any], root: Path = Path("/nowhere")) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(document, root)
    return caught.value


# --- files


def test_our_own_config_json() -> None:
    found = load_config(ROOT / "config.json")
    assert found.engines["transcribe"].workers == 2
    assert found.engines["transcribe"].engine == "inference.transcribe:Transcribe"
    assert found.spool == ROOT / "spool"
    assert found.notes == ()
    assert load_config(ROOT) == found


def test_the_current_directory_and_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no config\.json in .*a small one: \{"):
        load_config()
    assert load_config(engines=False).spool == tmp_path / "spool"
    (tmp_path / "config.json").write_text(json.dumps({"spool": "s", "engines": {"echo": ECHO}}))
    assert load_config().spool == tmp_path / "s"
    with pytest.raises(ConfigError, match=r"absent\.json does not exist"):
        load_config("absent.json")


def test_the_example_in_the_messages_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "absent.json")
    example = str(caught.value).split("a small one: ")[1]
    assert parse_config(json.loads(example), tmp_path).engines["transcribe"].workers == 2


SYNTAX = [
    (b'{"spool": "s",\n  "durable": yes}', "line 2, column 14"),
    (b'{"spool": "s", }', "no comma after the last entry|trailing comma"),  # the second since Python 3.13
    (b'{"spool": "s"\n // where\n}', "comments are not allowed"),
    (b"{'spool': 1}", "double quotes"),
    (b"[1]", "one JSON object"),
    (b"", "line 1, column 1"),
    (b'{"spool": "\xff"}', "not UTF-8 .byte 11"),
    (b'{"rescan_s": NaN}', "NaN"),
    (b'{"rescan_s": 1e999}', "1e999"),
    (b'{"a":' * 100_000, "."),
    (b'{"spool": "' + b"x" * (1 << 20) + b'"}', "at most 1048576"),
]


@pytest.mark.parametrize(("data", "told"), SYNTAX, ids=range(len(SYNTAX)))
def test_syntax_errors_say_where(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ConfigError, match=told) as caught:
        load_config(tmp_path / "config.json")
    assert "config.json" in str(caught.value)


def test_a_key_that_stands_twice_is_refused_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"engines": {"echo": {"engine": "a:B", "env": {"A": "1", "A": "2"}}}}')
    with pytest.raises(ConfigError, match="stands twice") as caught:
        load_config(file)
    assert caught.value.path == "engines.echo.env.A"


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"engines": {"echo": ECHO}}).encode())
    assert load_config(file).engines


# --- keys, types, ranges

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"spol": "x"}, "spol", 'did you mean "spool"'),
    ({"zzz": 1}, "zzz", "known: spool, durable"),
    ({"durable": 1}, "durable", "true or false, not 1"),
    ({"max_ready": True}, "max_ready", "whole number"),
    ({"max_ready": 1.0}, "max_ready", "whole number"),
    ({"max_ready": 0}, "max_ready", "from 1 to"),
    ({"rescan_s": "2"}, "rescan_s", 'not "2"'),
    ({"rescan_s": None}, "rescan_s", "not null"),
    ({"rescan_s": float("nan")}, "rescan_s", "a number from"),
    ({"spool": ""}, "spool", "a path"),
    ({"spool": "a\0b"}, "spool", "a path"),
    ({"media_roots": "/data"}, "media_roots", "a list"),
    ({"media_roots": ["/data", 5]}, "media_roots[1]", "a path"),
    ({"log": {"levle": "INFO"}}, "log.levle", 'did you mean "level"'),
    ({"log": {"level": "info"}}, "log.level", "one of TRACE, DEBUG"),
    ({"log": []}, "log", "an object"),
    ({"engines": {}}, "engines", "none is configured"),
    ({"engines": {"lip-sync": ECHO}}, "engines.lip-sync", "no engine name"),
    ({"engines": {"Echo": ECHO}}, "engines.Echo", "no engine name"),
    ({"engines": {"e" * 33: ECHO}}, "engines." + "e" * 33, "no engine name"),
    ({"engines": {"echo": {}}}, "engines.echo.engine", "is missing"),
    ({"engines": {"echo": {"engine": "pkg.module"}}}, "engines.echo.engine", "package.module:Class"),
    ({"engines": {"echo": {"engine": "os;rm:X"}}}, "engines.echo.engine", "package.module:Class"),
]
WRONG_ENGINE: list[tuple[dict[str, Any], str, str]] = [
    ({"wokers": 2}, "wokers", 'did you mean "workers"'),
    ({"task_timeout": 2}, "task_timeout", 'did you mean "task_timeout_minutes"'),
    ({"max_concurrent_tasks": 0}, "max_concurrent_tasks", "from 1 to 1024"),
    ({"workers": "2"}, "workers", "whole number"),
    ({"workers": 2, "max_concurrent_tasks": 3}, "workers", "keep one of them"),
    *(
        ({"device": value}, "device", word)
        for value, word in (
            ("gpu", 'did you mean "cuda"?'),
            ("GPU 0", 'did you mean "cuda:0"?'),
            ("cuda0", 'did you mean "cuda:0"?'),
            ("CUDA:1", 'did you mean "cuda:1"?'),
            ("cuda:01", 'did you mean "cuda:1"?'),
            (1, 'did you mean "cuda:1"?'),
            ("0", 'did you mean "cuda:0"?'),
            ("metal", 'did you mean "mps"?'),
            ("cpu:0", 'did you mean "cpu"?'),
            ("cuad", 'did you mean "cuda"?'),
            ("tpu", 'did you mean "xla"?'),
            ("", "is no device"),
            (True, "is no device"),
            ("auto", '"cpu", "cuda", "cuda:1"'),
            (None, "is no device"),
            (["cuda:0"], "is no device"),
            ("cuda:1000", "is no device"),
        )
    ),
    ({"devices": ["cpu", "cuda:"]}, "devices[1]", 'did you mean "cuda"?'),
    ({"devices": "cuda:0"}, "devices", "must be a list"),
    ({"env": {"A": 1.5}}, "env.A", "a string"),
    ({"env": {"A=B": "1"}}, "env.A=B", "no name"),
    ({"env": {"A": "\0"}}, "env.A", "a string"),
    ({"recycle": {"max_jobs": True}}, "recycle.max_jobs", "whole number"),
    ({"recycle": {"memory_mb": 5}}, "recycle.memory_mb", "did you mean"),
    ({"concurrency_mode": "pol"}, "concurrency_mode", 'did you mean "pool"'),
    ({"options": {"a": object()}}, "options", "JSON"),
    ({"backoff_s": 9, "backoff_max_s": 3}, "backoff_max_s", "less than backoff_s"),
    ({"batch_wait_ms": 5}, "batch_wait_ms", "raise max_batch"),
    ({"task_timeout_minutes": 0}, "task_timeout_minutes", "a number from"),
]


@pytest.mark.parametrize(("document", "path", "told"), WRONG, ids=[case[1] for case in WRONG])
def test_each_mistake_has_its_path(document: dict[str, Any], path: str, told: str) -> None:
    error = refused({"engines": {"echo": ECHO}, **document})
    assert error.path == path
    assert told in str(error)
    assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize(("engine", "path", "told"), WRONG_ENGINE, ids=[case[1] for case in WRONG_ENGINE])
def test_each_mistake_in_an_engine_has_its_path(engine: dict[str, Any], path: str, told: str) -> None:
    error = refused({"engines": {"echo": {**ECHO, **engine}}})
    assert error.path == f"engines.echo.{path}"
    assert told in str(error)


def test_what_the_properties_say() -> None:
    found = echo(workers=3, retry_times=0, task_timeout_minutes=1.5, memory_limit_mb=2, recycle={"max_jobs": 7})
    assert (found.workers, found.retries, found.task_timeout_s) == (3, Retries(0), 90.0)
    assert found.memory_limit_bytes == 2 << 20
    assert found.recycle == RecycleConfig(max_jobs=7)
    assert echo(task_timeout_minutes=None).task_timeout_s is None
    assert echo(workers=2, max_concurrent_tasks=2).workers == 2
    assert config().retention_s == 86400
    with pytest.raises(ConfigError, match='did you mean "echo"'):
        config().engine("ecko")


def test_paths_begin_at_the_file(tmp_path: Path) -> None:
    document = {
        "spool": "a/../b",
        "media_roots": ["/m", "rel", "~"],
        "engines": {"echo": {**ECHO, "cwd": "w"}},
    }
    found = parse_config(document, tmp_path)
    assert found.spool == tmp_path / "b"
    assert found.media_roots == (Path("/m"), tmp_path / "rel", Path.home())
    assert found.engines["echo"].cwd == tmp_path / "w"


def test_lock_is_one_worker_with_a_note() -> None:
    found = config(concurrency_mode="lock", max_concurrent_tasks=4)
    assert found.engines["echo"].workers == 1
    assert "concurrency_mode" in found.notes[0]


def test_the_mapping_of_the_caller_is_not_shared() -> None:
    options = {"deep": {"list": [1]}}
    found = echo(options=options)
    options["deep"]["list"].append(2)
    assert found.options == {"deep": {"list": [1]}}


# --- old sections

OLD: dict[str, Any] = {
    "transcription": {
        "max_concurrent_tasks": 4,
        "concurrency_mode": "pool",
        "task_timeout_minutes": 45,
        "retry_times": 3,
        "cache_enabled": True,
        "delete_after_transcription": True,
    },
    "funasr": {"model_dir": "models/paraformer", "device": "gpu", "hotword": "x", "vad_model": "fsmn"},
    "server": {"port": 8000},
}


def test_an_old_file_is_read_with_notes_that_show_the_new_form(tmp_path: Path) -> None:
    (tmp_path / "models" / "paraformer").mkdir(parents=True)
    found = parse_config(OLD, tmp_path)
    engine = found.engines["transcribe"]
    assert (engine.workers, engine.task_timeout_minutes, engine.retry_times) == (4, 45, 3)
    assert (engine.cache_enabled, engine.delete_after_transcription, engine.device) == (True, True, "cuda")
    assert engine.options == {"backend": "funasr", "model": str(tmp_path / "models" / "paraformer")}
    new_form = found.notes[0].split("the new form is ")[1]
    assert parse_config(json.loads(new_form), tmp_path).engines == found.engines
    assert "funasr.hotword" in found.notes[1]
    assert "parameter" in found.notes[1]
    assert "funasr.vad_model" in found.notes[2]
    assert "server" in found.notes[3]


def test_a_model_of_the_hub_stays_a_name() -> None:
    found = parse_config({"funasr": {"model_dir": "iic/SenseVoiceSmall"}}, Path("/nowhere"))
    assert found.engines["transcribe"].options["model"] == "iic/SenseVoiceSmall"


def test_mistakes_in_old_sections_are_told_where_they_stand() -> None:
    assert refused({"transcription": {"retry_times": "2"}}).path == "transcription.retry_times"
    assert refused({"transcription": 5}).path == "transcription"
    assert refused({"funasr": {"model_dir": 5}}).path == "funasr.model_dir"
    assert refused({"transcription": {}, "spol": "x"}).path == "spol"  # a slip, not a section
    note = parse_config({"transcription": {"retry_time": 2}}, Path("/nowhere")).notes[1]
    assert 'did you mean "retry_times"' in note


def test_the_new_form_wins_and_other_engines_stay() -> None:
    new = {"engines": {"transcribe": {"engine": "a:B"}}}
    assert refused({**OLD, **new}).path == "server"  # a file in the new form has no foreign sections
    both = {"transcription": {"max_concurrent_tasks": 4}, **new}
    assert parse_config(both, Path("/nowhere")).engines["transcribe"].workers == 1
    assert "not used" in parse_config(both, Path("/nowhere")).notes[0]
    mixed = parse_config({"transcription": {}, "engines": {"echo": ECHO}}, Path("/nowhere"))
    assert set(mixed.engines) == {"echo", "transcribe"}


# --- slots


def seats(tmp_path: Path, environ: dict[str, str] | None = None, cores: int = 8, **engine: Any) -> list[SlotSpec]:
    return list(slots(config(tmp_path, **engine), environ=environ or {}, cores=cores))


def test_workers_then_spares(tmp_path: Path) -> None:
    found = seats(tmp_path, workers=2, spares=1)
    assert [(s.name, s.spare) for s in found] == [("echo-0", False), ("echo-1", False), ("echo-2", True)]
    assert {s.cwd for s in found} == {tmp_path}
    assert {s.python for s in found} == {sys.executable}


def test_devices_go_round_and_a_numbered_gpu_is_the_only_one_seen(tmp_path: Path) -> None:
    found = seats(tmp_path, workers=3, spares=1, devices=["cuda:0", "cuda:1", "cpu"])
    assert [s.device for s in found] == ["cuda:0", "cuda:0", "cpu", "cuda:0"]
    assert [s.env.get("CUDA_VISIBLE_DEVICES") for s in found] == ["0", "1", None, "0"]
    assert len({s.fingerprint for s in found}) == 3
    (any_gpu,) = seats(tmp_path, device="cuda")
    assert (any_gpu.device, any_gpu.env.get("CUDA_VISIBLE_DEVICES")) == ("cuda", None)


def test_gpus_count_within_what_the_pool_was_given(tmp_path: Path) -> None:
    given = {"CUDA_VISIBLE_DEVICES": "4, GPU-abc,-1,7"}
    (slot,) = seats(tmp_path, given, device="cuda:1")
    assert (slot.device, slot.env["CUDA_VISIBLE_DEVICES"]) == ("cuda:0", "GPU-abc")
    with pytest.raises(ConfigError, match=r"leaves 2 device") as caught:
        seats(tmp_path, given, device="cuda:2")
    assert caught.value.path == "engines.echo.device"
    with pytest.raises(ConfigError, match="leaves 0"):
        seats(tmp_path, {"CUDA_VISIBLE_DEVICES": ""}, devices=["cuda:0"])
    (own,) = seats(tmp_path, given, device="cuda:1", env={"CUDA_VISIBLE_DEVICES": "2,3"})
    assert (own.device, own.env["CUDA_VISIBLE_DEVICES"]) == ("cuda:1", "2,3")


@pytest.mark.parametrize(
    ("environ", "engine", "threads", "said"),
    [
        ({}, {"workers": 2}, 4, "4"),
        ({}, {"workers": 20}, 1, "1"),
        ({}, {"workers": 2, "spares": 2}, 4, "4"),  # spares are idle
        ({"OMP_NUM_THREADS": "3"}, {}, 3, "3"),
        ({"OMP_NUM_THREADS": "3"}, {"threads": 5}, 5, "5"),
        ({"OMP_NUM_THREADS": "3"}, {"threads": 5, "env": {"OMP_NUM_THREADS": "6"}}, 6, "6"),
        ({"OMP_NUM_THREADS": "4,2"}, {}, 8, "4,2"),
    ],
)
def test_threads(tmp_path: Path, environ: dict[str, str], engine: dict[str, Any], threads: int, said: str) -> None:
    slot = seats(tmp_path, environ, **engine)[0]
    assert (slot.threads, slot.env["OMP_NUM_THREADS"]) == (threads, said)
    assert slot.env["OPENBLAS_NUM_THREADS"] == str(threads)


def test_cores_are_shared_among_all_engines(tmp_path: Path) -> None:
    found = parse_config({"engines": {"a": {**ECHO, "workers": 3}, "b": ECHO}}, tmp_path)
    assert {s.threads for s in slots(found, environ={}, cores=9)} == {2}


def test_what_a_worker_inherits(tmp_path: Path) -> None:
    given = {
        "PYTHONPATH": f"rel{os.pathsep}/abs",
        "HOME": "/h",
        ENV_SPOOL: "x",
        ENV_WORKER: "y",
        "PYTHONHOME": "/p",
    }
    slot = seats(tmp_path, given, pythonpath=["mine"], env={"HOME": "/other", "N": 5})[0]
    assert slot.env["PYTHONPATH"].split(os.pathsep) == [
        str(PROJECT),
        str(tmp_path / "mine"),
        os.path.abspath("rel"),
        "/abs",
    ]
    assert PROJECT == ROOT
    assert (slot.env["HOME"], slot.env["N"]) == ("/other", "5")
    assert (slot.env["PYTHONUNBUFFERED"], slot.env["PYTHONFAULTHANDLER"]) == ("1", "1")
    assert ENV_SPOOL not in slot.env
    assert ENV_WORKER not in slot.env
    assert slot.env["PYTHONHOME"] == "/p"


def test_another_interpreter(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    slot = seats(tmp_path, {"PYTHONHOME": "/p"}, python="bin/python")[0]
    assert slot.python == str(tmp_path / "bin" / "python")  # the link itself: a virtual environment goes by it
    assert "PYTHONHOME" not in slot.env
    for missing in ("python2.2", "bin/absent", "bin"):
        with pytest.raises(ConfigError, match="no interpreter") as caught:
            seats(tmp_path, python=missing)
        assert caught.value.path == "engines.echo.python"
    with pytest.raises(ConfigError, match="no directory"):
        seats(tmp_path, cwd="absent")


def test_the_fingerprint_follows_what_a_process_was_started_with(tmp_path: Path) -> None:
    base = seats(tmp_path)[0].fingerprint
    assert seats(tmp_path)[0].fingerprint == base
    assert seats(tmp_path, {"UNRELATED": "1"})[0].fingerprint == base
    assert seats(tmp_path, stall_timeout_s=5, spares=1, bench_s=5)[0].fingerprint == base
    for change in ({"options": {"a": 1}}, {"env": {"A": "1"}}, {"threads": 3}, {"retry_times": 9}):
        assert seats(tmp_path, **change)[0].fingerprint != base


# --- docs/CONFIG.md


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:127", "mps", "mps:0", "xpu:1", "npu:3", "xla"])
def test_devices(tmp_path: Path, device: str) -> None:
    document = {"engines": {"echo": {**ECHO, "device": device, "devices": [device]}}}
    engine = parse_config(document, tmp_path).engines["echo"]
    assert (engine.device, engine.devices) == (device, (device,))


def documented() -> dict[str, dict[str, tuple[str, str]]]:
    """heading -> key -> (type, default), as the tables of docs/CONFIG.md have them."""
    tables: dict[str, dict[str, tuple[str, str]]] = {}
    heading = ""
    for line in (ROOT / "docs" / "CONFIG.md").read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            tables.setdefault(heading, {})[cells[0].strip("`")] = (cells[1], cells[2].strip("`"))
    return tables


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("The pool", Config),
        ("`log`", LogConfig),
        ("`http`", HttpConfig),
        ("`redis`", RedisConfig),
        ("`engines.<name>`", EngineConfig),
        ("`recycle`", RecycleConfig),
    ],
)
def test_the_documentation_lists_the_same_keys_defaults_and_ranges(heading: str, kind: type) -> None:
    rows = documented()[heading]
    fields = {f.name: f for f in dataclasses.fields(kind) if "check" in f.metadata}
    assert list(rows) == list(fields)
    for name, (type_words, default) in rows.items():
        field = fields[name]
        if default == "see below":
            continue
        if default == "required":
            assert field.default is dataclasses.MISSING
            continue
        value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
        shown = json.loads(default)
        assert (str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value) == shown
        assert ("nullable" in type_words) == ("None" in str(field.type)), name
        if type_words.startswith(("integer", "number")):
            low, high = type_words.split(",")[1].split(" … ")
            told = f"from {int(low) if 'integer' in type_words else float(low):g} to"
            at_fault = refused_value(kind, name, float(high) * 2)
            assert f"{low.strip()} to" in at_fault or told in at_fault
            assert f"to {high.strip()}" in at_fault or f"to {float(high):g}" in at_fault


def refused_value(kind: type, name: str, value: object) -> str:
    if kind in (LogConfig, HttpConfig, RedisConfig):
        section = kind.__name__.removesuffix("Config").lower()
        return str(refused({"engines": {"echo": ECHO}, section: {name: value}}))
    if kind is Config:
        return str(refused({"engines": {"echo": ECHO}, name: value}))
    entry = {"recycle": {name: value}} if kind is RecycleConfig else {name: value}
    return str(refused({"engines": {"echo": {**ECHO, **entry}}}))


def test_every_json_in_the_documentation_is_valid(tmp_path: Path) -> None:
    blocks = (ROOT / "docs" / "CONFIG.md").read_text().split("```json\n")[1:]
    assert blocks
    for block in blocks:
        parse_config(json.loads(block.split("```")[0]), tmp_path)
