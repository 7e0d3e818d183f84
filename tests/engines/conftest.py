"""What the engine tests share: example speech, made-up recordings, loaded engines."""

from __future__ import annotations

import subprocess
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inference import cuda, media, weights
from inference.audio import Array

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"
RATE = media.SAMPLE_RATE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `model` need the weights, `gpu` a GPU; say why when it is not there."""
    missing = ""
    try:
        for name in ("whisper-base", "silero-vad", "speaker-encoder", "speaker-segmentation"):
            weights.find_model(name)
    except weights.WeightError as error:
        missing = f"{error} ({error.hint})"
    no_gpu = "no test of these needs one" if not any(item.get_closest_marker("gpu") for item in items) else _no_gpu()
    for item in items:
        if missing and item.get_closest_marker("model"):
            item.add_marker(pytest.mark.skip(reason=missing))
        if no_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=no_gpu))


def _no_gpu() -> str:
    """Why torch cannot use a GPU here; "" when it can."""
    try:
        return cuda.missing("cuda")
    except ImportError:
        return "torch is not installed"


@pytest.fixture(scope="session")
def speech() -> dict[str, Array]:
    """The example recordings as samples, by stem."""
    return {path.stem: media.read_audio(path) for path in EXAMPLES.glob("*.flac")}


@pytest.fixture
def write_wav(tmp_path: Path) -> Callable[[str, Array], Path]:
    """Write 16 kHz mono samples as a WAV file in the test's folder."""

    def write(name: str, samples: Array) -> Path:
        path = tmp_path / name
        with wave.open(str(path), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(RATE)
            out.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
        return path

    return write


@pytest.fixture
def ffmpeg() -> Callable[..., None]:
    """Run the project's ffmpeg with arguments."""

    def run(*arguments: object) -> None:
        command = [media.ffmpeg_binary(), "-y", "-hide_banner", "-loglevel", "error", *map(str, arguments)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    return run


@pytest.fixture(scope="session")
def engine() -> Iterator[object]:
    """The transcribe engine with its default models, loaded once."""
    from inference.transcribe import Transcribe

    loaded = Transcribe()
    loaded.load("cpu", {"cpu_threads": 1})
    loaded.warmup()
    yield loaded
    loaded.close()
