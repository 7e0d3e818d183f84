"""The echomimic backend against checkouts with the interface of the published ones."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from echomimic_checkout import build, poses

from inference import weights
from inference.base import Cancelled, EngineError, InputError, LocalContext, ResourceError
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
def clean() -> Iterator[None]:
    """The packages of the stand-ins; after the test those that were there before, which other tests import."""
    tops = ("src", "diffusers", "PIL")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in tops}
    for name in before:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in tops]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def checkout(tmp_path: Path, clean: None) -> Path:
    return build(tmp_path / "EchoMimic")


@pytest.fixture
def second(tmp_path: Path, clean: None) -> Path:
    """A checkout of EchoMimicV2."""
    return build(tmp_path / "echomimic_v2", release=2)


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


def test_installed_weights_are_taken(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checkout has none; and where there are none at all, the hint installs them."""
    place = tmp_path / "installed"
    place.mkdir()
    (place / "face-landmarker").symlink_to(weights.folder() / "face-landmarker")
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(place))
    (checkout / "pretrained_weights").rename(place / "echomimic")
    load(checkout).close()
    (place / "echomimic").rename(place / "elsewhere")
    with pytest.raises(EngineError, match=r"weights missing: .*pretrained_weights") as caught:
        load(checkout, variant="accelerated")
    assert "python -m inference.weights install echomimic-accelerated" in caught.value.hint


def test_wants_a_checkout() -> None:
    with pytest.raises(EngineError, match="`checkout` is missing"):
        Portrait().load("cpu", {"backend": "echomimic"})


def load(checkout: Path, **options: object) -> Portrait:
    engine = Portrait()
    engine.load("cpu", {"backend": "echomimic", "checkout": str(checkout), "threads": 1, **options})
    return engine


@pytest.fixture
def half_body(tmp_path: Path) -> Path:
    """The example's picture with room below it, so that an upper body would fit in."""
    picture = cv2.imread(str(IMAGE))
    wide = cv2.copyMakeBorder(picture, 200, 900, 500, 500, cv2.BORDER_REPLICATE)
    path = tmp_path / "half_body.png"
    cv2.imwrite(str(path), wide)
    return path


def test_cancel_where_torch_is_old(loaded: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release that EchoMimic pins, torch 2.2, has no torch.OutOfMemoryError; its own is that of torch.cuda."""
    import torch

    monkeypatch.delattr(torch, "OutOfMemoryError", raising=False)
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 30, "steps": 50, "keep": "crop"}
    checked = loaded.check(job)
    looks = 0

    def cancelled() -> bool:
        nonlocal looks
        looks += 1
        return looks > 8

    with pytest.raises(Cancelled), LocalContext(is_cancelled=cancelled) as context:
        loaded.run(checked, context)


def test_out_of_memory_where_torch_is_old(loaded: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delattr(torch, "OutOfMemoryError", raising=False)

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = loaded._backend._pipeline._pipe.denoising_unet.register_forward_hook(full)  # type: ignore[union-attr]
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 3, "steps": 1, "keep": "crop", "size": 128}
    with pytest.raises(ResourceError, match="ran out of memory on 3 frames"), LocalContext() as context:
        loaded.run(loaded.check(job), context)
    hook.remove()


def test_weights_that_do_not_load_where_torch_is_old(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delattr(torch, "OutOfMemoryError", raising=False)
    torch.save({"layer.weight": torch.zeros(9, 9)}, checkout / "pretrained_weights" / "reference_unet.pth")
    with pytest.raises(EngineError, match="cannot be loaded"):
        load(checkout)


def test_v2_makes_a_video(second: Path, half_body: Path, tmp_path: Path) -> None:
    engine = load(second, variant="v2")
    out = tmp_path / "out.mp4"
    job = {"image": str(half_body), "audio": str(AUDIO), "output": str(out), "frames_num": 9, "steps": 2}
    with LocalContext() as context:
        result = engine.run(engine.check(job), context)
    pipe = engine._backend._pipeline._pipe  # type: ignore[union-attr]
    assert pipe.calls == [(2, 2.5, 9)]
    # four poses, forward and back: the wrist in rows and columns of the square that the poses are drawn into
    wrists = [tuple(np.argwhere(frame.numpy() > 0.5)[0]) for frame in pipe.poses[0, 0]]
    assert wrists == [(240, 130 + 10 * at) for at in (0, 1, 2, 3, 2, 1, 0, 1, 2)]
    info = probe_video(out)
    assert (info.frames, info.width, info.height) == (9, result["width"], result["height"])
    engine.close()
    assert not [name for name in sys.modules if name == "src" or name.startswith("src.")]


def test_v2_accelerated(second: Path, half_body: Path, tmp_path: Path) -> None:
    for standard in ("denoising_unet.pth", "motion_module.pth"):
        (second / "pretrained_weights" / standard).unlink()
    engine = load(second, variant="v2_accelerated", poses=str(poses(tmp_path / "poses", 1)))
    job = {"image": str(half_body), "audio": str(AUDIO), "output": str(tmp_path / "o.mp4"), "frames_num": 2}
    with LocalContext() as context:
        engine.run(engine.check(job), context)
    assert engine._backend._pipeline._pipe.calls == [(6, 1.0, 2)]  # type: ignore[union-attr]
    engine.close()


def test_v2_shows_the_face_where_its_authors_do(half_body: Path) -> None:
    from inference import weights
    from inference.face import mesh
    from inference.face.model import FaceModel
    from inference.portrait import reference
    from inference.portrait.echomimic_backend import body
    from inference.portrait.params import Params

    model = FaceModel(weights.find("face-landmarker/face_landmarker.task", None))
    seen = reference.load(Params(image=half_body, audio=AUDIO), model)
    place = body(seen, "whole")
    oval = (seen.points[mesh.OVAL, :2] - [place.x, place.y]) / place.width
    assert oval.mean(axis=0) == pytest.approx([0.503, 0.242], abs=0.01)
    assert np.ptp(oval[:, 1]) == pytest.approx(0.216, abs=0.01)


@pytest.mark.parametrize(("keep", "hint"), [("crop", 'leave out keep="crop"'), ("whole", "shows the body")])
def test_v2_wants_more_than_a_head(second: Path, keep: str, hint: str) -> None:
    engine = load(second, variant="v2")
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 2, "keep": keep}
    with pytest.raises(InputError, match="shows little more than a head") as caught, LocalContext() as context:
        engine.run(engine.check(job), context)
    assert hint in caught.value.hint
    engine.close()


class Payload:
    """Code that runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_poses_are_numbers_and_never_code(second: Path, tmp_path: Path) -> None:
    folder = poses(tmp_path / "poses", 2, num=Payload(tmp_path / "trace"))
    with pytest.raises(EngineError, match=r"0\.npy cannot be read: it holds pathlib\.\S+, which is no number"):
        load(second, variant="v2", poses=str(folder))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"draw_pose_params": [700, 700, 40, 740, 100, 800]},
            "0.npy is drawn 700×700 at rows 40 to 740, columns 100 to",
        ),
        ({"draw_pose_params": None}, "0.npy has no draw_pose_params of six whole numbers"),
        ({"draw_pose_params": [70, 700, 40, 740, 30, 730]}, "which is no place in 768×768"),
    ],
)
def test_poses_that_do_not_fit(second: Path, tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(EngineError, match=says):
        load(second, variant="v2", poses=str(poses(tmp_path / "poses", 1, **changes)))


def test_a_pose_that_cannot_be_drawn(second: Path, half_body: Path, tmp_path: Path) -> None:
    engine = load(second, variant="v2", poses=str(poses(tmp_path / "poses", 1, hands=np.zeros((0, 21, 2)))))
    job = {"image": str(half_body), "audio": str(AUDIO), "output": str(tmp_path / "o.mp4"), "frames_num": 2}
    with pytest.raises(EngineError, match=r"0\.npy cannot be drawn: IndexError"), LocalContext() as context:
        engine.run(engine.check(job), context)
    engine.close()


def test_no_poses(second: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="holds no poses") as caught:
        load(second, variant="v2", poses=str(tmp_path / "none"))
    assert "assets/halfbody_demo/pose" in caught.value.hint
    (tmp_path / "plain").mkdir()
    np.save(tmp_path / "plain" / "0.npy", np.zeros(3))
    with pytest.raises(EngineError, match="it holds an array of float64"):
        load(second, variant="v2", poses=str(tmp_path / "plain"))


def test_the_wrong_release(checkout: Path, second: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"is a checkout of EchoMimicV2 \(variant v2 or v2_accelerated\)"):
        load(second)
    with pytest.raises(EngineError, match=r"is a checkout of EchoMimic \(variant standard or accelerated\)"):
        load(checkout, variant="v2")
    third = tmp_path / "echomimic_v3"
    (third / "src").mkdir(parents=True)
    (third / "src" / "pipeline_wan_fun_inpaint_audio.py").touch()
    with pytest.raises(EngineError, match="EchoMimicV3, which is not supported"):
        load(third, variant="v2")
    with pytest.raises(EngineError, match=r"options\.variant: .*EchoMimicV3 is not supported; standard, accel"):
        load(third, variant="v3")


def test_a_stranger_named_src(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The src of EchoMimicV2 has no __init__.py, so another package of that name goes before it."""
    (tmp_path / "elsewhere" / "src").mkdir(parents=True)
    (tmp_path / "elsewhere" / "src" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    with pytest.raises(EngineError, match=r"src was imported from .*elsewhere") as caught:
        load(second, variant="v2")
    assert "another package named src is in the way" in caught.value.hint


def test_a_class_of_another_name(second: Path) -> None:
    module = second / "src" / "models" / "unet_3d_emo.py"
    module.write_text(module.read_text("utf-8").replace("EMOUNet3DConditionModel", "Other"), "utf-8")
    with pytest.raises(EngineError, match=r"src\.models\.unet_3d_emo of .* has no EMOUNet3DConditionModel"):
        load(second, variant="v2")


def test_a_pipeline_that_fails(loaded: Portrait) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("shapes")

    hook = loaded._backend._pipeline._pipe.denoising_unet.register_forward_hook(fail)  # type: ignore[union-attr]
    job = {"image": str(IMAGE), "audio": str(AUDIO), "frames_num": 3, "steps": 1, "keep": "crop", "size": 128}
    with pytest.raises(EngineError, match=r"pipeline of .* failed: AssertionError: shapes"), LocalContext() as context:
        loaded.run(loaded.check(job), context)
    hook.remove()
