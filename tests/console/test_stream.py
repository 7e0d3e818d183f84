"""A video is watched in the page while it is made: a real browser, a real stream, a worker that is killed meanwhile."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect
from scenarios.world import kill, wait_until

pytestmark = pytest.mark.long
SECONDS = 12


@pytest.fixture(scope="module")
def film(site: Gateway) -> Path:
    """A video in fragments of a quarter of a second, as the engines write it: half of it plays."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = Path(site.file("film.mp4"))
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-y",
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=320x240:rate=25",
    ]
    command += ["-f", "lavfi", "-i", "sine=frequency=440", "-t", str(SECONDS), "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    command += ["-preset", "superfast", "-c:a", "aac", "-movflags", "+delay_moov+default_base_moof"]
    subprocess.run([*command, "-frag_duration", "250000", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path


def test_it_plays_while_the_job_runs_and_goes_on_after_its_end(
    site: Gateway, visit: Callable[..., Page], film: Path
) -> None:
    go = site.media / f"{uuid4().hex}.go"
    job_id = site.submit("fake", do="stream", audio=str(film), value=str(go))
    page = visit(f"{site.base}/#/job/{job_id}")
    pane = page.locator("#job")
    watched = pane.locator("figure[data-attempt] video")

    def plays(attempt: int, after: float) -> None:
        figure = pane.locator(f"figure[data-attempt='{attempt}']")
        expect(figure).to_be_visible()
        at = "document.querySelector('figure[data-attempt] video')?.currentTime ?? 0"
        wait_until(lambda: page.evaluate(at) > after, "a video that plays")
        assert site.get(f"/jobs/{job_id}").json()["state"] == "running"

    plays(1, 0.5)
    assert watched.evaluate("node => [node.videoWidth, node.videoHeight]") == [320, 240]
    world = site.world
    (claim,) = wait_until(lambda: [one for one in world.held() if one.startswith("work/") and job_id in one], "a claim")
    kill(next(pid for pid, worker in world.processes().items() if worker == claim.split("/")[1]))
    plays(2, 0.5)  # the next attempt has a stream of its own, which says so
    expect(pane.get_by_text("So far, attempt 2")).to_be_visible()
    go.touch()
    expect(pane.locator(".state")).to_have_text("Completed")
    expect(watched).to_have_count(0)
    whole = """() => { const video = document.querySelector("#job .file video");
        return video?.currentSrc.includes("/files/") && video.currentTime > 0.5 && video.duration > 11; }"""
    wait_until(lambda: page.evaluate(whole), "the whole file, which goes on where the viewer was")
