"""Jobs that another machine has: one place each, whoever is killed, and everybody who looks finds them."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from steps import JobMaker, claim_next, dying, in_child, places, seat, watch_moves

from pool.client.browse import Filter, one, page
from pool.client.filepool import FilePool
from pool.client.hopes import Hopes
from pool.client.selection import chosen_jobs
from pool.config.settings import Config
from pool.errors import JobConflict, JobRefused, ProtocolError
from pool.format.names import MAX_ATTEMPTS, job_name, parse_job
from pool.gateways.http import views
from pool.gateways.http.ledger import Ledger
from pool.job import Failure, Job, JobState, Progress, Record, digest_of
from pool.job.moments import SpoolTime
from pool.job.terms import Terms
from pool.policy.prospects import Outlook, PoolFacts, SlotFacts
from pool.spool import away, fsops, lookup, settlement
from pool.spool.attempts import cancel_path, frame, partial_path
from pool.spool.away import Away
from pool.spool.dependencies import gone, needed
from pool.spool.seizure import Seizer
from pool.spool.store import Spool
from pool.supervise.control import Control
from pool.supervise.expiry import Expiry
from pool.supervise.retention import purge, sweep_remains

FAILURE = Failure("engine", "it broke", "run", 1)


def send_next(spool: Spool, engine: str = "echo") -> Away:
    """The first waiting job, on its way."""
    name = parse_job(spool.list_ready(engine)[0])
    assert name is not None
    sent = away.send(spool, engine, name)
    assert sent is not None
    return sent


def end_of(sent: Away, state: JobState = JobState.COMPLETED, attempt: int = 1, value: object = None) -> Record:
    """What a node made of it."""
    failure = None if state is JobState.COMPLETED else replace(FAILURE, attempt=attempt)
    born = sent.name.born
    return Record(sent.name.id, sent.engine, state, attempt, born, born + 1, born + 2, "node", value, failure)


def say(spool: Spool, job_id: str, status: str, percent: float = 0.0, message: str = "", attempt: int = 1) -> None:
    """A word of the port."""
    body = Progress(status, percent, message, attempt).to_bytes()
    fsops.put(spool.temp(), spool.progress_path(job_id), [body], sync=False)


# ---- transitions


def test_a_job_goes_away_and_ends(spool: Spool, make_job: JobMaker) -> None:
    job = make_job(id="mine", params={"text": "ü"}, priority=3)
    name = spool.submit(job)
    sent = send_next(spool)
    assert sent == (f"{spool.root}/away/echo.{name}", "echo", name)
    assert away.waiting(spool) == [sent] == [away.find(spool, "mine")]
    assert away.read(spool, sent) == job
    assert places(spool) == {"away": ["mine"], "ids": ["mine"]}
    begun = away.begin(spool, sent, 1)
    assert begun.name == name._replace(attempts=1)
    say(spool, "mine", "inference")
    spool.note("mine", FAILURE)
    assert away.finish(spool, begun, end_of(begun, value={"answer": 42}), reply="json")
    assert spool.read_record("mine").value == {"answer": 42}
    assert places(spool) == {"out": ["mine"], "ids": ["mine"]}
    assert sorted(os.listdir(spool.root / "out")) == ["mine.json", "mine.msgpack"]
    assert not os.listdir(spool.root / "progress")
    assert not os.listdir(spool.root / "run" / "attempts")
    spool.submit(job)  # the same content again is the same job
    assert places(spool) == {"out": ["mine"], "ids": ["mine"]}


def test_what_goes_away_while_somebody_looks_is_seen(spool: Spool, make_job: JobMaker) -> None:
    job = make_job()
    spool.submit(job)
    look = lookup.undecided(spool)  # it has not begun
    send_next(spool)
    assert [place.name.id for place in look if place.name] == [job.id]


def test_one_of_two_has_it(spool: Spool, make_job: JobMaker) -> None:
    name = spool.submit(make_job())
    assert away.send(spool, "echo", name)
    assert away.send(spool, "echo", name) is None
    assert spool.claim("echo", name, seat(spool)) is None
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    assert away.send(spool, "echo", claim.name.released()) is None


def test_attempts_only_rise(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job())
    sent = send_next(spool)
    assert away.begin(spool, sent, 0) == sent
    third = away.begin(spool, sent, 3)
    assert third.name.attempts == 3
    assert away.begin(spool, third, 2) == away.begin(spool, third, 3) == third
    most = away.begin(spool, third, 1000)
    assert most.name.attempts == MAX_ATTEMPTS
    assert away.begin(spool, most, 1001) == most
    assert away.waiting(spool) == [most]


@pytest.mark.parametrize("attempts", [0, 2])
def test_a_job_comes_back_with_its_attempts(spool: Spool, make_job: JobMaker, attempts: int) -> None:
    spool.submit(make_job(id="mine"))
    sent = away.begin(spool, send_next(spool), attempts)
    say(spool, "mine", "inference", 40, attempt=2)
    away.come_back(spool, sent)
    assert spool.list_ready("echo") == [str(sent.name)]
    assert lookup.progress_now(spool, "mine").message == "next in the queue"
    assert claim_next(spool, seat(spool)).name.attempts == attempts + 1
    with pytest.raises(FileNotFoundError):
        away.come_back(spool, sent)


def test_a_job_that_failed_away_is_dead_and_runs_again_on_request(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(id="mine"))
    sent = away.begin(spool, send_next(spool), 2)
    assert away.finish(spool, sent, end_of(sent, JobState.FAILED, 2))
    assert places(spool) == {"out": ["mine"], "dead": ["mine"], "ids": ["mine"]}
    spool.requeue(*lookup.await_dead(spool, "mine"))
    assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
    again = send_next(spool)
    assert again.name.attempts == 0
    assert away.finish(spool, again, end_of(again))


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
def test_the_first_end_stays(spool: Spool, make_job: JobMaker, state: JobState) -> None:
    spool.submit(make_job(id="mine"))
    sent = send_next(spool)
    spool.publish(end_of(sent, state, value=1), "", False)
    assert lookup.find(spool, "mine").state is state
    assert not away.finish(spool, sent, end_of(sent, JobState.FAILED))
    assert spool.read_record("mine").state is state
    dead = ["mine"] if state is JobState.FAILED else None
    assert places(spool) == {"out": ["mine"], "ids": ["mine"], **({"dead": dead} if dead else {})}
    assert not away.finish(spool, sent, end_of(sent))  # once more, by a port that was killed before it heard


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x80", b"other"])
def test_what_is_no_job_is_refused(spool: Spool, make_job: JobMaker, content: bytes) -> None:
    spool.submit(make_job(id="other"))
    other = send_next(spool)
    body = Path(other.path).read_bytes() if content == b"other" else content
    name = job_name(0, spool.now(), "mine")
    Path(spool.root, "away", f"echo.{name}").write_bytes(body)
    mine = away.find(spool, "mine")
    assert mine is not None
    with pytest.raises(ProtocolError):
        away.read(spool, mine)


def test_foreign_files_are_not_touched(spool: Spool, hostile_names: tuple[bytes, ...]) -> None:
    folder = os.fsencode(spool.root / "away")
    for name in hostile_names:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT))
    assert away.waiting(spool) == []
    assert lookup.counts(spool) == {}
    sweep_remains(spool)
    assert sorted(os.listdir(folder)) == sorted(hostile_names)


def test_a_spool_of_an_earlier_version_has_nothing_away(root: Path, spool: Spool, make_job: JobMaker) -> None:
    (root / "away").rmdir()
    (clock,) = (root / "run").glob("clock-*")
    clock.unlink()
    old = Spool(root, durable=False)
    old.submit(make_job(id="mine"))
    assert away.waiting(old) == []
    assert lookup.find(old, "mine").state is JobState.QUEUED
    Spool.create(root)
    assert (root / "away").is_dir()


# ---- jobs of others


def _foreign(spool: Spool, job_id: str = "theirs", params: object = None, **more: object) -> Job:
    digest = digest_of("echo", {"n": params}, None)
    return Job(job_id, "echo", {"n": params}, **{"created": spool.now(), "digest": digest, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [True, False])
def test_a_job_of_another_machine_is_known_here(spool: Spool, config: Config, named: bool) -> None:
    soon = spool.now() + 10**6
    terms = Terms.from_map({"durable": True, "expires": soon, "depends_on": ["nobody"], "not_before": soon})
    job = _foreign(spool, terms=terms, digest=_foreign(spool).digest if named else "")
    sent = away.import_job(spool, job)
    assert sent is not None
    assert away.read(spool, sent) == job
    assert away.import_job(spool, job) == sent
    begun = away.begin(spool, sent, 1)
    assert away.import_job(spool, job) == begun
    assert places(spool) == {"away": ["theirs"], **({"ids": ["theirs"]} if named else {})}
    assert not os.listdir(spool.root / "run" / "expiry")
    assert not os.listdir(spool.root / "run" / "dependants")
    with FilePool(config, start=False) as pool:
        future = pool.attach("theirs")
        assert pool.state("theirs") is JobState.RUNNING
        away.finish(spool, begun, end_of(begun, value={"n": 1}))
        assert future.result(10) == {"n": 1}
    assert away.import_job(spool, job) is None  # its end is here


def test_an_imported_id_belongs_to_its_job(spool: Spool) -> None:
    assert away.import_job(spool, _foreign(spool, params=1))
    mine = _foreign(spool, params=2)
    with pytest.raises(JobConflict):
        spool.submit(mine)
    spool.submit(_foreign(spool, params=1))
    assert places(spool) == {"away": ["theirs"], "ids": ["theirs"]}
    spool.submit(_foreign(spool, "ours", params=1))
    with pytest.raises(JobConflict):
        away.import_job(spool, _foreign(spool, "ours", params=2))
    assert away.import_job(spool, _foreign(spool, "ours", params=1)) is None  # it waits here
    assert places(spool) == {"away": ["theirs"], "ready": ["ours"], "ids": ["ours", "theirs"]}


def test_a_job_that_cannot_be_stored_leaves_nothing(spool: Spool) -> None:
    with pytest.raises(JobRefused):
        away.import_job(spool, replace(_foreign(spool), params={"a": object()}))
    assert places(spool) == {}


def test_the_clock_of_another_machine_does_not_become_ours(spool: Spool) -> None:
    ahead = _foreign(spool, created=spool.now() + 10**13)
    sent = away.import_job(spool, ahead)
    assert sent is not None
    assert sent.name.born <= spool.now()
    assert away.read(spool, sent).created == sent.name.born


def test_an_imported_job_is_on_disk_before_it_is_acknowledged(root: Path) -> None:
    spool = Spool.create(root, durable=True)
    trace: list[str] = []
    fsops.hook = lambda operation, path: trace.append(f"{operation} {Path(path).relative_to(root).parts[0]}")
    away.import_job(spool, _foreign(spool, digest=""))
    fsops.hook = None
    assert trace == ["create tmp", "write tmp", "fsync tmp", "rename away", "syncdir away"]


# ---- killed


@pytest.mark.parametrize("outcome", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
@pytest.mark.invariant(1, 8)
def test_killed_anywhere_a_job_that_goes_away_is_in_one_place(
    root: Path, spool: Spool, make_job: JobMaker, outcome: JobState
) -> None:
    """send, come back, send, begin, begin, finish in a process that ends at operation n, for every n (from the second
    send on for the other outcomes: until then their way is the same); and a port that goes on, and ends at operation m,
    and one that is left alone."""
    whole = outcome is JobState.COMPLETED

    def go_on(port: Spool) -> None:
        """What a port does that finds a spool: it is idempotent."""
        for engine in os.listdir(port.root / "ready"):
            for name in filter(None, map(parse_job, port.list_ready(engine))):
                away.send(port, engine, name)
        for sent in away.waiting(port):
            begun = sent
            if not port.decided(sent.name.id):
                begun = away.begin(port, sent, 2)
                say(port, "mine", "inference", attempt=2)
                port.note("mine", FAILURE)
            away.finish(port, begun, end_of(begun, outcome, 2, {"text": "x" * 1000}), reply="json")

    def life() -> None:
        port = Spool(root, durable=True)
        if whole:
            dying(number)
        sent = send_next(port)
        away.begin(port, sent, 1)
        (sent,) = away.waiting(port)
        away.come_back(port, sent)
        if not whole:
            dying(number)
        go_on(port)

    def recover() -> None:
        port = Spool(root, durable=True)
        if again:
            dying(again)
        go_on(port)

    for number in range(1, 100):
        spool.submit(make_job(id="mine"))
        ended = in_child(life)
        assert ended in (0, 99)
        found = places(spool)
        waits = [place for place in ("ready", "away", "dead") if place in found]
        assert waits or "out" in found, number
        assert len(waits) <= 1, (number, found)
        if "out" in found:
            assert lookup.find(spool, "mine").state is outcome
        else:
            assert lookup.find(spool, "mine").state in (JobState.QUEUED, JobState.RUNNING)
        again = number % 7 + 1
        assert in_child(recover) in (0, 99)
        again = 0
        assert in_child(recover) == 0
        for name in os.listdir(root / "tmp"):
            os.unlink(root / "tmp" / name)
        found = places(spool)
        dead = {"dead": ["mine"]} if outcome is JobState.FAILED else {}
        assert found == {"out": ["mine"], "ids": ["mine"], **dead}, number
        assert spool.read_record("mine").state is outcome
        assert not os.listdir(root / "progress"), number
        assert not os.listdir(root / "run" / "attempts"), number
        purge(spool)
        assert places(spool) == {}
        if ended == 0:
            assert number > (20 if whole else 10)
            return
    pytest.fail("it never came through")


def test_killed_anywhere_an_import_is_whole_or_not_at_all(root: Path, spool: Spool) -> None:
    def bring() -> None:
        port = Spool(root, durable=True)
        if number:
            dying(number)
        away.import_job(port, _foreign(port, params=1))

    for number in itertools.count(1):
        ended = in_child(bring)
        assert places(spool).get("away") in (None, ["theirs"])
        last, number = number, 0
        assert in_child(bring) == 0  # it is asked for again
        found = places(spool)
        found.pop("tmp", None)
        assert found == {"away": ["theirs"], "ids": ["theirs"]}
        (sent,) = away.waiting(spool)
        away.finish(spool, sent, end_of(sent))
        purge(spool)
        for name in os.listdir(root / "tmp"):
            os.unlink(root / "tmp" / name)
        if ended == 0:
            assert last > 5
            return
        number = last


# ---- looking


@pytest.fixture
def sent(spool: Spool, make_job: JobMaker) -> dict[str, Away]:
    """waits: not begun. runs: begun. again: begun, and waits for its second attempt."""
    found = {}
    for job_id, attempts in (("waits", 0), ("runs", 1), ("again", 1)):
        spool.submit(make_job(id=job_id, tags=[job_id]))
        found[job_id] = away.begin(spool, send_next(spool), attempts)
    say(spool, "runs", "inference", 40, "sentence 3 of 7")
    say(spool, "again", "queued", 0, "node1 was lost; waits for another")
    return found


def test_where_a_job_is_that_is_away(spool: Spool, sent: dict[str, Away]) -> None:
    for job_id, state in (("waits", JobState.QUEUED), ("runs", JobState.RUNNING), ("again", JobState.QUEUED)):
        place = lookup.find(spool, job_id)
        assert place == lookup.Location(state, "echo", sent[job_id].path, sent[job_id].name, away=True)
    assert lookup.counts(spool) == {"echo": Counter({"queued": 2, "running": 1})}
    assert list(lookup.waiting(spool)) == list(lookup.running(spool)) == []
    assert {place.name.id for place in lookup.undecided(spool) if place.name} == set(sent)


def test_progress_of_a_job_that_is_away(spool: Spool, sent: dict[str, Away]) -> None:
    def now(job_id: str) -> tuple[str, float, str, int]:
        word = lookup.progress_now(spool, job_id)
        return word.status, word.percent, word.message, word.attempt

    assert now("waits") == ("queued", 0.0, "waits in the cluster", 0)
    assert now("runs") == ("inference", 40.0, "sentence 3 of 7", 1)
    assert now("again") == ("queued", 0.0, "node1 was lost; waits for another", 1)
    os.unlink(spool.progress_path("again"))
    assert now("again") == ("processing", 0.0, "", 1)


def test_a_list_of_jobs_that_are_away(spool: Spool, sent: dict[str, Away]) -> None:
    shown = {job.id: (job.state.value, job.attempt, job.percent, job.message, job.took_s) for job in page(spool)}
    assert shown == {
        "waits": ("queued", 0, None, "", None),
        "runs": ("running", 1, 40.0, "sentence 3 of 7", None),
        "again": ("queued", 1, 0.0, "node1 was lost; waits for another", None),
    }
    assert [job.id for job in page(spool, Filter(state="queued"))] == ["again", "waits"]
    assert [job.id for job in page(spool, Filter(state="running"))] == ["runs"]
    first = page(spool, Filter(state="queued"), limit=1)
    second = page(spool, Filter(state="queued"), limit=1, after=first.next)
    assert [job.id for job in (*first, *second)] == ["again", "waits"]
    assert [job.id for job in page(spool, Filter(state="held"))] == []
    assert [job.id for job in page(spool, Filter(tag="runs"))] == ["runs"]
    assert [job.id for job in page(spool, Filter(engine="fake"))] == []
    assert one(spool, "runs").percent == 40.0
    assert chosen_jobs(spool, None, engine="echo") == ["waits", "again", "runs"]


def test_the_gateway_shows_jobs_that_are_away(spool: Spool, sent: dict[str, Away]) -> None:
    views_of = {view.id: view for view in views.listed(spool, Ledger(spool), states=(), engine=None, limit=10).jobs}
    assert next(iter(views_of)) == "runs"
    told = {job_id: (view.state, view.status, view.message) for job_id, view in views_of.items()}
    assert told == {
        "waits": ("queued", "queued", "waits in the cluster"),
        "runs": ("running", "inference", "sentence 3 of 7"),
        "again": ("queued", "queued", "node1 was lost; waits for another"),
    }
    assert views.look(spool, "waits").message == "waits in the cluster"
    assert views.look(spool, "waits").ahead is None


def test_what_a_job_may_expect_that_is_away(spool: Spool, make_job: JobMaker, sent: dict[str, Away]) -> None:
    """No slot serves its engine here: what has begun elsewhere may end all the same."""
    facts = PoolFacts(served=True, engines=())
    spool.submit(make_job(id="later", depends_on=["runs"]))
    spool.submit(make_job(id="never", depends_on=["waits"]))
    names = ("waits", "runs", "later", "never")
    found = Hopes(spool).of(dict.fromkeys(names, "echo"), facts)
    assert found["waits"].outlook is found["never"].outlook is Outlook.HOPELESS
    assert found["runs"].outlook is Outlook.FINE


def test_a_job_may_wait_for_one_of_an_engine_that_has_no_queue_here(spool: Spool, make_job: JobMaker) -> None:
    away.import_job(spool, Job("theirs", "fake", {}, created=spool.now()))
    spool.submit(make_job(id="mine", depends_on=["theirs"]))
    slots = [SlotFacts("echo-0", "echo", "running", serving=True)]
    facts = PoolFacts(served=True, slots=slots, engines=("echo",))
    found = Hopes(spool).of({"mine": "echo"}, facts)["mine"]
    assert (found.engine, found.outlook) == ("fake", Outlook.HOPELESS)
    assert Hopes(spool).of({"theirs": "fake"}, facts)["theirs"].hopeless


def test_what_belongs_to_a_job_that_is_away_stays(spool: Spool, make_job: JobMaker, sent: dict[str, Away]) -> None:
    spool.submit(make_job(id="first"))
    first = send_next(spool)
    spool.submit(make_job(id="second", depends_on=["first"]))
    second = lookup.find(spool, "second")
    os.rename(second.path, f"{spool.ready_dir('echo')}/{second.name}")
    send_next(spool)
    away.finish(spool, first, end_of(first))
    spool.note("runs", FAILURE)
    kept = [partial_path(spool, "runs", 1), spool.progress_path("runs"), spool.note_path("runs", 1)]
    Path(kept[0]).write_bytes(frame(b"\x80"))
    before = sorted(spool.root.rglob("*"))
    assert sweep_remains(spool) == 0
    assert sorted(spool.root.rglob("*")) == before
    assert needed(spool) == {"first"}
    assert gone(spool, ["runs", "waits", "first"]) is None
    assert purge(spool) == 0


# ---- the supervisor leaves it alone


def test_a_request_to_stop_stays_for_the_port(spool: Spool, config: Config, sent: dict[str, Away]) -> None:
    with FilePool(config, start=False) as pool:
        assert all(pool.cancel(job_id) for job_id in sent)
    control = Control(spool, list, Seizer(spool, 1), lambda: None, turn_s=math.inf)
    before = places(spool)
    for _ in range(2):
        control.turn()
        assert places(spool) == before
        assert sorted(os.listdir(spool.root / "run" / "control")) == sorted(f"{job_id}.cancel" for job_id in sent)
    away.finish(spool, sent["waits"], end_of(sent["waits"], JobState.CANCELLED))
    away.come_back(spool, sent["again"])
    control.turn()
    assert os.listdir(spool.root / "run" / "control") == ["runs.cancel"]
    assert spool.read_record("again").state is JobState.CANCELLED


def test_many_requests_stay_as_well(spool: Spool, make_job: JobMaker) -> None:
    for number in range(10):
        spool.submit(make_job(id=f"job{number}"))
        send_next(spool)
        fsops.write_new(cancel_path(spool, f"job{number}"), [b""], sync=False)
    Control(spool, list, Seizer(spool, 1), lambda: None, turn_s=math.inf).turn()
    assert len(os.listdir(spool.root / "run" / "control")) == len(away.waiting(spool)) == 10


def test_a_job_that_waits_in_the_cluster_does_not_expire_here(spool: Spool, make_job: JobMaker) -> None:
    for job_id in ("away", "begun", "back"):
        spool.submit(make_job(id=job_id, expires=SpoolTime(spool.now() + 1)))
    sent = [send_next(spool) for _ in range(3)]
    away.begin(spool, sent[1], 1)
    expiry = Expiry(spool, Seizer(spool, 1), turn_s=math.inf)
    time.sleep(0.001)
    for _ in range(2):
        assert expiry.turn() is None
        marks = [name.partition(".")[2] for name in os.listdir(spool.root / "run" / "expiry")]
        assert sorted(marks) == ["away", "back"]
    assert len(away.waiting(spool)) == 3
    assert settlement.too_late(spool, away.read(spool, sent[0]), sent[0].name) is not None
    away.come_back(spool, sent[2])
    away.finish(spool, sent[0], end_of(sent[0]))
    expiry.turn()
    assert not os.listdir(spool.root / "run" / "expiry")
    record = spool.read_record("back")
    assert record.failure is not None
    assert record.failure.kind == "expired"


def test_nobody_else_takes_a_job_that_is_away(spool: Spool, sent: dict[str, Away]) -> None:
    seizer = Seizer(spool, 1)
    assert [seizer.seize(place) for place in lookup.sent(spool)] == [None] * 3
    assert len(away.waiting(spool)) == 3


# ---- while everything moves

_MOVE = """
import os, sys, time
from pathlib import Path
from pool.job import Job, JobState, Record
from pool.format.names import parse_job
from pool.spool import away
from pool.spool.store import Spool

root, back = Path(sys.argv[1]), sys.argv[2] == "back and forth"
spool = Spool(root, durable=False)
end, number = time.monotonic() + 2.0, 0

def send():
    return away.send(spool, "echo", parse_job(spool.list_ready("echo")[0]))

while time.monotonic() < end:
    number += 1
    job = Job(f"job-{number}", "echo", created=spool.now())
    spool.submit(job)
    os.symlink(job.id, root.parent / "next")
    os.rename(root.parent / "next", root.parent / "current")  # acknowledged: from now on it is somewhere
    sent = send()
    for attempt in range(1, 4):
        sent = away.begin(spool, sent, attempt)
        if back:
            away.come_back(spool, sent)
            sent = send()
    away.finish(spool, sent, Record(job.id, "echo", JobState.COMPLETED, 3, 1, 2, 3, "node"))
print(number)
"""


@pytest.mark.parametrize("how", ["forward", "back and forth"])
@pytest.mark.invariant(1)
def test_a_job_that_moves_is_never_nowhere(root: Path, spool: Spool, child_env: dict[str, str], how: str) -> None:
    seen = watch_moves(spool, [_MOVE, str(root), how], child_env)
    assert seen[JobState.COMPLETED]


@pytest.mark.invariant(1)
def test_one_empty_pass_is_no_evidence(spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """RACE: it comes back after ready/ was listed and before away/ is."""
    spool.submit(make_job(id="mine"))
    sent = send_next(spool)
    real, moved = Spool.list_away, []

    def list_away(self: Spool) -> list[str]:
        if not moved:
            moved.append(1)
            away.come_back(spool, sent)
        return real(self)

    monkeypatch.setattr(Spool, "list_away", list_away)
    assert lookup.find(spool, "mine").state is JobState.QUEUED
    assert moved


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.invariant(1, 8)
def test_whatever_a_port_does_each_job_is_in_one_place(spool: Spool, make_job: JobMaker, seed: int) -> None:
    chance = Random(seed)
    ids = {f"job{number}" for number in range(5)}
    for job_id in ids:
        spool.submit(make_job(id=job_id))

    def some() -> Away:
        return chance.choice(away.waiting(spool))

    def finish() -> None:
        sent = some()
        away.finish(spool, sent, end_of(sent, chance.choice([JobState.COMPLETED, JobState.FAILED]), 2))

    def retry() -> None:
        spool.requeue(*lookup.find_dead(spool, chance.choice(places(spool)["dead"])))

    steps: list[Callable[[], object]] = [
        lambda: send_next(spool),
        lambda: send_next(spool),
        lambda: away.begin(spool, some(), chance.randrange(4)),
        lambda: away.come_back(spool, some()),
        finish,
        retry,
    ]
    for _ in range(60):
        try:
            chance.choice(steps)()
        except (IndexError, KeyError):
            continue
        found = places(spool)
        in_place = Counter(job_id for place in ("ready", "away", "out") for job_id in found.get(place, ()))
        assert in_place == Counter(ids)
        assert {job.id for job in page(spool)} == ids
