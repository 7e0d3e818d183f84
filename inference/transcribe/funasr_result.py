"""What ``funasr.AutoModel.generate`` returns, made into words with times and speakers.

Its models differ in what they fill in and how: ``text`` is the one thing all give, ``timestamp`` holds pairs of
milliseconds, ``timestamps`` maps with seconds, ``sentence_info`` sentences with times and speakers, and any of
them may be short of a word, hold ``None``, or be missing. So the words and their punctuation are those of
``text``; times and speakers are looked up for them, character by character, in whatever else is there. What
finds no time gets an estimate and a warning. What is no text at all is an EngineError that names the field.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inference.base import EngineError
from inference.transcribe.outputs import join_texts
from inference.transcribe.words import Word, segments

TAGS = re.compile(r"<\|([^|]*)\|>")  # SenseVoice writes language and mood into the text
_CJK = r"\u3040-\u30ff\u3400-\u9fff"
WIDE = re.compile(rf"[{_CJK}]")
KANA = re.compile(r"[\u3040-\u30ff]")
HANGUL = re.compile(r"[\uac00-\ud7a3]")
# Whatever is neither space nor punctuation, so that letters keep the marks that belong to them (Hindi, Thai).
_LETTER = (
    rf"[^\s\x00-/:-@\[-`{{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\u060c\u061b\u061f\u06d4\u0964\u0965"
    rf"\u2000-\u200b\u200e-\u2bff\u3000-\u303f\ufe30-\ufe4f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
    rf"\ufffd\U0001f000-\U0001faff{_CJK}]"
)
TOKENS = re.compile(rf"[{_CJK}]|{_LETTER}+(?:(?:['’-]|(?<=\d)[.,:](?=\d)){_LETTER}+)*")
MARKS = re.compile(r"[.,:'’-]")  # what stands inside a token

REACH, RUN = 200, 3  #: characters looked ahead for a place where two texts go on alike, and how far alike
SHORTEST_S = 0.02  #: of a word
SLACK_S = 1.0  #: a time may lie so far behind the end of the recording

Span = tuple[float, float]  #: start and end, seconds


@dataclass
class Said:
    """A transcript."""

    runs: list[list[Word]]
    text: str  #: as the model wrote it, with its tags


@dataclass
class Token:
    """One word, or one character of a script without spaces."""

    text: str  #: with its punctuation, and the space before it
    key: str  #: what it is compared by


@dataclass
class Heard:
    """A token as one field of the result has it."""

    key: str
    span: Span | None  #: its own time
    rough: Span | None = None  #: its share of its sentence's time
    speaker: str | None = None


@dataclass
class Reader:
    """Reads one result of a model whose name stands in every complaint."""

    model: str
    seconds: float  #: length of the recording
    warnings: list[str] = field(default_factory=list)
    _odd: dict[str, str] = field(default_factory=dict)

    def read(self, found: Any) -> Said:
        """The transcript in what ``generate`` returned; raises EngineError naming the field that is no text."""
        said = self._result(found)
        text = self._text(said.get("text"), "text")
        sentences, texts = self._sentences(said.get("sentence_info"))
        wanted = tokens(text)
        if not wanted:
            text = join_texts(texts) or text
            wanted = tokens(text)
        if not wanted and self._odd:  # nothing was said, or it stands where it cannot be read
            name, what = next(iter(self._odd.items()))
            raise self._no_text(what, name)
        words = self._words(wanted, sentences, self._units(said, wanted)) if wanted else []
        self._tell_odd()
        return Said(list(segments(words)), text)

    def _tell_odd(self) -> None:
        """Name what was not used: the first of each field."""
        kinds: dict[str, list[str]] = {}
        for name in self._odd:
            kinds.setdefault(re.sub(r"\[\d+\]", "", name), []).append(name)
        for names in kinds.values():
            more = f" and {len(names) - 1} more like it" if len(names) > 1 else ""
            self.warnings.append(f"{self.model} returned {self._odd[names[0]]} in {names[0]}{more}: not used")

    def _result(self, found: Any) -> Mapping[str, Any]:
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        if not results or results == [None]:
            return {}
        if len(results) > 1:
            raise EngineError(f"funasr: {self.model} returned {len(results)} results for one recording")
        if not isinstance(results[0], Mapping):
            raise self._no_text(_kind(results[0]), "its result")
        return results[0]

    def _text(self, value: Any, name: str) -> str:
        """Text that may come as a list of words."""
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if isinstance(value, (list, tuple)):
            return join_texts([self._text(part, f"{name}[{at}]") for at, part in enumerate(value)])
        raise self._no_text(_kind(value), name)

    def _no_text(self, what: str, name: str) -> EngineError:
        return EngineError(
            f"funasr: {self.model} returned {what} in {name}, which is no text",
            hint="check that the model and the version of funasr belong together",
        )

    def _sentences(self, value: Any) -> tuple[list[Heard], list[str]]:
        """The tokens of ``sentence_info`` with times and speakers, and its texts."""
        heard: list[Heard] = []
        texts: list[str] = []
        given = _listed(value)
        if given is None:
            self._odd["sentence_info"] = _kind(value)
            return [], []
        until = 0.0
        for at, sentence in enumerate(given):
            name = f"sentence_info[{at}]"
            if not isinstance(sentence, Mapping):
                self._odd[name] = _kind(sentence)
                continue
            raw = sentence.get("text") if sentence.get("text") is not None else sentence.get("sentence")
            try:
                text = self._text(raw, f"{name}.text")
            except EngineError:  # that of the whole recording is what counts
                self._odd[f"{name}.text"] = _kind(raw)
                continue
            spans = self._spans(sentence.get("timestamp"), f"{name}.timestamp")
            start, end = self._bounds(sentence, spans, until)
            until = end
            speaker = self._speaker(sentence.get("spk"), f"{name}.spk")
            found = tokens(text)
            if len(given) == 1 and isinstance(raw, (list, tuple)) and speaker is not None and len(found) > 1:
                # funasr could not match punctuation and times, and gives the whole recording to one speaker
                self.warnings.append(
                    "speakers are not told apart: the punctuation does not fit the times that the model gives; "
                    'the option {"funasr": {"spk_mode": "vad_segment"}} does without it'
                )
                speaker = None
            step = (end - start) / max(1, len(found))
            for place, token in enumerate(found):
                own = spans[place] if len(spans) == len(found) else None
                rough = (start + place * step, start + (place + 1) * step)
                heard.append(Heard(token.key, own, rough, speaker))
            texts.append(text)
        return heard, texts

    def _bounds(self, sentence: Mapping[str, Any], spans: Sequence[Span | None], until: float) -> Span:
        """When a sentence begins and ends; where it does not say so, as its words do, or after the one before."""
        known = [span for span in spans if span is not None]
        start, end = _number(sentence.get("start")), _number(sentence.get("end"))
        first = start / 1000 if start is not None else known[0][0] if known else until
        first = min(max(0.0, first), self.seconds)
        last = end / 1000 if end is not None else known[-1][1] if known else self.seconds
        return first, min(max(first, last), self.seconds)

    def _units(self, said: Mapping[str, Any], wanted: Sequence[Token]) -> list[Heard]:
        """The times outside of sentences: of words with names, or of as many as the text has."""
        named = _listed(said.get("timestamps")) or []
        if named and all(isinstance(unit, Mapping) and isinstance(unit.get("token"), str) for unit in named):
            spans = self._spans(named, "timestamps")
            return [Heard(_key(unit["token"]), span) for unit, span in zip(named, spans, strict=True)]
        spans = self._spans(said.get("timestamp"), "timestamp") or self._spans(said.get("timestamps"), "timestamps")
        words = _listed(said.get("words")) or []
        if words and len(words) == len(spans) and all(isinstance(word, str) for word in words):
            return [Heard(_key(word), span) for word, span in zip(words, spans, strict=True)]
        if len(spans) == len(wanted):
            return [Heard(token.key, span) for token, span in zip(wanted, spans, strict=True)]
        return []

    def _spans(self, value: Any, name: str) -> list[Span | None]:
        given = _listed(value)
        if given is None:
            self._odd[name] = _kind(value)
            return []
        return [self._span(item) for item in given]

    def _span(self, item: Any) -> Span | None:
        """Start and end in seconds of a pair of milliseconds, or of a map with seconds; None for what is no time."""
        if isinstance(item, Mapping):
            start, end = _number(item.get("start_time")), _number(item.get("end_time"))
        else:
            pair = _listed(item) or []
            start, end = (_number(pair[0]), _number(pair[1])) if len(pair) == 2 else (None, None)
            start, end = (None if value is None else value / 1000 for value in (start, end))
        if start is None or end is None or not 0 <= start <= end or start > self.seconds + SLACK_S:
            return None
        return min(start, self.seconds), min(end, self.seconds)

    def _speaker(self, value: Any, name: str) -> str | None:
        """A label: ``1``, ``1.0``, ``"1"`` and ``"spk1"`` are the same one; below 0 is nobody."""
        if value is None:
            return None
        number = _number(value)
        if number is not None:
            return f"{number:g}" if number >= 0 else None
        if isinstance(value, str):
            label = value.strip()
            return re.sub(r"^(?:spk|speaker)[\s_-]*(?=\d+$)", "", label, flags=re.IGNORECASE) or None
        self._odd[name] = _kind(value)
        return None

    def _words(self, wanted: Sequence[Token], sentences: Sequence[Heard], units: Sequence[Heard]) -> list[Word]:
        keys = [token.key for token in wanted]
        in_sentence = _matched(keys, [each.key for each in sentences])
        in_units = _matched(keys, [each.key for each in units])
        spans: list[Span | None] = []
        rough: list[Span | None] = []
        people: list[str | None] = []
        for at in range(len(wanted)):
            said = [sentences[place] for place in in_sentence[at]]
            own = _hull(each.span for each in said) or _hull(units[place].span for place in in_units[at])
            spans.append(own)
            rough.append(_hull(each.rough for each in said))
            people.append(said[0].speaker if said else people[-1] if people else None)
        if sentences and people[0] is None:
            people = _led(people, [bool(places) for places in in_sentence])
        self._tell(spans, rough, sentences, in_sentence)
        times = _complete([own or share for own, share in zip(spans, rough, strict=True)], self.seconds)
        order: dict[str, int] = {}
        return [
            Word(start, end, token.text, None, None if who is None else order.setdefault(who, len(order)))
            for token, (start, end), who in zip(wanted, times, people, strict=True)
        ]

    def _tell(
        self,
        spans: Sequence[Span | None],
        rough: Sequence[Span | None],
        sentences: Sequence[Heard],
        in_sentence: Sequence[Sequence[int]],
    ) -> None:
        """Warn of times that are estimates, and of sentences that say something else than the text."""
        without = len(spans) - len(_rising(spans))
        if not any(spans) and not any(rough):
            self.warnings.append(f"{self.model} gives no times that fit its words: they are spread over the recording")
        elif without:
            self.warnings.append(
                f"the times of {without} of {len(spans)} words are estimates: {self.model} gives none that fit"
            )
        alone = sum(not places for places in in_sentence)
        if alone and any(each.speaker is not None for each in sentences):
            self.warnings.append(
                f"{alone} of {len(spans)} words are in no sentence of {self.model}: they get the speaker beside them"
            )
        used = {place for places in in_sentence for place in places}
        extra = len(sentences) - len(used)
        if extra:
            self.warnings.append(f"{self.model}: {extra} words of sentence_info are not in its text and were left out")


def tokens(text: str) -> list[Token]:
    """The words of a text (characters for Chinese and Japanese) with their punctuation; tags left out."""
    text = TAGS.sub("", text)
    found = list(TOKENS.finditer(text))
    made = []
    for at, match in enumerate(found):
        until = found[at + 1].start() if at + 1 < len(found) else len(text)
        piece = text[0 if at == 0 else match.start() : until].strip()
        wide = WIDE.match(match[0]) or (at > 0 and WIDE.match(found[at - 1][0]))
        spaced = at == 0 or text[match.start() - 1].isspace()
        made.append(Token((" " if spaced and not wide else "") + piece, _key(match[0])))
    return made


def language(text: str) -> str | None:
    """From SenseVoice's tag, else by the script: Japanese, Korean, Chinese; else unknown."""
    for tag in TAGS.findall(text):
        if tag in ("zh", "en", "yue", "ja", "ko"):
            return str(tag)
    scripts = (("ja", KANA), ("ko", HANGUL), ("zh", WIDE))
    return next((code for code, script in scripts if script.search(text)), None)


def _key(text: str) -> str:
    """Lower case without spaces, punctuation and the mark of a word's beginning in a vocabulary."""
    return MARKS.sub("", "".join(TOKENS.findall(text.lower().replace("▁", " ").replace("@@", ""))))


def _matched(wanted: Sequence[str], given: Sequence[str]) -> list[list[int]]:
    """For each wanted key the places of the given ones that hold its characters."""
    owners = [place for place, key in enumerate(given) for _ in key]
    found = _aligned("".join(wanted), "".join(given))
    result, at = [], 0
    for key in wanted:
        places = {owners[match] for match in found[at : at + len(key)] if match is not None}
        result.append(sorted(places))
        at += len(key)
    return result


def _aligned(wanted: str, given: str) -> list[int | None]:
    """For each character where it stands in the other text. Where they part, they are joined at the next place
    within REACH from which on RUN characters are the same."""
    result: list[int | None] = [None] * len(wanted)
    here = there = 0
    while here < len(wanted) and there < len(given):
        if wanted[here] == given[there]:
            result[here] = there
            here, there = here + 1, there + 1
            continue
        best = (REACH, REACH)
        for skip in range(min(REACH, len(wanted) - here)):
            if skip >= sum(best):
                break
            place = given.find(wanted[here + skip : here + skip + RUN], there, there + REACH + RUN)
            if place >= 0 and skip + place - there < sum(best):
                best = (skip, place - there)
        if best == (REACH, REACH):
            best = (1, 1)
        here, there = here + best[0], there + best[1]
    return result


def _hull(spans: Iterable[Span | None]) -> Span | None:
    known = [span for span in spans if span is not None]
    return (min(start for start, _ in known), max(end for _, end in known)) if known else None


def _led(people: Sequence[str | None], known: Sequence[bool]) -> list[str | None]:
    """Words before the first that has a sentence belong to that sentence's speaker."""
    first = known.index(True) if True in known else 0
    return [people[max(at, first)] for at in range(len(people))]


def _rising(spans: Sequence[Span | None]) -> list[int]:
    """The places of the longest sequence of spans whose starts never go back (patience sorting)."""
    tops: list[float] = []
    last: list[int] = []  # place of the span that tops each pile
    before: dict[int, int] = {}
    for place, span in enumerate(spans):
        if span is None:
            continue
        pile = bisect_right(tops, span[0])
        if pile:
            before[place] = last[pile - 1]
        tops[pile : pile + 1], last[pile : pile + 1] = [span[0]], [place]
    kept, at = [], last[-1] if last else -1
    while at >= 0:
        kept.append(at)
        at = before.get(at, -1)
    return kept[::-1]


def _complete(spans: Sequence[Span | None], seconds: float) -> list[Span]:
    """A time for every word, none before the one before it: what has none shares the gap it stands in."""
    kept = [-1, *_rising(spans), len(spans)]
    result: list[Span] = []
    for left, right in itertools.pairwise(kept):
        after = spans[right] if right < len(spans) else None
        until = after[0] if after else seconds
        begin = min(result[-1][1] if result else 0.0, until)
        step = (until - begin) / max(1, right - left - 1)
        result += [(begin + k * step, begin + (k + 1) * step) for k in range(right - left - 1)]
        if after:
            result.append(after)
    last = max(0.0, seconds - SHORTEST_S)
    return [(min(start, last), max(end, min(start, last) + SHORTEST_S)) for start, end in result]


def _listed(value: Any) -> list[Any] | None:
    """A list of what may be a list, a tuple, an array or a tensor; [] for None, and None for anything else."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    plain = value.tolist() if hasattr(value, "tolist") else None
    return plain if isinstance(plain, list) else None


def _number(value: Any) -> float | None:
    """A finite number, of numpy or torch too, or as text; None for anything else."""
    single = getattr(value, "ndim", None) == 0
    if isinstance(value, bool) or not (single or isinstance(value, (int, float, str))):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _kind(value: Any) -> str:
    """What something is, for a message: ``int (7)``."""
    shown = repr(value)
    return f"{type(value).__name__} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
