"""A headless Firefox of the machine, unchanged, driven by Playwright through WebDriver BiDi.

Playwright speaks a newer protocol than a Firefox of today: it gives up when the media cannot be set, and does not see
downloads without a name. Run as a script, this file is the browser that Playwright starts: it starts Firefox, and hands
messages on in both directions, with these two mended. The media are set by preferences.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from websockets.asyncio.connection import Connection
    from websockets.asyncio.server import ServerConnection

NAMES = ("firefox-esr", "firefox")
PREFERENCES: dict[str, str | float | bool] = {
    "layout.css.prefers-color-scheme.content-override": 0,  # dark; Chromium has both
    "media.autoplay.default": 0,  # allowed
    "media.volume_scale": "0.0",
    "ui.prefersReducedMotion": 1,
}
_MEDIA, _DOWNLOAD = "emulation.setMediaFeaturesOverride", "browsingContext.download"
_LISTENS = re.compile(r"WebDriver BiDi listening on (ws://\S+)")


@contextmanager
def firefox() -> Iterator[Browser]:
    """A browser, closed at the end. Raises NoBrowser."""
    from console.browser import NoBrowser

    try:
        import websockets  # noqa: F401
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError as error:
        raise NoBrowser(f"{error.name} is not installed: pip install filepool[dev]") from None
    path = os.environ.get("FIREFOX") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise NoBrowser(f"no Firefox: FIREFOX is not set, and {' and '.join(NAMES)} are not on the PATH")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start = Path(folder, "firefox")
        start.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, __file__, path])} "$@"\n')
        start.chmod(0o700)
        try:
            browser = playwright.firefox.launch(
                channel="moz-firefox", executable_path=start, firefox_user_prefs=PREFERENCES
            )
        except Error as error:
            raise NoBrowser(f"{path} could not be started: {str(error).splitlines()[0]}") from None
        try:
            yield browser
        finally:
            browser.close()


async def _serve(command: list[str]) -> int:
    """Firefox, until it ends, behind a server of its protocol; says where that listens as Firefox does."""
    from websockets.asyncio.client import connect
    from websockets.asyncio.server import serve

    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    there = ""
    async for line in process.stdout:
        if found := _LISTENS.search(line.decode(errors="replace")):
            there = found[1]
            break
        sys.stderr.buffer.write(line)

    async def relay(client: ServerConnection) -> None:
        assert client.request is not None
        async with connect(there + client.request.path, max_size=None, ping_interval=None) as browser:
            both = (_hand_on(client, browser), _hand_on(browser, client))
            _, other = await asyncio.wait([asyncio.ensure_future(one) for one in both], return_when="FIRST_COMPLETED")
            for one in other:
                one.cancel()

    async with serve(relay, "127.0.0.1", 0, max_size=None, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        print(f"WebDriver BiDi listening on ws://127.0.0.1:{port}", file=sys.stderr, flush=True)
        async for line in process.stdout:
            sys.stderr.buffer.write(line)
        return await process.wait()


async def _hand_on(source: Connection, target: Connection) -> None:
    async for message in source:
        await target.send(_understood(str(message)))


def _understood(text: str) -> str:
    """A message of Firefox as Playwright expects it; all others as they are."""
    if _MEDIA not in text and _DOWNLOAD not in text:
        return text
    message = json.loads(text)
    if message.get("error") == "unknown command" and _MEDIA in message["message"]:
        message = {"type": "success", "id": message["id"], "result": {}}
    elif message.get("type") == "event" and message["method"].startswith(_DOWNLOAD):
        message["params"].setdefault("download", message["params"]["url"])
    return json.dumps(message)


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve(sys.argv[1:])))
