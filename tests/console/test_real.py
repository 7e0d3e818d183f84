"""The console in front of the real engines: a video that plays, a transcript that follows its sound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect
from scenarios.world import ROOT, TOP, passing, wait_until

from console.marks import await_mark, note_marks

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = ROOT / "examples"
LONG_MS = 300_000


@pytest.fixture
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A pool that transcribes and lip-syncs."""
    slow = {"max_concurrent_tasks": 1, "stall_timeout_s": 300, "retry_times": 0}
    engines: dict[str, dict[str, Any]] = {
        "transcribe": {**slow, "engine": "inference.transcribe:Transcribe"},
        "lipsync": {**slow, "engine": "inference.lipsync:LipSync", "options": {"backend": "mesh"}},
    }
    with passing(tmp_path_factory.mktemp("real")) as world, Gateway(world) as gate:
        world.config.write_text(json.dumps({"spool": str(world.spool), **TOP, "engines": engines}))
        world.serve()
        yield gate.start()


def send(page: Page, engine: str, **files: Path) -> None:
    page.get_by_role("button", name="New job").first.click()
    form = page.locator("#submit")
    form.get_by_role("button", name=engine, exact=True).click()
    for key, path in files.items():
        form.locator(f"#field-{key}").set_input_files(path)
    form.get_by_role("button", name="Submit").click()
    expect(form).to_be_hidden()


def test_a_transcript_follows_its_speech_and_a_video_plays(real: Gateway, visit: Callable[..., Page]) -> None:
    page = visit(real.base)
    idle = page.locator(".seat[data-mood=idle]")
    expect(idle).to_have_count(2, timeout=LONG_MS)
    pane = page.locator("#job")

    send(page, "transcribe", audio=EXAMPLES / "speech" / "two_speakers.flac")
    expect(pane.locator(".state")).to_have_text("Completed", timeout=LONG_MS)
    expect(pane.locator(".legend li")).to_have_count(2)
    country = pane.locator(".w", has_text="country").first
    start = float(country.get_attribute("data-seek") or 0)
    note_marks(page)
    country.click()
    await_mark(page, "country")
    position = pane.get_by_role("slider", name="Position")
    assert int(position.get_attribute("aria-valuenow") or 0) >= int(start)
    await_mark(page, "fellow Americans")
    colours = [
        pane.locator(f".part[data-speaker='{who}'] .who").first.evaluate("n => getComputedStyle(n).color")
        for who in (0, 1)
    ]
    assert len(set(colours)) == 2
    expect(country).not_to_have_class("w now")  # it plays on to the next word

    send(page, "lipsync", audio=EXAMPLES / "speech" / "address.flac", video=EXAMPLES / "portrait" / "mona_lisa.jpg")
    video = pane.locator("video[controls]")
    expect(video).to_be_visible(timeout=LONG_MS)
    video.evaluate("node => node.play()")
    wait_until(lambda: video.evaluate("node => node.currentTime") > 1, "a video that plays")
    width, height, seconds = video.evaluate("node => [node.videoWidth, node.videoHeight, node.duration]")
    assert width / height == pytest.approx(640 / 800, abs=0.02)
    assert seconds == pytest.approx(11, abs=0.5)
    drawn = video.evaluate(
        """node => { const canvas = document.createElement("canvas"); [canvas.width, canvas.height] = [8, 8];
        const pen = canvas.getContext("2d"); pen.drawImage(node, 0, 0, 8, 8);
        return Math.max(...[...pen.getImageData(0, 0, 8, 8).data].filter((_, at) => at % 4 < 3)); }"""
    )
    assert drawn > 80  # a picture, not blackness
