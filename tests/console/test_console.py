"""What a person does with the console, done in a real browser with a real pool behind it."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from gateways.gateway import Gateway, wav
from playwright.sync_api import Locator, Page, expect
from scenarios.world import wait_until

from console.axe import faults
from console.marks import await_mark, note_marks

pytestmark = pytest.mark.long

HOSTILE = '<img src=x onerror="document.title=\'pwned\'"><script>document.title="pwned"</script>&amp;'


def row(page: Page, job_id: str) -> Locator:
    return page.locator(f"#job-{job_id}")


def open_job(page: Page, site: Gateway, job_id: str) -> Locator:
    """The third pane with one job in it."""
    page.goto(f"{site.base}/#/job/{job_id}")
    pane = page.locator("#job")
    expect(pane.locator(".id")).to_have_text(job_id)
    return pane


def submit(page: Page, engine: str, **chosen: str) -> str:
    """Fill in the form as a person does; the id of the job, which is opened then."""
    page.get_by_role("button", name="New job").first.click()
    form = page.locator("#submit")
    form.get_by_role("button", name=engine, exact=True).click()
    form.get_by_text("Options").click()
    for key, value in chosen.items():
        field = form.locator(f"#field-{key}")
        if field.evaluate("node => node.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
    form.get_by_role("button", name="Submit").click()
    expect(form).to_be_hidden()
    expect(page.locator("#job .id")).to_be_visible()
    return str(page.evaluate("decodeURIComponent(location.hash).split('/').pop()"))


def test_the_pool_is_seen(page: Page) -> None:
    expect(page.locator("#health")).to_have_attribute("data-verdict", "ok")
    engine = page.locator("[data-engine=fake]")
    expect(engine.locator(".ready")).to_have_text("2 of 2 ready")
    slot = engine.locator("[data-slot=fake-0]")
    expect(slot.locator(".phase")).to_have_text("idle")
    expect(slot.locator(".memory")).to_contain_text("MB")
    slot.locator("summary").click()
    expect(slot.locator("[data-fact=Process] dd")).to_contain_text("fake-0.")


def test_the_history_of_the_pool_is_shown(page: Page, site: Gateway) -> None:
    for job_id in (site.submit("fake", value=1), site.submit("single", do="input")):
        site.result(job_id)

    def ended(engine: str, state: str) -> bool:
        found = site.get("/stats", params={"since": "24h"}).json()["stretches"]
        return any(one["engine"] == engine and one[state] for one in found)

    wait_until(lambda: ended("fake", "completed") and ended("single", "failed"), "both in the history")
    page.locator("#rows").focus()
    page.keyboard.press("h")
    dialog = page.get_by_role("dialog", name="History")
    dialog.get_by_role("combobox", name="Engine").select_option("single")
    rows = dialog.locator("tbody tr")
    expect(rows.first).to_be_visible()
    assert sum(int(text) for text in rows.locator("td:nth-child(3)").all_inner_texts()) >= 1
    expect(dialog.locator("rect[data-part=failed]").first).to_be_visible()
    expect(dialog.locator("[role=status]")).to_contain_text("ended")
    assert faults(page) == []
    page.set_viewport_size({"width": 360, "height": 720})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Pool", exact=True).click()
    page.get_by_role("button", name="History of the pool").click()
    expect(dialog).to_be_visible()


def test_a_workers_log_is_followed_and_searched(page: Page, site: Gateway) -> None:
    def write(*lines: str) -> None:
        with open(site.world.spool / "run" / "logs" / "single-0.log", "a", encoding="utf-8") as log:
            log.writelines(f"{line}\n" for line in lines)

    mine = uuid4().hex
    write(f"2026-01-01 00:00:00.000 ERROR   {mine} it broke", f"  in a traceback {mine}")
    page.locator("[data-slot=single-0] summary").click()
    page.locator("[data-slot=single-0]").get_by_role("button", name="Show its log").click()
    dialog = page.get_by_role("dialog", name="Logs")
    shown = dialog.locator(".log > div:visible")
    dialog.get_by_role("searchbox", name="Find in the log").fill(mine)
    expect(shown).to_have_count(2)
    write(f"2026-01-01 00:00:01.000 INFO    {mine} <b>all is well</b>")  # while it is followed
    expect(shown).to_have_count(3)
    expect(shown.last).to_have_text(f"2026-01-01 00:00:01.000 INFO    {mine} <b>all is well</b>")
    dialog.get_by_role("combobox", name="Level").select_option(label="Errors only")
    expect(shown).to_have_count(2)  # the line of the traceback belongs to the error
    expect(dialog.locator("[role=status]")).to_contain_text("2 of")
    assert faults(page) == []
    dialog.get_by_role("searchbox", name="Find in the log").fill("")
    dialog.get_by_role("combobox", name="Level").select_option(label="All lines")
    dialog.get_by_role("combobox", name="Log of").select_option("supervisor")
    expect(shown.first).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("l")
    expect(dialog).to_be_visible()


def test_a_job_from_the_form_runs_with_a_bar_that_moves_and_returns_its_value(page: Page) -> None:
    job_id = submit(page, "fake", do="sleep", seconds="4", value="forty-two")
    bar = page.get_by_role("progressbar", name="Progress")
    expect(bar).to_be_visible()
    seen = [int(bar.get_attribute("aria-valuenow") or 0)]
    wait_until(lambda: (seen.append(now := int(bar.get_attribute("aria-valuenow") or 0)), now > 30)[1], "a bar past 30")
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 90}) >= 3, seen  # it moves, it does not jump
    expect(page.locator("#job .state")).to_have_text("Completed")
    expect(page.locator("#job .value pre")).to_contain_text('"value": "forty-two"')
    stage = page.locator("#job .timeline li[data-kind=stage]")
    expect(stage.locator(".text")).to_have_text(["inference"])
    expect(stage.locator("small")).to_have_text(re.compile(r"^\d+(\.\d)? s$"))  # how long it lasted
    bar = page.locator("#job .timeline .spans [data-after=stage]")
    expect(bar).to_have_attribute("title", re.compile(r"^inference: \d+(\.\d)? s$"))
    expect(row(page, job_id)).to_have_attribute("data-state", "completed")
    expect(page.locator("#live")).to_contain_text("Completed")


def test_a_death_is_told_with_signal_stage_and_every_attempt(page: Page, site: Gateway) -> None:
    job_id = site.submit("fake", do="segfault")
    pane = open_job(page, site, job_id)
    expect(pane.locator(".state")).to_have_text("Failed")
    failure = pane.locator(".failure")
    expect(failure.locator("[data-fact=Signal] dd").first).to_contain_text("SIGSEGV")
    expect(failure.locator("[data-fact=Stage] dd").first).to_have_text("run")
    expect(failure.locator("[data-fact=Attempt] dd").first).to_have_text("2")
    expect(failure.locator(".attempts > li")).to_have_count(2)
    moments = pane.locator(".timeline li .text")
    expect(moments.first).to_have_text("Submitted")
    expect(moments.nth(1)).to_have_text("Attempt 1 began")
    expect(moments.nth(2)).to_contain_text("Attempt 1 failed in run: ")
    expect(moments.nth(3)).to_have_text("Attempt 2 began")
    expect(moments.last).to_have_text("Failed")
    slot = page.locator("[data-engine=fake] .seat").filter(has=page.locator("[data-fact='Last ended']")).first
    slot.locator("summary").click()
    expect(slot.locator("[data-fact='Last ended'] dd")).to_contain_text("SIGSEGV")
    expect(slot.locator("[data-fact=Restarts] dd")).to_have_text(re.compile(r"^[1-9]"))


def test_the_end_of_what_a_worker_wrote_is_shown(page: Page, site: Gateway) -> None:
    failure = open_job(page, site, site.submit("single", do="noisy")).locator(".failure")
    expect(failure.locator(".message").first).to_have_text("noisy end")
    expect(failure.locator("[data-fact=Kind] dd").first).to_have_text("engine")
    expect(failure.get_by_text("Traceback").first).to_be_visible()


def test_a_failed_job_is_run_again_when_its_cause_is_mended(page: Page, site: Gateway) -> None:
    path = site.media / f"{uuid4().hex}.wav"
    site.media.mkdir(parents=True, exist_ok=True)
    job_id = site.submit("fake", value="second time", audio=str(path))
    pane = open_job(page, site, job_id)
    expect(pane.locator(".failure > .message")).to_contain_text("no such file")
    expect(pane.locator(".failure .hint").first).to_contain_text("existing file")
    path.write_bytes(wav())
    pane.get_by_role("button", name="Retry").click()
    expect(pane.locator(".state")).to_have_text("Completed")
    expect(pane.locator(".failure")).to_have_count(0)
    expect(pane.locator(".value pre")).to_contain_text("second time")
    expect(row(page, job_id)).to_have_attribute("data-state", "completed")


def test_hostile_text_stays_text(page: Page, site: Gateway) -> None:
    job_id = site.submit("single", do="raise", value=HOSTILE)
    pane = open_job(page, site, job_id)
    expect(pane.locator(".failure > .message")).to_contain_text(HOSTILE)
    expect(row(page, job_id).locator(".title")).to_have_text(HOSTILE)  # the reason is what a row says first
    expect(row(page, job_id).locator(".line")).to_contain_text(f"{job_id} · The engine failed")
    assert page.locator("#job img, #rows img, #job script").count() == 0
    assert "pwned" not in page.title()
    echoed = open_job(page, site, site.submit("single", value=HOSTILE))
    expect(echoed.locator(".value pre")).to_contain_text("onerror=")
    assert page.locator("#job img").count() == 0


def test_a_running_job_is_cancelled_with_a_second_press(page: Page, site: Gateway) -> None:
    job_id = site.submit("single", do="sleep", seconds=600)
    pane = open_job(page, site, job_id)
    expect(pane.locator(".state")).to_have_text("Running")
    pane.get_by_role("button", name="Cancel").click()
    expect(pane.get_by_role("button", name="Really cancel?")).to_be_visible()
    assert site.get(f"/jobs/{job_id}").json()["state"] == "running"
    pane.get_by_role("button", name="Really cancel?").click()
    expect(pane.locator(".state")).to_have_text("Cancelled")
    assert site.get(f"/jobs/{job_id}").json()["state"] == "cancelled"
    pane.get_by_role("button", name="Retry").click()
    expect(pane.locator(".id")).not_to_have_text(job_id)
    expect(pane.locator(".state")).to_have_text("Running")
    again = pane.locator(".id").inner_text()
    assert site.get(f"/jobs/{again}").json()["rerun_of"] == job_id
    site.call("DELETE", f"/jobs/{again}")


def test_a_job_of_somebody_else_shows_its_parameters_and_is_run_again_with_changes(page: Page, site: Gateway) -> None:
    sound = site.post("/api/tempfile/upload", files={"file": ("their speech.wav", wav())}).json()["file_id"]
    given = {"audio": f"tempfile:{sound}", "hotword": "fail"}
    job_id = site.post("/jobs/transcribe", json={"params": given, "priority": 7, "tags": ["night"]}).json()["id"]
    pane = open_job(page, site, job_id)
    expect(pane.locator(".state")).to_have_text("Failed")
    expect(pane.locator(".title")).to_have_text("their speech.wav")
    shown = pane.get_by_role("region", name="Parameters")
    expect(shown.locator("[data-param=audio] dd")).to_have_text("their speech.wav")
    expect(shown.locator("[data-param=hotword] dd")).to_have_text("fail")
    expect(shown.locator("[data-param=priority] dd")).to_have_text("7")
    pane.get_by_role("button", name="Run again …").click()
    form = page.locator("#submit")
    expect(form.get_by_role("heading", name="Run again with changes")).to_be_visible()
    expect(form.locator(".chosen b")).to_have_text("their speech.wav")
    expect(form.locator("#field-hotword")).to_have_value("fail")
    form.locator("#field-hotword").fill("Ada")
    form.locator("#field-language").fill("fr")
    form.get_by_role("button", name="Submit").click()
    expect(pane.locator(".id")).not_to_have_text(job_id)
    expect(pane.locator(".state")).to_have_text("Completed")
    expect(pane.get_by_role("link", name=job_id)).to_be_visible()
    expect(pane.locator("[data-player]")).to_be_visible()  # the upload is found from here, too
    made = site.get(f"/jobs/{pane.locator('.id').inner_text()}/params").json()
    assert made["params"] == {**given, "hotword": "Ada", "language": "fr"}
    assert (made["terms"]["priority"], made["terms"]["tags"]) == (7, ["night"])


def test_chosen_jobs_are_retried_and_cancelled_at_once(page: Page, site: Gateway) -> None:
    word = uuid4().hex
    failed = [site.post("/jobs/single", json={"params": {"do": "input"}, "note": word}).json()["id"] for _ in range(3)]
    for job_id in failed:
        site.result(job_id)
    sleeps = [
        site.post("/jobs/single", json={"params": {"do": "sleep", "seconds": 600}, "note": word}).json()["id"]
        for _ in range(2)
    ]
    page.locator("#search").fill(word)
    expect(page.locator(".row:visible")).to_have_count(5)
    bar = page.get_by_role("toolbar", name="Chosen jobs")
    row(page, failed[0]).locator(".sign").click()
    expect(bar).to_contain_text("1 chosen")
    row(page, failed[2]).click(modifiers=["ControlOrMeta"])
    row(page, sleeps[0]).click(modifiers=["ControlOrMeta"])
    row(page, sleeps[1]).click(modifiers=["ControlOrMeta"])
    expect(page.locator(".row[aria-selected=true]")).to_have_count(4)
    expect(bar.get_by_role("button", name="Retry 2")).to_be_visible()
    bar.get_by_role("button", name="Cancel 2").click()
    bar.get_by_role("button", name="Really cancel?").click()
    expect(page.locator(".toast", has_text="2 jobs are being cancelled")).to_be_visible()
    expect(bar).to_be_hidden()
    for job_id in sleeps:
        expect(row(page, job_id)).to_have_attribute("data-state", "cancelled")
    page.locator("#rows").focus()
    page.keyboard.press("x")
    expect(bar).to_be_visible()
    bar.get_by_role("button", name="Choose all shown").click()
    bar.get_by_role("button", name="Retry 5").click()
    expect(page.locator(".toast", has_text="5 jobs run again")).to_be_visible()
    expect(page.locator(".row:visible")).to_have_count(7)  # in place of the cancelled ones there are new jobs
    new = [job["id"] for job in site.get("/jobs", params={"q": word}).json()["jobs"] if job["rerun_of"]]
    assert site.post("/bulk/cancel", json={"ids": new}).json()["refused"] == []


def test_the_results_of_chosen_jobs_are_saved_as_one_archive(page: Page, site: Gateway) -> None:
    word = uuid4().hex
    said = site.file(f"{word}/talk.wav", wav())
    for engine, params in (("single", {"do": "write"}), ("transcribe", {"audio": said}), ("single", {"do": "input"})):
        site.result(site.post(f"/jobs/{engine}", json={"params": params, "note": word}).json()["id"])
    page.locator("#search").fill(word)
    expect(page.locator(".row:visible")).to_have_count(3)
    page.locator(".row:visible .sign").first.click()
    bar = page.get_by_role("toolbar", name="Chosen jobs")
    bar.get_by_role("button", name="Choose all shown").click()
    with page.expect_download() as found:
        bar.get_by_role("button", name="Download 2").click()
    assert re.fullmatch(r"filepool-.*\.zip", found.value.suggested_filename)
    with zipfile.ZipFile(found.value.path()) as archive:
        assert archive.testzip() is None
        assert {"written.bin", "talk.json", "talk.txt"} < set(archive.namelist())


def test_lists_are_filtered_by_state_engine_and_name(page: Page, site: Gateway) -> None:
    good, bad = site.submit("fake", value=1), site.submit("single", do="raise", value="no")
    expect(row(page, good)).to_have_attribute("data-state", "completed")
    expect(row(page, bad)).to_have_attribute("data-state", "failed")
    page.locator("#states [data-state=failed]").click()
    expect(row(page, good)).to_be_hidden()
    expect(row(page, bad)).to_be_visible()
    page.locator("#engine").select_option("fake")
    expect(row(page, bad)).to_be_hidden()
    page.locator("#engine").select_option("")
    page.locator("#states [data-state='']").click()
    page.locator("#search").fill(good)
    expect(page.locator(".row:visible")).to_have_count(1)
    expect(row(page, good)).to_be_visible()


def test_dropped_speech_becomes_a_transcript_that_follows_its_sound(page: Page, tmp_path: Path) -> None:
    sound = tmp_path / "greeting & <b>.wav"
    sound.write_bytes(wav(3.25))
    data = page.evaluate_handle(
        """([name, bytes]) => { const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name, {type: "audio/wav"})); return data; }""",
        [sound.name, list(sound.read_bytes())],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": data})
    expect(page.locator("#dropping")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": data})
    form = page.locator("#submit")
    expect(form.get_by_role("button", name="transcribe")).to_have_attribute("aria-pressed", "true")
    expect(form.locator(".chosen b")).to_have_text(sound.name)
    form.get_by_role("button", name="Submit").click()
    pane = page.locator("#job")
    expect(pane.locator(".title")).to_have_text(sound.name)
    expect(pane.locator(".legend li")).to_have_count(2)
    word = pane.locator(".w", has_text="there.")
    expect(pane.locator("[data-player]")).to_be_visible()
    note_marks(page)
    word.click()
    await_mark(page, "there.")
    assert page.evaluate("document.querySelector('.player video').currentTime") >= 0.6
    await_mark(page, "Good")  # it plays on by itself
    page.evaluate("window.marked.length = 0")
    pane.get_by_role("button", name="Play from 0:00").click()
    await_mark(page, "Hello")
    with page.expect_download() as found:
        pane.get_by_role("button", name=".srt").click()
    srt = found.value.path().read_text()
    assert "00:00:00,000 --> 00:00:01,600\nspk0: Hello\nthere.\n" in srt, "cut as the engine says"
    assert "00:00:01,750 --> 00:00:03,250\nspk1: Good → day." in srt


def test_a_transcript_is_corrected_beside_its_result(page: Page, site: Gateway, visit: Callable[..., Page]) -> None:
    sound = site.post("/api/tempfile/upload", files={"file": ("talk.wav", wav(3.25))}).json()["file_id"]
    job_id = site.submit("transcribe", audio=f"tempfile:{sound}")
    original = site.result(job_id).json()["value"]
    docx = pytest.importorskip("docx", reason="python-docx is not installed: pip install filepool[docx]")
    pane = open_job(page, site, job_id)
    pane.get_by_role("button", name="Edit", exact=True).click()
    pane.get_by_role("button", name="Edit from 0:00").click()
    field = pane.get_by_role("textbox", name="Text from 0:00")
    field.fill("Hello over there.")
    field.press("Enter")
    expect(pane.locator(".part").first.locator(".w")).to_have_text(["Hello", "over", "there."])
    times = [float(word.get_attribute("data-seek") or -1) for word in pane.locator(".part").first.locator(".w").all()]
    assert times == [0.0, 0.5, 0.6], "words that stayed keep their times, the new one is in the pause"
    called = pane.get_by_role("textbox", name="Name of Speaker 2")
    called.select_text()
    called.press_sequentially("Ada Lovelace")  # typed, else Firefox does not take Enter for the end of a change
    called.press("Enter")
    expect(pane.locator(".part .who").nth(1)).to_have_text("Ada Lovelace")
    wait_until(lambda: site.get(f"/jobs/{job_id}/edits").json()["version"] == 2, "both corrections are kept")
    assert site.result(job_id).json()["value"] == original
    other = visit(f"{site.base}/#/job/{job_id}")  # somebody else sees them
    expect(other.locator("#job .part .who").nth(1)).to_have_text("Ada Lovelace")
    expect(other.locator("#job .part").first).to_contain_text("Hello over there.")
    other.locator("#job").get_by_role("searchbox", name="Find in the transcript").fill("DAY")
    expect(other.locator("#job .part.hit")).to_have_count(1)
    for name, words in (
        (".vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nspk0: Hello over there.\n"),
        (".srt", "Ada Lovelace: Good → day."),
        (".md", "**Ada Lovelace** (0:01)\n\nGood --> day."),
        (".txt", "] Ada Lovelace: Good"),
    ):
        with other.expect_download() as found:
            other.locator("#job").get_by_role("button", name=name).click()
        assert words in found.value.path().read_text()
    with other.expect_download() as found:
        other.locator("#job").get_by_role("button", name=".docx").click()
    assert found.value.suggested_filename == "talk.docx"
    assert [part.text for part in docx.Document(str(found.value.path())).paragraphs] == [
        "talk",
        "Speaker 1 (00:00:00)",
        "Hello over there.",
        "Ada Lovelace (00:00:01)",
        "Good --> day.",
    ]
    pane.get_by_role("button", name="Undo").click()
    expect(pane.locator(".part .who").nth(1)).to_have_text("Speaker 2")
    field = pane.get_by_role("textbox", name="Name of Speaker 2")
    field.fill("Grace")
    field.evaluate(  # the next correction comes while the one before is on its way
        """async (field) => { field.dispatchEvent(new Event("change", { bubbles: true }));
        await new Promise((resolve) => setTimeout(resolve));
        [...document.querySelectorAll("#job button")].find((one) => one.textContent === "Back to the original").click();
        }"""
    )
    expect(pane.locator(".part").first.locator(".w")).to_have_text(["Hello", "there."])
    wait_until(lambda: site.get(f"/jobs/{job_id}/edits").json()["segments"] == {}, "the original")


def test_words_keep_their_times_when_a_text_changes(page: Page) -> None:
    """Words that stay, that are replaced, added and removed; scripts without spaces; nothing runs backwards."""

    def realign(words: list[tuple[str, float, float]], text: str, start: float, end: float) -> list[list[object]]:
        given = [{"word": word, "start": first, "end": last, "probability": 0.9} for word, first, last in words]
        found = page.evaluate(
            """([words, text, about]) => import("/static/align.js").then((its) => its.realign(words, text, about))""",
            [given, text, {"start": start, "end": end}],
        )
        last = start
        for word in found:
            assert last <= word["start"] <= word["end"] <= end, found
            last = word["start"]
        return [[word["word"], word["start"], word["end"], word["probability"] is not None] for word in found]

    said = [("we", 1.0, 1.2), ("chose", 1.2, 1.6), ("too", 1.6, 1.8), ("go.", 2.0, 2.4)]
    assert realign(said, "we choose to go.", 1, 3) == [
        ["we", 1.0, 1.2, True],
        ["choose", 1.2, 1.65, False],
        ["to", 1.65, 1.8, False],
        ["go.", 2.0, 2.4, True],
    ]
    assert realign(said, "we go.", 1, 3) == [["we", 1.0, 1.2, True], ["go.", 2.0, 2.4, True]]
    assert realign(said, "we chose too far go. now", 1, 3)[3:] == [
        ["far", 1.8, 2.0, False],
        ["go.", 2.0, 2.4, True],
        ["now", 2.4, 3.0, False],
    ]
    assert realign(said, "", 1, 3) == []
    assert realign([], "all new", 1, 3) == [["all", 1.0, 2.0, False], ["new", 2.0, 3.0, False]]
    chinese = [("你好", 0.0, 0.4), ("世界。", 0.5, 1.0)]
    assert realign(chinese, "你们好世界。", 0, 1) == [
        ["你", 0.0, 0.2, True],
        ["们", 0.2, 0.2, False],
        ["好", 0.2, 0.4, True],
        ["世", 0.5, 0.667, True],
        ["界。", 0.667, 1.0, True],
    ]


def test_several_recordings_become_a_job_each(page: Page, tmp_path: Path) -> None:
    sounds = [tmp_path / f"{uuid4().hex}.wav" for _ in range(3)]
    for sound in sounds:
        sound.write_bytes(wav())
    page.keyboard.press("n")
    form = page.locator("#submit")
    form.get_by_role("button", name="transcribe").click()
    form.locator("#field-audio").set_input_files(sounds)
    form.get_by_role("button", name="Submit 3 jobs").click()
    for sound in sounds:
        expect(page.locator(".row[data-state=completed]", has_text=sound.name)).to_be_visible()


def test_an_id_that_leads_nowhere_is_said(page: Page) -> None:
    page.locator("#search").fill("no-such-job")
    expect(page.locator(".empty")).to_contain_text("Enter opens the job with this id")
    page.keyboard.press("Enter")
    expect(page.locator("#job .sorry")).to_contain_text("There is no such job")


def test_a_file_that_a_job_wrote_is_saved(page: Page, site: Gateway) -> None:
    pane = open_job(page, site, site.submit("single", do="write"))
    with page.expect_download() as found:
        pane.get_by_role("link", name="written.bin").click()
    assert found.value.path().read_bytes() == b"x" * 11


def test_what_the_gateway_refuses_is_said_in_the_form(page: Page) -> None:
    page.keyboard.press("n")
    form = page.locator("#submit")
    form.get_by_role("button", name="fake", exact=True).click()
    form.get_by_text("Options").click()
    form.locator("#field-output").fill("/etc/passwd")
    form.get_by_role("button", name="Submit").click()
    expect(form.get_by_role("alert")).to_contain_text("outside the allowed folders")


def test_everything_is_done_by_keys(page: Page, site: Gateway) -> None:
    ids = [site.submit("fake", value=number) for number in range(3)]
    for job_id in ids:
        expect(row(page, job_id)).to_have_attribute("data-state", "completed")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("/")
    page.keyboard.type(ids[1])
    expect(page.locator(".row:visible")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    expect(page.locator("#rows")).to_be_focused()
    expect(page.locator("#rows")).to_have_attribute("aria-activedescendant", f"job-{ids[1]}")
    page.keyboard.press("Enter")
    expect(page.locator("#job .id")).to_have_text(ids[1])
    page.keyboard.press("Escape")
    expect(page.locator("#job")).to_be_hidden()
    page.keyboard.press("5")
    expect(page.locator("#states [data-state=failed]")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#rows")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#search")).to_be_focused()
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_systems_colours_are_taken_and_can_be_overruled(
    site: Gateway, visit: Callable[..., Page], scheme: str
) -> None:
    page = visit(site.base, color_scheme=scheme)

    def brightness() -> int:
        return sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))

    assert (brightness() < 200) == (scheme == "dark")
    other = "light" if scheme == "dark" else "dark"
    while page.evaluate("document.documentElement.dataset.theme") != other:
        page.locator("#theme").click()
    assert (brightness() < 200) == (other == "dark")
    page.reload()
    assert (brightness() < 200) == (other == "dark")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(site: Gateway, visit: Callable[..., Page]) -> None:
    page = visit(site.base, viewport={"width": 360, "height": 720}, has_touch=True, is_mobile=True)
    job_id = site.submit("single", do="raise", value="x" * 400)
    expect(row(page, job_id)).to_have_attribute("data-state", "failed")

    def fits() -> bool:
        wide = "[...document.querySelectorAll('body *')].filter(n => n.scrollWidth > n.clientWidth + 1"
        wide += " && ['auto', 'scroll'].includes(getComputedStyle(n).overflowX) && !n.matches('.segments')).length"
        return page.evaluate("document.documentElement.scrollWidth") <= 360 and page.evaluate(wide) == 0

    assert fits()
    cut = """node => { const pen = document.createElement("canvas").getContext("2d");
    pen.font = getComputedStyle(node).font;
    return [...node.options].some((option) => pen.measureText(option.text).width > node.clientWidth - 30); }"""
    assert not page.locator("#engine").evaluate(cut), "its longest name is clipped"
    assert not page.locator("#since").evaluate(cut)
    page.get_by_role("button", name="Pool").click()
    expect(page.locator("[data-engine=fake]")).to_be_visible()
    assert fits()
    page.get_by_role("button", name="Jobs").click()
    row(page, job_id).tap()
    expect(page.locator("#job .failure")).to_be_visible()
    box = page.locator("#job").bounding_box()
    assert box is not None
    assert box["width"] == 360
    assert fits()
    page.get_by_role("button", name="New job").tap()
    expect(page.locator("#submit")).to_be_visible()
    assert fits()


@pytest.mark.parametrize("size", [(1360, 850), (768, 600), (360, 640)], ids=str)
def test_nothing_in_the_form_is_squeezed_when_it_is_longer_than_the_page(
    site: Gateway, visit: Callable[..., Page], size: tuple[int, int]
) -> None:
    page = visit(site.base, viewport={"width": size[0], "height": size[1]})
    page.get_by_role("button", name="New job").first.click()
    form = page.locator("#submit form")
    form.get_by_role("button", name="transcribe", exact=True).click()
    form.get_by_text("Options").click()
    for element in form.locator("> *:visible").all():
        cut = element.evaluate("one => one.scrollHeight - one.clientHeight")
        assert cut <= 1, (element.evaluate("one => one.outerHTML.slice(0, 80)"), cut)
    box = form.get_by_role("group", name="Engine").bounding_box()
    assert box is not None
    assert box["height"] >= 27
