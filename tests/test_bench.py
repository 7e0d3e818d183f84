"""Every bench runs at tiny sizes and prints its keys; how fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as all_benches
from bench import targets
from bench.cluster import report

ROOT = Path(__file__).resolve().parents[1]

KEYS = {
    "floor": ("p50_ms", "p99_ms", "durable.p50_ms", "files_per_s", "durable_files_per_s"),
    "roundtrip": (
        "p50_ms",
        "p99_ms",
        "floor_p50_ms",
        "ratio",
        "durable.p50_ms",
        "durable.p99_ms",
        "durable.floor_p50_ms",
        "durable.ratio",
    ),
    "throughput": ("jobs_per_s", "durable_jobs_per_s", "durable_floor_per_s", "map_items_per_s"),
    "payload": ("mb_per_s", "k64_jobs_per_s"),
    "idle": ("cpu_s",),
    "recovery": ("rerun_ms", "supervisor_completed", "supervisor_reloads"),
    "poison": ("work.alone_s", "work.beside_s", "work.ratio", "waiting.ratio", "trivial.ratio", "trivial.starts"),
    "backlog": ("claim_us_1k", "claim_us_100k", "ratio", "roundtrip.before.p50_ms", "roundtrip.after.p50_ms"),
    "jobs": ("build_ms", "page_ms", "moving_ms", "more_ms", "waiting_ms", "arriving_ms", "tags_ms"),
    "footprint": ("shm_bytes", "import_ms", "import_heavy"),
}


def run(*arguments: str, at: Path, seconds: float = 100) -> str:
    command = [sys.executable, "-m", *arguments, "--json", "--quick", "--dir", str(at)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_there_is_a_check_for_every_bench() -> None:
    assert set(KEYS) == set(all_benches.NAMES)


SOON = ("floor", "roundtrip", "jobs", "footprint")  # the others after the fast set


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.long) for name in KEYS]
)
def test_a_bench_prints_its_keys(name: str, tmp_path: Path) -> None:
    output = run(f"bench.{name}", at=tmp_path)
    figures = json.loads(output.splitlines()[-1])
    assert figures["bench"] == name
    for key in KEYS[name]:
        found = figures
        for part in key.split("."):
            found = found[part]
        assert isinstance(found, (int, float)), key
    assert all(target.value(figures) is not None for target in targets.of(name))
    assert name in output.splitlines()[0]  # the table before it
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_the_survey_runs_what_is_named(tmp_path: Path) -> None:
    output = run("bench", "floor", at=tmp_path)
    found = json.loads(output.splitlines()[-1])
    assert found["floor"]["p50_ms"] > 0
    assert found["missed"] == []
    assert "targets" in output


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_cluster_of_one_server(tmp_path: Path) -> None:
    pytest.importorskip("nats")
    output = run("bench.cluster", "one", at=tmp_path, seconds=280)
    found = json.loads(output.splitlines()[-1])
    assert "error" not in found["one"], found["one"]["error"]
    mine = [target for target in targets.of("cluster") if target.figure.startswith("one.")]
    assert mine
    assert all(target.value(found) is not None for target in mine)
    assert set(found["missed"]) == {target.figure for target in mine if not target.reached(found)}
    assert len(found["one"]["takeovers_s"]) == 1
    assert found["one"]["shm_bytes"] == 0
    for target in mine:
        assert f"{'reached' if target.reached(found) else '**missed**'}" in output
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_the_page_of_the_cluster_says_why_a_target_is_missed(tmp_path: Path) -> None:
    kinds = {"client": 0.4, "port": 0.9, "server": 1.2, "agent": 2.0, "worker": 0.5}
    figures = {
        "title": "filepool, 1 server",
        "round_trip_ms": {"3": 20.0},
        "jobs_per_s": {"1": 300.0, "2": 310.0, "3": 320.0},
        "trip_kinds_ms": kinds,
        "burst_kinds_ms": kinds,
        "takeovers_s": [5.0, 7.5],
        "takeover_s": 7.5,
        "takeover_waited_s": 60,
        "memory_mb": {"agent": 70.0},
        "imported_mb": 55.0,
        "shm_bytes": 0,
    }
    found = {"one": figures, "dask": {"title": "dask.distributed", "error": "skipped: distributed not installed"}}
    assert report.missed(found) == [
        "one.round_trip_ms.3",
        "one.jobs_per_s.3",
        "one.takeover_s",
        "one.memory_mb.agent",
    ]
    assert "| no-ops a second over 3 nodes | ≥ 1,000 /s | 320, **missed** |" in report.against_targets(found)
    reasons = report.why(found, disk_ms=0.8)
    for words in (
        "5.00 ms of processor time",
        "1,111 a second",
        "5.0, 7.5 s",
        "done nothing has 55 MB",
        "costs 0.8 ms",
    ):
        assert words in reasons
    assert "skipped: distributed not installed" in report.table(found)
