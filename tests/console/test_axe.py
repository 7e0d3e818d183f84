"""axe, the checker of accessibility, finds nothing in any view, theme, width or language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateways.gateway import Gateway, wav
from playwright.sync_api import Page, expect

from console.axe import faults

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

VIEWS: list[dict[str, Any]] = [
    {"color_scheme": "light"},
    {"color_scheme": "dark", "locale": "zh-CN"},
    {"color_scheme": "dark", "viewport": {"width": 360, "height": 720}, "has_touch": True, "is_mobile": True},
]


@pytest.mark.parametrize("view", VIEWS, ids=["light", "dark-chinese", "phone"])
def test_axe_finds_nothing(site: Gateway, visit: Callable[..., Page], view: dict[str, Any]) -> None:
    upload = site.post("/api/tempfile/upload", files={"file": ("speech.wav", wav(4))}).json()["file_id"]
    said = site.submit("transcribe", audio=f"tempfile:{upload}")
    broken, written = site.submit("fake", do="raise", value="why it broke"), site.submit("single", do="write")
    for job_id in (said, broken, written):
        site.result(job_id)
    runs = site.submit("single", do="sleep", seconds=600)
    try:
        page = visit(site.base, **view)
        expect(page.locator(f"#job-{runs}")).to_have_attribute("data-state", "running")
        expect(page.locator(f"#job-{broken}")).to_have_attribute("data-state", "failed")
        assert faults(page) == []
        page.locator(f"#job-{broken} .sign").click()
        expect(page.locator(".bulk")).to_be_visible()
        assert faults(page) == []
        page.keyboard.press("p")
        page.locator("[data-slot=single-0] summary").evaluate("node => node.click()")
        assert faults(page) == []
        for job_id, sign in ((said, "[data-player]"), (broken, ".attempts"), (written, ".value"), (runs, ".meter.big")):
            page.goto(f"{site.base}/#/job/{job_id}")
            expect(page.locator(f"#job {sign}").first).to_be_visible()
            assert faults(page) == [], job_id
            if job_id == said:
                page.locator("#job [aria-pressed=false]").first.click()
                page.locator("#job .pen").first.click()
                expect(page.locator("#job .said textarea")).to_be_visible()
                assert faults(page) == [], "while it is corrected"
        page.keyboard.press("n")
        form = page.locator("#submit")
        form.get_by_role("button", name="transcribe", exact=True).click()
        form.locator("details.more > summary").click()
        assert faults(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.locator("#help")).to_be_visible()
        assert faults(page) == []
    finally:
        site.call("DELETE", f"/jobs/{runs}")
