"""The console in front of a cluster: its nodes are seen, whatever they call themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from branch import CPU1, GPU7, Branch
from gateways.gateway import Gateway
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.long


def test_the_nodes_of_a_cluster_are_seen(tmp_path: Path, visit: Callable[..., Page]) -> None:
    branch = Branch(tmp_path)
    hostile = replace(GPU7, name="<b>gpu8</b>", draining=True, labels=("<img src=x onerror=alert(1)>",))
    branch.serve(GPU7, CPU1, hostile)
    (tmp_path / "media").mkdir()
    where = cast("Any", SimpleNamespace(folder=tmp_path, config=branch.file))
    with Gateway(where).start() as gateway:
        page = visit(gateway.base)
        nodes = page.get_by_role("region", name="Nodes of the cluster")
        expect(nodes.get_by_text("3 nodes")).to_be_visible()
        gpu7 = nodes.locator('[data-node="gpu7"]')
        expect(gpu7.locator(".phase")).to_have_text("1 busy")
        expect(gpu7.locator(".memory")).to_have_text("3/3")
        expect(gpu7.locator(".what")).to_have_text("lipsync, transcribe")
        gpu7.locator("summary").click()
        expect(gpu7.locator('[data-fact="Labels"] dd')).to_have_text("gpu24g, a100")
        expect(gpu7.locator('[data-fact="transcribe"] dd')).to_have_text("1 busy, 2 of 2 ready")
        expect(nodes.locator('[data-node="cpu1"] .phase')).to_have_text("not ready")
        expect(nodes.locator('[data-node="cpu1"] .what')).to_have_text("transcribe: OSError: no model")
        expect(nodes.locator('[data-node="<b>gpu8</b>"] .phase')).to_have_text("draining")
        transcribe = page.locator('[data-engine="transcribe"]')
        expect(transcribe.locator(".ready")).to_have_text("4 of 5 ready")
        slot = transcribe.locator('[data-slot="gpu7/transcribe-0"]')
        slot.locator("summary").click()
        expect(slot.locator('[data-fact="Node"] dd')).to_have_text("gpu7")
        expect(slot.get_by_role("button", name="Open its job")).to_be_hidden()
        branch.serve(connected=False, trouble="Connection refused")
        expect(nodes.get_by_text("not connected")).to_be_visible()
        expect(nodes.get_by_text("Connection refused")).to_be_visible()
        expect(nodes.locator(".seat")).to_have_count(0)


def test_a_pool_of_its_own_shows_no_nodes(site: Gateway, visit: Callable[..., Page]) -> None:
    page = visit(site.base)
    expect(page.locator(".engine").first).to_be_visible()
    expect(page.get_by_role("region", name="Nodes of the cluster")).to_have_count(0)
