"""Transcripts as files, held against the rules of each form."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.transcribe import outputs
from inference.transcribe.params import OUTPUT_SUFFIXES
from inference.transcribe.subtitles import GAP_S, LEAST_S, LINE, MOST_S, cues, reading_s, several, width, with_cues

ENGLISH = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood."
)
CHINESE = "今天我们讨论三个问题，第一个是关于明年的预算，第二个是新产品的发布时间，第三个是团队的人员安排。"


def segment(text: str, start: float = 0.0, each: float = 0.3, speaker: str | None = "spk0") -> dict[str, Any]:
    parts = text.split() if " " in text else list(text)
    words = [
        {
            "start": start + each * at,
            "end": start + each * (at + 1),
            "word": part,
            "speaker": speaker,
            "probability": 1.0,
        }
        for at, part in enumerate(parts)
    ]
    end = start + each * len(parts)
    return {"start": start, "end": end, "text": text, "speaker": speaker, "language": "en", "words": words}


def result(*segments: dict[str, Any]) -> dict[str, Any]:
    speakers = sorted({part["speaker"] for part in segments if part["speaker"]})
    text = outputs.join_texts([part["text"] for part in segments])
    length = max((part["end"] for part in segments), default=0.0) + 1
    return {
        "text": text,
        "language": "en",
        "duration_s": length,
        "segments": list(segments),
        "speakers": speakers,
        "warnings": [],
    }


@pytest.mark.parametrize(("text", "most"), [(ENGLISH, 42), (CHINESE, 16)])
@pytest.mark.parametrize("form", [outputs.as_srt, outputs.as_vtt])
def test_transcripts_of_other_engines_keep_the_rules(form: Callable[[Any], str], text: str, most: int) -> None:
    """They may have neither words nor speakers."""
    made = form({"segments": [{"start": 0.0, "end": 20.0, "text": text}]})
    blocks = [block.split("\n") for block in made.strip().split("\n\n") if "-->" in block]
    lines = [block[[" --> " in line for line in block].index(True) + 1 :] for block in blocks]
    assert len(blocks) > 1
    assert all(len(part) <= 2 and all(len(line) <= most for line in part) for part in lines)
    assert "".join(line for part in lines for line in part).replace(" ", "") == text.replace(" ", "")
    assert form({"text": ""}) in ("", "WEBVTT\n")


@pytest.mark.parametrize(("text", "most"), [(ENGLISH, 42), (CHINESE, 16)])
def test_subtitles_keep_the_rules(text: str, most: int) -> None:
    made = cues([segment(text)], named=False)
    assert len(made) > 1
    for cue in made:
        assert 1 <= len(cue.lines) <= 2
        assert max(map(len, cue.texts)) <= most
        assert cue.end - cue.start <= MOST_S
    kept = "".join(line.replace(" ", "") for cue in made for line in cue.texts)
    assert kept == text.replace(" ", "")


def test_cues_end_where_the_text_does() -> None:
    made = cues([segment(ENGLISH)], named=False)
    assert made[0].texts[-1].endswith(",")
    short = cues([segment("Yes, I know that well, and so does everybody who was here.")], named=False)
    assert len(short) == 1
    assert short[0].texts[0].endswith(",")


def test_what_is_said_fast_stays_until_it_is_read() -> None:
    fast = cues(
        [segment("Extraordinary circumstances notwithstanding.", each=0.2), segment("No.", 20, 0.1)], named=False
    )
    assert fast[0].end - fast[0].start == pytest.approx(reading_s("".join(fast[0].texts)))
    assert fast[1].end - fast[1].start == pytest.approx(LEAST_S)
    near = cues(
        [segment("Extraordinary circumstances notwithstanding.", each=0.2), segment("No.", 1.0, 0.1)], named=False
    )
    assert near[0].end == pytest.approx(1.0 - GAP_S)


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=70)


@given(st.lists(st.tuples(words, st.floats(0, 3), st.booleans()), min_size=1, max_size=40), st.booleans())
def test_any_words_make_subtitles(said: list[tuple[str, float, bool]], named: bool) -> None:
    at, told, text = 0.0, [], ""
    for word, length, spaced in said:
        told.append({"start": at, "end": at + length, "word": word, "speaker": "spk0", "probability": None})
        at += length
        text += f" {word}" if spaced and text else word
    one = {"start": 0.0, "end": at, "text": text, "speaker": "spk0", "language": None, "words": told}
    made = cues([one], named=named)
    assert "".join(re.sub(r"\s", "", line) for cue in made for line in cue.texts) == ("spk0:" * named) + "".join(
        text.split()
    )
    for cue in made:
        assert 1 <= len(cue.lines) <= 2
        assert max(map(width, cue.texts)) <= LINE
        assert cue.start <= cue.end
    assert all(a.end <= b.start or a.start == b.start for a, b in itertools.pairwise(made))


@pytest.mark.parametrize(("text", "most"), [(ENGLISH, 42), (CHINESE, 16)])
def test_a_result_carries_its_cues(text: str, most: int) -> None:
    """Cut as in the files, with room for the names, which they leave out."""
    told = result(segment(text), segment("So am I.", 90, speaker="spk1"), segment(text, 100, speaker="spk0"))
    cut = with_cues(told["segments"], named=several(told))
    assert [{**part, "cues": []} for part in cut] == [{**part, "cues": []} for part in told["segments"]]
    for part, name in zip(cut, ("spk0: ", "spk1: ", "spk0: "), strict=True):
        shown = [cue["text"].split("\n") for cue in part["cues"]]
        assert "".join("".join(lines) for lines in shown).replace(" ", "") == part["text"].replace(" ", "")
        assert all(len(lines) <= 2 and max(map(len, lines)) <= most for lines in shown)
        assert width(name + shown[0][0]) <= LINE
    plain = "".join(cue["text"] + "\n" for part in cut for cue in part["cues"])
    srt = outputs.as_srt(told)
    assert re.sub(r"^(\d+|.* --> .*|)\n|spk\d: ?", "", srt, flags=re.MULTILINE) == plain


def test_srt_names_each_turn_once() -> None:
    told = result(segment("How do you do?"), segment("I am well.", 2), segment("So am I.", 4, speaker="spk1"))
    blocks = outputs.as_srt(told).split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:01,200\nspk0: How do you do?"
    assert [block.splitlines()[2] for block in blocks[1:]] == ["I am well.", "spk1: So am I."]


def test_vtt_with_and_without_words() -> None:
    told = result(segment("A < B & C", speaker="spk0"), segment("So what?", 4, speaker="spk1"))
    plain = outputs.as_vtt(told)
    assert plain.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n<v spk0>A &lt; B &amp; C\n\n")
    timed = outputs.as_vtt(told, word_times=True)
    assert "<v spk0>A <00:00:00.300>&lt; <00:00:00.600>B <00:00:00.900>&amp; <00:00:01.200>C\n" in timed
    assert re.sub(r"<\d\d:[\d:.]+>", "", timed) == plain


def test_csv_has_a_row_per_segment() -> None:
    told = result(segment('She said "no", twice.'), segment("Oh", 5, speaker=None))
    rows = list(csv.DictReader(io.StringIO(outputs.as_csv(told))))
    assert [row["text"] for row in rows] == ['She said "no", twice.', "Oh"]
    assert [(row["start"], row["speaker"]) for row in rows] == [("0.0", "spk0"), ("5", "")]


def test_rttm_has_ten_fields() -> None:
    told = result(segment("Hello there.", 1.5), segment("Oh", 5, speaker=None))
    lines = outputs.as_rttm(told, "my talk").splitlines()
    assert lines[0] == "SPEAKER my_talk 1 1.500 0.600 <NA> <NA> spk0 <NA> <NA>"
    assert [len(line.split()) for line in lines] == [10, 10]
    assert lines[1].split()[7] == "unknown"


def test_textgrid_holds_every_moment_once() -> None:
    text = outputs.as_textgrid(
        result(segment('A "b" c', 1.0), segment("d e", 3.0, 0.001), segment("f", 2, speaker="spk1"))
    )
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n')
    assert re.findall(r'name = "(.*)"', text) == ["spk0", "spk0 words", "spk1", "spk1 words"]
    assert 'text = "A ""b"" c"' in text
    for tier in text.split("item [")[2:]:
        spans = [(float(a), float(b)) for a, b in re.findall(r"xmin = (\S+)\n\s+xmax = (\S+)", tier)]
        whole, parts = spans[0], spans[1:]
        assert int(re.findall(r"intervals: size = (\d+)", tier)[0]) == len(parts)
        assert (parts[0][0], parts[-1][1]) == whole
        assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
        assert all(start < end for start, end in parts)


def test_minutes_name_the_speakers() -> None:
    told = result(segment("We *begin* now."), segment("Yes.", 3, speaker="spk1"), segment("Good.", 5, speaker="spk1"))
    told["warnings"] = ["the file is truncated"]
    text = outputs.as_markdown(told, "Board_meeting")
    assert text.startswith("# Board\\_meeting\n\nLength 00:00:07, language en.\n")
    assert "\n\n**spk0** (00:00:00) We \\*begin\\* now.\n\n**spk1** (00:00:03) Yes. Good.\n" in text
    assert "| spk0 | 00:00:00 | 25% |" in text
    assert text.endswith("## Warnings\n\n* the file is truncated\n")


@pytest.mark.parametrize("suffix", OUTPUT_SUFFIXES)
@pytest.mark.parametrize("told", [result(), result(segment("Hi."))], ids=["nothing", "something"])
def test_every_form_can_be_written(tmp_path: Path, suffix: str, told: dict[str, Any]) -> None:
    path = tmp_path / f"talk{suffix}"
    outputs.write(told, path, suffix, name="talk")
    assert path.read_bytes().decode("utf-8").strip() or (suffix in (".txt", ".rttm", ".srt") and not told["segments"])
