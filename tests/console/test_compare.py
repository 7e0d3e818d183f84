"""A result beside its template: both show the same moment, frame by frame and while they play."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from gateways.engines import Film
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect
from scenarios.world import wait_until

from console.axe import faults

pytestmark = pytest.mark.long
SIDE = 64
FRAMES = 20
#: Whether both lenses show a grey between two levels.
SHOWS = """([low, high]) => [...document.querySelectorAll(".lens canvas")].every((one) => {
const grey = one.getContext("2d").getImageData(160, 160, 1, 1).data[0];
return low <= grey && grey <= high; })"""


def template_frame(frame: int) -> int:
    """0 1 … 7 6 … 1 0 1 …, as lip-sync repeats a template of 8 frames."""
    phase = frame % (2 * Film.FRAMES - 2)
    return min(phase, 2 * Film.FRAMES - 2 - phase)


def grey(number: int) -> int:
    """The grey level of a frame of the template."""
    return 20 + 28 * number


def picture(level: int, spot: tuple[int, int] | None) -> bytes:
    """One grey picture as bytes."""
    pixels = bytearray([level]) * (SIDE * SIDE)
    if spot is not None:
        for row in range(spot[1], spot[1] + 8):
            pixels[row * SIDE + spot[0] : row * SIDE + spot[0] + 8] = bytes([255] * 8)
    return bytes(pixels)


def write_film(path: Path, levels: Iterable[int], spot: tuple[int, int] | None = None) -> None:
    """A film of grey pictures. spot: where a white square of 8 pixels begins."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIDE}x{SIDE}", "-r", str(Film.FPS), "-i", "-"]
    target = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "4", "-g", "4", "-movflags", "+faststart", str(path)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = b"".join(picture(level, spot) for level in levels)
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *target], input=pictures, check=True)


def test_the_lens_finds_what_has_changed(site: Gateway, visit: Callable[..., Page]) -> None:
    template, made = site.media / "before.mp4", site.media / "after.mp4"
    write_film(template, [100] * Film.FRAMES)
    write_film(made, [100] * FRAMES, spot=(40, 16))
    job_id = site.submit("film", video=str(template), made=str(made))
    assert site.result(job_id).status_code == 200
    page = visit(f"{site.base}/#/job/{job_id}")
    pane = page.locator("#job")
    pane.get_by_role("button", name="Beside the template").click()
    across, down = pane.get_by_role("slider", name="Across"), pane.get_by_role("slider", name="Down")
    expect(across).to_have_value(re.compile("^6[789]|7[012]$"))  # (40 + 4) / 64
    expect(down).to_have_value(re.compile("^2[89]|3[01234]$"))  # (16 + 4) / 64
    down.press("End")
    page.keyboard.press(".")  # the slider keeps the focus, and its own keys
    expect(pane.locator(".time.frame")).to_have_text("frame 1")
    expect(down).to_be_focused()
    expect(down).to_have_value("100")  # a place that was chosen stays
    down.press("ArrowLeft")
    expect(down).to_have_value("99")
    expect(pane.locator(".time.frame")).to_have_text("frame 1")


#: The frames of both videos come to the screen a tenth of a second late; until then, the one before is drawn.
LATE = """() => {
const soon = HTMLVideoElement.prototype.requestVideoFrameCallback;
const draw = CanvasRenderingContext2D.prototype.drawImage;
const late = new Map();
for (const video of document.querySelectorAll(".side video")) {
  const seen = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  const about = { seen, asked: [] };
  seen.getContext("2d").drawImage(video, 0, 0);
  late.set(video, about);
  const come = () => setTimeout(() => {
    seen.getContext("2d").drawImage(video, 0, 0);
    about.asked.splice(0).forEach((call) => call());
    soon.call(video, come);
  }, 100);
  soon.call(video, come);
}
HTMLVideoElement.prototype.requestVideoFrameCallback = function (call) { late.get(this).asked.push(call); };
CanvasRenderingContext2D.prototype.drawImage = function (source, ...where) {
  draw.call(this, late.get(source)?.seen ?? source, ...where);
};
}"""


def compared(site: Gateway, visit: Callable[..., Page]) -> tuple[Page, Callable[[int], None]]:
    """A page with a film beside its template, and what waits until both lenses show a frame."""
    template, made = site.media / "person.mp4", site.media / "made.mp4"
    write_film(template, map(grey, range(Film.FRAMES)))
    write_film(made, (grey(template_frame(frame)) for frame in range(FRAMES)))
    job_id = site.submit("film", video=str(template), made=str(made))
    assert site.result(job_id).status_code == 200
    page = visit(f"{site.base}/#/job/{job_id}")
    pane = page.locator("#job")
    pane.get_by_role("button", name="Beside the template").click()
    expect(pane.locator(".side figcaption")).to_have_text(["Template", "Result"])
    label = pane.locator(".time.frame")

    def shows(frame: int) -> None:
        expect(label).to_have_text(f"frame {frame}")
        level = grey(template_frame(frame))
        wait_until(lambda: page.evaluate(SHOWS, [level - 9, level + 9]), f"frame {frame} in both lenses")

    return page, shows


def test_a_frame_may_come_after_its_event(site: Gateway, visit: Callable[..., Page]) -> None:
    """A browser under load says "seeked" before it has the frame."""
    page, shows = compared(site, visit)
    shows(0)
    page.evaluate(LATE)
    for frame in range(1, 4):
        page.keyboard.press(".")
        shows(frame)


def test_both_show_the_same_frame(site: Gateway, visit: Callable[..., Page]) -> None:
    page, shows = compared(site, visit)
    pane = page.locator("#job")
    button = pane.get_by_role("button", name="Beside the template")
    shows(0)
    for frame in range(1, 10):  # over the end of the template, from where it runs backwards
        page.keyboard.press(".")
        shows(frame)
    for frame in (8, 7, 6):
        page.keyboard.press(",")
        shows(frame)
    pane.get_by_role("button", name="Next frame").click()
    shows(7)
    pane.get_by_role("slider", name="Position").press("End")
    page.keyboard.press(",")
    shows(FRAMES - 2)
    pane.get_by_role("slider", name="Position").press("Home")
    page.locator("#job").get_by_role("button", name="Play").click()
    wait_until(lambda: page.evaluate("document.querySelectorAll('.side video')[1].ended"), "the end")
    page.keyboard.press(",")
    shows(FRAMES - 2)

    picture = pane.locator(".side video").first
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    expect(pane.get_by_role("slider", name="Across")).to_have_value(re.compile("^2[45]$"))  # a pixel is half a percent
    expect(pane.get_by_role("slider", name="Down")).to_have_value(re.compile("^7[45]$"))
    pane.get_by_role("slider", name="Width of the lens").press("Home")
    expect(pane.get_by_role("slider", name="Width of the lens")).to_have_attribute("aria-valuetext", "4 %")
    assert faults(page) == []
    page.set_viewport_size({"width": 360, "height": 720})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("(node => node.scrollWidth - node.clientWidth)(document.querySelector('#job .body'))") <= 1

    button.click()
    expect(pane.locator(".compare")).to_have_count(0)
    expect(pane.locator(".file video[controls]")).to_be_visible()
    page.locator("#job .title").focus()
    page.keyboard.press("b")
    expect(pane.locator(".compare")).to_be_visible()
