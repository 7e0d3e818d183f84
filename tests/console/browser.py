"""A headless Chromium: the one of the machine, or Playwright's own; and where the tests say why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
#: In containers there is neither a sandbox for root nor a large /dev/shm; sound is played to nobody.
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required", "--mute-audio")


class NoBrowser(Exception):
    """No browser could be started; the message says what was tried."""


def find() -> str | None:
    """Path of a browser: CHROMIUM, then the names that distributions give it; None: Playwright's own."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, closed at the end. Raises NoBrowser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError as error:
        raise NoBrowser(f"{error.name} is not installed: pip install filepool[dev]") from None
    path = find()
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        except Error as error:
            tried = path or f"CHROMIUM, {', '.join(NAMES)} on the PATH, Playwright's own"
            raise NoBrowser(f"no Chromium could be started ({tried}): {str(error).splitlines()[0]}") from None
        try:
            yield browser
        finally:
            browser.close()
