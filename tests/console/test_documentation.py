"""The site of docs/, opened from its folder without a server, on a desk and on a phone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from scenarios.world import ROOT

pytest.importorskip("material", reason="mkdocs-material is not installed: pip install filepool[docs]")

pytestmark = pytest.mark.long

LAPTOP = {"width": 1280, "height": 850}
PHONE = {"width": 390, "height": 844}
#: Elements that reach out of the window and are in nothing that scrolls.
_WIDE = """() => [...document.querySelectorAll(".md-content *")].filter((element) => {
    if (element.getBoundingClientRect().right <= document.documentElement.clientWidth + 1) return false;
    for (let at = element.parentElement; at; at = at.parentElement)
        if (getComputedStyle(at).overflowX != "visible") return false;
    return true;
}).map((element) => element.outerHTML.slice(0, 100))"""
#: Words of code in tables that stand on two lines.
_BROKEN = """() => [...document.querySelectorAll("td code")].filter((code) =>
    !/[\\s/:-]/.test(code.textContent) && code.getClientRects().length > 1).map((code) => code.textContent)"""
#: Blocks of code whose lines are longer than the block.
_CUT = """() => [...document.querySelectorAll("pre > code")].filter((code) => code.scrollWidth > code.clientWidth)
    .map((code) => code.textContent.slice(0, 100))"""


@pytest.fixture(scope="module")
def documentation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("documentation")
    argv = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(argv, cwd=ROOT, check=True, timeout=100)
    return folder


def test_search_works_in_a_folder(documentation: Path, visit: Callable[..., Page]) -> None:
    elsewhere: list[str] = []
    page = visit("about:blank", viewport=LAPTOP)
    page.on("request", lambda request: None if request.url.startswith("file:") else elsewhere.append(request.url))
    page.goto((documentation / "index.html").as_uri())
    page.locator("input.md-search__input").fill("lease_s")
    results = page.locator(".md-search-result__list")  # pages are headings of level 1, their sections of level 2
    expect(results.get_by_role("heading", name="Several machines", exact=True, level=1)).to_be_visible()
    assert not elsewhere, "the site loads nothing from elsewhere"


@pytest.mark.parametrize("name", ["index", "CLUSTER", "CONFIG", "reference/pool"])
def test_pages_fit_a_phone(documentation: Path, visit: Callable[..., Page], name: str) -> None:
    page = visit((documentation / f"{name}.html").as_uri(), viewport=PHONE)
    assert page.evaluate(_WIDE) == []
    assert page.evaluate(_BROKEN) == []


@pytest.mark.parametrize("name", ["pool", "pool.submit", "pool.cluster", "pool.gateways.http", "pool.gateways.redis"])
def test_the_help_of_a_command_fits_a_laptop(documentation: Path, visit: Callable[..., Page], name: str) -> None:
    page = visit((documentation / "commands" / f"{name}.html").as_uri(), viewport=LAPTOP)
    assert page.evaluate(_CUT) == []
