"""Temporary files: uploads as they are streamed, refused, cut short, too slow, and fetched in pieces."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from pathlib import Path

import pytest
import requests
from scenarios.world import wait_until

from gateways.gateway import PNG, Gateway, wav
from pool.gateways.kinds import kind_of
from pool.gateways.tempfiles import Tempfiles, UnknownFile


def upload(gateway: Gateway, name: str, content: bytes) -> requests.Response:
    return requests.post(f"{gateway.base}/api/tempfile/upload", files={"file": (name, content)}, timeout=60)


def folder(gateway: Gateway) -> list[str]:
    return sorted(os.listdir(gateway.media / ".tempfiles"))


def test_up_and_down_as_in_the_contract(gateway: Gateway) -> None:
    found = upload(gateway, "face.jpg", PNG).json()
    file_id = found["file_id"]
    assert found == {"success": True, "file_id": file_id, "file_type": "image", "original_name": "face.jpg"}
    assert str(uuid.UUID(file_id)) == file_id
    answer = gateway.get(f"/api/tempfile/download/{file_id}")
    assert answer.content == PNG
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_ranges(gateway: Gateway) -> None:
    sound = wav(2.0)
    path = f"/api/tempfile/download/{upload(gateway, 'a.wav', sound).json()['file_id']}"
    part = gateway.get(path, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, sound[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(sound)}"
    assert gateway.get(path, headers={"Range": "bytes=-5"}).content == sound[-5:]
    assert gateway.get(path, headers={"Range": f"bytes={len(sound)}-"}).status_code == 416
    whole = gateway.call("HEAD", path)
    assert (int(whole.headers["Content-Length"]), whole.content) == (len(sound), b"")


def test_a_file_longer_than_memory_blocks_comes_back_whole(gateway: Gateway) -> None:
    content = wav() + os.urandom(3 << 20)
    file_id = upload(gateway, "long.wav", content).json()["file_id"]
    assert gateway.get(f"/api/tempfile/download/{file_id}").content == content


def test_an_upload_is_used_in_a_job_by_its_id(gateway: Gateway) -> None:
    sound, face = (upload(gateway, *file).json()["file_id"] for file in (("a.wav", wav()), ("b.png", PNG)))
    body = {
        "audio_path": f"tempfile:{sound}",
        "video_path": f"tempfile:{face}",
        "save_path": f"{gateway.media}/up.mp4",
    }
    assert gateway.post("/human/generate", json=body).status_code == 200
    assert (gateway.media / "up.mp4").read_bytes() == b"a video of " + PNG[:10]


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("page.png", b"<html><script>", 415),
        ("run.mp4", b"#!/bin/sh\n" * 100, 415),
        ("empty.wav", b"", 400),
        ("large.wav", wav() + bytes(5 << 20), 413),
    ],
)
def test_what_is_refused_leaves_nothing(gateway: Gateway, name: str, content: bytes, status: int) -> None:
    before = folder(gateway)
    answer = upload(gateway, name, content)
    assert (answer.status_code, answer.json()["success"]) == (status, False)
    assert answer.json()["message"]
    assert folder(gateway) == before


def test_names_are_only_names(gateway: Gateway) -> None:
    for name, shown in (("../../etc/x.png", "x.png"), ("..\\..\\x.png", "x.png"), ("a/b/ü.png", "ü.png")):
        found = upload(gateway, name, PNG).json()
        assert found["original_name"] == shown
        assert sorted(path for path in folder(gateway) if path.startswith(found["file_id"])) == [
            f"{found['file_id']}.json",
            f"{found['file_id']}.png",
        ]


BOUNDARY = "xyz"
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'.encode()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", f"multipart/form-data; boundary={BOUNDARY}", 400),
        (b"", "multipart/form-data", 415),
        (b"garbage", f"multipart/form-data; boundary={BOUNDARY}", 400),
        (PART + PNG, f"multipart/form-data; boundary={BOUNDARY}", 400),  # no last boundary
        (
            b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--xyz--\r\n',
            f"multipart/form-data; boundary={BOUNDARY}",
            400,
        ),
        (PART + PNG + b"\r\n" + PART + PNG + b"\r\n--xyz--\r\n", f"multipart/form-data; boundary={BOUNDARY}", 400),
        (
            PART.replace(b'"file"', b'"other"') + PNG + b"\r\n--xyz--\r\n",
            f"multipart/form-data; boundary={BOUNDARY}",
            400,
        ),
        (b"--xyz\r\nX: y\r\n\r\n1\r\n--xyz--\r\n", f"multipart/form-data; boundary={BOUNDARY}", 400),
        (PART + PNG, "multipart/form-data; boundary=" + "b" * 500, 400),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 100,
            f"multipart/form-data; boundary={BOUNDARY}",
            400,
        ),
        (
            b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"1" * 100_000,
            f"multipart/form-data; boundary={BOUNDARY}",
            413,
        ),
    ],
    ids=range(12),
)
def test_broken_forms(gateway: Gateway, body: bytes, kind: str, status: int) -> None:
    before = folder(gateway)
    answer = gateway.post("/api/tempfile/upload", data=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
    assert folder(gateway) == before


def test_a_slow_upload_is_ended_and_one_cut_short_leaves_nothing(gateway: Gateway) -> None:
    before = folder(gateway)

    host, port = gateway.base.removeprefix("http://").split(":")
    head = f"POST /api/tempfile/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3000000\r\n".encode()
    head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), timeout=40) as client:
        client.sendall(head + PART + PNG)
        client.settimeout(0.1)
        answer = b""
        for _ in range(300):
            try:
                answer = client.recv(4096)
                break
            except TimeoutError:
                client.sendall(b"\0")  # a byte now and then
        assert answer.startswith(b"HTTP/1.1 408 ")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head + PART + PNG + bytes(2 << 20))
        wait_until(lambda: any(name.endswith(".part") for name in folder(gateway)), "the file on its way in")
    wait_until(lambda: folder(gateway) == before, "nothing half-written")


def test_unknown_and_hostile_ids(gateway: Gateway) -> None:
    for file_id in (str(uuid.uuid4()), "..%2f..%2fetc%2fpasswd", "%00", "x" * 5000, "..", "%2e%2e%2fconfig.json"):
        answer = gateway.get(f"/api/tempfile/download/{file_id}")
        assert answer.status_code in (404, 405), file_id
        assert answer.json()["message"]


def test_many_uploads_at_once_do_not_meet(gateway: Gateway) -> None:
    contents = [wav() + os.urandom(200_000) for _ in range(12)]
    found: dict[int, bytes] = {}

    def client(number: int) -> None:
        file_id = upload(gateway, f"{number}.wav", contents[number]).json()["file_id"]
        found[number] = requests.get(f"{gateway.base}/api/tempfile/download/{file_id}", timeout=60).content

    clients = [threading.Thread(target=client, args=(number,)) for number in range(len(contents))]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert [found[number] for number in range(len(contents))] == contents


# ---- the store, without HTTP


def test_a_file_lives_as_long_as_was_said(tmp_path: Path) -> None:
    now = [10_000_000_000_000_000]
    store = Tempfiles(tmp_path, lambda: now[0], life_s=24 * 3600)
    Path(part := store.part()).write_bytes(PNG)
    about = store.keep(part, "image", "face.png")
    now[0] += int(23.9 * 3600e6)
    assert store.sweep() == 0
    assert store.path(about.file_id).read_bytes() == PNG
    now[0] += int(0.2 * 3600e6)
    with pytest.raises(UnknownFile):
        store.find(about.file_id)
    remembering = Tempfiles(tmp_path, lambda: now[0], life_s=24 * 3600, names_s=3600)
    assert remembering.sweep() == 1  # the content; what jobs made of it is still called after it
    assert os.listdir(tmp_path) == [f"{about.file_id}.json"]
    assert remembering.name_of(f"{tmp_path}/{about.file_id}.png") == "face.png"
    assert remembering.name_of(f"{tmp_path.parent}/{about.file_id}.png") == ""
    assert remembering.sweep() == 0
    assert store.sweep() == 1
    assert os.listdir(tmp_path) == []


def test_what_the_dead_left_is_swept_and_what_the_living_write_is_not(tmp_path: Path) -> None:
    store = Tempfiles(tmp_path, lambda: time.time_ns() // 1000, life_s=3600)
    mine = Path(store.part())
    mine.write_bytes(b"x")
    (tmp_path / mine.name.replace(str(os.getpid()), "4194999", 1)).write_bytes(b"x")
    (tmp_path / "foreign.txt").write_bytes(b"x")
    lost = tmp_path / f"{uuid.uuid4()}.wav"  # its writer died before the note
    lost.write_bytes(b"x")
    os.utime(lost, (0, 0))
    assert store.sweep() == 2
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, "foreign.txt"])


def test_a_damaged_note_is_no_file(tmp_path: Path) -> None:
    store = Tempfiles(tmp_path, lambda: 0, life_s=1)
    file_id = str(uuid.uuid4())
    for note in (b"", b"[]", b"{}", b'{"file_id": "other"}', b"\xff"):
        (tmp_path / f"{file_id}.json").write_bytes(note)
        with pytest.raises(UnknownFile):
            store.find(file_id)


def test_kinds_are_told_by_content_and_containers_by_name() -> None:
    mp4 = b"\0\0\0\x20ftypisom" + bytes(32)
    assert [kind_of(mp4, name) for name in ("a.mp4", "a.m4a", "a")] == ["video", "audio", "video"]
    assert kind_of(b"\0\0\0\x20ftypM4A " + bytes(32), "x.bin") == "audio"
    assert kind_of(b"\x1aE\xdf\xa3" + bytes(32), "a.weba") == "audio"
    assert kind_of(b"ID3\x04" + bytes(32), "a.mp4") == "video"  # the name decides between the two
    assert kind_of(PNG, "a.mp4") == "image"
    assert kind_of(b"RIFF\0\0\0\0WEBP", "a") == "image"
    assert kind_of(b"\xff\xfb\x90\x00" + bytes(32), "a.mp3") == "audio"
    assert [kind_of(head, "a.mp4") for head in (b"", b"<svg", b"PK\x03\x04", b"MZ", b"\x7fELF", b"%PDF")] == [None] * 6


def test_a_file_that_the_client_has_is_not_sent_again(gateway: Gateway) -> None:
    answer = gateway.post("/api/tempfile/upload", files={"file": ("face.png", PNG)})
    path = f"/api/tempfile/download/{answer.json()['file_id']}"
    tag = gateway.get(path).headers["ETag"]
    for given in (tag, f'W/{tag}, "x"', "*"):
        again = gateway.get(path, headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert gateway.get(path, headers={"If-None-Match": '"x"'}).content == PNG


def test_heads(gateway: Gateway) -> None:
    for path in ("/health", "/docs", "/", "/static/main.js"):
        head, whole = gateway.call("HEAD", path), gateway.get(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")


def test_the_console_that_the_browser_has_is_not_sent_again(gateway: Gateway) -> None:
    for path in ("/", "/static/main.js", "/static/style.css"):
        whole = gateway.get(path)
        assert whole.headers["Cache-Control"] == "no-cache"
        again = gateway.get(path, headers={"If-None-Match": whole.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b""), path
