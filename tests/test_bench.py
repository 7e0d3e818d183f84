"""Every bench runs at tiny sizes and prints its keys; how fast is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import __main__ as all_benches
from bench import targets

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


def run(*arguments: str, at: Path) -> str:
    command = [sys.executable, "-m", *arguments, "--json", "--quick", "--dir", str(at)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
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
