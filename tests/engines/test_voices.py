"""The networks that hear voices: the same numbers as others' code, and what they hear in real speech."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scenarios.world import ROOT

from inference import weights
from inference.audio import Array
from inference.base import EngineError
from inference.dialogues import telephone
from inference.transcribe.campplus import CamPlusPlus
from inference.transcribe.diarize import ENCODER_FILE, SEGMENTATION_FILE
from inference.transcribe.segmentation import FIRST, STEP, Segmentation
from inference.transcribe.voices import LEAST_S, SAMPLE_RATE, Listener, SpeakerEncoder, Voices, _runs, windows_over


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the packages that funasr brings along
@pytest.mark.parametrize("frames", [38, 158, 430])
def test_vectors_are_those_of_another_implementation(frames: int) -> None:
    theirs = pytest.importorskip("funasr.models.campplus.model").CAMPPlus(feat_dim=80, embedding_size=192)
    torch.manual_seed(0)
    for name, value in theirs.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0.0, 0.2)
    theirs.eval()
    mels = torch.randn(3, frames, 80)
    with torch.inference_mode():
        wanted, got = theirs(mels), CamPlusPlus(dict(theirs.state_dict()))(mels)
    assert got.shape == (3, 192)
    assert torch.allclose(got, wanted, atol=2e-4 * float(wanted.abs().max()))


_GROWTH = """
import sys
import numpy as np, torch
from inference import memory, weights
from inference.transcribe.diarize import ENCODER_FILE
from inference.transcribe.voices import SpeakerEncoder

torch.set_num_threads(1)
encoder, sizes = SpeakerEncoder(weights.find(ENCODER_FILE)), []
for frames in range(60, 360, 10):
    encoder.encode(np.random.default_rng(frames).standard_normal((frames, 80)).astype(np.float32), [(0, frames * 150)])
    memory.give_back()
    with open("/proc/self/statm") as stream:
        sizes.append(int(stream.read().split()[1]) * 4096)
print((sizes[-1] - sizes[3]) / 2**20)
"""


@pytest.mark.long
@pytest.mark.model
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_stretches_of_all_lengths_cost_no_memory_each() -> None:
    """Half a megabyte for each length there was, where oneDNN keeps what it compiles: 17 MB of these."""
    bare = {key: value for key, value in os.environ.items() if key != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run(
        [sys.executable, "-c", _GROWTH], cwd=ROOT, env=bare, capture_output=True, text=True, timeout=200, check=True
    )
    assert float(done.stdout) < 12


@pytest.mark.model
@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_other_networks_are_refused(tmp_path: Path, change: str) -> None:
    wrong = torch.load(weights.find(ENCODER_FILE), weights_only=True)
    if change == "missing":
        del wrong["xvector.block2.tdnnd24.linear1.weight"]
    elif change == "unknown":
        wrong["head.layer3.0.conv1.weight"] = torch.zeros(1)
    else:
        wrong["xvector.dense.linear.weight"] = torch.zeros(192, 7, 1)
    torch.save(wrong, tmp_path / "encoder.pt")
    with pytest.raises(EngineError, match=r"encoder\.pt holds no CAM\+\+ speaker encoder"):
        SpeakerEncoder(tmp_path / "encoder.pt")


def test_a_file_that_is_no_segmentation_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"lstm.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(EngineError, match=r"other\.pt holds no segmentation network"):
        Segmentation(tmp_path / "other.pt")


@pytest.mark.parametrize("seconds", [0.4, 1.0, 1.2, 1.3, 5.0, 23.0])
def test_windows_cover_a_span_and_stay_inside(seconds: float) -> None:
    length = int(seconds * SAMPLE_RATE)
    windows = list(windows_over(length))
    assert windows[0][0] == 0
    assert length - 0.2 * SAMPLE_RATE < windows[-1][1] <= length
    assert {last - first for first, last in windows} == {windows[0][1] - windows[0][0]}
    assert all(later[0] < earlier[1] for earlier, later in itertools.pairwise(windows))


def test_runs_go_on_through_silence_and_end_at_changes() -> None:
    people = np.array([0, 0, 1, 1, 0, 1, 2, 2, 3, 3, 0], np.uint8)
    runs = list(_runs(people, 4000))
    assert [who for _, _, who in runs] == [1, 2, 3]
    assert runs[0][0] == 0
    assert runs[-1][1] == 4000
    assert [later[0] for later in runs[1:]] == [earlier[1] for earlier in runs[:-1]]
    assert runs[1][0] == FIRST + 6 * STEP - STEP // 2
    assert list(_runs(np.zeros(5, np.uint8), 2000)) == [(0, 2000, 1)]


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener(SpeakerEncoder(weights.find(ENCODER_FILE)), Segmentation(weights.find(SEGMENTATION_FILE)))


def heard(listener: Listener, samples: Array) -> Voices:
    voices = Voices()
    listener.listen(samples, 0.0, voices)
    return voices


@pytest.fixture(scope="module")
def two(speech: dict[str, Array]) -> tuple[Array, Array]:
    """A reader and Kennedy, some seconds each."""
    whole = speech["two_speakers"]
    return whole[int(0.5 * SAMPLE_RATE) : int(5.5 * SAMPLE_RATE)], whole[
        int(8.0 * SAMPLE_RATE) : int(12.0 * SAMPLE_RATE)
    ]


@pytest.mark.model
def test_a_change_of_voice_without_a_pause_parts_the_windows(listener: Listener, two: tuple[Array, Array]) -> None:
    change = 3.0
    voices = heard(listener, np.concatenate((two[0][: int(change * SAMPLE_RATE)], two[1])))
    crossing = [s for s, e in zip(voices.starts, voices.ends, strict=True) if s < change - 0.2 and e > change + 0.2]
    assert not crossing
    before = [vector for vector, end in zip(voices.vectors, voices.ends, strict=True) if end < change + 0.2]
    after = [vector for vector, start in zip(voices.vectors, voices.starts, strict=True) if start > change - 0.2]
    assert len(before) >= 2
    assert len(after) >= 2
    across = np.mean(np.stack(before).astype(np.float32) @ np.stack(after).astype(np.float32).T)
    assert across < 0.3 < float(before[0].astype(np.float32) @ before[-1].astype(np.float32))


@pytest.mark.model
def test_two_at_once_are_heard(listener: Listener, speech: dict[str, Array]) -> None:
    reading, address = speech["reading"], speech["address"]
    sound = reading[: 6 * SAMPLE_RATE].copy()
    sound[3 * SAMPLE_RATE :] += address[: 3 * SAMPLE_RATE] * 1.5
    voices = heard(listener, sound)
    assert sum(end - start for start, end in voices.overlaps) > 0.8
    assert all(start > 2.8 for start, _ in voices.overlaps)
    assert not heard(listener, reading[: 6 * SAMPLE_RATE]).overlaps


@pytest.mark.model
def test_a_telephone_is_noticed(listener: Listener, two: tuple[Array, Array]) -> None:
    assert not any(heard(listener, two[0]).narrow)
    assert all(heard(listener, telephone(two[0])).narrow)


@pytest.mark.model
def test_how_loud_somebody_is_does_not_matter(listener: Listener, two: tuple[Array, Array]) -> None:
    once, quiet = (np.stack(heard(listener, sound).vectors).astype(np.float32) for sound in (two[0], two[0] * 0.01))
    assert len(once) == len(quiet)
    assert float(np.min(np.sum(once * quiet, axis=1))) > 0.98


@pytest.mark.model
def test_too_short_to_tell(listener: Listener, two: tuple[Array, Array]) -> None:
    voices = heard(listener, two[0][: int((LEAST_S - 0.05) * SAMPLE_RATE)])
    assert voices == Voices()
