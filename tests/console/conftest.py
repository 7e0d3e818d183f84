"""One browser, one pool and one gateway for most tests; every page is watched for errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gateways.gateway import Gateway
from gateways.worlds import fresh_world  # noqa: F401
from scenarios.world import ENGINE, ROOT, TOP, World, passing

from console.browser import NoBrowser, chromium

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install filepool[dev]")

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

PATIENCE_MS = 30_000  # for what must happen soon; the machine may be busy with other things
DESK = {"width": 1360, "height": 850}

expect.set_options(timeout=PATIENCE_MS)


def configure(world: World) -> None:
    """`fake` with two workers and a second attempt, `single` with one worker, `transcribe` and `film` stand-ins."""
    stand_in = {**ENGINE, "pythonpath": [str(ROOT / "tests")], "max_concurrent_tasks": 1}
    engines: dict[str, dict[str, Any]] = {
        "fake": {**ENGINE, "retry_times": 1},
        "single": {**ENGINE, "max_concurrent_tasks": 1, "retry_times": 0},
        "transcribe": {**stand_in, "engine": "gateways.engines:Transcribe"},
        "film": {**stand_in, "engine": "gateways.engines:Film"},
    }
    world.config.write_text(json.dumps({"spool": str(world.spool), **TOP, "engines": engines}))


@pytest.fixture(scope="module")  # while it lives, playwright's event loop runs in this thread, and no other can
def browser() -> Iterator[Browser]:
    try:
        with chromium() as found:
            yield found
    except NoBrowser as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A pool with workers and a gateway without a token."""
    with passing(tmp_path_factory.mktemp("site")) as its, Gateway(its) as gate:
        configure(its)
        its.serve(ready=5)
        yield gate.start()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page in a browser profile of its own. A script error or a breach of the policy fails the test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "Content-Security-Policy" in message.text:
            wrong.append(message.text)

    def open_page(address: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESK, "locale": "en-GB", "reduced_motion": "reduce", **options})
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", heard)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def page(site: Gateway, visit: Callable[..., Page]) -> Page:
    """The console of the shared pool, with the pool in sight."""
    found = visit(site.base)
    expect(found.locator("[data-engine=fake]")).to_be_visible()
    return found
