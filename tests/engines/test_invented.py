"""What nobody said: it is left out by signal, and what was said stays."""

from __future__ import annotations

import pytest

from inference.transcribe.invented import believable, heard_again, in_order
from inference.transcribe.words import Word, join

PROMPT = "以下是普通话的句子，使用简体中文和标点符号。"


def said(text: str, start: float = 0.0, each: float = 0.3, probability: float = 0.9) -> list[Word]:
    """Words, one after another; Chinese by character."""
    parts = [f" {part}" for part in text.split()] if text.isascii() else list(text)
    return [
        Word(start + each * number, start + each * (number + 1), part, probability) for number, part in enumerate(parts)
    ]


def after(words: list[Word], text: str, each: float, probability: float = 0.9) -> list[Word]:
    return [*words, *said(text, words[-1].end, each, probability)]


@pytest.mark.parametrize("text", ["使用简体中文和标点符号", "普通话的句子", "使用简体中文和标点符号。"])
def test_the_prompt_is_no_text(text: str) -> None:
    words = [*said("大家好", 0), *said(text, 1.0, probability=0.1)]
    kept, dropped = believable(words, PROMPT, 0.0)
    assert join(kept) == "大家好"
    assert [(found.text, found.reason) for found in dropped] == [(text, "it is the prompt")]


def test_what_is_said_as_in_the_prompt_stays() -> None:
    words = said("请使用简体中文写作业")
    assert believable(words, PROMPT, 0.0) == (words, [])
    words = said("we talk about the Acme merger today", probability=0.8)
    assert believable(words, "A meeting. We talk about the Acme merger today.", 0.0) == (words, [])
    words = said("和中文", probability=0.2)
    assert believable(words, PROMPT, 0.0) == (words, [])


def test_a_sentence_again_in_no_time_is_left_out() -> None:
    once = said("I have a dream today. I have a dream.")
    words = after(once, "I have a dream.", 0.02)
    kept, dropped = believable(words, "", 0.0)
    assert kept == once
    assert dropped[0].text == "I have a dream."
    assert "0.04" not in str(dropped[0])
    assert str(dropped[0]).startswith(f"'I have a dream.' at {once[-1].end:.1f} s was left out")


def test_a_sentence_said_twice_stays() -> None:
    words = after(said("I have a dream."), "I have a dream.", 0.25)
    assert believable(words, "", 0.0) == (words, [])


def test_words_without_time_are_left_out() -> None:
    once = said("This is the end of it.")
    for words in (after(once, "of something else entirely", 0.02), after(once, "Good bye.", 0.0)):
        kept, dropped = believable(words, "", 0.0)
        assert kept == once
        assert dropped[0].reason == "the words take no time"
    middle = after(after(once, "of a", 0.02), "kind.", 0.3)
    assert believable(middle, "", 0.0) == (middle, [])


CREDITS = [
    "请不吝点赞订阅转发打赏支持明镜与点点栏目",
    "Thanks for watching!",
    "Thank you so much for watching.",
    "Subtitles by the Amara.org community",
    "字幕由志愿者提供",
    "Untertitel im Auftrag des ZDF",
]


@pytest.mark.parametrize("text", CREDITS)
def test_credits_are_left_out_where_a_signal_says_so(text: str) -> None:
    before = said("OK." if text.isascii() else "好。", each=0.5)
    for tail, no_speech in (
        (after(before, text, 0.3, probability=0.3), 0.0),
        (after(before, text, 0.3), 0.5),
    ):
        kept, dropped = believable(tail, "", no_speech)
        assert kept == before
        assert "credits" in dropped[0].reason
    spoken = after(before, text, 0.3)
    assert believable(spoken, "", 0.05) == (spoken, [])


@pytest.mark.parametrize("text", ["))))", "♪ ♪", "...", "-"])
def test_a_window_of_marks_alone_is_no_speech(text: str) -> None:
    kept, dropped = believable(said(text), "", 0.0)
    assert (kept, [found.reason for found in dropped]) == ([], ["it has neither letters nor digits"])
    words = after(said("7"), text, 0.3)
    assert believable(words, "", 0.0) == (words, [])


def test_a_number_is_not_heard_again() -> None:
    number = Word(0.74, 4.16, " 4-929-1234-5678-9012", 0.48)
    words = [*said("Card number", each=0.3), number]
    again = [Word(4.3, 4.8, " I'm", 0.8), Word(4.8, 5.9, " 678.", 0.7), Word(6.2, 7.5, " 012.", 0.9)]
    assert heard_again(again, words, "") == []
    assert number.end == 7.5
    assert heard_again(said("And the date", 8.0), words, "") != []
    other = [Word(8.0, 9.0, " 678 45", 0.9)]
    assert heard_again(other, words, "") == other


def test_spelt_words_last_as_long_as_they_take() -> None:
    assert Word(0, 4.0, " QWRTY123.", 0.6).spoken_until == 4.0
    assert Word(0, 4.0, " QWERTY", 0.6).spoken_until == 4.0
    assert Word(0, 4.0, " country", 0.6).spoken_until == 1.5
    assert Word(0, 4.0, " I", 0.6).spoken_until == 1.5


def test_what_is_heard_again_is_new_and_probable() -> None:
    words = [Word(0, 0.5, " Well,", 0.9), Word(3.0, 3.5, " yes.", 0.9)]
    new = said("it was late", 1.0)
    assert heard_again(new, words, PROMPT) == new
    assert heard_again([*new, Word(2.9, 3.4, " yes.", 0.9)], words, PROMPT) == new
    assert heard_again(said("it was late", 1.0, probability=0.2), words, PROMPT) == []
    assert heard_again(said("使用简体中文和标点符号", 1.0, probability=0.3), words, PROMPT) == []


def test_times_are_in_order_whatever_comes() -> None:
    words = in_order([Word(5.0, 9.0, " b", 1), Word(1.0, 6.0, " a", 1), Word(5.0, 5.0, " c", 1)], floor=2.0)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] == 2.0
    assert [word.text for word in words] == [" a", " b", " c"]
    assert all(word.end > word.start for word in words)
