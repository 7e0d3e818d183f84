"""A transcript that is made in two attempts is the one that a single attempt makes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
import pytest
from scenarios.world import World, wait_until

from inference.audio import Array
from inference.base import LocalContext
from inference.transcribe import Transcribe
from inference.transcribe.outputs import join_texts
from pool.format import codec

pytestmark = [pytest.mark.model, pytest.mark.long, pytest.mark.timeout(600)]
RATE = 16_000


class Saving(LocalContext):
    """Keeps every checkpoint as the pool stores it."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[bytes] = []

    def checkpoint(self, state: Mapping[str, object]) -> None:
        self.files.append(codec.encode(dict(state)))


class Single(NamedTuple):
    """What a single attempt made, and what it had saved on the way."""

    params: dict[str, Any]
    result: dict[str, Any]
    partials: list[dict[str, object]]
    checkpoints: list[bytes]


def write(path: Path, samples: Array) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module", params=["mix", "split"])
def single(
    request: pytest.FixtureRequest,
    engine: Transcribe,
    speech: dict[str, Array],
    tmp_path_factory: pytest.TempPathFactory,
) -> Single:
    """Two people in turn over some windows; or one after the other, each on a channel and faintly on the other one."""
    pause = np.zeros(RATE, np.float32)
    if request.param == "mix":
        sound = np.concatenate([speech["two_speakers"], pause, speech["address"]])
    else:
        one = np.concatenate([speech["address"], pause])
        sound = np.stack([np.concatenate([one, one * 0.05]), np.concatenate([one * 0.05, one])], axis=1)
    path = write(tmp_path_factory.mktemp("resume") / "meeting.wav", sound)
    params = {"audio": str(path), "channels": request.param, "batch_size_s": 15.0}
    with Saving() as context:
        result = engine.run(engine.check(params), context)
    assert result.pop("resumed_s") is None
    return Single(params, result, context.partials, context.files)


def test_partial_results_replay_to_the_result(single: Single) -> None:
    """Each partial is some segments of the result in a row, but for speakers and cues; nothing of it is revised."""
    left = [{**segment, "speaker": None, "cues": []} for segment in single.result["segments"]]
    for part in sorted(single.partials, key=lambda part: cast("float", part["start"])):  # channels take turns
        words = cast("list[dict[str, Any]]", part["words"])
        assert words
        cuts: list[dict[str, Any]] = []
        while sum(len(cut["words"]) for cut in cuts) < len(words):
            cuts.append(left.pop(0))
        found = [word for cut in cuts for word in cut["words"]]
        assert [{**word, "speaker": None} for word in found] == words
        assert (cuts[0]["start"], max(cut["end"] for cut in cuts)) == (part["start"], part["end"])
        assert join_texts([cut["text"] for cut in cuts]) == part["text"]
        assert {cut["language"] for cut in cuts} == {part["language"]}
        for one, following in itertools.pairwise(cuts):
            assert one["words"][-1]["speaker"] != following["words"][0]["speaker"], "only a new speaker cuts a partial"
    assert not left, "the result holds nothing that no partial told"


@pytest.mark.parametrize("which", ["first", "last"])
def test_the_transcript_goes_on_from_a_checkpoint(engine: Transcribe, single: Single, which: str) -> None:
    assert len(single.checkpoints) > 1
    with LocalContext() as context:
        context.saved = codec.decode(single.checkpoints[0 if which == "first" else -1])
        at = context.saved["recognised_s"]
        found = engine.run(engine.check(single.params), context)
    assert found.pop("resumed_s") == at
    assert found == single.result
    # channels that are heard apart take turns; those of the attempt before come first
    assert sorted(map(json.dumps, context.partials)) == sorted(map(json.dumps, single.partials))


@pytest.mark.parametrize("single", ["mix"], indirect=True)
def test_a_killed_worker_is_replaced_by_one_that_goes_on(single: Single, tmp_path: Path) -> None:
    """kill -9 once something is saved: the next worker does only what is left, and says so."""
    world = World(tmp_path)
    try:
        spec, options = "inference.transcribe:Transcribe", {"cpu_threads": 1}
        world.configure({"speech": {"engine": spec, "max_concurrent_tasks": 1, "options": options}}).serve(ready=1)
        future = world.pool().submit("speech", **single.params)
        path = world.spool / "run" / "checkpoints" / future.id
        wait_until(path.exists, "a checkpoint", 120)
        saved = codec.decode(msgpack.unpackb(path.read_bytes())[4])["recognised_s"]
        (slot,) = [slot for slot in world.status()["slots"] if slot["pid"]]
        os.kill(slot["pid"], signal.SIGKILL)
        result = dict(future.result(180))
        assert future.record is not None
        assert future.record.attempt == 2
        assert result.pop("resumed_s") >= saved > 0
        assert json.dumps(result) == json.dumps(single.result)
        wait_until(lambda: not path.exists(), "no checkpoint left")
    finally:
        world.close()
