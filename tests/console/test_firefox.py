"""The console in a real Firefox: the tests of the other files, with this browser in place of Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Browser, Page

from console import test_axe
from console.browser import NoBrowser
from console.firefox import firefox
from console.test_console import (
    test_a_job_from_the_form_runs_with_a_bar_that_moves_and_returns_its_value,
    test_a_transcript_is_corrected_beside_its_result,
    test_dropped_speech_becomes_a_transcript_that_follows_its_sound,
    test_everything_is_done_by_keys,
    test_hostile_text_stays_text,
)
from console.test_start import test_an_example_is_tried
from console.test_stream import film, test_it_plays_while_the_job_runs_and_goes_on_after_its_end
from console.test_tabs import limited, test_six_tabs_work_behind_one_address
from console.test_texts import test_a_chinese_browser_gets_a_chinese_page_and_can_have_the_other

__all__ = [
    "film",
    "limited",
    "test_a_chinese_browser_gets_a_chinese_page_and_can_have_the_other",
    "test_a_job_from_the_form_runs_with_a_bar_that_moves_and_returns_its_value",
    "test_a_transcript_is_corrected_beside_its_result",
    "test_an_example_is_tried",
    "test_dropped_speech_becomes_a_transcript_that_follows_its_sound",
    "test_everything_is_done_by_keys",
    "test_hostile_text_stays_text",
    "test_it_plays_while_the_job_runs_and_goes_on_after_its_end",
    "test_six_tabs_work_behind_one_address",
]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with firefox() as found:
            yield found
    except NoBrowser as error:
        pytest.skip(str(error))


def test_axe_finds_nothing(site: Gateway, visit: Callable[..., Page]) -> None:
    test_axe.test_axe_finds_nothing(site, visit, {})
