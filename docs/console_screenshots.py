"""Photograph the web console with a real pool behind it: real speech, a real video, a real crash.

    python docs/console_screenshots.py                  # into docs/images/console-*.png, a minute or two

It needs the extras transcribe, http and dev, the weights, and a Chromium (tests/console/browser.py finds one).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from console.browser import chromium  # noqa: E402
from gateways.gateway import Gateway  # noqa: E402
from playwright.sync_api import Browser, Page  # noqa: E402
from scenarios.world import TOP, World  # noqa: E402

from inference.media import ffmpeg_binary  # noqa: E402

EXAMPLES = PROJECT / "examples"
SPEECH = EXAMPLES / "speech"
DESK = {"width": 1360, "height": 850}
SMALL = {"width": 1280, "height": 760}
FLAT = {"width": 1280, "height": 660}  # two paintings are large as PNG
PHONE = {"width": 390, "height": 800}
LONG_MS = 120_000
MAX_BYTES = 200_000


def configure(world: World) -> None:
    slow = {"stall_timeout_s": 300, "load_timeout_s": 300, "retry_times": 1, "backoff_s": 0.1}
    engines: dict[str, dict[str, Any]] = {
        "transcribe": {**slow, "engine": "inference.transcribe:Transcribe", "max_concurrent_tasks": 1},
        "lipsync": {**slow, "engine": "inference.lipsync:LipSync", "options": {"backend": "mesh"}, "workers": 1},
        "fake": {**slow, "engine": "inference.fake:Fake", "max_concurrent_tasks": 2},
    }
    world.config.write_text(json.dumps({"spool": str(world.spool), **TOP, "engines": engines}))


def submit(page: Page, engine: str, **files: Path) -> None:
    """Through the form, as a person does; the job is opened then."""
    page.locator("#new-job").click()
    form = page.locator("#submit")
    form.get_by_role("button", name=engine, exact=True).click()
    for key, path in files.items():
        form.locator(f"#field-{key}").set_input_files(path)
    form.get_by_role("button", name="Submit").click()
    form.wait_for(state="hidden")


def finish(page: Page, sign: str) -> None:
    page.locator(f"#job {sign}").first.wait_for(state="attached")


class Photographer:
    """Takes pictures of a few colours, so that they are small."""

    def __init__(self, browser: Browser, target: Path) -> None:
        self._browser, self._target = browser, target
        self._state: Any = None  # of the browser: the names of the files that were sent

    def page(self, address: str, scheme: str, viewport: dict[str, int], **more: Any) -> Page:
        context = self._browser.new_context(
            viewport=viewport, color_scheme=scheme, storage_state=self._state, **{"locale": "en-GB", **more}
        )
        page = context.new_page()
        page.set_default_timeout(LONG_MS)
        page.goto(address)
        page.locator(".seat[data-mood=idle], .seat[data-mood=busy]").nth(3).wait_for(state="attached")
        return page

    def remember(self, page: Page) -> None:
        self._state = page.context.storage_state()

    def take(self, page: Page, name: str) -> None:
        path = self._target / f"console-{name}.png"
        raw = path.with_suffix(".raw.png")
        page.screenshot(path=raw)
        colours = "split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=sierra2_4a:diff_mode=none"
        argv = [ffmpeg_binary(), "-v", "error", "-y", "-i", str(raw), "-vf", colours, str(path)]
        subprocess.run(argv, check=True)
        raw.unlink()
        size = path.stat().st_size
        print(f"{path.name}: {size / 1000:.0f} KB{'' if size <= MAX_BYTES else ', too large'}")


def photograph(gate: Gateway, photos: Photographer) -> None:
    page = photos.page(gate.base, "dark", DESK)
    for number in range(24):
        gate.submit("fake", value=number)
    gate.submit("fake", do="input")
    gate.submit("fake", do="kill")
    submit(page, "transcribe", audio=SPEECH / "reading.flac")
    finish(page, ".player")
    submit(page, "lipsync", audio=SPEECH / "address.flac", video=EXAMPLES / "portrait" / "mona_lisa.jpg")
    video = page.url
    finish(page, "video")
    submit(page, "transcribe", audio=SPEECH / "two_speakers.flac")
    speech = page.url
    finish(page, ".player")
    photos.remember(page)

    for seconds in (70, 90, 120, 120):
        gate.submit("fake", do="sleep", seconds=seconds)
    crash = next(job["id"] for job in gate.get("/jobs?state=failed").json()["jobs"] if "SIGKILL" in job["message"])
    page.goto(f"{gate.base}/#/job/{crash}")
    finish(page, ".attempts")
    submit(page, "lipsync", audio=SPEECH / "reading.flac", video=EXAMPLES / "portrait" / "mona_lisa.jpg")
    page.goto(f"{gate.base}/#/job/{crash}")
    page.wait_for_timeout(6000)
    photos.take(page, "dark")

    page.goto(gate.base)
    page.wait_for_timeout(1500)
    phone = photos.page(gate.base, "dark", PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    phone.wait_for_timeout(1500)
    photos.take(phone, "phone")
    play(photos, video, "dark", SMALL, "video", watch)
    play(photos, video, "light", FLAT, "compare", compare)
    past = photos.page(gate.base, "light", SMALL)
    past.keyboard.press("h")
    past.locator("#history tbody tr").first.wait_for()
    photos.take(past, "history")
    play(photos, speech, "light", DESK, "light", lambda page: page.locator(".player .toggle").click())
    play(
        photos,
        speech,
        "light",
        PHONE,
        "phone-light",
        lambda page: page.locator(".player .toggle").click(),
        is_mobile=True,
        has_touch=True,
        device_scale_factor=2,
    )
    play(photos, speech, "light", DESK, "chinese", lambda page: page.locator(".player .toggle").click(), locale="zh-CN")
    form = photos.page(gate.base, "light", DESK)
    form.locator("#new-job").click()
    form.get_by_role("button", name="lipsync", exact=True).last.click()
    form.locator("#field-audio").set_input_files(SPEECH / "address.flac")
    form.wait_for_timeout(300)
    photos.take(form, "form")


def watch(page: Page) -> None:
    """With the player's own buttons in sight."""
    page.locator("video").evaluate("node => node.play()")
    page.locator("video").hover()


def compare(page: Page) -> None:
    """Beside its template, a few frames on."""
    page.locator("[data-compare]").click()
    page.wait_for_timeout(1500)
    for _ in range(30):
        page.locator("[data-step='1']").click()
    page.locator(".lens").scroll_into_view_if_needed()


def play(
    photos: Photographer,
    address: str,
    scheme: str,
    viewport: dict[str, int],
    name: str,
    begin: Callable[[Page], object],
    **more: Any,
) -> None:
    """Open a job, play what it made for a while."""
    page = photos.page(address, scheme, viewport, **more)
    finish(page, "video")
    begin(page)
    page.wait_for_timeout(3000)
    photos.take(page, name)


def main() -> None:
    target = PROJECT / "docs" / "images"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        world = World(Path(folder))
        configure(world)
        gate = Gateway(world)
        try:
            world.serve(ready=4)
            photograph(gate.start(), Photographer(browser, target))
        finally:
            gate.kill()
            world.close()


if __name__ == "__main__":
    main()
