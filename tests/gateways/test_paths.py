"""What a client on another machine reads has no path of this one; what it saves is called after what it sent."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from scenarios.world import passing

from gateways.gateway import PNG, Gateway, configure, wav
from pool.gateways.downloads import disposition
from pool.gateways.paths import PathFilter

TOKEN = "correct-horse-battery-staple"
ID = "0b0e1c52-3f44-4c0e-9d0a-6f4b3c2a1d00"
FILTER = PathFilter(
    (Path("/srv/my media"), Path("/mnt/share")), Path("/srv/my media/.tempfiles"), Path("/var/spool/p"), Path("/opt/p")
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("audio: /srv/my media/a/talk.wav is silent", "audio: a/talk.wav is silent"),
        ("'/srv/my media/a b.wav' is no audio", "'a b.wav' is no audio"),
        (f"/srv/my media/.tempfiles/{ID}.wav: no sound", f"tempfile:{ID}: no sound"),
        ("/mnt/share/x.mp4 and /mnt/shared/x.mp4", "/mnt/share/x.mp4 and …/x.mp4"),
        ('  File "/usr/lib/python3/site.py", line 3', '  File "…/site.py", line 3'),
        ("(see /var/spool/p/logs/fake-0.log)", "(see …/fake-0.log)"),
        ("'/home/me/My Model.onnx' is damaged", "'…/My Model.onnx' is damaged"),
        ("path=/etc/passwd;file:///etc/shadow", "path=…/passwd;…/shadow"),
        ("PATH=/usr/bin:/usr/local/bin", "PATH=…/bin"),
        ("it is outside the allowed folders (/srv/my media, /mnt/share)", None),
        ("GET /jobs/x/result or https://host.example/a/b, 3/4 of text/plain, ../x, </b>, #/$defs/A", ""),
        ("and/or /", ""),
    ],
)
def test_texts(text: str, shown: str | None) -> None:
    found = FILTER.text(text)
    if shown is None:
        assert "/srv" not in found
    else:
        assert found == (shown or text)
    assert FILTER.text(text, said=text) == text


def test_what_an_engine_returned_keeps_what_only_looks_like_a_path() -> None:
    value = {"url": "/var/spool/p/x", "route": "/no-such-folder/list", "n": [1, None, "/usr/lib/x.so"], "/usr/bin": 1}
    document = {"value": value, "message": "/no-such-folder/list", "url": "/jobs/x/files/y", "note": "of /usr/x/y"}
    assert FILTER.document(document) == {
        "value": {"url": "…/x", "route": "/no-such-folder/list", "n": [1, None, "…/x.so"], "…/bin": 1},
        "message": "…/list",
        "url": "/jobs/x/files/y",
        "note": "of /usr/x/y",
    }
    assert FILTER.document({"text": "read /no-such-folder/list"}) == {"text": "read /no-such-folder/list"}


# ---- a gateway that others reach


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for others than this machine."""
    options, env = ("--no-start", "--host", "0.0.0.0"), {"FILEPOOL_HTTP_TOKEN": TOKEN}
    with passing(tmp_path_factory.mktemp("remote")) as world, Gateway(world, *options, env=env) as gate:
        configure(world, "fake", "lipsync")
        world.serve(ready=3)
        gate.start()
        gate.base = gate.base.replace("0.0.0.0", "127.0.0.1")
        gate.session.headers["Authorization"] = f"Bearer {TOKEN}"
        yield gate


_ADDRESS = re.compile(r"/(jobs|api|v1|human)/")
_ABSOLUTE = re.compile(r"(?<![\w/.:…<])/[\w.-]+/[^\s\"']*")


def clean(gate: Gateway, text: str, *own: str) -> str:
    """The text, when it has no path of the gateway's machine but those that the client has sent itself."""
    text = json.dumps(json.loads(text), ensure_ascii=False) if text.startswith(("{", "[")) else text
    for path in own:
        text = text.replace(path, "")
    assert str(gate.world.folder) not in text
    assert not [found for found in _ABSOLUTE.findall(text) if not _ADDRESS.match(found)], text
    return text


def upload(gate: Gateway, name: str, content: bytes) -> str:
    return str(gate.post("/api/tempfile/upload", files={"file": (name, content)}).json()["file_id"])


def test_no_answer_has_a_path_of_the_server(remote: Gateway, tmp_path: Path) -> None:
    secret = "/usr/lib/secret model.bin"
    failed = remote.submit(do="raise", value=f"'{secret}' and {remote.world.spool}/x are damaged")
    done = remote.submit(do="write", value={"model": "see /usr/lib/model.bin"})
    inside = remote.submit(do="write", output=f"{remote.media}/named.bin")
    died = remote.submit(do="segfault")
    for job_id in (failed, done, inside, died):
        remote.result(job_id)
        for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/result", f"/jobs/{job_id}/events"):
            clean(remote, remote.get(path).text)
    outcome = remote.get(f"/jobs/{done}/result").json()
    assert outcome["value"]["value"] == {"model": "see …/model.bin"}
    assert outcome["files"][0]["path"] == "…/written.bin"
    assert remote.get(outcome["files"][0]["url"]).content == b"x" * 11
    assert remote.get(f"/jobs/{inside}/result").json()["files"][0]["path"] == "named.bin"
    assert "'…/secret model.bin' and …/x are damaged" in remote.get(f"/jobs/{failed}").json()["message"]
    for path in ("/status", "/engines", "/jobs", "/jobs?after=", "/metrics", "/health", "/v1/models"):
        answer = remote.get(path)
        assert answer.status_code == 200, path
        clean(remote, answer.text)
    with remote.get(f"/live?list=state%3Dfailed&job={failed}", stream=True) as live:
        seen = set()
        for line in live.iter_lines(decode_unicode=True):
            seen.add(line) if line.startswith("event: ") else clean(remote, line.removeprefix("data: "))
            if seen >= {"event: status", "event: engines", "event: list", "event: job"}:
                break
    sound = upload(remote, "a.wav", b"RIFF\0\0\0\0WAVEbroken")
    own = "/etc/passwd"
    for method, path, body in (
        ("POST", "/jobs/fake", {"params": {"audio": own}}),
        ("POST", "/jobs/fake", {"params": {"audio": "missing.wav"}}),
        ("POST", "/jobs/lipsync", {"params": {"audio": f"tempfile:{sound}", "video": 3}}),
        ("POST", "/human/generate", {"audio_path": own, "video_path": own, "save_path": own}),
        ("POST", f"/jobs/{done}/rerun", {"params": {"output": "no/such/folder/x"}}),
    ):
        answer = remote.call(method, path, json=body)
        clean(remote, answer.text, own)
        if answer.status_code == 202:
            clean(remote, remote.result(answer.json()["id"]).text, own)
    assert own in remote.post("/jobs/fake", json={"params": {"audio": own}}).json()["error"]["message"]


def test_a_proxy_makes_clients_remote_and_loopback_sees_all(gateway: Gateway) -> None:
    job_id = gateway.submit(do="write")
    path = gateway.result(job_id).json()["files"][0]["path"]
    assert path == f"{gateway.world.spool}/out/{job_id}/written.bin"
    behind = gateway.get(f"/jobs/{job_id}/result", headers={"X-Forwarded-For": "192.0.2.1"}).json()
    assert behind["files"][0]["path"] == "…/written.bin"


def test_a_video_is_made_by_uploads_and_saved_under_their_name(remote: Gateway, tmp_path: Path) -> None:
    sound, face = upload(remote, "Größe 讲话.wav", wav()), upload(remote, "face.png", PNG)
    answer = remote.post("/jobs/lipsync", json={"params": {"audio": f"tempfile:{sound}", "video": f"tempfile:{face}"}})
    found = remote.result(answer.json()["id"]).json()
    file = found["files"][0]
    assert (file["name"], file["save_as"]) == ("output.mp4", "Größe 讲话.mp4")
    header = remote.get(file["url"]).headers["Content-Disposition"]
    assert header.startswith('inline; filename="Groe.mp4"; ')
    assert unquote(header.partition("filename*=UTF-8''")[2]) == "Größe 讲话.mp4"
    command = ["curl", "-sSOJ", "-H", f"Authorization: Bearer {TOKEN}", remote.base + file["url"]]
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=60).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["Groe.mp4"]  # curl reads no filename*


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("talk.mp4", 'inline; filename="talk.mp4"'),
        ("two words.mp4", 'inline; filename="two words.mp4"'),
        ('a"b\\c%41.mp4', "inline; filename=\"a_b_c_41.mp4\"; filename*=UTF-8''a%22b%5Cc%2541.mp4"),
        ("讲话.mp4", "inline; filename=\"download.mp4\"; filename*=UTF-8''%E8%AE%B2%E8%AF%9D.mp4"),
    ],
)
def test_a_name_in_a_header(name: str, header: str) -> None:
    assert disposition("inline", name) == header
