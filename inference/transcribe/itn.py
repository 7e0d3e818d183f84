"""Numbers, dates and amounts that are spelt out in Chinese, as digits: inverse text normalisation by WeTextProcessing.

Where digits replace some words, these become one word, which begins with the first and ends with the last of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from inference.base import InputError
from inference.transcribe.words import Word

CHINESE = ("zh", "yue")
Change = tuple[int, int, str]  #: first and last + 1 of the letters that are replaced, and what by


def require() -> None:
    """Raise :class:`InputError` with the command when wetext is not installed."""
    if find_spec("wetext") is None:
        raise InputError(
            "itn: it needs wetext, which is not installed where the engine runs", hint="pip install 'filepool[chinese]'"
        )


class Numbers:
    """Writes numbers as digits; does nothing unless it is asked to."""

    def __init__(self, wanted: bool) -> None:
        self._normalizer: Any = None
        if wanted:
            import wetext

            self._normalizer = wetext.Normalizer(lang="zh", operator="itn")

    def written(self, words: Sequence[Word]) -> list[Word]:
        """The words, those that are Chinese with digits."""
        if self._normalizer is None:
            return list(words)
        found: list[Word] = []
        for chinese, group in itertools.groupby(words, lambda word: word.language in CHINESE):
            run = list(group)
            found += merged(run, self._changes("".join(word.text for word in run))) if chinese else run
        return found

    def _changes(self, text: str) -> list[Change]:
        found = self._normalizer.normalize_with_mapping(text)
        return [(each.input_start, each.input_end, each.output_text) for each in found.mappings]


def merged(words: Sequence[Word], changes: Sequence[Change]) -> list[Word]:
    """The words with some of their letters replaced; words that share a replacement become one."""
    starts = [0, *itertools.accumulate(len(word.text) for word in words)]
    text = "".join(word.text for word in words)
    found: list[Word] = []
    at = 0
    for first, last, new in changes:
        while at < len(words) and starts[at + 1] <= first:
            found.append(words[at])
            at += 1
        end = at
        while end < len(words) and starts[end] < last:
            end += 1
        run = words[at:end]
        if not run:
            continue
        known = [word.probability for word in run if word.probability is not None]
        found.append(
            Word(
                run[0].start,
                run[-1].end,
                text[starts[at] : first] + new + text[last : starts[end]],
                min(known, default=None),
                run[0].speaker,
                run[0].language,
            )
        )
        at = end
    return found + list(words[at:])
