"""A hundred thousand jobs in the console: the last row is reached, an unloaded job is found, the page stays small."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Browser, Page, expect
from scenarios.world import passing
from synthetic import fill

from console.conftest import configure
from pool.spool.store import Spool

pytestmark = pytest.mark.slow

MANY = 100_000
HEAP_MOST = 150_000_000  # bytes of script objects after a collection; 26 MB were measured
LONG_MS = 180_000
FILES_MOST = 1_000_000_000  # bytes of a page for each record, and as much again


def roomy(otherwise: Path) -> Path:
    """A folder in memory where there is room for so many small files: on a disk their removal takes minutes."""
    memory = Path("/dev/shm")
    if memory.is_dir() and shutil.disk_usage(memory).free > FILES_MOST:
        return Path(tempfile.mkdtemp(prefix="filepool-many-", dir=memory))
    return otherwise


def test_a_hundred_thousand_jobs(browser: Browser, visit: Callable[..., Page], tmp_path: Path) -> None:
    with passing(roomy(tmp_path)) as world:
        configure(world)
        ids = fill(Spool.create(world.spool, durable=False), MANY)
        with Gateway(world, "--no-start") as gate:
            gate.start()
            page = visit(gate.base)
            expect(page.locator("#count")).to_have_text("200 of 100,000 jobs", timeout=LONG_MS)
            page.locator("#search").fill(ids[MANY // 2])  # far below what is loaded
            expect(page.locator(f"#job-{ids[MANY // 2]}")).to_be_visible()
            expect(page.locator(".row:visible")).to_have_count(1)
            page.locator("#search").fill("")
            rows, last = page.locator("#rows"), page.locator(f"#job-{ids[0]}")
            page.evaluate(
                """() => { const rows = document.getElementById("rows");
                const down = () => { rows.scrollTo(0, rows.scrollHeight); going = requestAnimationFrame(down); };
                let going = requestAnimationFrame(down);
                rows.stop = () => cancelAnimationFrame(going); }"""
            )
            last.wait_for(timeout=LONG_MS)
            expect(page.locator("#count")).to_have_text("100,000 jobs")
            rows.evaluate("node => node.stop()")
            expect(last).to_be_visible()
            assert page.locator(".row").count() < 60
            client = page.context.new_cdp_session(page)
            client.send("HeapProfiler.collectGarbage")
            used = client.send("Runtime.getHeapUsage")["usedSize"]
            assert used < HEAP_MOST, f"{used / 1e6:.0f} MB"
            print(f"{used / 1e6:.0f} MB of script objects")
