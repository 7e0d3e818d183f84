"""Every number of config.json at the ends of its range: the pool serves, or says which key forbids it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from pool.config import checks
from pool.config.settings import Config, EngineConfig, LogConfig, RecycleConfig, parse_config
from pool.errors import ConfigError
from pool.supervise.judge import WELL, judge
from scenarios.world import World, wait_until

#: Keys that at this end forbid what the test does: no time to come up or to run, one waiting job at most.
FORBIDS = {
    "low": {"boot_timeout_s", "stall_timeout_s", "task_timeout_minutes", "memory_limit_mb", "max_ready"},
    "high": {"min_free_mb"},
}
#: Not numbers of a single pool: many processes, or many jobs, would be started for them.
COSTLY = {"high": {"max_concurrent_tasks", "spares", "batch_wait_ms"}, "low": set()}


def bounds(kind: type[Any]) -> Iterator[tuple[str, float, float]]:
    """(key, lowest, highest) of each number that a section of the configuration takes; found by asking its checks."""
    for field in dataclasses.fields(kind):
        check = field.metadata.get("check")
        if check is None:
            continue
        try:
            check({"not": "a number"}, checks.At(field.name, None))  # type: ignore[arg-type]
        except ConfigError as error:
            words = str(error).replace(",", "").split()
            if "number" in words and "from" in words:
                yield field.name, float(words[words.index("from") + 1]), float(words[words.index("to") + 1])


def document(end: str) -> dict[str, Any]:
    """A configuration with every number at one end of its range."""
    found: dict[type[Any], dict[str, Any]] = {}
    for kind in (Config, EngineConfig, LogConfig, RecycleConfig):
        chosen = found.setdefault(kind, {})
        for key, low, high in bounds(kind):
            if key not in FORBIDS[end] | COSTLY[end]:
                value = low if end == "low" else high
                chosen[key] = int(value) if value == int(value) else value
    engine = {"engine": "inference.fake:Fake", **found[EngineConfig], "recycle": found[RecycleConfig]}
    if end == "low":
        engine |= {"max_batch": 1}
    return {**found[Config], "log": found[LogConfig], "engines": {"fake": engine}}


def test_all_numbers_are_found() -> None:
    assert {"rescan_s", "max_ready", "orphan_grace_s", "drain_grace_s"} <= {key for key, _, _ in bounds(Config)}
    names = {key for key, _, _ in bounds(EngineConfig)}
    assert {"start_limit", "bench_s", "load_timeout_s", "backoff_max_s", "retry_times", "memory_limit_mb"} <= names


@pytest.mark.parametrize("end", ["low", "high"])
def test_the_pool_serves_with_every_number_at_its(world: World, end: str) -> None:
    found = document(end)
    world.configure(found.pop("engines"), **found)
    world.serve(ready=1)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"value": n} for n in range(20)])
    assert [future.result(60)["value"] for future in futures] == list(range(20))
    assert pool.submit("fake", do="kill", until_attempt=1, retry_times=1).result(60)["attempt"] == 2
    if end == "high":
        assert pool.submit("fake", do="sleep", seconds=0.5).result(60)["attempt"] == 1
    seats = {slot["seat"] for slot in world.status()["slots"]}
    assert seats <= {"running", "waiting"}


@pytest.mark.parametrize("end", ["low", "high"])
def test_every_number_alone_at_its(tmp_path: Any, end: str) -> None:
    """Each is accepted by itself, and one step beyond is refused with its key."""
    for kind in (Config, EngineConfig):
        for key, low, high in bounds(kind):
            value = low if end == "low" else high
            for number, fits in ((value, True), (low - 1 if end == "low" else high + 1, False)):
                given: Any = int(number) if number == int(number) else number
                engine = {"engine": "inference.fake:Fake"}
                top: dict[str, Any] = {"engines": {"fake": engine}}
                (top if kind is Config else engine)[key] = given
                if key == "batch_wait_ms":
                    engine |= {"max_batch": 2}
                if key == "backoff_s":
                    engine |= {"backoff_max_s": 86400}
                if key == "backoff_max_s":
                    engine |= {"backoff_s": 0.001}
                try:
                    parse_config(top, tmp_path)
                    said = ""
                except ConfigError as error:
                    said = error.path
                assert said.endswith(key) if not fits else said == "", (key, given, said)


@pytest.mark.parametrize(
    "rescan_s", [31.0, *(pytest.param(seconds, marks=pytest.mark.long) for seconds in (0.05, 2.0, 3600.0))]
)
def test_an_idle_worker_is_never_taken_for_hung(world: World, rescan_s: float) -> None:
    """Whatever rescan_s is, the idle loop beats more often than the silence that is called hanging."""
    world.configure({"fake": {"max_concurrent_tasks": 1, "spares": 1}}, rescan_s=rescan_s).serve(ready=2)
    before = {name: beat.beat_ns for name, beat in world.loaded().items()}

    def beaten() -> bool:
        return all(world.loaded()[name].beat_ns > at for name, at in before.items())

    wait_until(beaten, "a sign of life of the worker and of the spare", 20)  # IDLE_SILENCE_S is 30
    engine = parse_config({"engines": {"fake": {"engine": "a:B"}}}, world.folder).engines["fake"]
    for beat in world.loaded().values():
        since = lambda moment_ns, now_ns=beat.beat_ns + int(20e9): (now_ns - moment_ns) / 1e9  # noqa: E731
        assert judge(engine, beat, since, started_ns=0) == WELL
