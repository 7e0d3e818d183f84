"""An engine of your own, in one file, without any model library: it counts the words of a text file.

config.json names it and says where it is:

    {"engines": {"wordcount": {"engine": "wordcount:WordCount", "pythonpath": ["examples/own_engine"]}}}

An engine needs load, check and run; everything else is optional. See `inference/base.py` for the whole interface.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from inference.base import Context, Files, InputError


class WordCount:
    """Counts words; the most frequent ones first."""

    class Params(pydantic.BaseModel):
        """Wrong keys and types are refused at submit, with the key's path."""

        model_config = pydantic.ConfigDict(extra="forbid")

        text: Path
        top: int = pydantic.Field(10, ge=1, le=1000)

    def load(self, device: str, options: Mapping[str, Any]) -> None:
        """Once per worker: load your model here. `options` come from config.json."""
        self._lower = bool(options.get("lower", True))

    def check(self, params: Mapping[str, Any]) -> Params:
        """Cheap checks, before any work. InputError is for the caller and is never retried."""
        checked = self.Params.model_validate(dict(params))
        if not checked.text.is_file():
            raise InputError(f"text {checked.text}: no such file", "give the path of a text file")
        return checked

    def files(self, params: Params) -> Files:
        """What a job reads: lets the pool cache results by content and hold jobs to the allowed folders."""
        return Files(inputs=(params.text,))

    def fingerprint(self) -> str:
        """Changes whenever results would."""
        return f"wordcount-1 lower={self._lower}"

    def run(self, params: Params, context: Context) -> Mapping[str, Any]:
        counts: Counter[str] = Counter()
        size = max(1, params.text.stat().st_size)
        read = 0
        with open(params.text, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                context.check()  # stops here when the job is cancelled
                read += len(line)
                counts.update((line.lower() if self._lower else line).split())
                context.progress("inference", 100.0 * read / size)
        return {"words": sum(counts.values()), "top": [list(pair) for pair in counts.most_common(params.top)]}

    def close(self) -> None:
        """Nothing to let go of."""
