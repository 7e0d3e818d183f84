"""Every text of the console is there in English and in Chinese, and a Chinese page shows nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Locator, Page, expect
from scenarios.world import ROOT

CONSOLE = ROOT / "pool" / "gateways" / "console"
_CALL = re.compile(r'\b(?:t|key)\(\s*("(?:[^"\\]|\\.)*")')
_ENTRY = re.compile(r'^  ("(?:[^"\\]|\\.)*"): ("(?:[^"\\]|\\.)*"),$', re.M)
_MARKED = re.compile(r"<[^>]*\sdata-t(?:-label)?[\s>][^<]*")
_SHOWN = re.compile(r'(?:aria-label|title|placeholder)="([^"]+)"')
_VALUE = re.compile(r"\{(\w+)")
#: What is said to a person in a literal, without t(): labels, titles, texts of elements.
_BARE = re.compile(r'\b(?:text|title|placeholder|"aria-label"): (?:"[A-Za-z]{2}[^"]*"|`[^`$]*[A-Za-z]{3,} )')


def table() -> dict[str, str]:
    entries = _ENTRY.findall((CONSOLE / "texts.js").read_text())
    return {json.loads(english): json.loads(chinese) for english, chinese in entries}


def used() -> set[str]:
    found: set[str] = set()
    for path in CONSOLE.glob("*.js"):
        found.update(json.loads(text) for text in _CALL.findall(path.read_text()))
    for element in _MARKED.findall((CONSOLE / "index.html").read_text()):
        tag, _, text = element.partition(">")
        if re.search(r"\sdata-t(\s|$)", tag):
            found.add(text.strip())
        if "data-t-label" in tag:
            found.update(_SHOWN.findall(tag))
    return found


def test_every_text_has_both_languages() -> None:
    there = table()
    assert set(there) == used()
    for english, chinese in there.items():
        assert chinese.strip(), english
        assert set(_VALUE.findall(chinese)) <= set(_VALUE.findall(english)), english
        lost = set(re.findall(r"\{(\w+)\}", english)) - set(_VALUE.findall(chinese))
        assert not lost, (english, lost)


def test_no_text_bypasses_the_table() -> None:
    bare = {
        (path.name, match[0])
        for path in sorted(CONSOLE.glob("*.js"))
        for match in _BARE.finditer(path.read_text())
        if path.name != "texts.js"
    }
    assert not bare


#: Texts and labels that are seen, or heard from a screen reader.
_TEXTS = """(node) => { const found = []; const walk = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) { const { parentElement: at, textContent } = walk.currentNode;
        if (textContent.trim() && !at.closest("[hidden], script, noscript, kbd, .mono, pre"))
            found.push(textContent.trim()); }
    for (const each of node.querySelectorAll("*")) for (const name of ["aria-label", "title", "placeholder"])
        if (each.getAttribute(name) && !each.closest("[hidden]")) found.push(each.getAttribute(name));
    return [...new Set(found)]; }"""


def english(part: Locator, *data: str) -> list[str]:
    """What in a part of the page has an English word that is not data."""
    words = re.compile(r"[A-Za-z]{3,}")
    allowed = {"filepool", "English", "Esc", "JSON", "Enter", *data}
    return [text for text in part.evaluate(_TEXTS) if set(words.findall(text)) - allowed]


@pytest.mark.long
def test_a_chinese_browser_gets_a_chinese_page_and_can_have_the_other(
    site: Gateway, visit: Callable[..., Page], tmp_path: Path
) -> None:
    bad, good = site.submit("single", do="input"), site.submit("transcribe", audio=site.file("zh.wav"))
    for job_id in (bad, good):
        site.result(job_id)
    page = visit(site.base, locale="zh-CN")
    expect(page.locator(f"#job-{bad}")).to_have_attribute("data-state", "failed")
    expect(page.locator("#health-text")).to_contain_text("就绪")
    expect(page.locator(f"#job-{bad} .when")).to_have_text(re.compile("刚刚|[0-9] 秒前|[0-9] 分钟前"))
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    engines = ("fake", "single", "transcribe", "film")
    ids = re.findall(r"[A-Za-z]{3,}", bad + " " + good)
    assert english(page.locator("header.bar")) == []
    assert english(page.locator(".filters"), *engines) == []
    assert english(page.locator("#pool [data-engine=single] header"), *engines) == []
    page.keyboard.press("?")
    assert english(page.locator("#help")) == []
    page.keyboard.press("Escape")
    page.keyboard.press("h")
    expect(page.locator("#history tbody tr").first).to_be_visible()
    assert english(page.locator("#history"), *engines) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="新任务").first.click()
    form = page.locator("#submit")
    form.get_by_role("button", name="transcribe", exact=True).click()
    expect(form.get_by_role("button", name="提交")).to_be_disabled()
    assert english(form.locator("header")) == []
    page.keyboard.press("Escape")
    page.goto(f"{site.base}/#/job/{bad}")
    expect(page.locator("#job .state")).to_have_text("失败")
    assert english(page.locator("#job .top"), *ids) == []
    expect(page.locator("#job .failure h3")).to_have_text("输入需要修改")
    page.goto(f"{site.base}/#/job/{good}")
    expect(page.locator("#job .legend li")).to_have_count(2)
    expect(page.locator("#job .legend li").first).to_contain_text("说话人 1")
    page.get_by_role("button", name="English").click()
    expect(page.locator("#job .legend li").first).to_contain_text("Speaker 1")
    page.reload()
    expect(page.locator("#job .state")).to_have_text("Completed")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#job .state")).to_have_text("已完成")
