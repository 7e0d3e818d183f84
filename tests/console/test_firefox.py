"""The console in a real Firefox: the tests of the other files, with this browser in place of Chromium, in dark
colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from gateways.gateway import Gateway
from playwright.sync_api import Browser, Page

from console import test_axe, test_console
from console.browser import NoBrowser
from console.firefox import firefox
from console.test_compare import test_both_show_the_same_frame, test_the_lens_finds_what_has_changed
from console.test_console import (
    test_a_job_from_the_form_runs_with_a_bar_that_moves_and_returns_its_value,
    test_a_transcript_is_corrected_beside_its_result,
    test_chosen_jobs_are_retried_and_cancelled_at_once,
    test_dropped_speech_becomes_a_transcript_that_follows_its_sound,
    test_everything_is_done_by_keys,
    test_hostile_text_stays_text,
    test_lists_are_filtered_by_state_engine_and_name,
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
    "test_both_show_the_same_frame",
    "test_chosen_jobs_are_retried_and_cancelled_at_once",
    "test_dropped_speech_becomes_a_transcript_that_follows_its_sound",
    "test_everything_is_done_by_keys",
    "test_hostile_text_stays_text",
    "test_it_plays_while_the_job_runs_and_goes_on_after_its_end",
    "test_lists_are_filtered_by_state_engine_and_name",
    "test_six_tabs_work_behind_one_address",
    "test_the_lens_finds_what_has_changed",
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


def test_the_systems_dark_colours_are_taken_and_can_be_overruled(site: Gateway, visit: Callable[..., Page]) -> None:
    test_console.test_the_systems_colours_are_taken_and_can_be_overruled(site, visit, "dark")
