"""The echomimic backend against a checkout with the interface of the published one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from echomimic_checkout import build

from inference.base import Cancelled, EngineError, InputError, LocalContext
from inference.portrait import Portrait
from inference.video import probe_video, read_frames

pytestmark = [
    pytest.mark.model,
    pytest.mark.long,
    # the checkout leaves its configuration files open, as the original does
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
pytest.importorskip("omegaconf")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGE, AUDIO = EXAMPLES / "portrait" / "mona_lisa.jpg", EXAMPLES / "speech" / "reading.flac"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    yield build(tmp_path / "EchoMimic")
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("src", "diffusers", "PIL"):
            del sys.modules[name]


@pytest.fixture
def loaded(checkout: Path) -> Iterator[Portrait]:
    engine = Portrait()
    engine.load("cpu", {"backend": "echomimic", "checkout": str(checkout), "threads": 1})
    yield engine
    engine.close()
    assert str(checkout) not in sys.path


def test_makes_a_video(loaded: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    job = {"image": str(IMAGE), "audio": str(AUDIO), "output": str(out), "frames_num": 20, "keep": "crop", "size": 256}
    with LocalContext() as context:
        result = loaded.run(loaded.check({**job, "steps": 3, "cfg": 2.0, "seed": 5}), context)
        updates = context.updates
    assert result["backend"] == "echomimic"
    assert result["warnings"] == ["audio of 7.10 s cut to 0.80 s (20 frames)"]
    assert loaded._backend._pipeline._pipe.calls == [(3, 2.0, 20)]  # type: ignore[union-attr]
    percents = [percent for status, percent, _ in updates if status == "inference"]
    assert percents == sorted(percents)
    assert len(set(percents)) > 10
    info = probe_video(out)
    assert (info.width, info.height, info.frames, info.has_audio) == (256, 256, 20, True)


def test_whole_picture_gets_the_square_back(loaded: Portrait, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    job = {"image": str(IMAGE), "audio": str(AUDIO), "output": str(out), "frames_num": 3, "steps": 1, "crf": 4}
    with LocalContext() as context:
        loaded.run(loaded.check(job), context)
    picture = cv2.imread(str(IMAGE)).astype(int)
    for frame in read_frames(out):
        apart = np.abs(frame.astype(int) - picture).mean(axis=2)
        assert apart[700:].mean() < 3  # far below the head: the picture's own
        assert apart.mean() < 8


def test_defaults_and_seed(loaded: Portrait, tmp_path: Path) -> None:
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 2, "keep": "crop", "size": 128}
    made = []
    for seed in (1, 1, 2):
        out = tmp_path / f"{len(made)}.mp4"
        with LocalContext() as context:
            loaded.run(loaded.check({**job, "output": str(out), "seed": seed}), context)
        made.append(out.read_bytes())
    assert made[0] == made[1] != made[2]
    assert loaded._backend._pipeline._pipe.calls[0][:2] == (25, 2.5)  # type: ignore[union-attr]


def test_the_accelerated_variant_has_defaults_and_weights_of_its_own(checkout: Path, tmp_path: Path) -> None:
    for standard in ("denoising_unet.pth", "motion_module.pth"):
        (checkout / "pretrained_weights" / standard).unlink()
    engine = Portrait()
    engine.load("cpu", {"backend": "echomimic", "checkout": str(checkout), "variant": "accelerated"})
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 2, "keep": "crop", "size": 128}
    with LocalContext() as context:
        engine.run(engine.check({**job, "output": str(tmp_path / "out.mp4")}), context)
    assert engine._backend._pipeline._pipe.calls == [(6, 1.0, 2)]  # type: ignore[union-attr]
    engine.close()


def test_the_standard_variant_needs_guidance(loaded: Portrait) -> None:
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 2, "keep": "crop", "size": 128, "cfg": 1}
    with pytest.raises(InputError, match="cfg: 1 is too little"), LocalContext() as context:
        loaded.run(loaded.check(job), context)


def test_cancel_reaches_into_the_denoiser(loaded: Portrait) -> None:
    passes = 0

    def count(*_: object) -> None:
        nonlocal passes
        passes += 1

    hook = loaded._backend._pipeline._pipe.denoising_unet.register_forward_hook(count)  # type: ignore[union-attr]
    context = LocalContext(is_cancelled=lambda: passes >= 4)
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 30, "steps": 50, "keep": "crop"}
    with pytest.raises(Cancelled), context:
        loaded.run(loaded.check(job), context)
    hook.remove()
    assert passes == 4


def test_too_long(loaded: Portrait) -> None:
    with pytest.raises(InputError, match="1300 frames are more than the 1200"):
        loaded.check({"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 1300})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("pretrained_weights/denoising_unet.pth", "weights missing: .*denoising_unet.pth"),
        ("src/models/unet_3d_echo.py", "the checkout lacks .*unet_3d_echo.py"),
        ("diffusers/__init__.py", "needs the package 'diffusers'"),
    ],
)
def test_says_what_is_missing(checkout: Path, broken: str, says: str) -> None:
    (checkout / broken).unlink()
    if broken.startswith("diffusers"):
        if importlib.util.find_spec("diffusers"):
            pytest.skip("the real diffusers is installed")
        (checkout / "diffusers").rmdir()
    with pytest.raises(EngineError, match=says) as caught:
        Portrait().load("cpu", {"backend": "echomimic", "checkout": str(checkout)})
    assert caught.value.hint
    assert str(checkout) not in sys.path


def test_says_that_weights_do_not_fit(checkout: Path) -> None:
    import torch

    torch.save({"layer.weight": torch.zeros(9, 9)}, checkout / "pretrained_weights" / "reference_unet.pth")
    with pytest.raises(EngineError, match="cannot be loaded"):
        Portrait().load("cpu", {"backend": "echomimic", "checkout": str(checkout)})


def test_wants_a_checkout() -> None:
    with pytest.raises(EngineError, match="`checkout` is missing"):
        Portrait().load("cpu", {"backend": "echomimic"})
