"""Downloads of weights, from a real server on this machine: resumed, checked, and told as it is."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import model_hub as hubs
import pytest
import torch
from model_hub import Hub, Served

from inference import digests, download, installer, manifest, pickled, reports, weights
from inference.manifest import HUGGINGFACE, MODELSCOPE, Model, Weight

ROOT = Path(__file__).resolve().parents[2]
CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs.running() as made:
        made.files["/a/model.bin"] = Served(CONTENT, '"one"')
        yield made


class Told(reports.Lines):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(download, "LONGEST_PAUSE_S", 0.0)
    return Told()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder."""
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A manifest of one model "m" with these files."""

    def make(*files: Weight, gate: str = "") -> None:
        monkeypatch.setattr(manifest, "MODELS", (Model("m", "test", True, files, "tests", gate),))

    return make


def weight(*urls: str, content: bytes = CONTENT, digest: bool = True, name: str = "m/model.bin") -> Weight:
    return Weight(
        name, len(content), sha(content) if digest else None, "CC0", url=urls[0], mirrors=urls[1:], exact=digest
    )


def parts(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob(".*") if ".part" in path.name)


def test_a_file_comes_whole(hub: Hub, place: Path, listed: Callable[..., None], told: Told) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    (path,) = weights.install(["m"], report=told)
    assert path.read_bytes() == CONTENT
    assert weights.find("m/model.bin") == path
    assert parts(place) == []
    assert hub.bodies() == [""]
    assert "SHA-256 as in the manifest" in told
    assert weights.install(["m"], report=told) == [path]
    assert "here already" in told
    assert "100 % of 0.3 MB" in told


def test_a_broken_connection_goes_on_where_it_broke(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults += [hubs.drop(100_000), hubs.drop(200_000), hubs.drop(200_000), hubs.drop(200_001)]
    (path,) = weights.install(["m"], report=told)
    assert path.read_bytes() == CONTENT
    assert hub.bodies() == ["", "bytes=100000-", "bytes=200000-", "bytes=200000-", "bytes=200001-"]
    assert "the connection ended early at 0.1 MB of 0.3 MB; again in 0 s" in told
    assert "goes on at 0.2 MB of 0.3 MB" in told


def test_as_often_as_it_breaks_while_bytes_come(hub: Hub, place: Path, listed: Callable[..., None], told: Told) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults += [hubs.drop(at) for at in range(20_000, 300_000, 20_000)]
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert len(hub.bodies()) == 15


def test_no_progress_ends_it_and_the_next_installation_goes_on(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults += [hubs.drop(100_000)] * download.TRIES
    with pytest.raises(weights.WeightError, match=r"ended early \(5 times\)"):
        weights.install(["m"], report=told)
    assert parts(place) == [".model.bin.part", ".model.bin.part.json"]
    hub.asked.clear()
    assert weights.install(["m"])[0].read_bytes() == CONTENT
    assert hub.bodies() == ["bytes=100000-"]
    assert parts(place) == []


def test_a_part_goes_on_at_another_address_of_the_same_file(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    hub.files["/b/model.bin"] = Served(CONTENT, '"two"')
    listed(weight(f"{hub.url}/a/model.bin", f"{hub.url}/b/model.bin"))
    hub.faults += [hubs.drop(100_000)] * download.TRIES
    weights.install(["m"], report=told)
    path, headers = hub.asked[-1]
    assert (path, headers["range"]) == ("/b/model.bin", "bytes=100000-")
    assert "if-range" not in headers


def test_a_file_that_changed_meanwhile_is_taken_anew(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    hub.files["/a/model.bin"] = Served(OTHER, '"old"')
    listed(weight(f"{hub.url}/a/model.bin"))

    def replaced(handler: hubs.Handler, served: Served) -> bool:
        hub.files["/a/model.bin"] = Served(CONTENT, '"new"')
        return hubs.drop(100_000)(handler, served)

    hub.faults.append(replaced)
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert hub.asked[-1][1]["if-range"] == '"old"'


def test_a_rest_with_another_etag_is_not_taken(hub: Hub, place: Path, listed: Callable[..., None], told: Told) -> None:
    """A server that does not read If-Range, and a file of which no digest is known."""
    hub.files["/a/model.txt"] = Served(OTHER, '"old"', conditions=False)
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))

    def replaced(handler: hubs.Handler, served: Served) -> bool:
        hub.files["/a/model.txt"] = Served(CONTENT, '"new"', conditions=False)
        return hubs.drop(100_000)(handler, served)

    hub.faults.append(replaced)
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert "the file there is another one than at the first try" in told
    assert hub.bodies() == ["", "bytes=100000-", ""]


def test_a_rest_of_another_file_is_found_by_the_digest(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    """The first bytes were of another version, and the server tells no ETag."""
    hub.files["/a/model.bin"] = Served(CONTENT)
    listed(weight(f"{hub.url}/a/model.bin"))

    def old(handler: hubs.Handler, served: Served) -> bool:
        return hubs.drop(100_000)(handler, Served(OTHER))

    hub.faults += [old] + [hubs.drop(100_000)] * (download.TRIES - 1)
    with pytest.raises(weights.WeightError):
        weights.install(["m"])
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert "does not fit; once more from the beginning" in told
    assert hub.bodies()[-2:] == ["bytes=100000-", ""]


def test_a_server_without_ranges_sends_it_again(hub: Hub, place: Path, listed: Callable[..., None], told: Told) -> None:
    hub.files["/a/model.bin"].ranges = False
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults.append(hubs.drop(100_000))
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert hub.bodies() == ["", "bytes=100000-"]


def test_a_part_that_is_whole_already(hub: Hub, place: Path, listed: Callable[..., None]) -> None:
    """Killed between the last byte and the name."""
    listed(weight(f"{hub.url}/a/model.bin"))
    (place / "m").mkdir(parents=True)
    (place / "m/.model.bin.part").write_bytes(CONTENT)
    note = {"address": f"{hub.url}/a/model.bin", "etag": '"one"', "sha256": sha(CONTENT)}
    (place / "m/.model.bin.part.json").write_text(json.dumps(note))
    assert weights.install(["m"])[0].read_bytes() == CONTENT
    assert hub.bodies() == ["bytes=300000-"]
    assert parts(place) == []


def test_wrong_content_is_no_file_and_the_next_address_is_asked(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    hub.files["/bad/model.bin"] = Served(OTHER)
    listed(weight(f"{hub.url}/bad/model.bin"))
    with pytest.raises(weights.WeightError, match=f"SHA-256 {sha(OTHER)[:12]}… instead of {sha(CONTENT)[:12]}…"):
        weights.install(["m"])
    assert [path.name for path in (place / "m").iterdir()] == [installer.LOCK]
    listed(weight(f"{hub.url}/bad/model.bin", f"{hub.url}/a/model.bin"))
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert "not from" in told


@pytest.mark.parametrize(
    ("served", "complaint"),
    [
        (Served(CONTENT[:-1]), "has 299999 bytes instead of 300000: another version"),
        (Served(CONTENT, length=300_001), "has 300001 bytes instead of 300000: another version"),
        (Served(b"<html>" * 50_000, kind="text/html; charset=utf-8"), "is a page, not the file"),
        (Served(CONTENT, linked=sha(OTHER)), "SHA-256 .*: another version"),
    ],
    ids=["short", "long", "a page", "the hub says another digest"],
)
def test_another_file_is_refused_before_it_is_fetched(
    hub: Hub, place: Path, listed: Callable[..., None], served: Served, complaint: str
) -> None:
    hub.files["/a/model.bin"] = served
    listed(weight(f"{hub.url}/a/model.bin"))
    with pytest.raises(weights.WeightError, match=complaint):
        weights.install(["m"])
    assert len(hub.bodies()) == (1 if served.linked is None else 2)  # tried once
    assert not (place / "m/.model.bin.part").exists()


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(404, "there is nothing at this address"), (403, "forbidden from here"), (401, "logged in"), (410, "any more")],
)
def test_a_lasting_refusal_is_told_once(
    hub: Hub, place: Path, listed: Callable[..., None], status: int, meaning: str
) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults.append(hubs.fails(status))
    with pytest.raises(weights.WeightError, match=f"HTTP {status}: .*{meaning}") as caught:
        weights.install(["m"])
    assert f"{hub.url}/a/model.bin" in str(caught.value)
    assert sha(CONTENT) in caught.value.hint
    assert len(hub.bodies()) == 1


def test_a_busy_server_is_asked_again_when_it_says(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    listed(weight(f"{hub.url}/a/model.bin"))
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    hub.faults += [
        hubs.fails(429, **{"Retry-After": "1"}),
        hubs.fails(503, **{"Retry-After": soon}),
        hubs.fails(500),
        hubs.fails(502, **{"Retry-After": "soon"}),
    ]
    weights.install(["m"], report=told)
    assert "HTTP 429 Too Many Requests; again in 1 s" in told
    assert "HTTP 503 Service Unavailable; again in 0 s" in told
    assert len(hub.bodies()) == 5


def test_a_server_that_wants_too_much_patience_is_left(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    hub.files["/b/model.bin"] = Served(CONTENT)
    listed(weight(f"{hub.url}/a/model.bin", f"{hub.url}/b/model.bin"))
    hub.faults.append(hubs.fails(429, **{"Retry-After": "86400"}))
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert "wants 86400 s of patience" in told


def test_a_silent_server_is_asked_again(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.2)
    listed(weight(f"{hub.url}/a/model.bin"))
    hub.faults.append(hubs.hold(100_000))
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert "the connection broke (timed out) at 0.1 MB of 0.3 MB" in told


def test_a_folder_that_cannot_be_written(
    hub: Hub, place: Path, listed: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is found without writing; for what is not, the folder is named."""
    listed(weight(f"{hub.url}/a/model.bin"))
    weights.install(["m"])
    for hidden in (place / "m").glob(".*"):
        hidden.unlink()
    before = sorted(place.rglob("*"))
    assert weights.install(["m"]) == [place / "m/model.bin"]
    assert [path for path in sorted(place.rglob("*")) if path.name != digests.MEMORY] == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(weights.WeightError, match=r"file/m cannot be written: ") as caught:
        weights.install(["m"])
    assert "FILEPOOL_WEIGHTS" in caught.value.hint


def test_nobody_there(place: Path, listed: Callable[..., None], told: Told) -> None:
    with hubs.running() as gone:
        pass
    listed(weight(f"{gone.url}/a/model.bin"))
    with pytest.raises(weights.WeightError, match=r"not reachable \(Connection refused\) \(2 times\)"):
        weights.install(["m"], report=told)


def test_the_mirror_that_hf_endpoint_names(
    hub: Hub, place: Path, listed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(weight(f"{HUGGINGFACE}/who/what/resolve/main/model.bin"))
    hub.files["/hf/who/what/resolve/main/model.bin"] = Served(CONTENT, linked=sha(CONTENT))
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/hf/")
    assert weights.install(["m"])[0].read_bytes() == CONTENT
    assert [path for path, _ in hub.asked] == [
        "/hf/who/what/resolve/main/model.bin",
        "/cdn/hf/who/what/resolve/main/model.bin",
    ]


def test_modelscope_is_the_other_hub(
    hub: Hub, place: Path, listed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/v1/models/who/what/repo?Revision=v1&FilePath=part/model.bin"
    listed(weight(f"{HUGGINGFACE}/who/what/resolve/main/model.bin", MODELSCOPE + path))
    hub.files["/who/what/resolve/main/model.bin"] = hub.files[path] = Served(CONTENT)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    weights.install(["m"], hub="modelscope")
    (place / "m/model.bin").unlink()
    weights.install(["m"])
    assert [asked for asked, _ in hub.asked] == [path, "/who/what/resolve/main/model.bin"]


LARGER = {
    "whisper-small": ("Systran/faster-whisper-small", "536b0662742c02347bc0e980a01041f333bce120"),
    "whisper-medium": ("Systran/faster-whisper-medium", "08e178d48790749d25932bbc082711ddcfdfbc4f"),
    "whisper-large-v3-turbo": (
        "mobiuslabsgmbh/faster-whisper-large-v3-turbo",
        "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf",
    ),
}


@pytest.mark.parametrize("name", LARGER)
def test_larger_models_of_speech_are_asked_for_where_they_are(
    hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Other bytes at the hub are refused; then the other hub is asked."""
    for variable in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(variable, hub.url)
    repo, revision = LARGER[name]
    wanted = manifest.model(name).files[0].path
    hub.files[f"/{repo}/resolve/{revision}/{wanted}"] = Served(CONTENT)
    with pytest.raises(weights.WeightError, match=f"{len(CONTENT)} bytes|ended early|instead of"):
        weights.install([name])
    asked = list(dict.fromkeys(path for path, _ in hub.asked))
    assert asked[0] == f"/{repo}/resolve/{revision}/{wanted}"
    assert asked[-1].startswith(f"/api/v1/models/pengzhendong/faster-{name}/repo?Revision=master&FilePath={wanted}")
    assert not (place / name / wanted).exists()


# ---- files of which no digest is published


def state() -> dict[str, Any]:
    return weights._state(manifest.MODELS[0].files[0])


def test_what_the_hub_says_of_a_large_file(hub: Hub, place: Path, listed: Callable[..., None], told: Told) -> None:
    hub.files["/a/model.txt"] = Served(CONTENT, linked=sha(OTHER))
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))
    with pytest.raises(weights.WeightError, match=r"SHA-256 .* instead of"):
        weights.install(["m"])
    hub.files["/a/model.txt"].linked = sha(CONTENT)
    weights.install(["m"], report=told)
    assert "digest as the hub says" in told
    assert (state()["state"], state()["vouched"]) == ("ok", "hub")


def test_what_the_hub_says_of_a_small_file(hub: Hub, place: Path, listed: Callable[..., None]) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))
    hub.files["/a/model.txt"] = Served(OTHER, f'"{blob}"', linked="")
    with pytest.raises(weights.WeightError, match=r"SHA-1 .* instead of"):
        weights.install(["m"])
    hub.files["/a/model.txt"].content = CONTENT
    weights.install(["m"])
    assert (state()["state"], state()["vouched"]) == ("ok", "hub")


def test_what_modelscopes_list_says(
    hub: Hub, place: Path, listed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    path = "/api/v1/models/who/what/repo?Revision=v1&FilePath=part/model.txt"
    listed(weight(MODELSCOPE + path, digest=False, name="m/model.txt"))
    hub.files[path] = Served(CONTENT)
    weights.install(["m"])
    assert (state()["state"], state()["vouched"]) == ("ok", "hub")


def test_a_file_that_nobody_vouches_for_is_noted_as_it_came(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["/a/model.txt"] = Served(CONTENT)
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))
    (path,) = weights.install(["m"], report=told)
    assert "nobody published its digest: noted as it came" in told
    assert digests.recorded(place / "m", "model.txt") == digests.Record(
        sha(CONTENT), len(CONTENT), "first use", f"{hub.url}/a/model.txt"
    )
    assert weights.find("m/model.txt") == path
    assert weights.main(["verify"]) == 0
    assert weights.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "vouched for by: first use" in out
    assert "about 0.3 MB" in out
    path.write_bytes(OTHER)
    with pytest.raises(weights.WeightError, match="damaged, or another version"):
        weights.find("m/model.txt")
    assert weights.main(["verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["files"][0]["state"] == "wrong"
    assert weights.install(["m"])[0].read_bytes() == CONTENT  # brought again


def test_a_file_put_there_by_hand_is_used_after_it_was_noted(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))
    (place / "m").mkdir(parents=True)
    (place / "m/model.txt").write_bytes(OTHER)
    with pytest.raises(weights.WeightError, match="was not installed by this program") as caught:
        weights.find("m/model.txt")
    assert "python -m inference.weights install m" in caught.value.hint
    assert state()["state"] == "unknown"
    weights.install(["m"], report=told)
    assert "noted as it is" in told
    assert weights.find("m/model.txt").read_bytes() == OTHER
    assert hub.asked == []


def test_without_digest_or_etag_a_part_is_not_continued(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    hub.files["/a/model.txt"] = Served(CONTENT)
    listed(weight(f"{hub.url}/a/model.txt", digest=False, name="m/model.txt"))
    hub.faults += [hubs.drop(100_000)] * download.TRIES
    with pytest.raises(weights.WeightError):
        weights.install(["m"], report=told)
    weights.install(["m"], report=told)
    assert hub.bodies()[-1] == ""


def test_a_name_alone_does_not_make_a_file_without_digest(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml of one model is not that of another."""
    files = [Weight(f"{name}/config.yaml", 3, None, "CC0", exact=False) for name in ("m", "n")]
    models = tuple(Model(file.model, "test", True, (file,)) for file in files)
    monkeypatch.setattr(manifest, "MODELS", models)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(weights.WeightError):
        weights.install(["m", "n"], tmp_path)
    (tmp_path / "n").mkdir()
    (tmp_path / "n/config.yaml").write_text("b: 2")
    assert weights.install(["n"], tmp_path)[0].read_text() == "b: 2"
    assert weights.install(["m"], tmp_path)[0].read_text() == "a: 1"  # the folder of this model


# ---- pickles


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_a_pickle_with_code_that_nobody_vouches_for_is_refused(
    hub: Hub, place: Path, listed: Callable[..., None], tmp_path: Path, archive: bool
) -> None:
    trace = tmp_path / "trace"
    evil = tmp_path / "evil.pth"
    torch.save({"a": torch.zeros(3), "b": Payload(trace)}, evil, _use_new_zipfile_serialization=archive)
    hub.files["/a/model.pth"] = Served(evil.read_bytes())
    listed(weight(f"{hub.url}/a/model.pth", content=evil.read_bytes(), digest=False, name="m/model.pth"))
    with pytest.raises(weights.WeightError, match=r"holds code: reading it would call .*pathlib\.(_local\.)?Path"):
        weights.install(["m"])
    assert not (place / "m/model.pth").exists()
    assert not trace.exists()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_a_pickle_of_tensors_is_none(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "state.pth"
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    state = {"half": torch.zeros(2, dtype=torch.float16), "brain": torch.zeros(2, dtype=torch.bfloat16)}
    content = {"state_dict": network.state_dict(), **state, "parameter": torch.nn.Parameter(torch.zeros(2)), "epoch": 7}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    torch.load(path, weights_only=True)
    assert pickled.calls(path) == []


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x05\x06" + b"\0" * 18, b"\x80\x02X"])
def test_what_is_no_pickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of weights"):
        pickled.calls(path)


def test_names_that_are_put_together_are_found(tmp_path: Path) -> None:
    """Pickles written by hand."""
    path = tmp_path / "state.bin"
    path.write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02ls\x94\x85\x94R.")
    assert pickled.calls(path) == ["posix.system"]
    path.write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94h\x00h\x01\x93.")
    assert pickled.calls(path) == ["posix.system"]
    path.write_bytes(b"\x80\x04NN\x93.")
    assert pickled.calls(path) == ["a name that is made up while it is read"]


def test_a_folder_with_the_pickle_instead_of_safetensors(
    place: Path, listed: Callable[..., None], tmp_path: Path
) -> None:
    name = "m/vae/diffusion_pytorch_model.safetensors"
    listed(Weight(name, len(CONTENT), sha(CONTENT), "CC0"))
    (tmp_path / "vae").mkdir()
    pickle = tmp_path / "vae/diffusion_pytorch_model.bin"
    pickle.write_bytes(b"weights")
    with pytest.raises(weights.WeightError, match=f"{re.escape(str(pickle))}: a pickle, which may hold code"):
        weights.install(["m"], tmp_path)
    (tmp_path / "vae/diffusion_pytorch_model.safetensors").write_bytes(CONTENT)
    assert weights.install(["m"], tmp_path)[0].read_bytes() == CONTENT


def test_the_same_file_of_another_model_is_not_fetched_again(
    hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    files = [weight(f"{hub.url}/a/model.bin", name=name) for name in ("m/model.bin", "n/part/model.bin")]
    monkeypatch.setattr(manifest, "MODELS", tuple(Model(file.model, "test", True, (file,)) for file in files))
    first, second = weights.install(["m", "n"], report=told)
    assert first.stat().st_ino == second.stat().st_ino
    assert len(hub.bodies()) == 1
    assert weights.find_model("n") == place / "n"


# ---- redirects


@pytest.mark.parametrize("to", ["http://cdn.example/model.bin", "ftp://cdn.example/model.bin", "file:///etc/hostname"])
def test_no_way_leads_from_https_to_something_else(to: str) -> None:
    handler = download._Redirects(Message())
    request = urllib.request.Request("https://hub.example/model.bin")
    with pytest.raises(urllib.error.URLError, match="not to https"):
        handler.redirect_request(request, None, 302, "Found", Message(), to)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_keep_the_range(hub: Hub, place: Path, listed: Callable[..., None], told: Told, status: int) -> None:
    hub.files["/r/model.bin"] = Served(b"")
    listed(weight(f"{hub.url}/r/model.bin"))
    lead = hubs.fails(status, Location="/a/model.bin")
    hub.faults += [lead, hubs.drop(100_000), lead]
    assert weights.install(["m"], report=told)[0].read_bytes() == CONTENT
    assert hub.bodies() == ["", "", "bytes=100000-", "bytes=100000-"]


# ---- the disk


def test_too_little_room_is_told_before_anything_is_fetched(
    hub: Hub, place: Path, listed: Callable[..., None], told: Told
) -> None:
    huge = 1 << 50
    hub.files["/a/model.bin"].length = huge
    listed(Weight("m/model.bin", huge, "0" * 64, "CC0", url=f"{hub.url}/a/model.bin", mirrors=(f"{hub.url}/b",)))
    with pytest.raises(download.DiskFull, match=r"free; m/model\.bin needs 1125899\.91 GB more") as caught:
        weights.install(["m"])
    assert "FILEPOOL_WEIGHTS" in caught.value.hint
    assert len(hub.bodies()) == 1  # no other address would help


SCRIPT = """
import json, resource, sys
from inference import manifest, weights
from inference.manifest import Model, Weight
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
manifest.MODELS = (Model("m", "test", True, (Weight(**json.loads(sys.argv[2])),), "tests", sys.argv[3]),)
sys.exit(weights.main(sys.argv[4:]))
"""


def command(file: Weight, *arguments: str, limit: int = 0, gate: str = "") -> list[str]:
    about = {"name": file.name, "size": file.size, "sha256": file.sha256, "licence": "CC0", "url": file.url}
    return [sys.executable, "-c", SCRIPT, str(limit), json.dumps(about), gate, *(arguments or ("install",))]


def test_a_disk_that_fills_up_keeps_what_came(hub: Hub, place: Path) -> None:
    """The system's limit on the size of a file stands for a full disk: both fail in the middle of a write."""
    file = weight(f"{hub.url}/a/model.bin")
    done = subprocess.run(command(file, limit=150_000), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "has no room for 0.3 MB: File too large" in done.stderr
    assert "goes on where it stopped" in done.stderr
    assert (place / "m/.model.bin.part").stat().st_size == 150_000
    hub.asked.clear()
    subprocess.run(command(file), cwd=ROOT, check=True)
    assert (place / "m/model.bin").read_bytes() == CONTENT
    assert hub.bodies() == ["bytes=150000-"]


# ---- other processes


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_installer_goes_on_where_it_was(hub: Hub, place: Path, number: signal.Signals) -> None:
    file = weight(f"{hub.url}/a/model.bin")
    hub.faults.append(hubs.hold(200_000))
    part = place / "m/.model.bin.part"
    process = subprocess.Popen(command(file), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size == 200_000)
    finally:
        process.send_signal(number)
        said = process.communicate()[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert ("the same command goes on where it stopped" in said) == (number == signal.SIGINT)
    hub.go.set()
    assert not (place / "m/model.bin").exists()
    done = subprocess.run(command(file), cwd=ROOT, check=True, capture_output=True, text=True)
    assert (place / "m/model.bin").read_bytes() == CONTENT
    assert hub.bodies() == ["", "bytes=200000-"]
    assert "m/model.bin: goes on at 0.2 MB of 0.3 MB" in done.stderr
    assert parts(place) == []


def test_two_installers_at_once_fetch_once(hub: Hub, place: Path) -> None:
    file = weight(f"{hub.url}/a/model.bin")
    hub.faults.append(hubs.hold(100_000))
    first = subprocess.Popen(command(file), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(hub.asked) == 1)
    second = subprocess.Popen(command(file), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = ""
    while "another installer is at it; waiting" not in said:
        line = second.stderr.readline()
        assert line, said
        said += line
    hub.go.set()
    assert first.communicate()[0] is None
    assert "here already" in second.communicate()[1]
    assert (first.returncode, second.returncode) == (0, 0)
    assert hub.bodies() == ["", "bytes=100000-"]
    assert (place / "m/model.bin").read_bytes() == CONTENT


def test_machines_get_json_lines(hub: Hub, place: Path) -> None:
    file = weight(f"{hub.url}/a/model.bin")
    hub.faults.append(hubs.drop(100_000))
    done = subprocess.run(command(file, "install", "--json"), cwd=ROOT, check=True, capture_output=True, text=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["bytes"] for event in events if event["event"] == "begin"] == [0, 100_000]
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[-1] == {"event": "progress", "name": "m/model.bin", "bytes": 300_000, "of": 300_000}
    assert json.loads(done.stdout)["files"] == [{"name": "m/model.bin", "state": "ok", "vouched": "manifest"}]
    hub.files.clear()
    (place / "m/model.bin").unlink()
    done = subprocess.run(command(file, "install", "--json"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["event"] == "error"
    assert "HTTP 404" in last["message"]
    assert done.stdout == ""


TERMS = "Its authors allow research only."


def test_terms_must_be_accepted(hub: Hub, place: Path, listed: Callable[..., None], tmp_path: Path) -> None:
    file = weight(f"{hub.url}/a/model.bin")
    listed(file, gate=TERMS)
    with pytest.raises(weights.LicenceError, match=TERMS) as caught:
        weights.install(["m"])
    assert "--accept-licence" in caught.value.hint
    done = subprocess.run(command(file, gate=TERMS), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert TERMS in done.stderr
    assert hub.asked == []
    subprocess.run(command(file, "install", "--accept-licence", gate=TERMS), cwd=ROOT, check=True)
    assert weights.install(["m"]) == [place / "m/model.bin"]  # once it is there, nobody is asked again


def at_a_terminal(arguments: list[str], answer: str) -> tuple[int, str]:
    """Exit code and output of a program that somebody watches, who types one answer."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    )
    os.close(theirs)
    seen = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if answer and b"Type yes to accept: " in seen:
                os.write(ours, answer.encode())
                answer = ""
    finally:
        code = process.wait(60)
        os.close(ours)
    return code, seen.decode("utf-8", "replace")


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("no\n", 1)])
def test_somebody_at_a_terminal_is_asked_and_sees_a_bar(hub: Hub, place: Path, answer: str, code: int) -> None:
    file = weight(f"{hub.url}/a/model.bin")
    done, seen = at_a_terminal(command(file, gate=TERMS), answer)
    assert done == code, seen
    assert TERMS in seen
    assert (place / "m/model.bin").exists() == (code == 0)
    assert ("━" in seen and "%" in seen) == (code == 0)


def test_a_bar_says_how_far_it_is() -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    report = reports.make(stream)
    assert isinstance(report, reports.Bar)
    report.begin("m/model.bin", 1000, 500)
    report.at(750)
    report.say("something else")
    report.end()
    report.close()
    assert "something else" in stream.getvalue()
    assert "m/model.bin" in stream.getvalue()
