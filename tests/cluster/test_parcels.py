"""Parameters on their way: files become media, outputs become names, and nothing that a stranger sends leads astray."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.fake import FakeParams
from inference.foreign.engine import ForeignParams as ForeignParams
from inference.lipsync.params import Params as LipsyncParams
from inference.portrait.params import Params as PortraitParams
from inference.transcribe.params import Params as TranscribeParams
from pool.cluster import parcels
from pool.cluster.mediacache import safe_name
from pool.cluster.wire import Blob
from pool.config.roots import OutsideRoots, Roots
from pool.constants import MAX_DEPTH
from pool.errors import JobRefused, ProtocolError
from pool.format import codec

SHA = "a" * 64
MEDIA = {"$media": {"sha256": SHA, "size": 3, "name": "talk.m4a"}}


def describe(path: Path) -> Blob | None:
    """What the store would say; None for what is no file."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    return Blob(hashlib.sha256(content).hexdigest(), len(content), safe_name(path.name))


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.m4a"
    path.write_bytes(b"abc")
    return path


# ---- at the client


def test_files_become_media_and_outputs_become_names(talk: Path, tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"b")
    params = {
        "audio": str(talk),
        "list": [{"picture": str(tmp_path / "b.png")}, str(talk)],
        "text": "not /a/path",
        "absolute": "/no/such/file",
        "folder": str(tmp_path),
        "number": 3,
        "none": None,
        "output": str(tmp_path / "film.MP4"),
    }
    assert parcels.find(params, path_keys={"audio"}) == [talk, tmp_path / "b.png"]
    packed = parcels.pack(params, path_keys={"audio"}, describe=describe)
    media = {"$media": {"sha256": hashlib.sha256(b"abc").hexdigest(), "size": 3, "name": "talk.m4a"}}
    picture = {"$media": {"sha256": hashlib.sha256(b"b").hexdigest(), "size": 1, "name": "b.png"}}
    assert packed.params == {
        **params,
        "audio": media,
        "list": [{"picture": picture}, media],
        "output": {"$output": "film.MP4"},
    }
    assert packed.outputs == {"film.MP4": tmp_path / "film.MP4"}
    assert set(packed.inputs) == {talk, tmp_path / "b.png"}
    assert parcels.outputs_of(params) == packed.outputs


def test_map_jobs_and_outputs_of_one_name(talk: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    items = [{"audio": str(talk), "output": str(tmp_path / name / "out.srt")} for name in ("a", "b")]
    packed = parcels.pack({}, items=items, path_keys={"audio"}, describe=describe)
    assert packed.items is not None
    assert [item["output"] for item in packed.items] == [{"$output": "out.srt"}, {"$output": "out-2.srt"}]
    assert packed.outputs == {"out.srt": tmp_path / "a/out.srt", "out-2.srt": tmp_path / "b/out.srt"}
    assert parcels.outputs_of({}, items=items) == packed.outputs
    assert len(parcels.blobs(packed.items)) == 1


def test_what_all_machines_see_stays(tmp_path: Path, talk: Path) -> None:
    shared = (str(tmp_path), "s3://bucket/in")
    params = {"audio": str(talk), "video": "s3://bucket/in/a.mp4", "output": f"{tmp_path}/out.mp4"}
    packed = parcels.pack(params, path_keys={"audio", "video"}, shared=shared, describe=describe)
    assert packed.params == params
    assert (packed.inputs, packed.outputs) == ({}, {})
    for outside in ("s3://bucket/in/../secret", "s3://bucket/insecure/a", "s3://bucket"):
        with pytest.raises(JobRefused, match="URL"):
            parcels.find({"audio": outside}, path_keys={"audio"}, shared=shared)
    other = {"audio": f"{tmp_path}/../{tmp_path.name}x/a"}
    with pytest.raises(JobRefused, match="No such file"):
        parcels.find(other, path_keys={"audio"}, shared=shared)


Make = Callable[[Path], object]


@pytest.mark.parametrize(
    ("value", "key", "says"),
    [
        ("{}/missing.wav", "params.audio", "No such file"),
        ("{}", "params.audio", "folder"),
        ("{}/fifo", "params.audio", "not a regular file"),
        ("relative.wav", "params.audio", "relative"),
        ("http://host/a.wav", "params.audio", "URL"),
        ("a\0b", "params.audio", "NUL"),
        (["{}/missing.wav"], "params.audio[0]", "No such file"),
        ({"$media": 1}, "params.audio", "word of the cluster"),
        ({"deep": [{"$output": "x"}]}, "params.audio.deep[0]", "word of the cluster"),
        ({"$result": "x", "path": []}, "params.audio", "word of the cluster"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_key(tmp_path: Path, value: Any, key: str, says: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    filled = [one.format(tmp_path) for one in value] if isinstance(value, list) else value
    filled = value.format(tmp_path) if isinstance(value, str) else filled
    for call in (parcels.find, lambda *a, **b: parcels.pack(*a, **b, describe=describe)):
        with pytest.raises(JobRefused, match=says) as caught:
            call({"audio": filled}, path_keys={"audio"})
        assert caught.value.path == key


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("{}/none/out.mp4", "does not exist"),
        ("{}", "is a folder"),
        ("out.mp4", "relative"),
        ("s3://bucket/out.mp4", "URL"),
        ("{}/talk.m4a", "written by the same job"),
        ("{}/../{name}/talk.m4a", "written by the same job"),
        ("{}/" + "x" * 300, "too long|can have this path"),
        ("/a\0b", "NUL"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(talk: Path, output: str, says: str) -> None:
    params = {"audio": str(talk), "output": output.format(talk.parent, name=talk.parent.name)}
    with pytest.raises(JobRefused, match=says):
        parcels.find(params, path_keys={"audio"})


def test_a_file_that_nobody_may_read_is_refused(talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(JobRefused, match="permission"):
        parcels.find({"audio": str(talk)}, path_keys={"audio"})


def test_nesting_has_an_end(talk: Path) -> None:
    deep: Any = str(talk)
    for _ in range(MAX_DEPTH + 5):
        deep = [deep]
    with pytest.raises(JobRefused, match="deep"):
        parcels.find({"audio": deep})
    with pytest.raises(ProtocolError, match="deep"):
        parcels.blobs({"audio": deep})
    with pytest.raises(ProtocolError, match="deep"):
        parcels.unpack({"audio": deep}, {}, Path("/x"))


@pytest.mark.parametrize("model", [FakeParams, ForeignParams, LipsyncParams, PortraitParams, TranscribeParams])
def test_engines_mark_what_they_write(model: Any) -> None:
    schema = model.model_json_schema()
    assert schema["properties"]["output"]["output"] is True
    assert parcels.output_keys(schema) == {"output"}


def test_which_parameters_are_outputs() -> None:
    marked = {"properties": {"film": {"output": True}, "sheet": {"output": True}, "output": {}, "x": True}}
    assert parcels.output_keys(marked) == {"film", "sheet"}
    assert parcels.output_keys({}) == parcels.output_keys(None) == {"output"}
    assert parcels.output_keys({"properties": 3}) == {"output"}


# ---- at the node


def test_a_node_puts_paths_in_their_place(tmp_path: Path) -> None:
    blob = Blob(SHA, 3, "talk.m4a")
    params = {"audio": MEDIA, "list": [MEDIA, "text", 1.5, None, b"x"], "output": {"$output": "film.mp4"}}
    assert parcels.blobs(params) == (blob,)
    assert parcels.unpack(params, {blob: Path("/cache/talk.m4a")}, tmp_path) == {
        "audio": "/cache/talk.m4a",
        "list": ["/cache/talk.m4a", "text", 1.5, None, b"x"],
        "output": f"{tmp_path}/film.mp4",
    }
    with pytest.raises(ProtocolError, match="not fetched"):
        parcels.unpack(params, {}, tmp_path)


@pytest.mark.parametrize(
    "hostile",
    [
        {"$media": None},
        {"$media": [SHA]},
        {**MEDIA, "more": 1},
        {"$media": {**MEDIA["$media"], "more": 1}},
        {"$media": {"sha256": SHA, "size": 3}},
        {"$media": {**MEDIA["$media"], "sha256": SHA.upper()}},
        {"$media": {**MEDIA["$media"], "sha256": "../" + SHA}},
        {"$media": {**MEDIA["$media"], "size": -1}},
        {"$media": {**MEDIA["$media"], "size": True}},
        {"$media": {**MEDIA["$media"], "size": "3"}},
        {"$media": {**MEDIA["$media"], "name": "../x"}},
        {"$media": {**MEDIA["$media"], "name": "a/x"}},
        {"$media": {**MEDIA["$media"], "name": ".."}},
        {"$media": {**MEDIA["$media"], "name": ".bytes"}},
        {"$media": {**MEDIA["$media"], "name": ""}},
        {"$media": {**MEDIA["$media"], "name": "a\0"}},
        {"$media": {**MEDIA["$media"], "name": "x" * 121}},
        {"$media": {**MEDIA["$media"], "name": 3}},
        {"$output": ""},
        {"$output": 3},
        {"$output": ".."},
        {"$output": "a/b"},
        {"$output": "/etc/passwd"},
        {"$output": "a\0b"},
        {"$output": ".x"},
        {"$output": "a", "b": 1},
        {**MEDIA, "$output": "a"},
        {"$result": "job", "path": []},
        {"$result": "job"},
    ],
)
def test_maps_that_are_not_what_they_say_are_refused(hostile: Any, tmp_path: Path) -> None:
    for params in ({"audio": hostile}, {"a": {"b": [hostile]}}, hostile):
        with pytest.raises(ProtocolError):
            parcels.blobs(params)
        with pytest.raises(ProtocolError):
            parcels.unpack(params, {Blob(SHA, 3, "talk.m4a"): Path("/x")}, tmp_path)


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="two outputs"):
        parcels.unpack({"output": {"$output": "a"}, "b": {"$output": "a"}}, {}, tmp_path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "~/x", "../x", "a/../../x", "file:/etc/passwd", "/dev/stdin", "//etc/passwd"]
)
def test_other_paths_lead_to_the_allowed_folders_or_nowhere(tmp_path: Path, path: str) -> None:
    roots = Roots([tmp_path])
    for params in ({"text": path}, {"a": [{"b": path}]}):
        with pytest.raises(JobRefused):
            parcels.unpack(params, {}, tmp_path)
        with pytest.raises(JobRefused):
            parcels.unpack(params, {}, tmp_path, roots=roots, shared=["s3://bucket"])
    inside = f"{tmp_path}/x/../voice.wav"
    assert parcels.unpack({"audio": inside}, {}, tmp_path, roots=roots) == {"audio": f"{tmp_path}/voice.wav"}
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(OutsideRoots):
        parcels.unpack({"audio": f"{tmp_path}/link/passwd"}, {}, tmp_path, roots=roots)
    with pytest.raises(OutsideRoots):
        parcels.unpack({"audio": f"{tmp_path}/link/passwd"}, {}, tmp_path, shared=[str(tmp_path)])
    with pytest.raises(JobRefused):
        parcels.unpack({"audio": "voice.wav"}, {}, tmp_path, path_keys={"audio"})


def test_shared_paths_are_the_same_at_the_node(tmp_path: Path) -> None:
    params = {"audio": f"{tmp_path}/a.wav", "video": "s3://bucket/a.mp4"}
    shared = [str(tmp_path), "s3://bucket/"]
    assert parcels.unpack(params, {}, Path("/x"), shared=shared, path_keys={"audio", "video"}) == params


# ---- both

texts = st.text(max_size=20)
names = st.text(min_size=1, max_size=20).filter(lambda name: not set(name) & set("/\0") and name not in (".", ".."))
leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts | st.binary()
keys = texts.filter(lambda key: not key.startswith("$"))
FILES = object()


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_packed_and_unpacked_is_the_same_with_other_paths(data: st.DataObject, tmp_path: Path) -> None:
    files = {}
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        path = folder / data.draw(
            names.filter(lambda name: len(name.encode("utf-8", "surrogatepass")) < 200 and name.isprintable())
        )
        path.write_bytes(bytes([number]))
        files[str(path)] = number
    harmless = leaves.filter(lambda leaf: not isinstance(leaf, str) or not _path_like(leaf))
    params = data.draw(st.dictionaries(keys, nested(harmless | st.sampled_from(sorted(files))), max_size=4))
    packed = parcels.pack(params, output_keys=(), describe=describe)
    travelled = codec.decode(codec.encode(packed.params), strict=True)
    have = {blob: tmp_path / "cache" / blob.sha256 / blob.name for blob in parcels.blobs(travelled)}
    assert set(have) == set(packed.inputs.values())
    back = {str(have[blob]): str(path) for path, blob in packed.inputs.items()}
    unpacked = parcels.unpack(travelled, have, tmp_path / "outputs")
    assert _replaced(unpacked, back) == params
    for path in files:
        os.unlink(path)


def _path_like(text: str) -> bool:
    return text.startswith(("/", "~", "file:", "tempfile:")) or ".." in text


def _replaced(value: Any, back: dict[str, str]) -> Any:
    if isinstance(value, str):
        return back.get(value, value)
    if isinstance(value, dict):
        return {key: _replaced(item, back) for key, item in value.items()}
    return [_replaced(item, back) for item in value] if isinstance(value, list) else value


words = st.sampled_from(
    ["$media", "$output", "$result", "path", "sha256", "size", "name", "/etc/passwd", "..", SHA, "a"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    hostile=st.dictionaries(
        words | texts,
        st.recursive(
            leaves | words,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | texts, inner, max_size=4),
            max_leaves=12,
        ),
        max_size=5,
    )
)
def test_whatever_comes_leads_nowhere(hostile: Any, tmp_path: Path) -> None:
    try:
        have = {blob: tmp_path / "cache" / blob.sha256 / blob.name for blob in parcels.blobs(hostile)}
        unpacked = parcels.unpack(hostile, have, tmp_path / "outputs")
    except (ProtocolError, JobRefused):
        return
    for text in _strings(unpacked):
        if os.path.isabs(text):
            assert os.path.realpath(text).startswith((f"{tmp_path}/cache/", f"{tmp_path}/outputs/"))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in _strings(item)]
