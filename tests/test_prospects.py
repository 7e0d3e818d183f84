"""What a job that waits may expect: the table of facts and answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.policy.prospects import Outlook, PoolFacts, RemoteEngine, RemoteFacts, RemoteNode, SlotFacts, prospect

FINE, COMING, HOPELESS = Outlook.FINE, Outlook.COMING, Outlook.HOPELESS
IDLE = SlotFacts("e-0", "e", "running", worker="e-0.1", serving=True)
LOADING = SlotFacts("e-0", "e", "running", worker="e-0.1")
BACKOFF = SlotFacts("e-0", "e", "waiting", error="OSError: no model", next_start_s=8.0)
BENCHED = SlotFacts("e-1", "e", "benched", error="ModuleNotFoundError: No module named 'foo'", why="exit code 4")
ALSO = SlotFacts("e-2", "e", "benched", error="ModuleNotFoundError: No module named 'foo'")
ORPHAN = SlotFacts("e-0", "e", "orphaned", worker="e-0.1", serving=True)
SPARE = SlotFacts("e-0", "e", "running", worker="e-0.1", spare=True)
DRAINED = SlotFacts("e-0", "e", "off")
OTHER = SlotFacts("other-0", "other", "running", worker="other-0.1", serving=True)


@pytest.mark.parametrize(
    ("facts", "outlook", "reason"),
    [
        (PoolFacts(True, [IDLE]), FINE, ""),
        (PoolFacts(True, [BENCHED, IDLE]), FINE, ""),
        (PoolFacts(True, []), COMING, "it is being started"),
        (PoolFacts(True, [LOADING, BENCHED]), COMING, "No module named 'foo'"),
        (PoolFacts(True, [BACKOFF]), COMING, "e-0: starts again in 8 s, after OSError: no model"),
        (PoolFacts(True, [SPARE]), COMING, "it is being started"),
        (PoolFacts(True, [BENCHED, ALSO, OTHER]), HOPELESS, "e-1, e-2: ModuleNotFoundError: No module named 'foo'"),
        (PoolFacts(True, [SlotFacts("e-0", "e", "benched", why="5 starts failed")]), HOPELESS, "e-0: 5 starts failed"),
        (PoolFacts(True, [SlotFacts("e-0", "e", "benched")]), HOPELESS, "e-0: it failed too often"),
        (PoolFacts(True, [OTHER], engines=["other"], config="/c.json"), HOPELESS, "read from /c.json, without an"),
        (PoolFacts(True, [IDLE], draining=True), HOPELESS, "the pool is draining"),
        (PoolFacts(True, [IDLE], draining=True, starter=""), COMING, "the pool is draining"),
        (PoolFacts(True, [DRAINED]), HOPELESS, "e-0: it failed too often"),
        (PoolFacts(False, []), HOPELESS, "no supervisor serves this spool"),
        (PoolFacts(False, [BENCHED]), HOPELESS, "no supervisor serves this spool"),
        (PoolFacts(False, [ORPHAN]), FINE, ""),
        (PoolFacts(False, [LOADING]), COMING, "no supervisor serves this spool at the moment"),
        (PoolFacts(False, [], starter=""), COMING, "no supervisor serves this spool at the moment"),
        (PoolFacts(False, [], starter="spool: no such key"), HOPELESS, "none can be started: spool: no such key"),
        (PoolFacts(False, [ORPHAN], starter="spool: no such key"), FINE, ""),
    ],
)
def test_what_may_be_expected(facts: PoolFacts, outlook: Outlook, reason: str) -> None:
    found = prospect("e", facts)
    assert found.outlook is outlook
    assert reason in found.reason
    assert bool(found.reason) == bool(found.sentence()) == (outlook is not FINE)
    assert bool(found.hint) == found.hopeless
    if found.hopeless:
        error = found.error("j-1")
        assert (error.engine, error.reason, error.hint, error.job_id) == ("e", found.reason, found.hint, "j-1")
        for words in (found.reason, found.hint, "Job j-1 is not lost", "attach('j-1')"):
            assert words in str(error)


SEATS = st.sampled_from(["waiting", "running", "ending", "benched", "off", "orphaned", ""])
SLOTS = st.lists(
    st.builds(
        SlotFacts,
        st.just("e-0"),
        st.just("e"),
        SEATS,
        worker=st.sampled_from(["", "e-0.1"]),
        error=st.sampled_from(["", "it broke"]),
    ),
    max_size=4,
)


@given(slots=SLOTS, served=st.booleans(), starter=st.sampled_from([None, ""]))
def test_nobody_is_given_up_while_a_process_lives_or_will_be_started(
    slots: list[SlotFacts], served: bool, starter: str | None
) -> None:
    found = prospect("e", PoolFacts(served, slots, starter=starter))
    alive = any(slot.worker for slot in slots)
    coming = any(slot.seat not in ("benched", "off") for slot in slots) or not slots
    assert found.hopeless == (not alive and (not coming if served else starter is None))


GPU7 = RemoteNode("gpu7", {"e": RemoteEngine(1, 1), "lipsync": RemoteEngine(1, 1)}, ("gpu24g", "x"))
COLD = RemoteNode("cold", {"e": RemoteEngine(2, 0, "e-0: loading for 4 s")}, ("a100",))
OTHER_NODE = RemoteNode("cpu1", {"other": RemoteEngine(1, 1)})
ONE = ("nats://one:4222",)


@pytest.mark.parametrize(
    ("away", "labels", "outlook", "reason"),
    [
        (RemoteFacts(), (), COMING, "the connection to the cluster is being made"),
        (RemoteFacts(True, False, "refused", ONE), (), HOPELESS, "the cluster does not answer: refused"),
        (RemoteFacts(True, True, "no JetStream", ONE), (), HOPELESS, "the cluster does not work: no JetStream"),
        (RemoteFacts(True, True), (), HOPELESS, "no node of the cluster offers e; no node is there"),
        (RemoteFacts(True, True, nodes=[OTHER_NODE]), (), HOPELESS, "offers e; there are: cpu1 (other)"),
        (RemoteFacts(True, True, nodes=[COLD, OTHER_NODE]), (), COMING, "cold: e-0: loading for 4 s"),
        (RemoteFacts(True, True, nodes=[COLD, GPU7]), (), FINE, ""),
        (RemoteFacts(True, True, nodes=[COLD, GPU7]), ("gpu24g", "x"), FINE, ""),
        (RemoteFacts(True, True, nodes=[COLD, GPU7]), ("a100",), COMING, "cold: e-0: loading for 4 s"),
        (RemoteFacts(True, True, nodes=[COLD, GPU7]), ("gpu80g", "x"), HOPELESS, "no node has gpu80g"),
        (RemoteFacts(True, True, nodes=[COLD, GPU7]), ("a100", "x"), HOPELESS, "no node that offers e has a100 and x"),
        (RemoteFacts(True, True, nodes=[replace(GPU7, draining=True)]), (), HOPELESS, "gpu7: draining"),
        (RemoteFacts(True, True, nodes=[replace(GPU7, draining=True), COLD]), (), COMING, "cold: e-0"),
    ],
)
def test_what_may_be_expected_of_a_cluster(
    away: RemoteFacts, labels: tuple[str, ...], outlook: Outlook, reason: str
) -> None:
    facts = PoolFacts(True, engines=[], away=away)
    found = prospect("e", facts, labels)
    assert found.outlook is outlook
    assert reason in found.reason
    assert bool(found.reason) == (outlook is not FINE)
    assert bool(found.hint) == found.hopeless
    if away.trouble:
        assert "nats://one:4222" in found.hint
        assert "python -m pool.cluster status" in found.hint
    unserved = prospect("e", replace(facts, served=False))
    assert unserved.reason == "no supervisor serves this spool"


def test_many_nodes_are_named_in_part() -> None:
    nodes = [replace(OTHER_NODE, name=f"n{number}") for number in range(12)]
    reason = prospect("e", PoolFacts(True, away=RemoteFacts(True, True, nodes=nodes))).reason
    assert "n9 (other) and 2 more" in reason
    assert "n10" not in reason
