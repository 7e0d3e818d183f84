"""Many tabs of one browser: they share one stream, so that neither connections nor limits run out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

TABS = 6  # as many as a browser opens connections to one address
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def limited(site: Gateway, tmp_path: Path) -> Iterator[Gateway]:
    """A second gateway to the shared pool, with a token and the limits of one that others reach."""
    document = json.loads(site.world.config.read_text())
    document["http"] = {"rate_per_minute": 600, "concurrent_requests": TABS}
    where = SimpleNamespace(folder=tmp_path, config=tmp_path / "config.json")
    where.config.write_text(json.dumps(document))
    gate = Gateway(cast("Any", where), "--no-start", "--access-log", env={"FILEPOOL_HTTP_TOKEN": TOKEN})
    gate.session.headers["Authorization"] = f"Bearer {TOKEN}"
    with gate:
        yield gate.start()


def asked(gate: Gateway) -> list[str]:
    """What browsers have asked for, but the page itself: the lines of the access log."""
    lines = (gate.world.folder / "gateway.log").read_text().splitlines()
    return [line for line in lines if '"GET ' in line and "/static/" not in line and '"GET / ' not in line]


def test_six_tabs_work_behind_one_address(limited: Gateway, site: Gateway, visit: Callable[..., Page]) -> None:
    jobs = [site.submit("single", do="sleep", seconds=600) for _ in range(TABS)]
    tabs = [visit("about:blank")]
    tabs += [tabs[0].context.new_page() for _ in range(TABS - 1)]
    for tab, job_id in zip(tabs, jobs, strict=True):
        tab.goto(f"{limited.base}/#/job/{job_id}")
        if tab is tabs[0]:  # the others have it from there
            tab.get_by_label("Bearer token").fill(TOKEN)
            tab.keyboard.press("Enter")
        expect(tab.locator("#health")).to_have_attribute("data-verdict", "ok")
        expect(tab.locator("#job .state")).to_have_text("Running" if job_id == jobs[0] else "Waiting")
    before = len(asked(limited))
    moves = site.submit("fake", do="sleep", seconds=4)
    for tab in tabs:
        expect(tab.locator(f"#job-{moves}")).to_have_attribute("data-state", "completed")
    assert len(asked(limited)) - before <= TABS, "nobody polls"
    for job_id in jobs:
        site.call("DELETE", f"/jobs/{job_id}")
    for tab in tabs:
        expect(tab.locator("#job .state")).to_have_text("Cancelled")
        expect(tab.locator("#notice")).to_be_hidden()
    tabs[0].locator("#states [data-state=cancelled]").click()  # a filter of one tab is that of no other
    expect(tabs[0].locator(f"#job-{moves}")).to_be_hidden()
    expect(tabs[1].locator(f"#job-{moves}")).to_be_visible()
    tabs[0].get_by_role("button", name="Forget the token").click()
    expect(tabs[0].locator("#token")).to_be_visible()
    expect(tabs[1].locator("#token")).to_be_hidden()
    assert not [line for line in asked(limited) if " 429" in line]
    assert limited.stop() == 0  # the streams do not hold it
    expect(tabs[1].locator("#health-text")).to_have_text("Connection lost")


def test_without_shared_workers_a_tab_has_a_stream_of_its_own(site: Gateway, visit: Callable[..., Page]) -> None:
    page = visit("about:blank")
    page.context.add_init_script("delete window.SharedWorker")
    page.context.route("**/live?**", lambda route: route.abort())  # nothing is known yet
    page.goto(site.base)
    assert page.evaluate("typeof SharedWorker") == "undefined"
    page.get_by_role("button", name="New job").first.click()
    form = page.locator("#submit")
    expect(form).to_contain_text("The pool has no engines.")
    page.context.unroute("**/live?**")
    expect(form.get_by_role("button", name="fake", exact=True)).to_be_visible()  # those that came later
    expect(form.locator("#field-do")).to_be_attached()
    page.keyboard.press("Escape")
    expect(page.locator("#health")).to_have_attribute("data-verdict", "ok")
    job_id = site.submit("fake", value="alone")
    expect(page.locator(f"#job-{job_id}")).to_have_attribute("data-state", "completed")
