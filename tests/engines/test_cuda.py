"""GPUs: what is told of them, and what is done when one is missing or too small.

Most tests put numbers into torch's mouth, so that they run without a GPU. Those marked `gpu` ask a real one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_wav2lip import published  # noqa: E402
from test_wav2lip import weights as generator_weights  # noqa: E402

from inference import cuda, encode, weights  # noqa: E402
from inference.articulation import Articulator  # noqa: E402
from inference.audio import Array  # noqa: E402
from inference.base import EngineError, LocalContext, ResourceError  # noqa: E402
from inference.lipsync import LipSync, wav2lip  # noqa: E402
from inference.lipsync.params import INSTALLED_WAV2LIP, Options  # noqa: E402
from inference.manifest import Model, Weight  # noqa: E402
from inference.portrait import Portrait  # noqa: E402
from inference.transcribe import Transcribe  # noqa: E402

MIB = cuda.MIB
REAL = torch.cuda.is_available()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What torch shall say of two GPUs."""
    said: dict[str, Any] = {"room": (300 * MIB, 24_000 * MIB), "held": 512 * MIB, "count": 2, "there": True}
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: said["there"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: said["count"])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: said["room"])
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: said["held"])
    monkeypatch.delenv(cuda.VISIBLE, raising=False)
    return said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wav2lip") / "wav2lip_gan.pth"
    torch.save({"state_dict": generator_weights(published("96"))}, path)
    return path


# ---- is it there


def test_what_is_missing(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [cuda.missing(device) for device in ("cpu", "mps", "cuda", "cuda:0", "cuda:1")] == [""] * 5
    assert cuda.missing("cuda:2") == "torch sees 2 GPU(s)"
    monkeypatch.setenv(cuda.VISIBLE, "3")
    gpus["count"] = 1
    assert cuda.missing("cuda:1") == "torch sees 1 GPU(s) (CUDA_VISIBLE_DEVICES='3')"
    gpus["there"] = False
    assert "finds no GPU, or no driver for it (CUDA_VISIBLE_DEVICES='3')" in cuda.missing("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    if torch.version.hip is None:
        assert cuda.missing("cuda").endswith("was built without CUDA")
        with pytest.raises(EngineError, match=r"cuda cannot be used: torch .* was built without CUDA") as caught:
            cuda.require("cuda")
        assert "python -m inference.cuda" in caught.value.hint


@pytest.mark.skipif(REAL, reason="there is a GPU")
def test_engines_say_that_there_is_none(checkpoint: Path) -> None:
    for load in (
        lambda: wav2lip.Wav2LipBackend(Options(backend="wav2lip", checkpoint=checkpoint), "cuda"),
        lambda: Articulator("/no/model", device="cuda:0"),
    ):
        with pytest.raises(EngineError, match="cannot be used: torch"):
            load()


@pytest.mark.model
@pytest.mark.skipif(REAL, reason="there is a GPU")
def test_transcribe_says_that_there_is_none() -> None:
    with pytest.raises(EngineError, match=r"could not be loaded on cuda:0: .*CUDA"):
        Transcribe().load("cuda:0", {})


@pytest.mark.model
@pytest.mark.skipif(REAL, reason="there is a GPU")
def test_voices_are_told_apart_on_the_processor_where_torch_knows_no_gpu() -> None:
    from inference.transcribe.diarize import ENCODER_FILE
    from inference.transcribe.voices import SpeakerEncoder

    encoder = SpeakerEncoder(weights.find(ENCODER_FILE), "cuda:0")
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    assert encoder.encode(encoder.mels(noise), [(0, 16_000), (16_000, 32_000)]).shape == (2, 192)


def test_halves_are_for_gpus() -> None:
    assert cuda.half("cuda:1") is torch.float16
    assert cuda.half("cpu") is torch.float32


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB"
        ),
        RuntimeError("CUDA failed with error out of memory"),  # CTranslate2
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 67108864"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told_with_numbers(gpus: dict[str, Any], error: Exception) -> None:
    found = cuda.out_of_memory(error, "cuda:1", "64 faces of 96×96")
    assert str(found) == (
        "cuda:1 ran out of memory on 64 faces of 96×96: 300 of 24000 MiB are free, 512 MiB are held by this worker"
    )
    assert isinstance(found, ResourceError)
    assert found.hint == "use fewer workers on this device"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        KeyError("out of memory"),
        ValueError("out of memory"),
        ResourceError("out of memory"),
    ],
)
def test_other_errors_stay_what_they_are(gpus: dict[str, Any], error: Exception) -> None:
    assert cuda.out_of_memory(error, "cuda", "a job") is None
    with pytest.raises(type(error)) as caught, cuda.guarded("cuda", "a job"):
        raise error
    assert caught.value is error


def test_numbers_are_left_out_when_nobody_tells_them(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def ill(index: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", ill)
    gpus["held"] = 0
    with pytest.raises(ResourceError) as caught, cuda.guarded("cuda:0", "a job", "ask for less"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert (str(caught.value), caught.value.hint) == ("cuda:0 ran out of memory on a job", "ask for less")
    assert cuda.free_and_total("cuda:0") is None
    assert cuda.free_and_total("cpu") is None
    with pytest.raises(ResourceError, match=r"^cpu ran out of memory on a job$"), cuda.guarded("cpu", "a job"):
        raise MemoryError


def test_what_a_worker_holds(gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LipSync()
    assert engine.memory() == {"gpu_bytes": 0}
    engine._device = "cuda:0"
    assert engine.memory() == {"gpu_bytes": 512 * MIB}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert engine.memory() == {"gpu_bytes": 0}


class Small:
    """A network on a GPU with memory for so many faces."""

    def __init__(self, network: Any, most: int) -> None:
        self.network, self.most, self.tried = network, most, list[int]()

    def __call__(self, sound: Any, face: Any) -> Any:
        self.tried.append(len(face))
        if len(face) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.network(sound, face)


@pytest.mark.long
def test_a_smaller_batch_where_memory_is_short(checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    faces = random.integers(0, 256, (5, 96, 96, 3), dtype=np.uint8)
    sounds = random.normal(0, 1, (5, 16, 80)).astype(np.float32)
    model = wav2lip.Wav2Lip(checkpoint, "cpu", batch=5)
    wanted = np.concatenate([model.paint(faces[at : at + 1], sounds[at : at + 1]) for at in range(5)])
    model.network = small = Small(model.network, 1)  # type: ignore[assignment]
    assert np.array_equal(model.paint(faces, sounds), wanted)
    assert small.tried == [5, 2, 1, 1, 1, 1, 1]
    assert model.batch == 1  # for whatever comes later
    small.most = 0
    with pytest.raises(ResourceError, match=r"cpu ran out of memory on 1 face\(s\) of 96×96"):
        model.paint(faces, sounds)


@pytest.mark.model
@pytest.mark.long
def test_fewer_windows_at_a_time_where_memory_is_short(
    speech: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference.transcribe.params import Options
    from inference.transcribe.whisper import Whisper
    from inference.transcribe.windows import Piece, Window

    def whisper(at_once: int) -> Whisper:
        return Whisper(Options(beam_size=1, window_batch=at_once), "cpu", 1)

    sound = next(iter(speech.values()))
    windows = [
        Window(sound[at * 16_000 : (at + 4) * 16_000], [Piece(start=at, offset=0.0, length=4.0)]) for at in (0, 4, 8)
    ]
    wanted = [heard.words for heard in whisper(1).session("en", None).recognise(windows)]
    model = whisper(3)
    encode_, tried = model._decoder.model.encode, list[int]()

    def small(features: Any) -> Any:
        tried.append(len(features))
        if len(features) > 1:
            raise RuntimeError("CUDA failed with error out of memory")
        return encode_(features)

    monkeypatch.setattr(model._decoder.model, "encode", small)
    found = [heard.words for heard in model.session("en", None).recognise(windows)]
    assert [[word.text for word in words] for words in found] == [[word.text for word in words] for words in wanted]
    assert tried[0] == 3
    assert set(tried[1:]) == {1}  # and so for the rest of the recording


# ---- the checkpoint that was installed


def test_wav2lip_takes_the_installed_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inference import manifest

    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path))
    with pytest.raises(EngineError, match="needs a checkpoint: weights missing") as caught:
        wav2lip.Wav2LipBackend(Options(backend="wav2lip"), "cpu")
    assert "python -m inference.weights install wav2lip" in caught.value.hint
    file = Weight(INSTALLED_WAV2LIP, checkpoint.stat().st_size, weights.digest(checkpoint), "ours")
    monkeypatch.setattr(manifest, "MODELS", (Model("wav2lip", "test", False, (file,)),))
    weights.install(["wav2lip"], checkpoint.parent)
    assert wav2lip.Wav2LipBackend(Options(backend="wav2lip"), "cpu").files() == [tmp_path / INSTALLED_WAV2LIP]


# ---- the encoder of a GPU

FFMPEG = """#!/bin/sh
case "$*" in
  *lavfi*) {trial} ;;
  *) cat > /dev/null; echo '{words}' >&2; exit 1 ;;
esac
"""


@pytest.fixture
def ffmpeg(tmp_path: Path) -> Callable[[str, str], str]:
    """A program that answers as ffmpeg does on a machine with a GPU: to the trial, and to the real work."""

    def make(trial: str, words: str = "") -> str:
        path = tmp_path / f"ffmpeg{len(list(tmp_path.iterdir()))}"
        path.write_text(FFMPEG.format(trial=trial, words=words))
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for ffmpeg")
def test_nvenc_is_tried_before_it_is_used(ffmpeg: Callable[..., str]) -> None:
    works = encode.Encoding(192, 108, 25, encoder="nvenc", ffmpeg=ffmpeg("exit 0"))
    assert works.codec() == ("h264_nvenc", "")
    assert works.options("h264_nvenc") == {
        "vcodec": "h264_nvenc",
        "cq": 18,
        "preset": "p4",
        "rc": "vbr",
        "video_bitrate": 0,
    }
    fails = encode.Encoding(192, 108, 25, encoder="nvenc", ffmpeg=ffmpeg("echo 'Cannot load libcuda.so.1' >&2; exit 1"))
    assert fails.codec() == ("libx264", "nvenc: Cannot load libcuda.so.1")


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for ffmpeg")
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("OpenEncodeSessionEx failed: out of memory (10): (no details)", ResourceError),
        ("OpenEncodeSessionEx failed: incompatible client key (21): (no details)", ResourceError),
        ("Unknown encoder", EngineError),
    ],
)
def test_a_gpu_that_takes_no_further_video(
    ffmpeg: Callable[..., str], tmp_path: Path, words: str, kind: type[EngineError]
) -> None:
    encoding = encode.Encoding(192, 108, 25, encoder="nvenc", ffmpeg=ffmpeg("exit 0", words))
    with pytest.raises(EngineError) as caught, encode.VideoWriter(tmp_path / "out.mp4", encoding) as out:
        out.write(np.zeros((108, 192, 3), np.uint8))
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert ("fewer workers on this GPU" in caught.value.hint) == (kind is ResourceError)


# ---- the doctor


def test_the_doctor_asks_torch_and_ffmpeg(
    gpus: dict[str, Any], ffmpeg: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path))
    options = {
        "backend": "wav2lip",
        "encoder": "nvenc",
        "ffmpeg": ffmpeg("echo 'No capable devices found' >&2; exit 1"),
    }
    found = {each.check: each for each in LipSync.diagnose("cuda:1", options)}
    assert found["torch"].message == "cuda:1, 300 of 24000 MiB free"
    assert found["encoder nvenc"].message == "nvenc: No capable devices found"
    assert not found["encoder nvenc"].ok
    assert not found["checkpoint"].ok
    assert "install wav2lip" in found["checkpoint"].hint
    gpus["there"] = False
    (torchs,) = [each for each in Portrait.diagnose("cuda", {}) if each.check == "torch"]
    assert (torchs.ok, "finds no GPU" in torchs.message) == (False, True)
    assert not [each for each in Portrait.diagnose("cpu", {}) if each.check in ("torch", "encoder nvenc")]


# ---- the command


def test_the_command_tells_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    code = cuda.main([])
    lines = capsys.readouterr().out
    assert f"torch: {torch.__version__}, built for" in lines
    assert "nvenc" in lines
    assert cuda.main(["--json"]) == code == (0 if REAL else 1)
    found = json.loads(capsys.readouterr().out)
    assert bool(found["devices"]) == REAL
    assert found["torch"] == torch.__version__


def test_the_command_with_gpus(
    gpus: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class About:
        name, major, minor, total_memory = "A GPU", 8, 9, 24_000 * MIB

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: About)
    monkeypatch.setenv(cuda.VISIBLE, "4,5")
    assert cuda.main([]) == 0
    out = capsys.readouterr().out
    assert "CUDA_VISIBLE_DEVICES: '4,5'" in out
    assert "  cuda:1: A GPU, compute capability 8.9, 300 of 24000 MiB free" in out


# ---- a real one


@pytest.mark.gpu
def test_real_memory() -> None:
    room = cuda.free_and_total("cuda:0")
    assert room is not None
    assert 0 < room[0] <= room[1]
    block = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda:0")
    assert cuda.held("cuda:0") >= 64 * MIB
    del block
    cuda.release("cuda:0")
    told = r"cuda:0 ran out of memory on too much: \d+ of \d+ MiB are free"
    with pytest.raises(ResourceError, match=told), cuda.guarded("cuda:0", "too much"):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda:0")


@pytest.mark.gpu
def test_real_wav2lip_paints_as_on_the_processor(checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    faces = random.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    sounds = random.normal(0, 1, (4, 16, 80)).astype(np.float32)
    cpu, gpu = (wav2lip.Wav2Lip(checkpoint, device).paint(faces, sounds) for device in ("cpu", "cuda:0"))
    assert np.abs(cpu.astype(int) - gpu).max() <= 2


@pytest.mark.gpu
@pytest.mark.model
def test_real_mouth_as_on_the_processor(speech: dict[str, Array]) -> None:
    sound = next(iter(speech.values()))[:160_000]
    folder = weights.find_model("whisper-base")
    cpu, gpu = (Articulator(folder, device=device).curve(sound) for device in ("cpu", "cuda:0"))
    for name, channel in cpu.channels.items():
        assert np.abs(channel - gpu.channels[name]).max() < 0.05, name


@pytest.mark.gpu
@pytest.mark.model
def test_real_transcript(speech: dict[str, Array], write_wav: Callable[[str, Array], Path]) -> None:
    engine = Transcribe()
    engine.load("cuda:0", {})
    path = write_wav("speech.wav", next(iter(speech.values()))[:160_000])
    with LocalContext() as context:
        found = engine.run(engine.check({"audio": str(path)}), context)
    engine.close()
    assert len(found["text"].split()) > 5
