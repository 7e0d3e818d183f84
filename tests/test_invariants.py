"""Every promise of docs/RELIABILITY.md has a test that names its number."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
DOCUMENT = TESTS.parent / "docs" / "RELIABILITY.md"
NUMBERS = range(1, 31)


@cache
def _marks() -> dict[int, set[str]]:
    """Number -> tests that carry it, as file::test."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.invariant":
                    for number in mark.args:
                        found[ast.literal_eval(number)].add(f"{path.relative_to(TESTS)}::{node.name}")
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_every_promise_has_its_test(number: int) -> None:
    assert _marks()[number]


def test_no_test_names_a_promise_that_nobody_gave() -> None:
    assert set(_marks()) == set(NUMBERS)


def test_the_document_says_what_is_proved_where() -> None:
    """Its table lists every promise once, with tests that exist and carry that number."""
    text, marks = DOCUMENT.read_text("utf-8").partition("## How")[0], _marks()
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(NUMBERS)
    for number, _, tests in rows:
        named = set(re.findall(r"`(\S+?::\w+)`", tests))
        assert named, number
        assert named <= marks[int(number)], f"{number}: {named - marks[int(number)]}"
