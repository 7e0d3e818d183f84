"""Somebody who has no job yet: the examples are one click away, and what is not there is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect
from scenarios.world import ENGINE, ROOT, TOP, passing

from console.axe import faults
from pool.gateways.http.examples import FOLDER, examples

pytestmark = pytest.mark.long


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    there = {one.name: one for one in examples(FOLDER, {"lipsync": "lips"}, lambda _: "").examples}
    assert [(one.engine, one.missing) for one in there.values()] == [("transcribe", ""), ("lips", ""), ("portrait", "")]
    gone = {one.name: one.missing for one in examples(tmp_path, {}, lambda _: "").examples}
    assert gone["transcribe"].startswith("its files are not on this machine: examples/speech/two_speakers.flac")
    none = [one.missing for one in examples(tmp_path, {}, lambda engine: f"no engine {engine}").examples]
    assert none == ["no engine transcribe", "no engine lipsync", "no engine portrait"]


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
def test_an_example_is_tried(
    tmp_path_factory: pytest.TempPathFactory, visit: Callable[..., Page], language: str
) -> None:
    stand_in = {**ENGINE, "pythonpath": [str(ROOT / "tests")], "max_concurrent_tasks": 1}
    engines = {"transcribe": {**stand_in, "engine": "gateways.engines:Transcribe"}}
    with passing(tmp_path_factory.mktemp("start")) as world, Gateway(world) as gate:
        world.config.write_text(json.dumps({"spool": str(world.spool), **TOP, "engines": engines}))
        world.serve(ready=1)
        page = visit(gate.start().base, locale=language, viewport={"width": 360, "height": 720})
        cards = page.locator(".examples li")
        expect(cards).to_have_count(3)
        expect(page.locator("[data-example=portrait] small")).to_contain_text("no engine 'portrait'")
        expect(page.locator("[data-example=portrait] button")).to_have_count(0)
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator("[data-example=transcribe] button").click()
        pane = page.locator("#job")
        expect(pane.locator(".part").first).to_contain_text("Hello")
        expect(pane.locator("[data-player]")).to_be_visible()
        expect(pane.locator(".inputs")).to_contain_text("two_speakers.flac")
        assert gate.post("/examples/portrait").status_code == 409
        assert gate.post("/examples/none").status_code == 404
