"""What axe, the checker of accessibility, finds on a page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page


def faults(page: Page) -> list[str]:
    """Each rule that an element breaks, with the element."""
    checker = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed: pip install filepool[dev]"
    )
    found = checker.Axe().run(page).response["violations"]
    return [f"{rule['id']} ({rule['help']}): {node['html'][:160]}" for rule in found for node in rule["nodes"]]
