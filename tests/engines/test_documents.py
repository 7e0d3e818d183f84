"""Documents that are made from code say what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_engines_document_is_current() -> None:
    made = runpy.run_path(str(DOCS / "engines.py"))
    assert (DOCS / "ENGINES.md").read_text("utf-8") == made["page"](), "run: python docs/engines.py"
    assert (DOCS / "transcript.schema.json").read_text("utf-8") == made["schema"](), "run: python docs/engines.py"
