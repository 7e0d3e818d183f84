"""Which words a transcript has marked while it played: nothing is missed, however late a busy machine looks."""

from __future__ import annotations

from playwright.sync_api import Page
from scenarios.world import wait_until


def note_marks(page: Page) -> None:
    """From now on note the text of every word and part that is marked as spoken."""
    page.evaluate(
        """() => { window.marked = []; new MutationObserver((changes) => {
        for (const { target } of changes) if (target.classList.contains("now")) window.marked.push(target.textContent);
        }).observe(document.getElementById("job"), { subtree: true, attributeFilter: ["class"] }); }"""
    )


def await_mark(page: Page, text: str) -> None:
    """Until something with this text has been marked."""
    wait_until(lambda: any(text in mark for mark in page.evaluate("window.marked")), f"{text!r} marked as spoken")
