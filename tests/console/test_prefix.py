"""The console below a path of somebody else's site: a real browser, a real nginx, a gateway with a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gateways.gateway import Gateway, wav
from gateways.proxy import documented, nginx
from playwright.sync_api import Page, Request, expect
from scenarios.world import wait_until

pytestmark = pytest.mark.long
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def prefixed(site: Gateway, tmp_path: Path) -> Iterator[str]:
    """The address of the console of a second gateway to the shared pool, behind nginx."""
    with Gateway(site.world, "--no-start", env={"FILEPOOL_HTTP_TOKEN": TOKEN}) as gate:
        gate.start()
        location = documented().replace("127.0.0.1:8308", urlsplit(gate.base).netloc)
        with nginx(tmp_path / "nginx", location) as address:
            yield f"{address}/pool/"


def test_a_recording_is_uploaded_transcribed_and_read_along(
    prefixed: str, visit: Callable[..., Page], tmp_path: Path
) -> None:
    asked: list[str] = []

    def heard(request: Request) -> None:
        asked.append(urlsplit(request.url).path)

    page = visit(prefixed)
    page.on("request", heard)
    dialog = page.locator("#token")
    dialog.get_by_label("Bearer token").fill(TOKEN)
    dialog.get_by_role("button", name="Sign in").click()
    expect(page.locator("#health")).to_have_attribute("data-verdict", "ok")
    page.get_by_role("button", name="New job").first.click()
    form = page.locator("#submit")
    form.get_by_role("button", name="transcribe", exact=True).click()
    recording = tmp_path / "talk.wav"
    recording.write_bytes(wav(4))
    form.locator("input[type=file]").first.set_input_files(str(recording))
    form.get_by_role("button", name="Submit").click()
    expect(page.locator("#job .state")).to_have_text("Completed")
    expect(page.locator("#job audio, #job video").first).to_be_attached()
    players = "[...document.querySelectorAll('audio, video')].some((one) => one.readyState >= 1)"
    wait_until(lambda: page.evaluate(players), "a player that has loaded")
    assert {path for path in asked if path.startswith("blob:") is False and not path.startswith("/pool/")} == set()
    assert any(path.startswith("/pool/api/tempfile/download/") for path in asked)
    assert [cookie["path"] for cookie in page.context.cookies(prefixed)] == ["/pool/"]
