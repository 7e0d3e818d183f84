"""The console when things are not as they should be: a token is needed, the gateway dies, the pool is down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect
from scenarios.world import World

from console.conftest import configure

pytestmark = pytest.mark.long

TOKEN = "correct-horse-battery-staple"
MANY = 1000


@pytest.fixture
def guarded(site: Gateway) -> Iterator[Gateway]:
    """A second gateway to the shared pool, with a token."""
    gate = Gateway(site.world, env={"FILEPOOL_HTTP_TOKEN": TOKEN})
    gate.session.headers["Authorization"] = f"Bearer {TOKEN}"
    try:
        yield gate.start()
    finally:
        gate.kill()


def test_a_token_is_asked_for_kept_for_the_tab_and_used_for_everything(
    guarded: Gateway, visit: Callable[..., Page]
) -> None:
    job_id = guarded.submit("single", do="write")
    page = visit(f"{guarded.base}/#/job/{job_id}")
    dialog = page.locator("#token")
    expect(dialog).to_be_visible()
    assert page.locator(".row").count() == 0
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Bearer token").fill("wrong-horse-battery-staple")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("the token is wrong")
    dialog.get_by_label("Bearer token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#health")).to_have_attribute("data-verdict", "ok")
    with page.expect_download() as found:
        page.locator("#job").get_by_role("link", name="written.bin").click()
    assert found.value.path().read_bytes() == b"x" * 11
    page.reload()
    expect(page.locator("#health")).to_have_attribute("data-verdict", "ok")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Forget the token").click()
    expect(dialog).to_be_visible()
    assert page.evaluate("[sessionStorage.length, document.cookie]") == [0, ""]


def test_a_gateway_that_dies_is_noticed_and_found_again(world: World, visit: Callable[..., Page]) -> None:
    configure(world)
    gate = Gateway(world, "--no-start")
    gate.start()
    job_id = world.pool().submit("single").id
    page = visit(f"{gate.base}/#/job/{job_id}")
    notice, state, broken = page.locator("#notice"), page.locator("#job .state"), page.locator("#job .aside.warn")
    try:
        expect(page.locator("#health")).to_have_attribute("data-verdict", "down")  # no supervisor
        expect(state).to_have_text("Waiting")
        expect(page.locator("#job .notices")).to_contain_text("no supervisor")
        gate.kill()
        expect(page.locator("#health-text")).to_have_text("Connection lost")
        expect(broken).to_be_visible()
        expect(notice).to_contain_text("Accepted jobs go on")
        expect(notice).to_contain_text(re.compile(r"Next try in \d+ s"))
        gate = Gateway(world, "--no-start", "--port", str(urlsplit(gate.base).port))
        gate.start()
        notice.get_by_role("button", name="Try now").click()
        expect(page.locator("#health-text")).to_have_text("Pool down")
        expect(broken).to_be_hidden()
        world.serve()
        expect(state).to_have_text("Completed")  # its events go on where they were
        expect(page.locator("#health-text")).to_contain_text("ready")
    finally:
        gate.kill()


def test_a_pool_that_is_down_says_so_and_a_thousand_jobs_are_no_burden(
    world: World, visit: Callable[..., Page]
) -> None:
    configure(world)
    pool = world.pool()
    ids = [pool.submit("single", params={"value": number}).id for number in range(MANY)]
    gate = Gateway(world, "--no-start")
    gate.start()
    try:
        page = visit(gate.base)
        expect(page.locator("#health-text")).to_have_text("Pool down")
        notice = page.locator("#notice")
        expect(notice).to_contain_text("python -m pool serve")
        expect(notice).not_to_contain_text("null")
        rows = page.locator("#rows")
        page.wait_for_selector(f"#job-{ids[0]}")
        count = page.locator("#count")
        expect(count).to_have_text("200 of 1,000 jobs")  # those that run next; then all others, newest first
        for shown in ("700 of 1,000 jobs", "1,000 jobs"):
            rows.evaluate("node => node.scrollTo(0, node.scrollHeight)")
            expect(count).to_have_text(shown)
        rows.evaluate("node => node.scrollTo(0, node.scrollHeight)")
        expect(page.locator(f"#job-{ids[200]}")).to_be_visible()
        assert page.locator(".row").count() < 60
        page.evaluate(
            """() => { const rows = document.getElementById("rows"); for (let at = 0; at < 50; at++)
            { rows.scrollTop = at * 1000; rows.dispatchEvent(new Event("scroll")); } }"""
        )
        assert page.locator(".row").count() < 60, "a scroll draws what is seen, not what there is"
        page.locator("#search").fill(ids[500])
        expect(page.locator(".row:visible")).to_have_count(1)
        page.locator("#since").select_option("1h")
        expect(count).to_have_text("1 job")
        page.locator("#search").fill("")
        expect(count).to_have_text("200 jobs, more below")
        expect(page.locator(".row[aria-posinset='1']:visible")).to_have_id(f"job-{ids[-1]}")
    finally:
        gate.kill()
