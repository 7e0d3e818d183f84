"""Film the web console at work: a transcript that is made and read along, a video that is made and plays.

    python docs/console_recording.py                    # docs/images/console.webp, a minute

It needs what docs/console_screenshots.py needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "docs")]

from console.browser import chromium  # noqa: E402
from console_screenshots import EXAMPLES, SPEECH, configure  # noqa: E402
from gateways.gateway import Gateway  # noqa: E402
from playwright.sync_api import Page  # noqa: E402
from scenarios.world import World  # noqa: E402

from inference.media import ffmpeg_binary  # noqa: E402

SIZE = {"width": 1240, "height": 700}
FPS = 6


class Film:
    """Pictures of a page at a steady rate, also while it is told what to do."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page, self._folder = page, folder
        self._count = 0
        self._begun = 0.0

    def roll(self, seconds: float) -> None:
        """Go on for so long."""
        self._begun = self._begun or time.monotonic()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            picture = self._page.screenshot(type="png")
            due = int((time.monotonic() - self._begun) * FPS)
            for number in range(self._count, max(due, self._count + 1)):
                (self._folder / f"{number:05d}.png").write_bytes(picture)
            self._count = max(due, self._count + 1)
            self._page.wait_for_timeout(1000 / FPS / 4)

    def until(self, sign: str) -> None:
        """Go on until something is there."""
        while not self._page.locator(sign).count():
            self.roll(0.2)

    def cut(self, target: Path) -> None:
        argv = [ffmpeg_binary(), "-v", "error", "-y", "-framerate", str(FPS), "-i", str(self._folder / "%05d.png")]
        argv += ["-c:v", "libwebp_anim", "-quality", "86", "-compression_level", "6", "-loop", "0", str(target)]
        subprocess.run(argv, check=True)
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} KB, {self._count / FPS:.0f} s")


def act(page: Page, film: Film) -> None:
    film.roll(1.2)
    make(page, film, "transcribe", audio=SPEECH / "two_speakers.flac")
    film.until("#job .player")
    film.roll(0.8)
    page.locator(".player .toggle").click()
    film.roll(4)
    page.locator(".w", has_text="country").first.click()
    film.roll(3)
    make(page, film, "lipsync", audio=SPEECH / "address.flac", video=EXAMPLES / "portrait" / "mona_lisa.jpg")
    film.until("#job video[controls]")
    page.locator("video[controls]").evaluate("node => node.play()")
    film.roll(5)


def make(page: Page, film: Film, engine: str, **files: Path) -> None:
    page.locator("#new-job").click()
    form = page.locator("#submit")
    form.get_by_role("button", name=engine, exact=True).click()
    film.roll(0.8)
    for key, path in files.items():
        form.locator(f"#field-{key}").set_input_files(path)
        film.roll(0.6)
    form.get_by_role("button", name="Submit").click()


def main() -> None:
    target = PROJECT / "docs" / "images" / "console.webp"
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        pictures = Path(folder) / "film"
        pictures.mkdir()
        world = World(Path(folder))
        configure(world)
        gate = Gateway(world)
        try:
            world.serve(ready=4)
            gate.start()
            for number in range(8):
                gate.submit("fake", value=number)
            gate.submit("fake", do="input")
            page = browser.new_page(viewport=SIZE, color_scheme="dark", locale="en-GB")
            page.set_default_timeout(120_000)
            page.goto(gate.base)
            page.locator(".row").nth(8).wait_for()
            page.locator(".seat[data-mood=idle]").nth(3).wait_for(state="attached")
            film = Film(page, pictures)
            act(page, film)
            film.cut(target)
        finally:
            gate.kill()
            world.close()


if __name__ == "__main__":
    main()
